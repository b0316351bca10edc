//! Tokens and headers that are not in the arguments.

use super::{User, assert_output, output_of};
use crate::support::scripted::{Request, Scripted};

/// Runs `touch` with these variables, and returns the request.
fn touch(user: &User, options: &[&str], variables: &[(&str, &str)]) -> Request {
    let server = Scripted::always(200, "");
    let url = server.url();
    let args = [&["--base-url", &url], options, &["touch", "a"]].concat();
    let mut command = user.command(&args);
    let out = command.envs(variables.iter().copied()).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    server.requests().pop().unwrap()
}

#[test]
fn token_comes_from_the_environment_or_a_file() {
    let user = User::new();
    std::fs::write(user.path("token"), " from-file\n\n").unwrap();
    let variable = [("NOXRUNNER_TOKEN", "from-variable\n")];
    let request = touch(&user, &[], &variable);
    assert_eq!(
        request.header("authorization"),
        Some("Bearer from-variable")
    );
    let request = touch(&user, &["--token-file", "token"], &variable);
    assert_eq!(request.header("authorization"), Some("Bearer from-file"));
}

#[test]
fn headers_come_from_the_environment_and_files() {
    let user = User::new();
    let file = "# for the gateway\n\nX-Two: file\r\nx-three: file \n";
    std::fs::write(user.path("headers"), file).unwrap();
    let lines = "X-One: variable\nX-Two: variable\nX-Three: variable\n";
    let options = ["--header-file", "headers", "--header", "X-Three: argument"];
    let request = touch(&user, &options, &[("NOXRUNNER_HEADERS", lines)]);
    let values = |name: &str| {
        let headers = request.headers.iter().filter(|header| header.0 == name);
        headers.map(|header| header.1.clone()).collect::<Vec<_>>()
    };
    assert_eq!(values("x-one"), ["variable"]);
    assert_eq!(values("x-two"), ["file"]);
    assert_eq!(values("x-three"), ["argument"]);
}

#[test]
fn invalid_credentials_are_refused_without_showing_them() {
    let user = User::new();
    std::fs::write(user.path("bad"), "X-Key: a\ns3cret\n").unwrap();
    std::fs::write(user.path("empty"), "\n").unwrap();
    for (options, text) in [
        (
            ["--header-file", "bad"],
            "line 2 of bad must be of the form",
        ),
        (["--header-file", "gone"], "cannot read --header-file gone"),
        (["--token-file", "empty"], "the token is empty"),
        (["--token-file", "gone"], "cannot read --token-file gone"),
    ] {
        let ran = user.run(&[&options[..], &["touch", "a"]].concat());
        assert_output(&ran, 1, "", text);
        assert!(!ran.stderr.contains("s3cret"), "{}", ran.stderr);
    }
    let mut command = user.command(&["touch", "a"]);
    let out = command.env("NOXRUNNER_HEADERS", "s3cret").output().unwrap();
    let ran = output_of(out);
    assert_output(&ran, 1, "", "line 1 of NOXRUNNER_HEADERS");
    assert!(!ran.stderr.contains("s3cret"), "{}", ran.stderr);
}

#[test]
fn refused_request_names_both_kinds_of_credentials() {
    let server = Scripted::always(401, "");
    let ran = User::new().run(&["--base-url", &server.url(), "touch", "a"]);
    for text in [
        "token()",
        "header()",
        "NOXRUNNER_TOKEN",
        "--token-file",
        "NOXRUNNER_HEADERS",
        "--header-file",
    ] {
        assert_output(&ran, 1, "", text);
    }
}

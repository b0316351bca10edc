//! Output that is printed while the command runs, and standard input.

use std::io::{BufRead, BufReader, Read};

use super::*;

/// Waits for the file that [`go`] creates.
const WAIT_FOR_GO: &str = "until rm go 2>/dev/null; do sleep 0.02; done";

fn go(user: &User) {
    assert_output(&user.local(&["exec", "a", "touch", "go"]), 0, "", "");
}

#[test]
fn exec_prints_output_as_it_comes() {
    let user = User::new();
    user.local(&["create", "a"]);
    let line =
        format!("echo one; {WAIT_FOR_GO}; echo two >&2; {WAIT_FOR_GO}; printf three; exit 3");
    let mut command = user.command(&["--local", "exec", "a", "sh", "-c", &line]);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    // The command continues only after each part was printed.
    stdout.read_line(&mut text).unwrap();
    go(&user);
    stderr.read_line(&mut text).unwrap();
    go(&user);
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\ntwo\nthree");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(stderr.lines().count(), 0);
}

#[test]
fn long_output_is_printed_completely() {
    let user = User::new();
    let line = "head -c 3000000 /dev/zero; exit 4";
    let ran = user.local(&["run", "sh", "-c", line]);
    assert_eq!((ran.code, ran.stdout.len()), (4, 3_000_000));
    assert_eq!(ran.stderr, "");
    let ran = user.local(&["--json", "run", "sh", "-c", line]);
    let value: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&value["exitCode"], &value["truncated"]),
        (&json!(4), &json!(true))
    );
    assert_eq!(value["stdout"].as_str().unwrap().len(), 1024 * 1024);
}

#[test]
fn output_that_a_server_has_cut_is_reported() {
    let user = User::new();
    let body = json!({"exitCode": 0, "stdout": "x".repeat(1_000_000), "truncated": true});
    let server = Scripted::always(200, body.to_string());
    let ran = user.run(&["--base-url", &server.url(), "exec", "a", "true"]);
    assert_eq!((ran.code, ran.stdout.len()), (0, 1_000_000));
    assert!(
        ran.stderr.contains("The output was truncated"),
        "{}",
        ran.stderr
    );
}

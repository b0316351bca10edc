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

#[test]
fn stdin_is_streamed_to_local_commands() {
    let user = User::new();
    user.local(&["create", "a"]);
    for args in [&["exec", "-i", "a", "cat"][..], &["run", "--stdin", "cat"]] {
        let mut command = user.command(&[&["--local"], args].concat());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        for line in ["one\n", "two\n"] {
            stdin.write_all(line.as_bytes()).unwrap();
            let mut text = String::new();
            stdout.read_line(&mut text).unwrap();
            assert_eq!(text, line);
        }
        drop(stdin);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    // Without -i, stdin is empty.
    assert_output(
        &user.run_with_stdin(&["--local", "exec", "a", "cat"], "x"),
        0,
        "",
        "",
    );
}

#[test]
fn stdin_that_never_ends_does_not_hang_a_local_command() {
    let user = User::new();
    let mut command = user.command(&[
        "--local",
        "run",
        "-i",
        "--",
        "sh",
        "-c",
        "echo done; exit 3",
    ]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take().unwrap();
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(
        (text.as_str(), child.wait().unwrap().code()),
        ("done\n", Some(3))
    );
    drop(stdin);
}

#[test]
fn stdin_for_a_server_is_read_before_anything_is_sent() {
    let user = User::new();
    let server = Scripted::each_request(|request, conn| match &*request.method {
        "PUT" => conn.respond(200, CREATE_OK),
        _ => conn.respond(200, r#"{"exitCode": 0, "stdout": "ready\n"}"#),
    });
    let url = server.url();
    for args in [&["exec", "-i", "a", "cat"][..], &["run", "-i", "cat"]] {
        let mut command = user.command(&[&["--base-url", &url], args].concat());
        let command = command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"one").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(server.requests().len(), 0, "{args:?}");
        // Ctrl-C ends it, and there is no sandbox to delete.
        interrupt(&child);
        assert_eq!(child.wait().unwrap().code(), None);
        assert_eq!(server.requests().len(), 0, "{args:?}");
    }
    let ran = user.run_with_stdin(&["--base-url", &url, "exec", "-i", "a", "cat"], "x");
    assert_output(&ran, 0, "ready\n", "");
    let uploads = |path: &str| path.contains("/files/upload?");
    assert!(
        server
            .requests()
            .iter()
            .any(|request| uploads(&request.path))
    );
}

#[test]
fn stdin_for_a_server_is_limited() {
    let user = User::new();
    let exec = "\"$NOXRC\" --base-url http://127.0.0.1:1 exec -i a cat";
    let line = format!("head -c 67108865 /dev/zero | {exec}");
    let ran = run_command(&mut user.shell("sh", &line));
    assert_output(&ran, 125, "", "stdin is longer than 64 MiB");
}

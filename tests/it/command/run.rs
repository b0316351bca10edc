//! `run`: its sandbox, signals, and sandboxes that are not ready.

use super::*;

#[test]
fn run_creates_uses_and_deletes_a_sandbox() {
    let user = User::new();
    fs::write(user.path("in"), "3\n1\n2\n").unwrap();
    let out = user.local(&[
        "run",
        "--upload",
        "in",
        "--download",
        "out",
        "--",
        "sh",
        "-c",
        "sort in | tee out; exit 4",
    ]);
    assert_output(&out, 4, "1\n2\n3\n", "✓ Downloaded out");
    assert_eq!(fs::read(user.path("out")).unwrap(), b"1\n2\n3\n");
    let kept = || {
        fs::read_dir(user.path(".local/state/noxrunner/persistent"))
            .unwrap()
            .count()
    };
    assert_eq!(kept(), 0);
    assert_output(
        &user.local(&["run", "--upload", "missing", "true"]),
        125,
        "",
        "missing",
    );
    assert_eq!(kept(), 0);

    let sleep = unique_sleep(342_001);
    let mut command = user.command(&["--local", "run", "--timeout-seconds", "60", "sleep", &sleep]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the command runs", || sleeps(&sleep));
    interrupt(&child);
    let out = output_of(child.wait_with_output().unwrap());
    assert_eq!(out.code, 130, "{}", out.stderr);
    assert_eq!(kept(), 0);
    assert!(!sleeps(&sleep));
}

#[test]
fn run_deletes_its_sandbox_on_sighup_and_sigterm() {
    let user = User::new();
    for (number, name) in [(342_003, "HUP"), (342_004, "TERM")] {
        let sleep = unique_sleep(number);
        let mut command = user.command(&[
            "--local",
            "run",
            "--timeout-seconds",
            "600",
            "sleep",
            &sleep,
        ]);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the command runs", || sleeps(&sleep));
        signal(&child, name);
        let out = output_of(child.wait_with_output().unwrap());
        assert_eq!(out.code, 130, "{}", out.stderr);
        assert!(!sleeps(&sleep));
    }
}

#[test]
fn ignored_sighup_stays_ignored() {
    let user = User::new();
    let sleep = unique_sleep(342_005);
    let mut command = Command::new("nohup");
    command
        .args([
            NOXRC,
            "--local",
            "run",
            "--timeout-seconds",
            "600",
            "sleep",
            &sleep,
        ])
        .env("HOME", user.home.path())
        .env_remove("XDG_STATE_HOME")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_for("the command runs", || sleeps(&sleep));
    signal(&child, "HUP");
    // Had SIGHUP been handled, this would be the second signal, which ends the process at once.
    interrupt(&child);
    let out = output_of(child.wait_with_output().unwrap());
    assert_eq!(out.code, 130, "{}", out.stderr);
    wait_for("the sandbox is deleted", || !sleeps(&sleep));
}

/// Starts a server whose sandboxes never become ready.
fn never_ready() -> Scripted {
    Scripted::each_request(|request, conn| match &*request.method {
        "PUT" => conn.respond(200, CREATE_OK),
        "DELETE" => conn.respond(204, ""),
        _ => conn.respond(503, r#"{"error": "the pod is pending"}"#),
    })
}

#[test]
fn create_that_is_not_ready_in_time_is_a_warning() {
    let (user, server) = (User::new(), never_ready());
    let create = [
        "--base-url",
        &server.url(),
        "create",
        "a",
        "--wait",
        "--wait-timeout",
        "10",
    ];
    let out = user.run(&create);
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert!(
        out.stderr
            .contains("Pod did not become ready within timeout"),
        "{}",
        out.stderr
    );
    assert!(out.stderr.contains("the pod is pending"), "{}", out.stderr);
    let json = user.run(&[&["--json"], &create[..]].concat());
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["ready"], false);
}

#[test]
fn interrupted_run_does_not_wait_until_the_sandbox_is_ready() {
    let (user, server) = (User::new(), never_ready());
    let mut command = user.command(&["--base-url", &server.url(), "run", "true"]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the sandbox is probed", || {
        server
            .requests()
            .iter()
            .any(|request| request.method == "POST")
    });
    let started = std::time::Instant::now();
    interrupt(&child);
    let out = output_of(child.wait_with_output().unwrap());
    assert_eq!(out.code, 130, "{}", out.stderr);
    // Without the interruption it waits for two minutes.
    assert!(started.elapsed() < std::time::Duration::from_secs(60));
    assert!(
        server
            .requests()
            .iter()
            .any(|request| request.method == "DELETE")
    );
}

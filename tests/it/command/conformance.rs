//! `noxrc conformance`: what it prints, what it exits with, and what an interruption leaves.

use super::*;
use crate::support::plain_server::PlainServer;

#[test]
fn only_failed_must_exits_with_1() {
    let user = User::new();
    for (fault, mark, code) in [("exec-streams", "✗ MUST", 1), ("exec-stdin", "⚠ SHOULD", 0)] {
        let Some(server) = PlainServer::start(&["--fault", fault]) else {
            return;
        };
        let args = ["--base-url", &server.url, "conformance", "--only", fault];
        let ran = user.run(&args);
        assert_eq!(ran.code, code, "{}{}", ran.stdout, ran.stderr);
        assert!(ran.stdout.starts_with(mark), "{}", ran.stdout);
        assert!(ran.stdout.contains("\n         seen: "), "{}", ran.stdout);
        let json = user.run(&[&["--json"], &args[..]].concat());
        assert_eq!(json.code, code);
        let value: Value = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!(value["conforms"], json!(code == 0));
        let check = &value["checks"][0];
        assert_eq!(
            (&check["name"], &check["outcome"]),
            (&json!(fault), &json!("failed"))
        );
        assert_eq!(value["leftBehind"], json!([]));
    }
    let local = user.local(&["conformance"]);
    assert_output(&local, 1, "", "noxrc serve");
    let nobody = user.run(&["--base-url", "http://127.0.0.1:1", "conformance"]);
    assert_output(&nobody, 1, "", "✗");
    assert_output(
        &user.run(&["conformance", "--only", "x"]),
        1,
        "",
        "no such check: \"x\"",
    );
}

#[test]
fn interrupted_conformance_run_leaves_no_sandbox() {
    let user = User::new();
    let root = tempfile::tempdir().unwrap();
    let Some(server) = PlainServer::start(&["--root", root.path().to_str().unwrap()]) else {
        return;
    };
    let sandboxes = || fs::read_dir(root.path()).unwrap().count();
    let mut command = user.command(&["--base-url", &server.url, "conformance"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    wait_for("it has made some", || sandboxes() > 1);
    interrupt(&child);
    let ran = output_of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("interrupted"), "{}", ran.stdout);
    assert_eq!(sandboxes(), 0);
}

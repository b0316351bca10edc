//! `noxrc --kubernetes`, and the server that its manifest deploys.

use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use noxrunner::{Client, ErrorKind, SandboxSpec};
use serde_json::Value;

use crate::support::kubernetes::Namespace;
use crate::support::processes::wait_for;

/// Runs the command for a namespace. Its key is in the state directory.
fn noxrc(namespace: &Namespace, state: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_noxrc"))
        .args(["--kubernetes", "--kubeconfig", namespace.kubeconfig()])
        .args([
            "--namespace",
            &namespace.name,
            "--agent-image",
            namespace.agent_image(),
        ])
        .args(args)
        .env("XDG_STATE_HOME", state)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn processes_share_sandboxes_through_the_key_of_the_user() {
    let Some(namespace) = Namespace::new_or_skip("noxrc --kubernetes") else {
        return;
    };
    let state = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| noxrc(&namespace, state.path(), args);
    stdout(&run(&[
        "create",
        "s",
        "--image",
        namespace.image(),
        "--mem",
        "64Mi",
    ]));
    assert_eq!(stdout(&run(&["exec", "s", "echo", "hi"])), "hi\n");
    assert_eq!(
        run(&["exec", "s", "sh", "-c", "exit 7"]).status.code(),
        Some(7)
    );
    let other = tempfile::tempdir().unwrap();
    let refused = noxrc(&namespace, other.path(), &["exec", "s", "true"]);
    assert_eq!(refused.status.code(), Some(125));
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("created with another key"), "{text}");
    stdout(&run(&["delete", "s"]));
    let once = ["run", "--image", namespace.image(), "--", "id", "-u"];
    assert_eq!(stdout(&run(&once)), "1000\n");
    assert!(namespace.pods().is_empty());
    let doctor = stdout(&run(&["--json", "doctor"]));
    let doctor: Value = serde_json::from_str(&doctor).unwrap();
    assert_eq!(doctor["kubernetes"]["works"], true);
}

#[test]
fn options_of_other_backends_are_refused() {
    let noxrc = |args: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_noxrc"))
            .args(args)
            .output()
            .unwrap();
        assert!(!done.status.success(), "{args:?}");
        String::from_utf8_lossy(&done.stderr).into_owned()
    };
    assert!(noxrc(&["--kubernetes", "--local", "health"]).contains("cannot be used with"));
    assert!(noxrc(&["--context", "c", "health"]).contains("--kubernetes"));
    let with_network = noxrc(&["--kubernetes", "--network", "health"]);
    assert!(with_network.contains("local sandboxes"), "{with_network}");
    let manifest = ["kubernetes", "manifest", "--agent-image", "a\nb"];
    assert!(noxrc(&manifest).contains("--agent-image"));
    assert!(noxrc(&["kubernetes", "manifest"]).contains("no agent image"));
}

/// Returns the addresses of the servers that are ready.
fn servers(namespace: &Namespace) -> Vec<String> {
    let selector = "--selector=app.kubernetes.io/name=noxrunner";
    let pods = namespace.kubectl(&["get", "pods", selector, "-o", "json"]);
    let pods: Value = serde_json::from_str(&pods).unwrap();
    let pods = pods["items"].as_array().unwrap().iter();
    let is_ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array();
        conditions.is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
    };
    let address = |pod: &Value| format!("http://{}:8080", pod["status"]["podIP"].as_str().unwrap());
    pods.filter(is_ready).map(address).collect()
}

/// Applies the manifest, and returns the addresses of its servers and the token for them.
fn deploy(namespace: &Namespace) -> (Vec<String>, &'static str) {
    let token = "the token of the servers".replace(' ', "-");
    let key = "--from-literal=key=the key of the servers";
    let literal = format!("--from-literal=token={token}");
    namespace.kubectl(&["create", "secret", "generic", "noxrunner", key, &literal]);
    let manifest = Command::new(env!("CARGO_BIN_EXE_noxrc"))
        .args(["kubernetes", "manifest", "--namespace", &namespace.name])
        .args([
            "--agent-image",
            namespace.agent_image(),
            "--image",
            namespace.image(),
        ])
        .output()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifest.yaml");
    std::fs::write(&path, stdout(&manifest)).unwrap();
    namespace.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    wait_for("both servers are ready", || servers(namespace).len() == 2);
    (servers(namespace), "the-token-of-the-servers")
}

#[test]
fn replicas_of_the_manifest_serve_the_same_sandboxes() {
    let Some(namespace) = Namespace::new_or_skip("the manifest") else {
        return;
    };
    if !namespace.script_or_skip("the manifest") {
        return;
    }
    let (urls, token) = deploy(&namespace);
    let clients = [&urls[0], &urls[1]].map(|url| {
        let builder = Client::builder(url).token(token);
        builder.timeout(Duration::from_secs(60)).build().unwrap()
    });
    let refused = Client::new(&urls[0])
        .unwrap()
        .create("s", SandboxSpec::new());
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unauthorized);

    let sandbox = clients[0].create("a/b", SandboxSpec::new()).unwrap();
    let same = clients[1].sandbox("a/b").unwrap();
    same.write("f", "x").unwrap();
    assert_eq!(sandbox.read("f").unwrap(), b"x");
    thread::scope(|scope| {
        let both = clients
            .each_ref()
            .map(|client| scope.spawn(move || client.create("both", SandboxSpec::new()).unwrap()));
        let [first, second] = both.map(|thread| thread.join().unwrap());
        first.write("f", "y").unwrap();
        assert_eq!(second.read("f").unwrap(), b"y");
    });
    assert!(same.delete().unwrap());
    assert!(sandbox.touch().unwrap_err().is_sandbox_gone());
    let checks = Command::new(env!("CARGO_BIN_EXE_noxrc"))
        .args(["--base-url", &urls[1], "conformance"])
        .env("NOXRUNNER_TOKEN", token)
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&checks.stdout);
    assert!(checks.status.success(), "{report}");
}

//! Nodes, pods and API servers that fail.

use std::thread;
use std::time::{Duration, Instant};

use noxrunner::{Client, Command, ErrorKind, KilledBy, Sandbox, SandboxSpec};
use serde_json::Value;

use crate::support::kubernetes::Namespace;
use crate::support::long_tests_or_skip;
use crate::support::processes::wait_for;

/// Runs a command that creates a file and sleeps, and calls `break_it` when it runs.
fn while_running(sandbox: &Sandbox, seconds: u64, break_it: impl FnOnce()) -> noxrunner::Error {
    thread::scope(|scope| {
        let command =
            Command::shell("touch /tmp/runs; sleep 600").timeout(Duration::from_secs(seconds));
        let running = scope.spawn(move || sandbox.exec(command));
        wait_for("the command runs", || sandbox.exists("/tmp/runs").unwrap());
        break_it();
        running.join().unwrap().unwrap_err()
    })
}

#[test]
fn pod_deleted_by_hand_ends_calls_with_the_reason() {
    let Some(namespace) = Namespace::new_or_skip("pods that others delete") else {
        return;
    };
    for access in namespace.accesses() {
        let backend = namespace.builder().pod_access(*access).build().unwrap();
        let client = Client::with_backend(backend);
        let sandbox = client.create("deleted", SandboxSpec::new()).unwrap();
        let error = while_running(&sandbox, 60, || {
            let pod = namespace.pods().remove(0);
            namespace.kubectl(&["delete", &pod, "--wait=false"]);
        });
        // The agent may still tell it, or the connection breaks.
        let kinds = [ErrorKind::NotFound, ErrorKind::OutcomeUnknown];
        assert!(kinds.contains(&error.kind()), "{error}");
        assert!(error.is_sandbox_gone(), "{error}");
        let error = sandbox.exec(["true"]).unwrap_err();
        assert!(error.is_not_found() && error.is_sandbox_gone(), "{error}");
        // The pod may still be ending.
        let again = client.create("deleted", SandboxSpec::new()).unwrap();
        assert!(!again.exists("/tmp/runs").unwrap());
        assert!(again.delete().unwrap());
    }
}

#[test]
fn memory_limit_kills_the_command_and_not_the_sandbox() {
    let Some(namespace) = Namespace::new_or_skip("memory limits of pods") else {
        return;
    };
    let client = Client::with_backend(namespace.backend());
    let sandbox = client
        .create("memory", SandboxSpec::new().memory("48Mi"))
        .unwrap();
    let grow = Command::shell("x=0123456789; while true; do x=$x$x; done");
    match sandbox.exec(grow) {
        Ok(out) => {
            assert_eq!(out.exit_code(), 137);
            assert_eq!(out.killed_by(), Some(KilledBy::Memory));
            assert!(sandbox.run(["true"]).is_ok());
        }
        // A cluster with cgroup v2 kills all of the container.
        Err(e) => assert!(e.to_string().contains("OOMKilled"), "{e}"),
    }
}

#[test]
fn storage_limit_evicts_the_sandbox() {
    if !long_tests_or_skip("eviction by the storage limit") {
        return;
    }
    let Some(namespace) = Namespace::new_or_skip("eviction by the storage limit") else {
        return;
    };
    let client = Client::with_backend(namespace.backend());
    let sandbox = client
        .create("storage", SandboxSpec::new().storage("10Mi"))
        .unwrap();
    let fill = "head -c 30000000 /dev/zero > /workspace/large; sleep 300";
    let error = sandbox
        .exec(Command::shell(fill).timeout(Duration::from_secs(200)))
        .unwrap_err();
    assert!(error.to_string().contains("Evicted"), "{error}");
    assert!(error.is_sandbox_gone(), "{error}");
    let error = sandbox.touch().unwrap_err();
    assert!(
        error.is_not_found() && error.to_string().contains("Evicted"),
        "{error}"
    );
}

/// Restores the cluster at the end of a test, also if that fails.
struct Restore<'a>(&'a Namespace, &'a str, &'a [&'a str]);

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        self.0.script(self.1, self.2);
    }
}

/// Returns the node of the only pod.
fn node(namespace: &Namespace) -> String {
    let pods = namespace.kubectl(&["get", "pods", "-o", "json"]);
    let pods: Value = serde_json::from_str(&pods).unwrap();
    pods["items"][0]["spec"]["nodeName"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn node_that_is_cut_off_does_not_hold_calls_beyond_their_deadline() {
    let Some(namespace) = Namespace::alone_or_skip("a node that is cut off") else {
        return;
    };
    for access in namespace.accesses() {
        let backend = namespace.builder().pod_access(*access);
        let backend = backend.timeout(Duration::from_secs(10)).build().unwrap();
        let client = Client::with_backend(backend);
        let sandbox = client.create("on a node", SandboxSpec::new()).unwrap();
        let node = node(&namespace);
        let number = node.trim_start_matches("node");
        let started = Instant::now();
        let restore = Restore(&namespace, "k8s-node.sh", &[number, "join"]);
        let error = while_running(&sandbox, 15, || {
            namespace.script("k8s-node.sh", &[number, "cut"])
        });
        // The timeout, 10 s, and the look at the pod.
        assert!(
            started.elapsed() < Duration::from_secs(45),
            "{:?} {error}",
            started.elapsed()
        );
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
        println!("{access:?}: {error}");
        let started = Instant::now();
        let error = sandbox.touch().unwrap_err();
        println!("{access:?}: {error}");
        assert!(
            matches!(error.kind(), ErrorKind::Connect | ErrorKind::Timeout),
            "{error}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{:?}",
            started.elapsed()
        );
        wait_for("the cluster notices", || {
            let nodes = namespace.kubectl(&["get", "nodes", &node]);
            nodes.contains("NotReady")
        });
        let error = sandbox.touch().unwrap_err();
        assert!(error.to_string().contains(&node), "{error}");
        let other = client
            .create("on the other node", SandboxSpec::new())
            .unwrap();
        other.run(["true"]).unwrap();
        assert!(other.delete().unwrap());
        // The pod is deleted at once, and its containers end when the node is back.
        assert!(sandbox.delete().unwrap());
        client
            .create("on a node", SandboxSpec::new())
            .unwrap()
            .run(["true"])
            .unwrap();
        assert!(sandbox.delete().unwrap());
        drop(restore);
        wait_for("the node is back", || {
            !namespace
                .kubectl(&["get", "nodes", &node])
                .contains("NotReady")
        });
    }
}

#[test]
fn api_server_that_restarts_delays_calls_only() {
    let Some(namespace) = Namespace::alone_or_skip("an API server that restarts") else {
        return;
    };
    let client = Client::with_backend(namespace.backend());
    let sandbox = client.create("before", SandboxSpec::new()).unwrap();
    let error = while_running(&sandbox, 60, || {
        namespace.script("k8s-api-server.sh", &["stop"])
    });
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    let error = sandbox.exec(["true"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    thread::scope(|scope| {
        let create = scope.spawn(|| client.create("during", SandboxSpec::new()).unwrap());
        thread::sleep(Duration::from_secs(1));
        namespace.script("k8s-api-server.sh", &["start"]);
        create.join().unwrap().run(["true"]).unwrap();
    });
    // The sandbox and its files have survived.
    assert!(sandbox.exists("/tmp/runs").unwrap());
    for id in ["before", "during"] {
        assert!(client.sandbox(id).unwrap().delete().unwrap());
    }
}

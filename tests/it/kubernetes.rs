//! Sandboxes in pods, on a real cluster.

/// The command, and the server that its manifest deploys.
#[cfg(feature = "cli")]
mod command;
/// Creating sandboxes, and what can prevent it.
mod create;
/// Nodes, pods and API servers that fail.
mod faults;
/// Failures that a real cluster cannot produce quickly.
mod scripted;

use noxrunner::{Client, Command, ErrorKind, SandboxSpec};
use serde_json::{Value, json};

use crate::contract;
use crate::support::kubernetes::{KEY, Namespace};

#[test]
fn pods_fulfil_the_contract() {
    let Some(namespace) = Namespace::new_or_skip("the contract on Kubernetes") else {
        return;
    };
    let access = *namespace.accesses().last().unwrap();
    let backend = namespace.builder().pod_access(access).build().unwrap();
    contract::run_streaming(&Client::with_backend(backend));
}

#[test]
fn pods_behind_the_api_server_fulfil_the_contract() {
    let Some(namespace) = Namespace::new_or_skip("the contract through the API server's proxy")
    else {
        return;
    };
    contract::run_streaming(&Client::with_backend(namespace.backend()));
}

#[test]
fn sandbox_is_a_confined_pod_without_secrets() {
    let Some(namespace) = Namespace::new_or_skip("the pod of a sandbox") else {
        return;
    };
    for access in namespace.accesses() {
        let backend = namespace.builder().pod_access(*access).build().unwrap();
        let client = Client::with_backend(backend);
        client.health().unwrap();
        let id = format!("a/b {access:?}");
        let spec = SandboxSpec::new()
            .memory("64Mi")
            .cpu("500m")
            .storage("100Mi");
        let sandbox = client.create(&id, spec).unwrap();
        let pod = namespace.kubectl(&["get", "pods", "-o", "json"]);
        let pod: Value = serde_json::from_str(&pod).unwrap();
        let pod = &pod["items"][0];
        assert_eq!(pod["metadata"]["annotations"]["noxrunner/session-id"], *id);
        assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
        let limits = json!({"memory": "64Mi", "cpu": "500m", "ephemeral-storage": "100Mi"});
        assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"], limits);

        // No right, no token of the cluster, and not the token of the agent.
        let look = "id -u; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; \
            ls /var/run/secrets 2>&1; cat /proc/1/environ 2>&1; env; cat /proc/1/cmdline";
        let seen = sandbox
            .exec(["sh", "-c", look])
            .unwrap()
            .stdout()
            .into_owned();
        let lines: Vec<&str> = seen.lines().take(4).collect();
        assert_eq!(lines[..2], ["1000", "CapEff:\t0000000000000000"], "{seen}");
        assert_eq!(lines[2..], ["NoNewPrivs:\t1", "Seccomp:\t2"], "{seen}");
        assert!(
            !seen.contains(KEY) && seen.contains("--token-sha256"),
            "{seen}"
        );
        assert!(sandbox.delete().unwrap());
        assert!(namespace.pods().is_empty());
    }
}

#[test]
fn several_backends_share_sandboxes_if_they_have_the_same_key() {
    let Some(namespace) = Namespace::new_or_skip("backends that share sandboxes") else {
        return;
    };
    let first = Client::with_backend(namespace.backend());
    let second = Client::with_backend(namespace.backend());
    let sandbox = first.create("shared", SandboxSpec::new()).unwrap();
    sandbox.write("f", "1").unwrap();
    let same = second.sandbox("shared").unwrap();
    assert_eq!(same.read("f").unwrap(), b"1");

    let stranger = namespace.builder().key("another key of 16 bytes or more");
    let stranger = Client::with_backend(stranger.build().unwrap());
    let error = stranger
        .sandbox("shared")
        .unwrap()
        .exec(["true"])
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(error.to_string().contains("another key"), "{error}");

    // The connection of the first backend leads to a pod that no longer exists.
    assert!(same.delete().unwrap());
    second.create("shared", SandboxSpec::new()).unwrap();
    assert!(!sandbox.exists("f").unwrap());
    sandbox.write("f", "2").unwrap();
    assert!(second.sandbox("shared").unwrap().delete().unwrap());
    let again = second.create("shared", SandboxSpec::new()).unwrap();
    let archive: &[u8] = &[0; 1024];
    sandbox.upload_archive(archive, "/workspace").unwrap();
    assert_eq!(again.run(["echo", "2"]).unwrap().stdout(), "2\n");
}

#[test]
fn expired_sandbox_is_gone_and_its_pod_is_deleted_later() {
    let Some(namespace) = Namespace::new_or_skip("expired sandboxes") else {
        return;
    };
    let client = Client::with_backend(namespace.backend());
    let spec = SandboxSpec::new().ttl(std::time::Duration::from_secs(2));
    let sandbox = client.create("short", spec).unwrap();
    // The TTL passes while the command runs.
    let error = sandbox.exec(Command::from(["sleep", "20"])).unwrap_err();
    assert!(error.is_sandbox_gone(), "{error:#}");
    let error = sandbox.exec(["true"]).unwrap_err();
    assert!(error.is_not_found() && error.is_sandbox_gone(), "{error:#}");
    assert!(!sandbox.delete().unwrap());
    let again = client.create("short", SandboxSpec::new()).unwrap();
    again.run(["true"]).unwrap();
}

#[test]
fn kubectl_proxy_needs_no_credentials() {
    let Some(namespace) = Namespace::new_or_skip("the API server behind kubectl proxy") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kubectl.sock");
    let mut proxy = std::process::Command::new("kubectl")
        .args([
            "--kubeconfig",
            namespace.kubeconfig(),
            "proxy",
            "--reject-paths=^$",
        ])
        .arg(format!("--unix-socket={}", socket.display()))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    crate::support::processes::wait_for("the proxy listens", || socket.exists());
    let backend = noxrunner::KubernetesBackend::builder()
        .api_server(format!("unix://{}", socket.display()))
        .namespace(&namespace.name)
        .image(namespace.image())
        .agent_image(namespace.agent_image())
        .key(KEY);
    let client = Client::with_backend(backend.build().unwrap());
    let sandbox = client.create("behind a proxy", SandboxSpec::new()).unwrap();
    let ran = sandbox
        .run(["echo", "hi"])
        .map(|out| out.stdout().into_owned());
    let deleted = sandbox.delete();
    proxy.kill().unwrap();
    proxy.wait().unwrap();
    assert_eq!(ran.unwrap(), "hi\n");
    assert!(deleted.unwrap());
}

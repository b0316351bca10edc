//! Sandboxes in pods, on a real cluster.

use noxrunner::{Client, SandboxSpec};

use crate::contract;
use crate::support::kubernetes::Namespace;

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
fn sandbox_is_a_pod() {
    let Some(namespace) = Namespace::new_or_skip("sandboxes as pods") else {
        return;
    };
    for access in namespace.accesses() {
        let backend = namespace.builder().pod_access(*access).build().unwrap();
        let client = Client::with_backend(backend);
        client.health().unwrap();
        let started = std::time::Instant::now();
        let sandbox = client
            .create(format!("a/b {access:?}"), SandboxSpec::new().memory("64Mi"))
            .unwrap();
        println!("{access:?}: {:?}", started.elapsed());
        let out = sandbox.run(["id", "-u"]).unwrap();
        assert_eq!(out.stdout(), "1000\n");
        assert_eq!(namespace.pods().len(), 1);
        assert!(sandbox.delete().unwrap());
        assert!(namespace.pods().is_empty());
    }
}

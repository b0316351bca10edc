//! Creating sandboxes, and what can prevent it.

use std::thread;
use std::time::{Duration, Instant};

use noxrunner::{Client, ErrorKind, SandboxSpec};
use serde_json::json;

use crate::support::kubernetes::Namespace;
use crate::support::long_tests_or_skip;

/// Far more than a failure needs that is reported at once, and less than the timeout of create.
const AT_ONCE: Duration = Duration::from_secs(60);

#[test]
fn pod_that_cannot_start_fails_in_the_words_of_kubernetes() {
    let Some(namespace) = Namespace::new_or_skip("pods that cannot start") else {
        return;
    };
    let client = Client::with_backend(namespace.backend());
    let wrong_agent = namespace.builder().agent_image(namespace.image()).build();
    let wrong_agent = Client::with_backend(wrong_agent.unwrap());
    let new = SandboxSpec::new;
    for (client, spec, kind, text) in [
        (
            &client,
            new().image("127.0.0.1:1/none:1"),
            ErrorKind::InvalidInput,
            "ErrImagePull",
        ),
        (
            &client,
            new().image("UPPER:case"),
            ErrorKind::InvalidInput,
            "InvalidImageName",
        ),
        (&wrong_agent, new(), ErrorKind::Status, "/noxrc"),
    ] {
        let started = Instant::now();
        let error = client.create("broken", spec).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(started.elapsed() < AT_ONCE, "{error}");
        assert_eq!(namespace.pods(), Vec::<String>::new());
    }
}

#[test]
fn pod_that_no_node_can_take_fails_after_the_timeout_for_it() {
    let Some(namespace) = Namespace::new_or_skip("pods that no node can take") else {
        return;
    };
    let backend = namespace
        .builder()
        .unschedulable_timeout(Duration::from_secs(2));
    let client = Client::with_backend(backend.build().unwrap());
    let error = client
        .create("large", SandboxSpec::new().cpu("1000"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(error.to_string().contains("Insufficient cpu"), "{error}");
    assert!(namespace.pods().is_empty());
}

#[test]
fn rules_of_the_namespace_are_reported() {
    let Some(namespace) = Namespace::new_or_skip("quotas of the namespace") else {
        return;
    };
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"},
        "spec": {"hard": {"pods": "0"}},
    });
    namespace.apply(&quota);
    crate::support::processes::wait_for("the quota is in force", || {
        namespace
            .kubectl(&["get", "resourcequota", "few", "-o", "json"])
            .contains("\"used\"")
    });
    let client = Client::with_backend(namespace.backend());
    let error = client
        .create("one too many", SandboxSpec::new())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(error.to_string().contains("exceeded quota"), "{error}");
    let nowhere = namespace
        .builder()
        .namespace("no-such-namespace")
        .build()
        .unwrap();
    let error = Client::with_backend(nowhere)
        .create("x", SandboxSpec::new())
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("\"no-such-namespace\" not found"),
        "{error}"
    );
}

#[test]
fn missing_rights_are_named() {
    let Some(namespace) = Namespace::new_or_skip("missing rights") else {
        return;
    };
    if !namespace.script_or_skip("missing rights") {
        return;
    }
    let limited = namespace.kubeconfig().replace("admin.conf", "limited.conf");
    let backend = || namespace.builder().kubeconfig(&limited).build().unwrap();
    let error = Client::with_backend(backend()).health().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(
        error.to_string().contains("cannot list resource \"pods\""),
        "{error}"
    );

    // All verbs but one.
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "most"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "get", "list", "watch", "delete"]}],
    });
    namespace.apply(&role);
    namespace.kubectl(&[
        "create",
        "rolebinding",
        "most",
        "--role=most",
        "--user=limited",
    ]);
    let client = Client::with_backend(backend());
    crate::support::processes::wait_for("the role is in force", || client.health().is_ok());
    let error = client.create("no proxy", SandboxSpec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(error.to_string().contains("pods/proxy"), "{error}");
    assert!(namespace.pods().is_empty());
}

#[test]
fn two_clients_that_create_the_same_id_get_the_same_sandbox() {
    let Some(namespace) = Namespace::new_or_skip("creates of the same id at once") else {
        return;
    };
    let backends = [
        namespace.backend(),
        namespace.backend(),
        namespace.backend(),
    ];
    let infos = thread::scope(|scope| {
        let threads = backends.map(|backend| {
            scope.spawn(move || {
                let sandbox = Client::with_backend(backend).create("same", SandboxSpec::new());
                sandbox.unwrap()
            })
        });
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(namespace.pods().len(), 1);
    infos[0].write("f", "x").unwrap();
    for sandbox in &infos {
        assert_eq!(sandbox.read("f").unwrap(), b"x");
    }
    assert!(infos[1].delete().unwrap());
}

#[test]
fn name_of_another_owner_is_refused() {
    let Some(namespace) = Namespace::new_or_skip("pods of other owners") else {
        return;
    };
    let client = Client::with_backend(namespace.backend());
    let sandbox = client.create("mine", SandboxSpec::new()).unwrap();
    let pod = namespace.pods().remove(0);
    namespace.kubectl(&[
        "annotate",
        "--overwrite",
        &pod,
        "noxrunner/session-id=theirs",
    ]);
    let error = client.create("mine", SandboxSpec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("\"theirs\""), "{error}");
    assert!(!sandbox.delete().unwrap());
    assert_eq!(namespace.pods().len(), 1);
}

#[test]
fn thirty_sandboxes_start_at_once() {
    if !long_tests_or_skip("30 sandboxes on Kubernetes") {
        return;
    }
    let Some(namespace) = Namespace::new_or_skip("30 sandboxes on Kubernetes") else {
        return;
    };
    let client = Client::with_backend(namespace.backend());
    let started = Instant::now();
    thread::scope(|scope| {
        for number in 0..30 {
            let client = client.clone();
            scope.spawn(move || {
                let sandbox = client
                    .create(format!("many {number}"), SandboxSpec::new())
                    .unwrap();
                let out = sandbox.run(["echo", &number.to_string()]).unwrap();
                assert_eq!(out.stdout(), format!("{number}\n"));
            });
        }
    });
    println!("30 sandboxes after {:?}", started.elapsed());
    assert_eq!(namespace.pods().len(), 30);
    for number in 0..30 {
        assert!(
            client
                .sandbox(format!("many {number}"))
                .unwrap()
                .delete()
                .unwrap()
        );
    }
    assert!(namespace.pods().is_empty());
}

//! Sandboxes in containers, on real engines.

/// Engines and containers that fail in the middle of a call.
mod faults;
/// Answers of engines, from a scripted one.
mod scripted;
/// Limits, images, users and mounts.
mod settings;

use std::time::Duration;

use noxrunner::{Client, SandboxSpec};

use crate::contract;
use crate::support::docker::Engine;
use crate::support::in_parallel;
use crate::support::processes::wait_for;

/// Defines one test per engine, each of which calls `$check: fn(&Engine)`.
macro_rules! on_each_engine {
    ($($check:ident),* $(,)?) => {
        mod on_docker {
            $(#[test]
            fn $check() {
                if let Some(engine) = crate::support::docker::Engine::new_or_skip(
                    crate::support::docker::DOCKER,
                    stringify!($check),
                ) {
                    super::$check(&engine);
                }
            })*
        }
        mod on_podman {
            $(#[test]
            fn $check() {
                if let Some(engine) = crate::support::docker::Engine::new_or_skip(
                    crate::support::docker::PODMAN,
                    stringify!($check),
                ) {
                    super::$check(&engine);
                }
            })*
        }
    };
}
pub(crate) use on_each_engine;

on_each_engine!(
    containers_fulfil_the_contract,
    containers_behind_ports_fulfil_the_contract,
    sandbox_is_one_container,
    nothing_is_left_behind,
    expired_sandboxes_are_cleaned_up,
    clients_that_create_at_once_share_the_sandbox,
    other_processes_find_the_sandbox,
    users_have_their_own_sandboxes,
    conformance_passes_through_the_server,
);

fn containers_fulfil_the_contract(engine: &Engine) {
    contract::run_streaming(&engine.client());
}

fn containers_behind_ports_fulfil_the_contract(engine: &Engine) {
    if !engine.has_ports_or_skip("the contract through ports") {
        return;
    }
    let backend = engine.builder().loopback_port(true).build().unwrap();
    contract::run_streaming(&Client::with_backend(backend));
}

fn sandbox_is_one_container(engine: &Engine) {
    let client = engine.client();
    client.health().unwrap();
    let sandbox = client.create("one", SandboxSpec::new()).unwrap();
    let name = sandbox.info().unwrap().pod_name().to_owned();
    let containers = engine.containers();
    assert_eq!(containers.len(), 1);
    assert_eq!(containers[0]["Names"][0], format!("/{name}"));
    assert_eq!(sandbox.info().unwrap().ignored(), engine.always_ignored());
    assert_eq!(sandbox.run(["id", "-u"]).unwrap().stdout(), "0\n");
    // The first process is the agent, and there is no network but loopback.
    let first = sandbox.run(["cat", "/proc/1/comm"]).unwrap();
    assert_eq!(first.stdout(), "noxrc\n");
    let devices = sandbox.run(["ls", "/sys/class/net"]).unwrap();
    assert_eq!(devices.stdout(), "lo\n");
    assert!(sandbox.delete().unwrap());
    assert!(!sandbox.delete().unwrap());
    engine.assert_nothing_left();
}

fn nothing_is_left_behind(engine: &Engine) {
    let client = engine.client();
    in_parallel(0..24, 8, |number| {
        let sandbox = client
            .create(format!("many {number}"), SandboxSpec::new())
            .unwrap();
        sandbox.run(["true"]).unwrap();
        assert!(sandbox.delete().unwrap());
    });
    engine.assert_nothing_left();
}

fn expired_sandboxes_are_cleaned_up(engine: &Engine) {
    let client = engine.client();
    let spec = SandboxSpec::new().ttl(Duration::from_secs(1));
    let sandbox = client.create("short", spec).unwrap();
    wait_for("the sandbox expires", || engine.containers().is_empty());
    let error = sandbox.exec(["true"]).unwrap_err();
    assert!(error.is_sandbox_gone(), "{error:#}");
    engine.assert_nothing_left();
    // An unused directory is removed by the next backend that creates a sandbox.
    let spec = SandboxSpec::new().ttl(Duration::from_secs(1));
    client.create("short", spec).unwrap();
    wait_for("the sandbox expires", || engine.containers().is_empty());
    assert_eq!(engine.socket_dirs().len(), 1);
    let other = engine.client().create("other", SandboxSpec::new()).unwrap();
    assert_eq!(engine.socket_dirs().len(), 1);
    assert!(other.delete().unwrap());
    engine.assert_nothing_left();
}

fn clients_that_create_at_once_share_the_sandbox(engine: &Engine) {
    let backends: Vec<Client> = (0..4).map(|_| engine.client()).collect();
    for round in 0..3 {
        let id = format!("shared {round}");
        std::thread::scope(|scope| {
            for client in &backends {
                scope.spawn(|| {
                    let sandbox = client.create(&id, SandboxSpec::new()).unwrap();
                    sandbox.run(["sh", "-c", "echo x >> lines"]).unwrap();
                });
            }
        });
        let sandbox = backends[0].sandbox(&id).unwrap();
        assert_eq!(sandbox.read("lines").unwrap(), b"x\nx\nx\nx\n");
        assert_eq!(engine.containers().len(), 1);
        assert!(sandbox.delete().unwrap());
    }
    engine.assert_nothing_left();
}

fn other_processes_find_the_sandbox(engine: &Engine) {
    let (first, second) = (engine.client(), engine.client());
    let sandbox = first.create("found", SandboxSpec::new()).unwrap();
    sandbox.write("f", "x").unwrap();
    let same = second.sandbox("found").unwrap();
    assert_eq!(same.read("f").unwrap(), b"x");
    // The second client replaces the sandbox. The first one works with the new one, but a call that both know is
    // not mistaken for one on the old one.
    assert!(same.delete().unwrap());
    second.create("found", SandboxSpec::new()).unwrap();
    assert!(!sandbox.exists("f").unwrap());
    assert!(same.delete().unwrap());
    second.create("found", SandboxSpec::new()).unwrap();
    sandbox.write("g", "y").unwrap();
    assert_eq!(same.read("g").unwrap(), b"y");
    assert!(sandbox.delete().unwrap());
    let error = same.exec(["true"]).unwrap_err();
    assert!(error.is_sandbox_gone(), "{error:#}");
}

fn users_have_their_own_sandboxes(engine: &Engine) {
    let client = engine.client();
    let sandbox = client.create("mine", SandboxSpec::new()).unwrap();
    let dir = engine.dir.path().join("other");
    let other = Client::with_backend(engine.builder().socket_dir(dir).build().unwrap());
    let error = other.sandbox("mine").unwrap().touch().unwrap_err();
    assert!(error.is_sandbox_gone(), "{error:#}");
    let theirs = other.create("mine", SandboxSpec::new()).unwrap();
    assert_ne!(
        theirs.info().unwrap().pod_name(),
        sandbox.info().unwrap().pod_name()
    );
    assert!(theirs.delete().unwrap() && sandbox.delete().unwrap());
    engine.assert_nothing_left();
}

#[cfg(feature = "conformance")]
fn conformance_passes_through_the_server(engine: &Engine) {
    use crate::server::RunningServer;
    use noxrunner::HttpBackend;
    use noxrunner::conformance::Conformance;
    use noxrunner::server::Server;

    let backend = engine.builder().build().unwrap();
    let path = engine.dir.path().join("server.sock");
    let url = format!("unix://{}", path.display());
    let server = RunningServer::start(Server::builder(backend).unix(&path).no_auth());
    let report = Conformance::new(HttpBackend::new(&url).unwrap())
        .run(|_| {})
        .unwrap();
    let failed: Vec<_> = report
        .findings()
        .iter()
        .filter(|finding| finding.outcome() == noxrunner::conformance::Outcome::Failed)
        .collect();
    assert!(report.conforms() && failed.is_empty(), "{failed:#?}");
    assert!(report.left_behind().is_empty());
    drop(server);
    engine.assert_nothing_left();
}

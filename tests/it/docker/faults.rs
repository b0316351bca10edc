//! Engines and containers that fail in the middle of a call.

use std::time::Duration;

use noxrunner::{Client, Command, ErrorKind, SandboxSpec};

use super::on_each_engine;
use crate::support::ErrorText as _;
use crate::support::docker::{DOCKER, Engine, OwnEngine, skipped};
use crate::support::processes::wait_for;

on_each_engine!(
    killed_container_is_reported,
    container_out_of_memory_is_reported,
    ttl_waits_for_a_running_command,
    deleted_during_a_command,
    foreign_container_is_not_touched,
    abandoned_container_is_replaced,
    stopped_container_is_replaced,
    paused_container_is_reported,
);

#[test]
fn restarted_engine_is_reported() {
    let Some(docker) = OwnEngine::start_or_skip(DOCKER, "an engine that is restarted") else {
        return;
    };
    let engine = &docker.engine;
    let error = exec_until(engine, "restart", || docker.stop());
    // The agent or the engine may have had the time for an answer.
    assert!(
        error.is_outcome_unknown() || error.is_sandbox_gone(),
        "{error:#}"
    );
    docker.start_again();
    let client = engine.client();
    let sandbox = client.sandbox("restart").unwrap();
    assert!(sandbox.exec(["true"]).unwrap_err().is_sandbox_gone());
    let sandbox = client.create("restart", SandboxSpec::new()).unwrap();
    docker.stop();
    let error = sandbox.exec(["true"]).unwrap_err();
    assert!(error.is_connect(), "{error:#}");
    let error = client.create("restart", SandboxSpec::new()).unwrap_err();
    assert!(error.is_connect(), "{error:#}");
    assert_eq!(client.health().unwrap_err().kind(), ErrorKind::NotReady);
    docker.start_again();
    client.health().unwrap();
    let sandbox = client.create("restart", SandboxSpec::new()).unwrap();
    sandbox.run(["true"]).unwrap();
    assert!(sandbox.delete().unwrap());
    engine.assert_nothing_left();
}

/// Runs a command that would take a minute, and calls `end` once it runs.
fn exec_until(engine: &Engine, id: &str, end: impl FnOnce()) -> noxrunner::Error {
    let client = engine.client();
    let sandbox = client.create(id, SandboxSpec::new()).unwrap();
    std::thread::scope(|scope| {
        let sleep = Command::shell("touch started; sleep 60").timeout(Duration::from_secs(100));
        let running = scope.spawn(|| sandbox.exec(sleep));
        wait_for("the command starts", || sandbox.exists("started").unwrap());
        end();
        running.join().unwrap().unwrap_err()
    })
}

fn kill(engine: &Engine, container: &str, signal: &str) {
    let path = format!("/containers/{container}/kill?signal={signal}");
    let (status, body) = engine.api("POST", &path, "");
    // Podman may have removed the container before it answers.
    let is_removed = body.contains("no such container");
    assert!(status == 204 || is_removed, "{status}: {body}");
}

fn killed_container_is_reported(engine: &Engine) {
    let error = exec_until(engine, "killed", || {
        kill(engine, &engine.only_container(), "KILL");
    });
    assert!(error.is_sandbox_gone(), "{error:#}");
    assert!(
        error.chain().contains("ended while the command ran"),
        "{error:#}"
    );
    if engine.is_docker() {
        assert!(error.chain().contains("exit code 137"), "{error:#}");
    }
    engine.assert_nothing_left();
}

fn container_out_of_memory_is_reported(engine: &Engine) {
    if !engine.is_docker() {
        skipped("Podman 4 cannot change limits, and does not report why a container ended");
        return;
    }
    let client = engine.client();
    let spec = SandboxSpec::new().memory("64Mi");
    let sandbox = client.create("full", spec).unwrap();
    let id = engine.only_container();
    let limits = format!(r#"{{"Memory": {0}, "MemorySwap": {0}}}"#, 40 << 20);
    let (status, body) = engine.api("POST", &format!("/containers/{id}/update"), &limits);
    assert_eq!(status, 200, "{body}");
    // Files in memory cannot be freed, and the only process that can be killed is the agent.
    sandbox.write("a", vec![b'x'; 30 << 20]).unwrap();
    let error = sandbox.write("/tmp/b", vec![b'x'; 15 << 20]).unwrap_err();
    assert!(error.is_sandbox_gone(), "{error:#}");
    let text = error.chain();
    assert!(text.contains("exit code 137, OOMKilled"), "{text}");
    engine.assert_nothing_left();
}

fn ttl_waits_for_a_running_command(engine: &Engine) {
    let client = engine.client();
    let spec = SandboxSpec::new().ttl(Duration::from_secs(1));
    let sandbox = client.create("busy", spec).unwrap();
    let out = sandbox.exec(["sleep", "4"]);
    // Like everywhere else, either the command ends or the sandbox does, and the caller gets to know.
    match out {
        Ok(out) => assert!(out.success(), "{out:?}"),
        Err(e) => assert!(e.is_sandbox_gone(), "{e:#}"),
    }
    wait_for("the sandbox expires", || engine.containers().is_empty());
    assert!(sandbox.exec(["true"]).unwrap_err().is_sandbox_gone());
    engine.assert_nothing_left();
}

fn deleted_during_a_command(engine: &Engine) {
    let error = exec_until(engine, "deleted", || {
        let other = engine.client().sandbox("deleted").unwrap();
        assert!(other.delete().unwrap());
    });
    assert!(error.is_sandbox_gone(), "{error:#}");
    engine.assert_nothing_left();
}

/// Creates a container by hand with the name of a sandbox.
fn create_by_hand(engine: &Engine, name: &str, labels: &str) {
    let image = crate::support::docker::image();
    let body = format!(
        r#"{{"Image": "{image}", "Entrypoint": ["sleep", "100"], "Labels": {labels}, "HostConfig": {{"NetworkMode": "none"}}}}"#
    );
    let (status, body) = engine.api("POST", &format!("/containers/create?name={name}"), &body);
    assert_eq!(status, 201, "{body}");
}

/// Returns the name of the container of a session id.
fn name_of(engine: &Engine, id: &str) -> String {
    let sandbox = engine.client().create(id, SandboxSpec::new()).unwrap();
    assert!(sandbox.delete().unwrap());
    sandbox.info().unwrap().pod_name().to_owned()
}

fn foreign_container_is_not_touched(engine: &Engine) {
    let name = name_of(engine, "foreign");
    let data = tempfile::tempdir().unwrap();
    let client = engine.client();
    for (label, text) in [
        ("{}".to_owned(), "does not belong to noxrunner"),
        (
            format!(
                r#"{{"noxrunner.session-id": "other", "noxrunner.directory": "{}"}}"#,
                data.path().display()
            ),
            "is that of session id \"other\"",
        ),
    ] {
        create_by_hand(engine, &name, &label);
        let sandbox = client.sandbox("foreign").unwrap();
        let errors = [
            client.create("foreign", SandboxSpec::new()).unwrap_err(),
            sandbox.exec(["true"]).unwrap_err(),
            sandbox.delete().unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:#}");
            assert!(error.chain().contains(text), "{error:#}");
        }
        let (status, _) = engine.api("DELETE", &format!("/containers/{name}?force=true"), "");
        assert!([200, 204].contains(&status));
    }
    // A container that claims a directory of someone else is removed without it.
    let label = format!(
        r#"{{"noxrunner.session-id": "foreign", "noxrunner.directory": "{}"}}"#,
        data.path().display()
    );
    create_by_hand(engine, &name, &label);
    assert!(client.sandbox("foreign").unwrap().delete().unwrap());
    assert!(data.path().exists());
}

fn abandoned_container_is_replaced(engine: &Engine) {
    let name = name_of(engine, "stopped");
    create_by_hand(engine, &name, r#"{"noxrunner.session-id": "stopped"}"#);
    // It was started and has ended.
    engine.api("POST", &format!("/containers/{name}/start"), "");
    kill(engine, &name, "KILL");
    let client = engine.client();
    let sandbox = client.sandbox("stopped").unwrap();
    wait_for("the end is seen", || {
        sandbox.exec(["true"]).is_err_and(|e| e.is_sandbox_gone())
    });
    let sandbox = client.create("stopped", SandboxSpec::new()).unwrap();
    sandbox.run(["true"]).unwrap();
    assert!(sandbox.delete().unwrap());
    engine.assert_nothing_left();
}

fn stopped_container_is_replaced(engine: &Engine) {
    let client = engine.client();
    let sandbox = client.create("term", SandboxSpec::new()).unwrap();
    kill(engine, &engine.only_container(), "TERM");
    wait_for("the container ends", || engine.containers().is_empty());
    let again = client.create("term", SandboxSpec::new()).unwrap();
    again.run(["true"]).unwrap();
    assert_eq!(sandbox.exec(["echo", "x"]).unwrap().stdout(), "x\n");
    assert!(again.delete().unwrap());
    engine.assert_nothing_left();
}

fn paused_container_is_reported(engine: &Engine) {
    if !engine.has_cgroups() {
        skipped("containers cannot be paused without cgroups");
        return;
    }
    let client = engine.client();
    let sandbox = client.create("paused", SandboxSpec::new()).unwrap();
    let id = engine.only_container();
    let (status, body) = engine.api("POST", &format!("/containers/{id}/pause"), "");
    assert_eq!(status, 204, "{body}");
    let command = Command::new("true").timeout(Duration::from_secs(1));
    let error = sandbox.exec(command).unwrap_err();
    assert!(
        error.chain().contains("the container is paused"),
        "{error:#}"
    );
    assert!(!error.is_sandbox_gone());
    let builder = engine.builder().create_timeout(Duration::from_secs(10));
    let other = Client::with_backend(builder.build().unwrap());
    let error = other.create("paused", SandboxSpec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(
        error.chain().contains("its container is paused"),
        "{error:#}"
    );
    engine.api("POST", &format!("/containers/{id}/unpause"), "");
    sandbox.run(["true"]).unwrap();
    assert!(sandbox.delete().unwrap());
    engine.assert_nothing_left();
}

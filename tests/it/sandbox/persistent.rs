//! Sandboxes that outlive the process that created them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use noxrunner::{Client, Command, LocalBackend, SandboxSpec};

use super::{create, shell, start_sleep};
use crate::support::processes::{assert_passes, rerun, unique_sleep, wait_for, with_argument};

fn persistent(state: &Path) -> Client {
    let backend = LocalBackend::builder().persistent(true).state_dir(state);
    Client::with_backend(backend.build().unwrap())
}

/// The state directory that the calling test gave to this process.
fn state_dir() -> std::path::PathBuf {
    std::env::var_os("NX_STATE").unwrap().into()
}

#[test]
fn persistent_sandbox_outlives_its_process_and_is_shared() {
    let dir = tempfile::tempdir().unwrap();
    let sleep = unique_sleep(327_001);
    let mut creator = rerun(&[], "sandbox::persistent::create_and_exit");
    creator.env("NX_STATE", dir.path()).env("NX_SLEEP", &sleep);
    assert_passes(creator);
    assert_eq!(with_argument(&sleep).len(), 1);
    let client = persistent(dir.path());
    let sandbox = client.sandbox("outlives").unwrap();
    assert_eq!(sandbox.read("file").unwrap(), b"x");
    std::thread::scope(|scope| {
        for n in 0..8 {
            let mut user = rerun(&[], "sandbox::persistent::use_from_another_process");
            user.env("NX_STATE", dir.path())
                .env("NX_NUMBER", n.to_string());
            scope.spawn(|| assert_passes(user));
        }
    });
    assert_eq!(shell(&sandbox, "cat n-* | sort | tr -d '\\n'"), "01234567");
    // A backend that did not create it can delete it.
    let other = persistent(dir.path());
    assert!(other.sandbox("outlives").unwrap().delete().unwrap());
    assert!(with_argument(&sleep).is_empty());
    assert!(sandbox.exec(["true"]).unwrap_err().is_not_found());
    assert!(!sandbox.delete().unwrap());
    let left = fs::read_dir(dir.path().join("persistent")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
#[ignore = "run by another test, in a separate process"]
fn create_and_exit() {
    let client = persistent(&state_dir());
    let sandbox = create(&client, "outlives");
    sandbox.write("file", "x").unwrap();
    start_sleep(&sandbox, &std::env::var("NX_SLEEP").unwrap());
    drop((sandbox, client));
}

#[test]
#[ignore = "run by another test, in separate processes"]
fn use_from_another_process() {
    let client = persistent(&state_dir());
    let number = std::env::var("NX_NUMBER").unwrap();
    let sandbox = create(&client, "outlives");
    let line = format!("sleep 0.2; echo {number} > n-{number}");
    assert!(sandbox.exec(Command::shell(line)).unwrap().success());
    let written = sandbox.read(format!("n-{number}")).unwrap();
    assert_eq!(written, format!("{number}\n").as_bytes());
}

#[test]
fn expired_persistent_sandbox_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let client = persistent(dir.path());
    let spec = SandboxSpec::new().ttl(Duration::from_secs(10));
    let sandbox = client.create("short", spec).unwrap();
    let sleep = unique_sleep(328_001);
    start_sleep(&sandbox, &sleep);
    wait_for("the sandbox ends", || with_argument(&sleep).is_empty());
    let persistent_dir = dir.path().join("persistent");
    let left = || fs::read_dir(&persistent_dir).unwrap().count();
    wait_for("its directory is removed", || left() == 0);
    assert!(sandbox.touch().unwrap_err().is_not_found());
    // The next backend removes what a killed process left half created.
    fs::create_dir(persistent_dir.join("half-made")).unwrap();
    let record = persistent_dir.join("half-made/sandbox.json.new");
    fs::write(record, "{\"id\":").unwrap();
    drop(persistent(dir.path()));
    assert_eq!(left(), 0);
}

#[test]
fn create_removes_what_an_ended_process_left() {
    let dir = tempfile::tempdir().unwrap();
    let client = persistent(dir.path());
    let mut creator = rerun(&[], "sandbox::persistent::create_short_and_exit");
    let sleep = unique_sleep(328_002);
    creator.env("NX_STATE", dir.path()).env("NX_SLEEP", &sleep);
    assert_passes(creator);
    let left = dir.path().join("persistent/short");
    assert!(left.exists());
    wait_for("the sandbox ends", || with_argument(&sleep).is_empty());
    wait_for("its directory is removed", || {
        let next = create(&client, "next");
        assert!(next.delete().unwrap());
        !left.exists()
    });
}

#[test]
#[ignore = "run by another test, in a separate process"]
fn create_short_and_exit() {
    let client = persistent(&state_dir());
    let spec = SandboxSpec::new().ttl(Duration::from_secs(10));
    let sandbox = client.create("short", spec).unwrap();
    start_sleep(&sandbox, &std::env::var("NX_SLEEP").unwrap());
}

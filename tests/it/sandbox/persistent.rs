//! Sandboxes that outlive the process that has made them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use noxrunner::{Client, Command, LocalBackend, SandboxSpec};

use super::{elsewhere, fresh, mark, passes, processes_with, shell, wait_for};

fn persistent(state: &Path) -> Client {
    let backend = LocalBackend::builder().persistent(true).state_dir(state);
    Client::with_backend(backend.build().unwrap())
}

#[test]
fn a_persistent_sandbox_outlives_its_process_and_is_reached_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut maker = elsewhere(&[], "sandbox::persistent::make_a_persistent_one");
    maker.env("NX_STATE", dir.path());
    passes(maker);
    assert_eq!(processes_with("327001").len(), 1);
    let client = persistent(dir.path());
    let sandbox = client.sandbox("outlives").unwrap();
    assert_eq!(sandbox.read("file").unwrap(), b"x");
    std::thread::scope(|scope| {
        for n in 0..8 {
            let mut user = elsewhere(&[], "sandbox::persistent::use_a_persistent_one");
            user.env("NX_STATE", dir.path())
                .env("NX_NUMBER", n.to_string());
            scope.spawn(|| passes(user));
        }
    });
    assert_eq!(shell(&sandbox, "cat n-* | sort | tr -d '\\n'"), "01234567");
    // From a backend that has not made it.
    assert!(
        persistent(dir.path())
            .sandbox("outlives")
            .unwrap()
            .delete()
            .unwrap()
    );
    assert!(processes_with("327001").is_empty());
    assert!(sandbox.exec(["true"]).unwrap_err().is_not_found());
    assert!(!sandbox.delete().unwrap());
    assert_eq!(
        fs::read_dir(dir.path().join("persistent")).unwrap().count(),
        0
    );
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn make_a_persistent_one() {
    let client = persistent(Path::new(&std::env::var_os("NX_STATE").unwrap()));
    let sandbox = fresh(&client, "outlives");
    sandbox.write("file", "x").unwrap();
    mark(&sandbox, "327001");
    drop((sandbox, client));
}

#[test]
#[ignore = "run by another test, in processes of their own"]
fn use_a_persistent_one() {
    let client = persistent(Path::new(&std::env::var_os("NX_STATE").unwrap()));
    let number = std::env::var("NX_NUMBER").unwrap();
    let sandbox = fresh(&client, "outlives");
    let line = format!("sleep 0.2; echo {number} > n-{number}");
    assert!(sandbox.exec(Command::shell(line)).unwrap().success());
    assert_eq!(
        sandbox.read(format!("n-{number}")).unwrap(),
        format!("{number}\n").as_bytes()
    );
}

#[test]
fn a_persistent_sandbox_ends_with_its_ttl_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let client = persistent(dir.path());
    let spec = SandboxSpec::new().ttl(Duration::from_secs(1));
    let sandbox = client.create("short", spec).unwrap();
    mark(&sandbox, "328001");
    wait_for("it ends", || processes_with("328001").is_empty());
    let left = || fs::read_dir(dir.path().join("persistent")).unwrap().count();
    wait_for("its directory goes", || left() == 0);
    assert!(sandbox.touch().unwrap_err().is_not_found());
    // What a process has left that was killed meanwhile, the next backend removes.
    fs::create_dir(dir.path().join("persistent/half-made")).unwrap();
    fs::write(
        dir.path().join("persistent/half-made/sandbox.json"),
        "{\"id\":",
    )
    .unwrap();
    drop(persistent(dir.path()));
    assert_eq!(left(), 0);
}

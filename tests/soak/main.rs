//! A fault soak: clients and servers under load, while connections break, processes are killed and disks are
//! full.
//!
//! `NOXRUNNER_SOAK=SECONDS cargo test --all-features --test soak -- --nocapture` runs it on local sandboxes, and on
//! the engines and the cluster that the variables of the other tests name. Each backend prints its counts, and fails
//! if a promise of the crate was not kept:
//!
//! - No exec runs twice, and none runs whose error says that nothing ran.
//! - No acknowledged exec or write is lost while its sandbox exists, and no sandbox is lost without a reason.
//! - Every call ends by its deadline.
//! - A sandbox that is gone stays gone.
//! - After the last TTL nothing is left: containers, pods, processes, mounts, files, descriptors, threads.
//! - The memory does not grow.
//!
//! `NOXRUNNER_SOAK_SEED` repeats the random choices of a run, but not the order in which threads make them.
#![cfg(target_os = "linux")]
#![allow(clippy::excessive_nesting, reason = "closures of threads add levels")]

mod backend;
mod disks;
mod expiring;
mod kills;
mod leases;
mod ledger;
mod leftovers;
mod losses;
mod proxy;
mod random;
mod run;
mod samples;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod tracked;
mod worker;

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use self::backend::Backend;
use self::run::Settings;
use self::support::docker::{DOCKER, PODMAN};

#[test]
fn local_sandboxes_keep_all_promises() {
    soak(|| Some(Backend::Local));
}

#[test]
fn persistent_sandboxes_keep_all_promises() {
    soak(|| Some(Backend::Persistent));
}

#[test]
fn docker_keeps_all_promises() {
    soak(|| Backend::containers_or_skip(DOCKER));
}

#[test]
fn podman_keeps_all_promises() {
    soak(|| Backend::containers_or_skip(PODMAN));
}

#[test]
fn kubernetes_keeps_all_promises() {
    soak(Backend::pods_or_skip);
}

fn soak(backend: impl FnOnce() -> Option<Backend>) {
    let Some(settings) = settings_or_skip() else {
        return;
    };
    let Some(backend) = backend() else { return };
    let broken = run::soak(&backend, settings);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

fn settings_or_skip() -> Option<Settings> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        let number = text.parse::<u64>();
        Some(number.unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
    };
    let Some(seconds) = number("NOXRUNNER_SOAK") else {
        let _ = writeln!(
            std::io::stderr(),
            "skipped without NOXRUNNER_SOAK=SECONDS: the soak"
        );
        return None;
    };
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    Some(Settings {
        length: Duration::from_secs(seconds),
        seed: number("NOXRUNNER_SOAK_SEED").unwrap_or(now.as_secs()),
    })
}

#[test]
#[ignore = "run by the soak, in a separate process"]
fn serve_from_here() {
    backend::serve_from_here();
}

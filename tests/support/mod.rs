//! Test servers, and helpers that the tests and the benchmarks share.
#![allow(dead_code, reason = "each binary uses its own part of it")]

#[cfg(all(feature = "cli", target_os = "linux"))]
pub(crate) mod container;
#[cfg(feature = "docker")]
pub(crate) mod docker;
pub(crate) mod exec_override;
#[cfg(feature = "kubernetes")]
pub(crate) mod kubernetes;
pub(crate) mod plain_server;
pub(crate) mod processes;
pub(crate) mod quirky_server;
pub(crate) mod rate_limit;
pub(crate) mod scripted;
pub(crate) mod v1_server;

use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Mutex;

use noxrunner::{Client, Isolation, LocalBackend};

/// A backend for local sandboxes. Its state is removed with the returned directory.
pub(crate) fn local_backend(isolation: Isolation) -> (LocalBackend, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    // Root's sandboxes without namespaces run as other users, who must be able to pass through.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let backend = LocalBackend::builder()
        .isolation(isolation)
        .state_dir(dir.path().join("state"))
        .build()
        .unwrap();
    (backend, dir)
}

pub(crate) fn local_client() -> (Client, tempfile::TempDir) {
    let (backend, dir) = local_backend(Isolation::None);
    (Client::with_backend(backend), dir)
}

/// True if `NOXRUNNER_LONG_TESTS=1` asks for the soak, scale and attack tests that take minutes.
pub(crate) fn long_tests() -> bool {
    std::env::var_os("NOXRUNNER_LONG_TESTS").is_some_and(|value| value == "1")
}

/// Like [`long_tests`], but reports what is skipped. The test harness does not capture the line.
pub(crate) fn long_tests_or_skip(what: &str) -> bool {
    let long = long_tests();
    if !long {
        let _ = writeln!(
            std::io::stderr(),
            "skipped without NOXRUNNER_LONG_TESTS=1: {what}"
        );
    }
    long
}

/// Runs a check on every item, some of them at the same time, because the checks mostly wait.
pub(crate) fn in_parallel<T: Send>(
    items: impl IntoIterator<Item = T>,
    threads: usize,
    check: impl Fn(T) + Sync,
) {
    let items = Mutex::new(items.into_iter().collect::<VecDeque<T>>());
    // The lock is not held during the check.
    let next = || items.lock().unwrap().pop_front();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| std::iter::from_fn(next).for_each(&check));
        }
    });
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// The text of an error with its causes.
pub(crate) trait ErrorText {
    fn chain(&self) -> String;
}

impl ErrorText for noxrunner::Error {
    fn chain(&self) -> String {
        format!("{self:#}")
    }
}

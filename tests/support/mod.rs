//! What the tests and the benchmarks share: servers that do exactly what a test says.
#![allow(dead_code, reason = "each binary uses its own part of it")]

pub(crate) mod altered;
pub(crate) mod plain_server;
pub(crate) mod scripted;
pub(crate) mod v1_server;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use noxrunner::{Client, Isolation, LocalBackend};

/// A backend of local sandboxes; state, if there is any, is gone with the returned directory.
pub(crate) fn local_backend(isolation: Isolation) -> (LocalBackend, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    // Without namespaces, sandboxes of root have to come there as somebody else.
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

/// The text of an error with its causes.
pub(crate) trait ErrorText {
    fn chain(&self) -> String;
}

impl ErrorText for noxrunner::Error {
    fn chain(&self) -> String {
        format!("{self:#}")
    }
}

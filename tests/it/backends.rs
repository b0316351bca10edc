//! The kinds of backend that jobs, leases and the other helpers must work on.

use noxrunner::{Client, Isolation, LocalBackend};

use crate::support::local_backend;
use crate::support::plain_server::{PlainServer, busybox};

/// Defines one test per kind of backend, each of which calls `$check: fn(&Client)`.
macro_rules! on_each_backend {
    ($check:path) => {
        #[test]
        fn with_plain_processes() {
            crate::backends::local(noxrunner::Isolation::None, $check);
        }
        #[test]
        fn with_namespaces() {
            crate::backends::local(noxrunner::Isolation::Namespaces, $check);
        }
        #[test]
        fn with_landlock() {
            crate::backends::local(noxrunner::Isolation::Landlock, $check);
        }
        #[test]
        fn with_persistent_sandboxes() {
            crate::backends::persistent($check);
        }
        #[cfg(feature = "server")]
        #[test]
        fn through_own_server() {
            crate::backends::own_server($check);
        }
        #[test]
        fn through_python_server() {
            crate::backends::through_python_server($check);
        }
        #[test]
        fn through_python_server_with_busybox() {
            crate::backends::through_python_server_with_busybox($check);
        }
    };
}
pub(crate) use on_each_backend;

pub(crate) fn local(isolation: Isolation, check: fn(&Client)) {
    let (backend, _dir) = local_backend(isolation);
    check(&Client::with_backend(backend));
}

pub(crate) fn persistent(check: fn(&Client)) {
    let dir = tempfile::tempdir().unwrap();
    let backend = LocalBackend::builder().persistent(true);
    let backend = backend.state_dir(dir.path()).build().unwrap();
    check(&Client::with_backend(backend));
}

#[cfg(feature = "server")]
pub(crate) fn own_server(check: fn(&Client)) {
    let (backend, _dir) = local_backend(Isolation::Namespaces);
    let builder = noxrunner::server::Server::builder(backend).tcp("127.0.0.1:0");
    check(&crate::server::RunningServer::start(builder).client());
}

pub(crate) fn through_python_server(check: fn(&Client)) {
    if let Some(server) = PlainServer::start(&[]) {
        check(&server.client());
    }
}

pub(crate) fn through_python_server_with_busybox(check: fn(&Client)) {
    let Some(path) = busybox() else { return };
    let path = path.path().to_str().unwrap();
    if let Some(server) = PlainServer::start(&["--path", path]) {
        check(&server.client());
    }
}

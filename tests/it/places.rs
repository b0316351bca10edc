//! The kinds of backend that what is built from v1's calls has to work on, each as a test of its own.

use noxrunner::{Client, Isolation, LocalBackend};

use crate::support::local_backend;
use crate::support::plain_server::{PlainServer, busybox};

/// One test for each place, all of them of `$check: fn(&Client)`.
macro_rules! in_each_place {
    ($check:path) => {
        #[test]
        fn over_plain_processes() {
            crate::places::isolated(noxrunner::Isolation::None, $check);
        }
        #[test]
        fn in_namespaces() {
            crate::places::isolated(noxrunner::Isolation::Namespaces, $check);
        }
        #[test]
        fn without_namespaces() {
            crate::places::isolated(noxrunner::Isolation::Landlock, $check);
        }
        #[test]
        fn in_persistent_sandboxes() {
            crate::places::persistent($check);
        }
        #[cfg(feature = "server")]
        #[test]
        fn through_our_server() {
            crate::places::served($check);
        }
        #[test]
        fn on_another_server() {
            crate::places::on_another_server($check);
        }
        #[test]
        fn on_another_server_with_busybox_alone() {
            crate::places::on_another_server_with_busybox_alone($check);
        }
    };
}
pub(crate) use in_each_place;

pub(crate) fn isolated(isolation: Isolation, check: fn(&Client)) {
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
pub(crate) fn served(check: fn(&Client)) {
    let (backend, _dir) = local_backend(Isolation::Namespaces);
    let builder = noxrunner::server::Server::builder(backend).tcp("127.0.0.1:0");
    check(&crate::server::Running::start(builder).client());
}

pub(crate) fn on_another_server(check: fn(&Client)) {
    if let Some(server) = PlainServer::start(&[]) {
        check(&server.client());
    }
}

pub(crate) fn on_another_server_with_busybox_alone(check: fn(&Client)) {
    let Some(path) = busybox() else { return };
    let path = path.path().to_str().unwrap();
    if let Some(server) = PlainServer::start(&["--path", path]) {
        check(&server.client());
    }
}

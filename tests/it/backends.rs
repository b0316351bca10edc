//! The kinds of backend that jobs, leases and the other helpers must work on.

use noxrunner::{
    Client, Command, ErrorKind, HttpBackend, Isolation, LocalBackend, Output, Result, Sandbox,
};

use crate::support::plain_server::{PlainServer, busybox};
use crate::support::quirky_server::{self, Quirks};
use crate::support::{local_backend, long_tests_or_skip};

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
        #[cfg(feature = "kubernetes")]
        #[test]
        fn with_pods() {
            crate::backends::pods($check);
        }
        #[cfg(feature = "server")]
        #[test]
        fn through_own_server() {
            crate::backends::own_server($check);
        }
        #[cfg(feature = "server")]
        #[test]
        fn through_unix_socket() {
            crate::backends::unix_socket($check);
        }
        #[cfg(feature = "docker")]
        #[test]
        fn with_docker() {
            crate::backends::containers(crate::support::docker::DOCKER, $check);
        }
        #[cfg(feature = "docker")]
        #[test]
        fn with_podman() {
            crate::backends::containers(crate::support::docker::PODMAN, $check);
        }
        #[test]
        fn through_control_plane() {
            crate::backends::quirky_if_long(
                crate::support::quirky_server::Quirks::control_plane(),
                $check,
            );
        }
        #[test]
        fn through_old_control_plane() {
            crate::backends::quirky(
                crate::support::quirky_server::Quirks::old_control_plane(),
                $check,
            );
        }
        #[test]
        fn through_python_backend() {
            crate::backends::quirky_if_long(
                crate::support::quirky_server::Quirks::python_backend(),
                $check,
            );
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

#[cfg(feature = "kubernetes")]
pub(crate) fn pods(check: fn(&Client)) {
    let what = "a suite on Kubernetes";
    if let Some(namespace) = crate::support::kubernetes::Namespace::new_or_skip(what) {
        check(&Client::with_backend(namespace.backend()));
    }
}

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

/// Containers of the engine that a variable names.
#[cfg(feature = "docker")]
pub(crate) fn containers(variable: &'static str, check: fn(&Client)) {
    use crate::support::docker::Engine;

    if let Some(engine) = Engine::new_or_skip(variable, "a suite on containers") {
        check(&engine.client());
    }
}

#[cfg(feature = "server")]
pub(crate) fn own_server(check: fn(&Client)) {
    let (backend, _dir) = local_backend(Isolation::Namespaces);
    let builder = noxrunner::server::Server::builder(backend).tcp("127.0.0.1:0");
    check(&crate::server::RunningServer::start(builder).client());
}

/// A gateway at a Unix socket to a server at another one.
#[cfg(feature = "server")]
pub(crate) fn unix_socket(check: fn(&Client)) {
    use crate::server::RunningServer;
    use noxrunner::server::Server;

    let (backend, dir) = local_backend(Isolation::None);
    let path = |name: &str| dir.path().join(name);
    let url = |name: &str| format!("unix://{}", path(name).display());
    let behind = RunningServer::start(Server::builder(backend).unix(path("server")).no_auth());
    let backend = HttpBackend::new(url("server")).unwrap();
    let gateway = RunningServer::start(Server::builder(backend).unix(path("gateway")));
    check(&gateway.client_at(&url("gateway")));
    drop((gateway, behind));
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

pub(crate) fn quirky(quirks: Quirks, check: impl Fn(&Client)) {
    quirky_backend(quirks, |backend| check(&Client::with_backend(backend)));
}

/// For servers that deviate in less than another one of the same suite.
pub(crate) fn quirky_if_long(quirks: Quirks, check: impl Fn(&Client)) {
    if long_tests_or_skip("a suite on one more server with deviations") {
        quirky(quirks, check);
    }
}

/// Calls `check` with a client's backend for a server that has these deviations.
pub(crate) fn quirky_backend(quirks: Quirks, check: impl FnOnce(HttpBackend)) {
    let (backend, _dir) = local_backend(Isolation::Namespaces);
    let key = quirks.service_key;
    let server = quirky_server::serve(backend, quirks);
    let mut builder = HttpBackend::builder(server.url());
    if let Some(key) = key {
        builder = builder.header("X-Service-Key", key);
    }
    check(builder.build().unwrap());
}

/// Returns the directories of a sandbox. Some servers accept only paths below `/workspace`.
pub(crate) fn own_dirs(sandbox: &Sandbox) -> &'static [&'static str] {
    let in_tmp = sandbox.exec(Command::new("true").workdir("/tmp"));
    if in_tmp.is_ok() {
        &["/workspace", "/tmp"]
    } else {
        &["/workspace"]
    }
}

/// Returns the exit code that the backend reports for this one. Some servers report -1 for every failure.
pub(crate) fn reported(sandbox: &Sandbox, code: i32) -> i32 {
    let exit = Command::shell(format!("exit {code}"));
    let reported = sandbox.exec(exit).unwrap().exit_code();
    assert!([code, -1].contains(&reported), "{reported}");
    reported
}

/// Returns true if the sandbox with this file is gone. Some servers create an empty one in its place.
pub(crate) fn is_gone(sandbox: &Sandbox, file: &str) -> bool {
    match sandbox.exists(file) {
        Ok(exists) => !exists,
        Err(e) if e.is_not_found() => true,
        // The status of a pod may be older than its end.
        Err(e) if e.to_string().contains("its pod on node") => false,
        Err(e) => {
            let message = "the sandbox ended while the command ran";
            assert!(format!("{e:#}").contains(message), "{e}");
            false
        }
    }
}

/// Asserts that an exec has timed out with this output. Some servers report only that.
pub(crate) fn assert_timed_out(result: Result<Output>, stdout: &str) {
    match result {
        Ok(out) => {
            assert!(out.timed_out() && out.exit_code() == 124, "{out:?}");
            assert_eq!(out.stdout(), stdout);
        }
        Err(e) => assert_eq!(
            (e.kind(), e.code()),
            (ErrorKind::Timeout, Some("EXEC_TIMEOUT"))
        ),
    }
}

//! The container engines of the tests.
//!
//! `NOXRUNNER_TEST_DOCKER` and `NOXRUNNER_TEST_PODMAN` are the sockets of a Docker and a Podman engine, as
//! `unix:///PATH`. `NOXRUNNER_TEST_AGENT` is the path of a static `noxrc`. `NOXRUNNER_TEST_IMAGE` is an image with
//! the usual programs that runs as root, and `NOXRUNNER_TEST_USER_IMAGE` one that runs as user 1000; they default
//! to those of `tests/engines/images.sh`. `NOXRUNNER_TEST_REGISTRY` is the registry of
//! `tests/engines/registry-up.sh`, as the Docker engine reaches it. `NOXRUNNER_TEST_DOCKER_PORTS=1` says that these
//! tests reach the ports that Docker publishes on its loopback interface.

use std::env;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use noxrunner::{Client, DockerBackend, DockerBackendBuilder};
use serde_json::Value;

use super::processes::wait_for;

/// An engine, with a directory for the sockets of one test.
pub(crate) struct Engine {
    variable: &'static str,
    socket: String,
    agent: String,
    pub(crate) dir: tempfile::TempDir,
}

/// The engines by their variables.
pub(crate) const DOCKER: &str = "NOXRUNNER_TEST_DOCKER";
pub(crate) const PODMAN: &str = "NOXRUNNER_TEST_PODMAN";

impl Engine {
    /// Returns an engine. Without it, reports what is skipped.
    pub(crate) fn new_or_skip(variable: &'static str, what: &str) -> Option<Engine> {
        let Ok(socket) = env::var(variable) else {
            let required =
                env::var_os("NOXRUNNER_REQUIRE_ENGINES").is_some_and(|value| value == "1");
            assert!(!required, "{variable} is not set");
            let _ = writeln!(std::io::stderr(), "skipped without {variable}: {what}");
            return None;
        };
        let agent = env::var("NOXRUNNER_TEST_AGENT").expect("NOXRUNNER_TEST_AGENT is set");
        Some(Engine {
            variable,
            socket,
            agent,
            dir: tempfile::tempdir().unwrap(),
        })
    }

    /// Returns the settings of a backend. All backends of this engine share their sandboxes.
    pub(crate) fn builder(&self) -> DockerBackendBuilder {
        DockerBackend::builder()
            .socket(&self.socket)
            .agent(&self.agent)
            .image(image())
            .socket_dir(self.dir.path().join("sockets"))
    }

    pub(crate) fn client(&self) -> Client {
        Client::with_backend(self.builder().build().unwrap())
    }

    /// Returns true if this process reaches ports that the engine publishes on its loopback interface.
    pub(crate) fn has_ports_or_skip(&self, what: &str) -> bool {
        let variable = format!("{}_PORTS", self.variable);
        let has_ports = env::var_os(&variable).is_some_and(|value| value == "1");
        if !has_ports {
            let _ = writeln!(std::io::stderr(), "skipped without {variable}=1: {what}");
        }
        has_ports
    }

    /// Returns true if the engine has cgroups. Rootless Podman has none with cgroup v1.
    pub(crate) fn has_cgroups(&self) -> bool {
        let (status, body) = self.api("GET", "/info", "");
        assert_eq!(status, 200, "{body}");
        let info: Value = serde_json::from_str(&body).unwrap();
        info["CgroupVersion"] != "1" || info["Rootless"] != true
    }

    /// Returns the names of the settings that no sandbox of this engine has.
    pub(crate) fn always_ignored(&self) -> &'static [&'static str] {
        if self.has_cgroups() { &[] } else { &["memory"] }
    }

    pub(crate) fn is_docker(&self) -> bool {
        self.variable == DOCKER
    }

    /// Returns the prefix of the engine's scripts.
    fn kind(&self) -> &'static str {
        if self.is_docker() { "docker" } else { "podman" }
    }

    pub(crate) fn socket(&self) -> &str {
        &self.socket
    }

    pub(crate) fn agent(&self) -> &str {
        &self.agent
    }

    /// Sends a request to the engine's API, and returns the status and the body.
    pub(crate) fn api(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let path_of_socket = self.socket.trim_start_matches("unix://");
        let mut stream = UnixStream::connect(path_of_socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let head = format!(
            "{method} /v1.41{path} HTTP/1.0\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let status = response.get(9..12).and_then(|status| status.parse().ok());
        let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status.expect("a status"), body.to_owned())
    }

    /// Returns what the engine says about the containers of this test, running or not.
    pub(crate) fn containers(&self) -> Vec<Value> {
        let (status, body) = self.api("GET", "/containers/json?all=true", "");
        assert_eq!(status, 200, "{body}");
        let all: Vec<Value> = serde_json::from_str(&body).unwrap();
        let own = self.dir.path().to_str().unwrap();
        all.into_iter()
            .filter(|container| {
                let dir = container["Labels"]["noxrunner.directory"].as_str();
                dir.is_some_and(|dir| Path::new(dir).starts_with(own))
            })
            .collect()
    }

    /// Returns the id of the only container of this test.
    pub(crate) fn only_container(&self) -> String {
        let containers = self.containers();
        assert_eq!(containers.len(), 1, "{containers:?}");
        containers[0]["Id"].as_str().unwrap().to_owned()
    }

    /// Returns the paths of the directories of sandboxes that exist.
    pub(crate) fn socket_dirs(&self) -> Vec<String> {
        let engines = std::fs::read_dir(self.dir.path().join("sockets"));
        let engines = engines.into_iter().flatten().flatten();
        let dirs = engines.flat_map(|engine| std::fs::read_dir(engine.path()).unwrap().flatten());
        let names = dirs.map(|dir| dir.path().to_str().unwrap().to_owned());
        names.filter(|path| !path.ends_with("/lock")).collect()
    }

    /// Asserts that no container and no directory is left. The engine itself removes a container that has ended.
    pub(crate) fn assert_nothing_left(&self) {
        wait_for("all containers are removed", || {
            self.containers().is_empty()
        });
        let dirs = self.socket_dirs();
        assert!(dirs.is_empty(), "{dirs:?}");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The engine may be the reason why the test fails.
        if UnixStream::connect(self.socket.trim_start_matches("unix://")).is_err() {
            return;
        }
        for container in self.containers() {
            let id = container["Id"].as_str().unwrap_or_default();
            self.api("POST", &format!("/containers/{id}/kill"), "");
            self.api("DELETE", &format!("/containers/{id}?force=true&v=true"), "");
        }
    }
}

/// Reports a part of a test that this engine cannot do.
pub(crate) fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// An engine for one test alone, which may stop it. The containers of Docker end with it.
pub(crate) struct OwnEngine {
    name: String,
    pub(crate) engine: Engine,
}

impl OwnEngine {
    /// Starts an engine with the scripts in `tests/engines`, if these have started the one of the tests.
    pub(crate) fn start_or_skip(variable: &'static str, what: &str) -> Option<OwnEngine> {
        let engine = Engine::new_or_skip(variable, what)?;
        if env::var_os("NOXRUNNER_ENGINES").is_none() || !super::is_root() {
            let _ = writeln!(
                std::io::stderr(),
                "skipped without NOXRUNNER_ENGINES and root: {what}"
            );
            return None;
        }
        let name = format!("test-{}-{}", engine.kind(), std::process::id());
        let mut own = OwnEngine { name, engine };
        own.engine.socket = own.up();
        Some(own)
    }

    fn run(&self, script: &str) -> String {
        run_script(&format!("{}-{script}.sh", self.engine.kind()), &self.name)
    }

    fn up(&self) -> String {
        let printed = self.run("up");
        let socket = printed.rsplit_once('=').map(|(_, socket)| socket.trim());
        socket.expect("the script prints the socket").to_owned()
    }

    /// Stops the engine, but keeps its files.
    pub(crate) fn stop(&self) {
        self.run("stop");
    }

    pub(crate) fn start_again(&self) {
        self.up();
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        self.run("down");
        // The engine's own drop asks the engine of the other tests, which has none of these containers.
        self.engine.socket = env::var(self.engine.variable).unwrap_or_default();
    }
}

/// Runs a script in `tests/engines`, and returns what it prints.
fn run_script(script: &str, name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/engines")
        .join(script);
    let done = std::process::Command::new(path).arg(name).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{script}: {}", text(&done.stderr));
    text(&done.stdout)
}

/// Returns the image whose commands run as root.
pub(crate) fn image() -> String {
    let image = env::var("NOXRUNNER_TEST_IMAGE");
    image.unwrap_or_else(|_| "localhost/noxrunner/busybox:1".to_owned())
}

/// Returns the image whose commands run as user 1000.
pub(crate) fn user_image() -> String {
    let image = env::var("NOXRUNNER_TEST_USER_IMAGE");
    image.unwrap_or_else(|_| "localhost/noxrunner/busybox-user:1".to_owned())
}

//! The backends that are soaked.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use noxrunner::server::Server;
use noxrunner::{DockerBackend, LocalBackend, SandboxSpec};

use crate::support::docker::{Engine, OwnEngine, image};
use crate::support::is_root;
use crate::support::kubernetes::{KEY, Namespace};
use crate::support::processes::rerun;

const NOXRC: &str = env!("CARGO_BIN_EXE_noxrc");

pub(crate) enum Backend {
    /// Local sandboxes that end with the server. As root, the server's files are on a small disk.
    Local,
    /// Local sandboxes that the next server finds again.
    Persistent,
    Containers(Containers),
    Pods(Pods),
}

/// Sandboxes in containers.
pub(crate) enum Containers {
    /// On the engine of all tests, which must not be stopped.
    Shared(Engine),
    Own(OwnEngine),
}

impl Containers {
    fn engine(&self) -> &Engine {
        match self {
            Containers::Shared(engine) => engine,
            Containers::Own(own) => &own.engine,
        }
    }
}

/// Sandboxes in pods.
pub(crate) enum Pods {
    /// On a cluster whose API server must not be stopped.
    Shared(Namespace),
    Alone(Namespace),
}

impl Pods {
    fn namespace(&self) -> &Namespace {
        match self {
            Pods::Shared(namespace) | Pods::Alone(namespace) => namespace,
        }
    }
}

/// The size of the disk of a local server.
const DISK: &str = "64m";

/// Variables of a server in a process of the tests.
const SOCKET: &str = "NOXRUNNER_SOAK_SOCKET";
const ENGINE: &str = "NOXRUNNER_SOAK_ENGINE";
const AGENT: &str = "NOXRUNNER_SOAK_AGENT";
const SOCKET_DIR: &str = "NOXRUNNER_SOAK_SOCKET_DIR";

impl Backend {
    /// Returns sandboxes on the engine that this variable names.
    pub(crate) fn containers_or_skip(variable: &'static str) -> Option<Backend> {
        let what = "an engine that is restarted";
        if let Some(own) = OwnEngine::start_or_skip(variable, what) {
            return Some(Backend::Containers(Containers::Own(own)));
        }
        let engine = Engine::new_or_skip(variable, "the soak")?;
        Some(Backend::Containers(Containers::Shared(engine)))
    }

    /// Returns sandboxes on the cluster of the tests.
    pub(crate) fn pods_or_skip() -> Option<Backend> {
        if let Some(namespace) = Namespace::alone_or_skip("an API server that is restarted") {
            return Some(Backend::Pods(Pods::Alone(namespace)));
        }
        let namespace = Namespace::new_or_skip("the soak")?;
        Some(Backend::Pods(Pods::Shared(namespace)))
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Backend::Local => "local",
            Backend::Persistent => "persistent",
            Backend::Containers(containers) if containers.engine().is_docker() => "docker",
            Backend::Containers(_) => "podman",
            Backend::Pods(_) => "kubernetes",
        }
    }

    /// Returns the command that serves these sandboxes on a socket.
    pub(crate) fn serve(&self, dir: &Path, socket: &Path) -> Command {
        let mut command = match self {
            Backend::Local if is_root() => on_small_disk(&disk(dir)),
            Backend::Local | Backend::Pods(_) => Command::new(NOXRC),
            Backend::Persistent | Backend::Containers(_) => rerun(&[], "serve_from_here"),
        };
        if let Backend::Pods(pods) = self {
            choose_pods(&mut command, pods.namespace(), &dir.join("key"));
        }
        if self.is_served_by_command() {
            command.args(["--json", "serve", "--no-auth", "--unix"]);
            command.arg(socket);
        }
        if let Backend::Pods(pods) = self {
            command.args(["--image", pods.namespace().image()]);
        }
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", dir.join("home"))
            .env("TMPDIR", disk(dir))
            .env("XDG_STATE_HOME", disk(dir).join("state"))
            .env(SOCKET, socket);
        if let Backend::Containers(containers) = self {
            let engine = containers.engine();
            command.env("NOXRUNNER_TEST_IMAGE", image());
            command.env(ENGINE, engine.socket());
            command.env(AGENT, engine.agent());
            command.env(SOCKET_DIR, self.socket_dir(dir));
        }
        command
    }

    /// Returns true for the servers that `noxrc serve` runs. It has no persistent sandboxes, and as root it
    /// cannot choose the directory that tells its containers from those of other tests.
    pub(crate) fn is_served_by_command(&self) -> bool {
        matches!(self, Backend::Local | Backend::Pods(_))
    }

    /// Returns the directory of the sockets of containers.
    pub(crate) fn socket_dir(&self, dir: &Path) -> PathBuf {
        match self {
            Backend::Containers(containers) => containers.engine().dir.path().join("sockets"),
            _ => dir.join("sockets"),
        }
    }

    pub(crate) fn ttl(&self) -> Duration {
        Duration::from_secs(match self {
            Backend::Local | Backend::Persistent => 15,
            Backend::Containers(_) => 25,
            Backend::Pods(_) => 60,
        })
    }

    /// Returns the maximum time after a failed call until its effect on a TTL: a server may go on with a create for
    /// 120 s, and agents start with a TTL of 120 s, which the server replaces when it has reached them.
    pub(crate) fn unacknowledged(&self) -> Duration {
        Duration::from_secs(match self {
            Backend::Local | Backend::Persistent => 0,
            Backend::Containers(_) | Backend::Pods(_) => 120,
        })
    }

    pub(crate) fn spec(&self) -> SandboxSpec {
        SandboxSpec::new().ttl(self.ttl()).memory("64Mi")
    }

    /// Returns true if sandboxes outlive the server.
    pub(crate) fn outlives_server(&self) -> bool {
        !matches!(self, Backend::Local)
    }

    /// Returns true if a full sandbox gets an error and can go on. A full pod is evicted.
    pub(crate) fn reports_full_sandbox(&self) -> bool {
        !matches!(self, Backend::Pods(_))
    }

    /// Returns true if the server's files are on a small disk.
    pub(crate) fn has_small_disk(&self) -> bool {
        matches!(self, Backend::Local) && is_root()
    }

    /// Returns true if there is an engine that may be restarted.
    pub(crate) fn has_own_engine(&self) -> bool {
        matches!(
            self,
            Backend::Containers(Containers::Own(_)) | Backend::Pods(Pods::Alone(_))
        )
    }

    /// Returns true if sandboxes outlive a restart of the engine. Docker ends its containers.
    pub(crate) fn outlives_engine(&self) -> bool {
        self.name() != "docker"
    }

    /// Kills the engine, or the API server of the cluster, and starts it again after `pause`.
    pub(crate) fn restart_engine(&self, pause: impl FnOnce()) {
        match self {
            Backend::Containers(Containers::Own(own)) => {
                own.stop();
                pause();
                own.start_again();
            }
            Backend::Pods(Pods::Alone(namespace)) => {
                namespace.script("k8s-api-server.sh", &["stop"]);
                pause();
                namespace.script("k8s-api-server.sh", &["start"]);
            }
            _ => {}
        }
    }

    /// Returns the containers or pods that exist.
    pub(crate) fn existing(&self) -> Vec<String> {
        match self {
            Backend::Local | Backend::Persistent => Vec::new(),
            Backend::Containers(containers) => {
                let all = containers.engine().containers().into_iter();
                all.map(|container| container["Names"].to_string())
                    .collect()
            }
            Backend::Pods(pods) => pods.namespace().pods(),
        }
    }
}

/// Returns a `noxrc` whose files are on a small disk, which no other process sees.
fn on_small_disk(disk: &Path) -> Command {
    let mut command = Command::new("unshare");
    let script = r#"mount -t tmpfs -o size="$1",mode=711 none "$2"; shift 2; exec "$@""#;
    command.args(["--mount", "sh", "-ec", script, "sh", DISK]);
    command.arg(disk).arg(NOXRC);
    command
}

/// Adds the options that choose the pods of a namespace.
fn choose_pods(command: &mut Command, namespace: &Namespace, key: &Path) {
    std::fs::write(key, KEY).unwrap();
    command.args(["--kubernetes", "--kubeconfig", namespace.kubeconfig()]);
    command.args(["--namespace", &namespace.name]);
    command.args(["--agent-image", namespace.agent_image(), "--key-file"]);
    command.arg(key);
}

/// Serves the sandboxes that the variables choose, until the process is killed.
pub(crate) fn serve_from_here() {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let socket = variable(SOCKET).expect("the soak sets the variables");
    let server = match std::env::var(ENGINE) {
        Ok(engine) => {
            let backend = DockerBackend::builder().socket(engine).image(image());
            let backend = backend.agent(variable(AGENT).unwrap());
            let backend = backend.socket_dir(variable(SOCKET_DIR).unwrap());
            Server::builder(backend.build().unwrap())
        }
        Err(_) => {
            let backend = LocalBackend::builder().persistent(true);
            Server::builder(backend.build().unwrap())
        }
    };
    server.no_auth().unix(socket).bind().unwrap().run().unwrap();
}

/// Returns the directory of the files of a server. It is a small disk of a local one.
pub(crate) fn disk(dir: &Path) -> PathBuf {
    dir.join("disk")
}

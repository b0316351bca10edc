//! Settings of the Docker backend.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::agent_program::AgentProgram;
use super::backend::DockerBackend;
use super::dirs::SandboxDirs;
use super::engine::Engine;
use super::image::{OnPull, Pull, PullProgress};
use super::locate::sockets;
use super::options::{Mount, Options};
use super::sandboxes::Sandboxes;
use super::settings::Settings;
use crate::engine::AgentCache;
use crate::error::{Error, Result};
use crate::validate::check_duration;

/// Default timeout of create, without the time for pulling an image.
const CREATE_TIMEOUT: Duration = Duration::from_secs(120);

/// Default timeout of pulling an image.
const PULL_TIMEOUT: Duration = Duration::from_secs(600);

/// Settings of a [`DockerBackend`].
///
/// ```no_run
/// use noxrunner::DockerBackend;
///
/// let backend = DockerBackend::builder()
///     .image("python:3.12-slim")
///     .memory("2Gi")
///     .mount("/srv/datasets", "/data", true)
///     .build()?;
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct DockerBackendBuilder {
    socket: Option<String>,
    agent: Option<PathBuf>,
    socket_dir: Option<PathBuf>,
    loopback_port: bool,
    pull: Pull,
    on_pull_progress: Option<Arc<OnPull>>,
    create_timeout: Duration,
    pull_timeout: Duration,
    options: Options,
}

impl DockerBackend {
    /// Creates a backend with the default settings. It has no default image, so each spec needs one.
    ///
    /// # Errors
    ///
    /// The same as for [`DockerBackendBuilder::build`].
    pub fn new() -> Result<DockerBackend> {
        DockerBackend::builder().build()
    }

    /// Returns the sockets of engines that [`build`](DockerBackendBuilder::build) tries, in this order. Does not
    /// connect to them.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if there is none, or `DOCKER_HOST` or the current context of
    /// the Docker command names something else than a Unix socket.
    pub fn sockets() -> Result<Vec<PathBuf>> {
        sockets(None)
    }

    /// Returns the default settings, to be changed and [built](DockerBackendBuilder::build).
    pub fn builder() -> DockerBackendBuilder {
        DockerBackendBuilder {
            socket: None,
            agent: None,
            socket_dir: None,
            loopback_port: cfg!(not(target_os = "linux")),
            pull: Pull::default(),
            on_pull_progress: None,
            create_timeout: CREATE_TIMEOUT,
            pull_timeout: PULL_TIMEOUT,
            options: Options::default(),
        }
    }
}

impl DockerBackendBuilder {
    /// Sets the Unix socket of the engine, as `unix:///PATH` or `/PATH`.
    ///
    /// Defaults to `DOCKER_HOST`, then to the current context of the Docker command (`DOCKER_CONTEXT`, or the
    /// one in its configuration), then to the first engine that answers at `/var/run/docker.sock`,
    /// `$XDG_RUNTIME_DIR/docker.sock`, `$XDG_RUNTIME_DIR/podman/podman.sock` and `/run/podman/podman.sock`.
    pub fn socket(mut self, socket: impl Into<String>) -> DockerBackendBuilder {
        self.socket = Some(socket.into());
        self
    }

    /// Sets the image of sandboxes whose spec has none. Defaults to none: such a spec is refused.
    pub fn image(mut self, image: impl Into<String>) -> DockerBackendBuilder {
        self.options.image = Some(image.into());
        self
    }

    /// Sets the CPU limit of sandboxes whose spec has none, as a Kubernetes quantity. Defaults to no limit.
    pub fn cpu(mut self, cpu: impl Into<String>) -> DockerBackendBuilder {
        self.options.cpu = Some(cpu.into());
        self
    }

    /// Sets the memory limit of sandboxes whose spec has none, as a Kubernetes quantity. Defaults to `1Gi`.
    pub fn memory(mut self, memory: impl Into<String>) -> DockerBackendBuilder {
        self.options.memory = Some(memory.into());
        self
    }

    /// Sets the storage limit of sandboxes whose spec has none, as a Kubernetes quantity. Defaults to
    /// `512Mi`, or to half of the memory limit if that is less.
    pub fn storage(mut self, storage: impl Into<String>) -> DockerBackendBuilder {
        self.options.storage = Some(storage.into());
        self
    }

    /// Sets the maximum number of processes and threads of a sandbox. Defaults to 512.
    pub fn pids(mut self, pids: u32) -> DockerBackendBuilder {
        self.options.pids = pids;
        self
    }

    /// Sets the engine's runtime, such as `runsc` (gVisor) or `kata`. Defaults to that of the engine.
    /// Podman's API cannot choose one, so create then fails with [`Unsupported`](crate::ErrorKind::Unsupported): set
    /// the default runtime of its service instead.
    pub fn runtime(mut self, runtime: impl Into<String>) -> DockerBackendBuilder {
        self.options.runtime = Some(runtime.into());
        self
    }

    /// Sets the network of sandboxes: `none`, `bridge`, or the name of one of the engine's networks. Defaults
    /// to `none`, and with a [`loopback_port`](Self::loopback_port) to `bridge`.
    pub fn network(mut self, network: impl Into<String>) -> DockerBackendBuilder {
        self.options.network = Some(network.into());
        self
    }

    /// Sets the user that commands run as: `UID`, `UID:GID` or a name in the image. Defaults to the user of the
    /// image.
    pub fn user(mut self, user: impl Into<String>) -> DockerBackendBuilder {
        self.options.user = Some(user.into());
        self
    }

    /// Shows a file or directory of the engine's host in all sandboxes. Both paths are absolute. The one of the host
    /// must exist. Can be called several times. Defaults to none.
    pub fn mount(
        mut self,
        host: impl Into<String>,
        container: impl Into<String>,
        read_only: bool,
    ) -> DockerBackendBuilder {
        self.options.mounts.push(Mount {
            host: host.into(),
            container: container.into(),
            read_only,
        });
        self
    }

    /// Sets the path of a static `noxrc`, which runs as the agent in the containers. Defaults to the running
    /// program if it is one, else to the first one on `PATH`.
    pub fn agent(mut self, program: impl AsRef<Path>) -> DockerBackendBuilder {
        self.agent = Some(program.as_ref().to_owned());
        self
    }

    /// Sets when images are pulled. Credentials come from the user's Docker configuration, including its
    /// credential helpers. Defaults to [`Pull::Missing`].
    pub fn pull(mut self, pull: Pull) -> DockerBackendBuilder {
        self.pull = pull;
        self
    }

    /// Calls a function with the progress of pulls, on the thread that creates the sandbox. It should return
    /// soon, because the pull waits for it.
    pub fn on_pull_progress(
        mut self,
        on_progress: impl Fn(&PullProgress) + Send + Sync + 'static,
    ) -> DockerBackendBuilder {
        self.on_pull_progress = Some(Arc::new(on_progress));
        self
    }

    /// Sets the timeout of create, without the time for pulling an image. Defaults to 120 s.
    pub fn create_timeout(mut self, timeout: Duration) -> DockerBackendBuilder {
        self.create_timeout = timeout;
        self
    }

    /// Sets the timeout of pulling an image. Defaults to 600 s.
    pub fn pull_timeout(mut self, timeout: Duration) -> DockerBackendBuilder {
        self.pull_timeout = timeout;
        self
    }

    /// Sets the directory for the sockets of the agents. It must belong to this user with mode 0700, and is
    /// created if it does not exist. All processes that share sandboxes need the same one.
    ///
    /// Defaults to `/run/noxrunner` for root, and else to `noxrunner` in `$XDG_RUNTIME_DIR`, or
    /// `noxrunner-UID` in the temporary directory.
    pub fn socket_dir(mut self, dir: impl Into<PathBuf>) -> DockerBackendBuilder {
        self.socket_dir = Some(dir.into());
        self
    }

    /// Sets whether the agents are reached by a port on the loopback interface instead of a socket in a shared
    /// directory. This is for engines that do not share this machine's files, such as Docker Desktop. The agent's
    /// program is then copied into each container, and a token protects the port. Sandboxes get a network.
    /// Defaults to false, and to true on other systems than Linux.
    pub fn loopback_port(mut self, loopback_port: bool) -> DockerBackendBuilder {
        self.loopback_port = loopback_port;
        self
    }

    /// Connects to the engine and creates the backend.
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput) for an invalid setting, by its name; if the engine's
    ///   address is not a Unix socket; if no engine is found.
    /// - [`Unsupported`](crate::ErrorKind::Unsupported) if there is no static `noxrc`, or the engine is too old
    ///   (before Docker 19.03).
    /// - [`Connect`](crate::ErrorKind::Connect) if the engine does not answer.
    /// - [`Io`](crate::ErrorKind::Io) if the directory for sockets cannot be used.
    pub fn build(self) -> Result<DockerBackend> {
        check_duration("the create timeout", self.create_timeout)?;
        check_duration("the pull timeout", self.pull_timeout)?;
        self.options.check()?;
        self.check_network()?;
        if !self.loopback_port {
            self.options
                .mounts
                .iter()
                .try_for_each(Mount::check_existence)?;
        }
        let engine = connect(&sockets(self.socket.as_deref())?)?;
        let agent = AgentProgram::find(self.agent.as_deref())?;
        let agent_path = agent.path().to_str();
        let agent_path = agent_path.ok_or_else(|| {
            let shown = agent.path().display();
            Error::invalid(format!(
                "agent program {shown} has a path that is not UTF-8"
            ))
        })?;
        let dirs = SandboxDirs::open(self.socket_dir.as_deref(), engine.socket())?;
        let settings = Settings {
            options: self.options,
            agent_path: agent_path.to_owned(),
            pull: self.pull,
            on_pull_progress: self.on_pull_progress,
            create_timeout: self.create_timeout,
            pull_timeout: self.pull_timeout,
            loopback_port: self.loopback_port,
        };
        let sandboxes = Sandboxes {
            engine,
            dirs,
            cache: AgentCache::new(),
            last_sweep: None.into(),
        };
        Ok(DockerBackend {
            sandboxes: Arc::new(sandboxes),
            settings: Arc::new(settings),
        })
    }

    fn check_network(&self) -> Result<()> {
        match self.options.network.as_deref() {
            Some(network @ ("none" | "host")) if self.loopback_port => Err(Error::invalid(
                format!("a loopback port cannot be used with the network {network:?}"),
            )),
            _ => Ok(()),
        }
    }
}

/// Connects to the first engine that answers.
fn connect(sockets: &[PathBuf]) -> Result<Engine> {
    let mut first_error = None;
    for socket in sockets {
        match Engine::connect(socket) {
            Ok(engine) => return Ok(engine),
            Err(e) => first_error.get_or_insert(e),
        };
    }
    Err(first_error.unwrap_or_else(|| Error::invalid("no container engine found")))
}

impl fmt::Debug for DockerBackendBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerBackendBuilder")
            .field("socket", &self.socket)
            .field("agent", &self.agent)
            .field("socket_dir", &self.socket_dir)
            .field("loopback_port", &self.loopback_port)
            .field("pull", &self.pull)
            .field("create_timeout", &self.create_timeout)
            .field("pull_timeout", &self.pull_timeout)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

//! The Docker backend: each call goes to the agent in the sandbox's container.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use super::connection::Connection;
use super::create::Creation;
use super::sandboxes::{Effect, Sandboxes};
use super::settings::Settings;
use crate::backend::{Backend, logged};
use crate::chunk::Chunk;
use crate::command::Command;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};
use crate::upload::Upload;

/// Sandboxes in containers of Docker or Podman on this machine.
///
/// ```no_run
/// use noxrunner::{Client, DockerBackend, SandboxSpec};
///
/// let backend = DockerBackend::builder().image("python:3.12-slim").build()?;
/// let sandbox = Client::with_backend(backend).create("demo", SandboxSpec::new())?;
/// assert_eq!(sandbox.run(["python3", "-c", "print(6 * 7)"])?.stdout(), "42\n");
/// # Ok::<_, noxrunner::Error>(())
/// ```
///
/// Each sandbox is one container whose first process is `noxrc agent`, a NoxRunner v1 server for this sandbox
/// alone. Commands, files and live output go to the agent over a Unix socket, not through the engine, so
/// timeouts, partial output and cancellation work as in local sandboxes, and a command takes 1 to 2 ms. The agent
/// is a static program: the image needs no shell, and can even be empty.
///
/// # Sandboxes
///
/// - The container is named `nox-` and a hash. All processes of this user can use the sandbox by its id; if several
///   create it at the same time, all of them get the same one. Other users have their own sandboxes, as have
///   backends with another [`socket_dir`](crate::DockerBackendBuilder::socket_dir).
/// - It ends when its TTL expires or when it is deleted. The engine then removes it. It also ends with the engine:
///   Docker stops containers when it is restarted, unless its `live-restore` is on.
/// - A repeated create renews the TTL. Settings of the spec that differ from those of the existing sandbox are
///   listed in [`SandboxInfo::ignored`].
/// - `/workspace` and `/tmp` are in memory, so they count against the memory limit. `/workspace` is as large as the
///   storage limit, and so is `/tmp`, but at most a quarter of the memory limit. If more storage is asked for than
///   half of the memory limit, `/workspace` is on the engine's disk, where the limit is not enforced: `ignored` then
///   contains `storage`. It also contains the limits that the engine cannot enforce, such as those of rootless
///   Podman with cgroup v1.
/// - Commands have the environment and the user of the image, no capabilities, no new privileges, no network, the
///   engine's seccomp filter, at most 512 processes, and `1Gi` of memory without swap.
///   [`DockerBackendBuilder`](crate::DockerBackendBuilder) changes these.
///
/// # Security
///
/// A container shares the kernel with the host. For hostile code, use a
/// [`runtime`](crate::DockerBackendBuilder::runtime) with a stronger boundary. Whoever can use the engine's socket
/// has the rights of root on this machine, unless the engine is rootless: do not give it to sandboxes.
///
/// The agent's socket is in a directory that is private to this user, and which the sandbox cannot write to.
///
/// # Errors
///
/// Refusals of the engine are reported in its own words. If a container ends while a command runs, the error is
/// [`OutcomeUnknown`](crate::ErrorKind::OutcomeUnknown), and for all other calls
/// [`NotFound`](crate::ErrorKind::NotFound), with the reason that the engine reports, such as `OOMKilled`. Podman
/// reports none for a container that it has removed.
#[derive(Clone)]
pub struct DockerBackend {
    pub(super) sandboxes: Arc<Sandboxes>,
    pub(super) settings: Arc<Settings>,
}

impl DockerBackend {
    /// Returns the engine's name and version, such as `Docker 28.0.1` or `Podman 5.4.0`.
    #[must_use]
    pub fn engine(&self) -> &str {
        self.sandboxes.engine.name()
    }

    /// Returns the path of the engine's socket.
    #[must_use]
    pub fn socket(&self) -> &std::path::Path {
        self.sandboxes.engine.socket()
    }
}

impl Backend for DockerBackend {
    fn health(&self) -> Result<()> {
        self.sandboxes.engine.ping()
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        spec.check()?;
        logged("docker", "create", id, || {
            Creation::new(&self.sandboxes, &self.settings, id, spec)?.run()
        })
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        logged("docker", "touch", id, || {
            self.sandboxes
                .call(id, Effect::InSandbox, |agent| agent.touch(id))
        })
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        logged("docker", "exec", id, || {
            self.sandboxes
                .call(id, Effect::Command, |agent| agent.exec(id, command))
        })
    }

    fn exec_live(
        &self,
        id: &SessionId,
        command: &Command,
        sink: &mut dyn FnMut(Chunk<'_>) -> Result<()>,
    ) -> Result<Output> {
        logged("docker", "exec", id, || {
            self.sandboxes.call(id, Effect::Command, |agent| {
                agent.exec_live(id, command, sink)
            })
        })
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        // An archive cannot be sent twice, so the connection is checked first.
        logged("docker", "upload", id, || {
            self.sandboxes
                .call(id, Effect::InSandbox, Backend::health)?;
            let connection = self.sandboxes.connection(id)?;
            let result = connection.agent.upload(id, dest, archive);
            result.map_err(|e| self.sandboxes.explain(id, &connection, e))
        })
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        logged("docker", "download", id, || {
            let archive = self
                .sandboxes
                .call(id, Effect::InSandbox, |agent| agent.download(id, src))?;
            Ok(Box::new(Download {
                archive,
                sandboxes: Arc::clone(&self.sandboxes),
                connection: self.sandboxes.connection(id)?,
                id: id.clone(),
            }) as Box<dyn Read + Send>)
        })
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        logged("docker", "delete", id, || self.sandboxes.delete(id))
    }
}

/// A download, whose errors say whether the sandbox has ended.
struct Download {
    archive: Box<dyn Read + Send>,
    sandboxes: Arc<Sandboxes>,
    connection: Arc<Connection>,
    id: SessionId,
}

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.archive.read(buf).map_err(|e| match Error::from_io(e) {
            Ok(error) => self
                .sandboxes
                .explain(&self.id, &self.connection, error)
                .into_io(),
            Err(e) => e,
        })
    }
}

impl fmt::Debug for DockerBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerBackend")
            .field("engine", &self.sandboxes.engine)
            .finish_non_exhaustive()
    }
}

//! The connection to the agent of one sandbox.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::container::{Container, EnforcedLimits, RequestedSpec};
use super::dirs::{SandboxDirs, agent_socket, open_socket, read_token, seal, socket_url};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::http::HttpBackend;

/// Timeout of creating a sandbox again, which an agent answers at once.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(20);

/// A sandbox whose agent has been found.
pub(super) struct Connection {
    /// The engine's id of the container, which no other container ever has.
    pub(super) container: String,
    pub(super) dir: PathBuf,
    pub(super) agent: HttpBackend,
    pub(super) requested: RequestedSpec,
    pub(super) enforced: EnforcedLimits,
    /// Keeps the descriptor in the agent's URL open.
    socket: Option<File>,
}

impl Connection {
    /// Finds the agent in a running container. Returns `None` while the sandbox is being created.
    pub(super) fn open(container: &Container, dirs: &SandboxDirs) -> Result<Option<Connection>> {
        Connection::open_at(container, dirs, true)
    }

    /// Finds the agent in a container whose creation this call finishes. Returns `None` if the agent has not
    /// created its socket yet.
    pub(super) fn open_new(
        container: &Container,
        dirs: &SandboxDirs,
    ) -> Result<Option<Connection>> {
        match Connection::open_at(container, dirs, false)? {
            // Another client may have finished it.
            None => Connection::open_at(container, dirs, true),
            connection => Ok(connection),
        }
    }

    fn open_at(
        container: &Container,
        dirs: &SandboxDirs,
        is_sealed: bool,
    ) -> Result<Option<Connection>> {
        let dir = container.dir();
        // The engine chooses the labels, and must not choose a token or a socket of this machine.
        if !dirs.contains(&dir) {
            let (id, dir) = (one_line(&container.id), one_line(&dir.to_string_lossy()));
            let text = format!("container {id} has directory {dir:?}, which no sandbox has");
            return Err(Error::new(ErrorKind::Protocol, text));
        }
        let (agent, socket) = match container.port() {
            Some(port) => (agent_at_port(port, &read_token(&dir)?)?, None),
            None => match open_agent_socket(&agent_socket(&dir, is_sealed))? {
                Some(socket) => {
                    let builder = HttpBackend::builder(socket_url(&socket));
                    let agent = builder.create_timeout(RENEWAL_TIMEOUT).build()?;
                    (agent, Some(socket))
                }
                None => return Ok(None),
            },
        };
        Ok(Some(Connection {
            container: container.id.clone(),
            dir,
            agent,
            requested: container.requested(),
            enforced: container.enforced(),
            socket,
        }))
    }

    /// Finishes the creation, after the agent has answered.
    pub(super) fn seal(&self) -> Result<()> {
        match self.socket {
            Some(_) => seal(&self.dir),
            None => Ok(()),
        }
    }
}

/// Opens an agent's socket. Returns `None` if it does not exist.
fn open_agent_socket(path: &Path) -> Result<Option<File>> {
    match open_socket(path) {
        Ok(socket) => Ok(Some(socket)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let shown = path.display();
            let text = format!("the sandbox belongs to another user: cannot open {shown}");
            Err(Error::new(ErrorKind::Unauthorized, text).with_source(e))
        }
        Err(e) => {
            let shown = path.display();
            Err(Error::io(
                format_args!("cannot open the agent's socket {shown}"),
                e,
            ))
        }
    }
}

fn agent_at_port(port: u16, token: &str) -> Result<HttpBackend> {
    let builder = HttpBackend::builder(format!("http://127.0.0.1:{port}"));
    let builder = builder.create_timeout(RENEWAL_TIMEOUT);
    builder.token(token).no_proxy().build()
}

//! The server that runs inside a container, as its first process.
//!
//! The backends of engines put the program `noxrc` into a container and run it as `noxrc agent`. It serves
//! NoxRunner v1 for one sandbox, which is the container: commands run beside it, as its user, with its
//! files and limits. It needs nothing from the image.

mod install;

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

pub use self::install::install;
use crate::error::{Error, Result};
use crate::local::{ContainerTier, LocalBackend};
use crate::os::child::{
    Signal, block_awaited_signals, forbid_tracing, prefer_for_oom_kill, reap_orphans,
    unblock_signals, wait_for_signal,
};
use crate::sandbox_path::WORKSPACE;
use crate::server::{Server, ServerBuilder};
use crate::session_id::SessionId;
use crate::spec::DEFAULT_TTL;

/// Interval of the checks whether the sandbox has expired or was deleted.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Time for the responses of the last calls after the end of the sandbox.
const GRACE: Duration = Duration::from_secs(2);

/// Settings of an [`Agent`].
///
/// ```no_run
/// use noxrunner::SessionId;
/// use noxrunner::agent::Agent;
///
/// let agent = Agent::builder(SessionId::new("demo")?).unix("/run/noxrunner/agent.sock");
/// agent.bind()?.run()?;
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct AgentBuilder {
    id: SessionId,
    addresses: Vec<SocketAddr>,
    unix: Option<PathBuf>,
    token_sha256: Option<String>,
    ttl: Duration,
}

/// A NoxRunner v1 server for one sandbox: the container that this process is the first process of.
///
/// The sandbox lives until its TTL expires, until it is deleted, or until this process gets SIGTERM or
/// SIGINT. Creating it again and a touch restart the TTL. All other session ids do not exist.
///
/// Commands run as this process's user, with its environment and with the files of the container. Uploads,
/// downloads and working directories are in `/workspace` and `/tmp`. If memory runs out, the kernel kills
/// commands before this process, and [`Output::killed_by`](crate::Output::killed_by) reports that. Commands
/// cannot trace this process or read its memory.
pub struct Agent {
    server: Server,
    tier: Arc<ContainerTier>,
}

impl Agent {
    /// Returns a builder for the agent of a sandbox.
    pub fn builder(id: SessionId) -> AgentBuilder {
        AgentBuilder {
            id,
            addresses: Vec::new(),
            unix: None,
            token_sha256: None,
            ttl: DEFAULT_TTL,
        }
    }

    /// Returns the server, for its address.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Serves requests until the sandbox ends. Reaps the processes that commands leave behind.
    ///
    /// Call this on the main thread: the kernel makes orphans its children, and this must start no commands
    /// itself.
    ///
    /// # Errors
    ///
    /// [`Io`](crate::ErrorKind::Io) if no thread can be started.
    pub fn run(self) -> Result<()> {
        let stopper = self.server.stopper();
        let server = self.server;
        let serving = thread::Builder::new().name("noxrunner-agent".to_owned());
        let serving = serving
            .spawn(move || server.run())
            .map_err(|e| Error::io("cannot start the server's thread", e))?;
        while let Some(left) = self.tier.time_left() {
            match wait_for_signal(left.min(CHECK_INTERVAL)) {
                Some(Signal::ChildEnded) => reap_orphans(),
                Some(Signal::Terminate) => break,
                None => {}
            }
        }
        self.tier.end();
        stopper.stop();
        serving.join().unwrap_or(Ok(()))
    }
}

impl AgentBuilder {
    /// Adds an address to listen on, such as `0.0.0.0:8080`. Needs a [token](Self::token_sha256).
    pub fn tcp(mut self, addr: SocketAddr) -> AgentBuilder {
        self.addresses.push(addr);
        self
    }

    /// Sets the path of a Unix socket to listen on. Everyone who can search its directory can connect to it
    /// (mode 0666) and needs no token, unless one is set. Defaults to none.
    pub fn unix(mut self, path: impl Into<PathBuf>) -> AgentBuilder {
        self.unix = Some(path.into());
        self
    }

    /// Sets the token that requests need, as its SHA-256 in 64 hexadecimal digits: neither this process nor
    /// the settings of the container contain the token itself. Requests send it as
    /// `Authorization: Bearer TOKEN` or `X-Noxrunner-Token: TOKEN`. Defaults to none.
    pub fn token_sha256(mut self, hash: impl Into<String>) -> AgentBuilder {
        self.token_sha256 = Some(hash.into());
        self
    }

    /// Sets the TTL. Defaults to 900 s.
    pub fn ttl(mut self, ttl: Duration) -> AgentBuilder {
        self.ttl = ttl;
        self
    }

    /// Binds to the addresses, and creates `/workspace` if it does not exist. From now on this process
    /// cannot be traced by others of its user, and signals are left to [`Agent::run`].
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for invalid settings, and for an address without a
    /// token; [`Io`](crate::ErrorKind::Io) if an address or a path is not available.
    pub fn bind(self) -> Result<Agent> {
        crate::validate::check_duration("TTL", self.ttl)?;
        forbid_tracing().map_err(|e| Error::io("cannot protect this process", e))?;
        block_awaited_signals();
        if let Err(e) = fs::create_dir_all(WORKSPACE) {
            log::warn!("cannot create {WORKSPACE}: {e}");
        }
        let tier = ContainerTier::new(self.id.clone(), self.ttl, prepare);
        let tier = Arc::new(tier);
        let server = Server::builder(LocalBackend::in_container(Arc::clone(&tier)));
        let server = self.authenticate(server.grace(GRACE))?;
        let server = self.listen(server).bind()?;
        Ok(Agent { server, tier })
    }

    fn authenticate(&self, server: ServerBuilder) -> Result<ServerBuilder> {
        match &self.token_sha256 {
            Some(hash) => Ok(server.token_sha256(parse_hash(hash)?)),
            None if self.addresses.is_empty() => Ok(server.no_auth()),
            None => Err(Error::invalid(
                "an agent that listens on a network address needs a token: set its SHA-256 (noxrc agent: --token-sha256)",
            )),
        }
    }

    fn listen(&self, server: ServerBuilder) -> ServerBuilder {
        let server = server.tcp(&*self.addresses);
        match &self.unix {
            Some(path) => server.unix(path).unix_for_all(),
            None => server,
        }
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// Parses 64 hexadecimal digits.
fn parse_hash(text: &str) -> Result<[u8; 32]> {
    let refused = || Error::invalid("the SHA-256 of the token must have 64 hexadecimal digits");
    let mut hash = [0; 32];
    if text.len() != 2 * hash.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(refused());
    }
    for (at, byte) in hash.iter_mut().enumerate() {
        let digits = &text[2 * at..2 * at + 2];
        *byte = u8::from_str_radix(digits, 16).map_err(|_| refused())?;
    }
    Ok(hash)
}

/// Prepares the process of a command.
fn prepare(command: &mut std::process::Command) {
    unblock_signals(command);
    prefer_for_oom_kill(command);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_have_64_hexadecimal_digits() {
        let hash = parse_hash(&"0aF".repeat(22)[..64]).unwrap();
        assert_eq!(hash[..3], [0x0a, 0xf0, 0xaf]);
        for text in ["", "0", &"g".repeat(64), &"0".repeat(65), &"ä".repeat(32)] {
            assert!(parse_hash(text).is_err(), "{text}");
        }
    }

    #[test]
    fn network_addresses_need_a_token() {
        let builder =
            Agent::builder(SessionId::new("demo").unwrap()).tcp(([127, 0, 0, 1], 0).into());
        let server = Server::builder(LocalBackend::new().unwrap());
        let error = builder.authenticate(server).unwrap_err();
        assert!(error.to_string().contains("--token-sha256"), "{error}");
    }
}

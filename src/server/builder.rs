//! Settings of a server, and binding to its addresses.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};

use super::admission::Admission;
use super::auth::Auth;
use super::budget::{Budget, MIN_BUDGET};
use super::listener::{Listener, UnixSocket};
use super::maxima::{Maxima, MaximaSettings};
use super::running::Server;
use super::service::Service;
use crate::backend::Backend;
use crate::error::{Error, Result};

/// Maximum that [`ServerBuilder::max_calls`] accepts. Each call needs a thread.
const MAX_CALLS: usize = 100_000;

/// Settings of a [`Server`].
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// use noxrunner::server::Server;
///
/// let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
/// let server = builder.token("s3cret").max_calls(8).bind()?;
/// assert_eq!(server.token(), Some("s3cret"));
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[must_use]
pub struct ServerBuilder {
    backend: Arc<dyn Backend>,
    tcp: Vec<SocketAddr>,
    unix: Option<PathBuf>,
    /// The mode of the Unix socket.
    unix_mode: u32,
    token: TokenChoice,
    max_connections: usize,
    max_calls: usize,
    max_upload: u64,
    memory_budget: u64,
    maxima: MaximaSettings,
    body_idle: Duration,
    grace: Duration,
    /// The first invalid address.
    error: Option<Error>,
}

#[derive(Clone)]
enum TokenChoice {
    New,
    Given(String),
    #[cfg(feature = "agent")]
    Sha256([u8; 32]),
    None {
        anywhere: bool,
    },
}

impl Server {
    /// Binds to an address, with a new token. Port 0 chooses a free port.
    ///
    /// # Errors
    ///
    /// The same as for [`ServerBuilder::bind`].
    pub fn bind(addr: impl ToSocketAddrs, backend: impl Backend + 'static) -> Result<Server> {
        Server::builder(backend).tcp(addr).bind()
    }

    /// Returns a builder for a server.
    pub fn builder(backend: impl Backend + 'static) -> ServerBuilder {
        ServerBuilder {
            backend: Arc::new(backend),
            tcp: Vec::new(),
            unix: None,
            unix_mode: 0o600,
            token: TokenChoice::New,
            max_connections: 800,
            max_calls: 128,
            max_upload: 4 << 30,
            memory_budget: 256 << 20,
            maxima: MaximaSettings::default(),
            body_idle: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            error: None,
        }
    }
}

impl ServerBuilder {
    /// Adds an address to listen on, such as `127.0.0.1:8080` or `[::1]:0`. A host name adds all its
    /// addresses.
    pub fn tcp(mut self, addr: impl ToSocketAddrs) -> ServerBuilder {
        match addr.to_socket_addrs() {
            Ok(addrs) => self.tcp.extend(addrs),
            Err(e) => {
                let error = Error::invalid("invalid address to listen on").with_source(e);
                self.error.get_or_insert(error);
            }
        }
        self
    }

    /// Sets the path of a Unix socket to listen on. Only this user can connect to it (mode 0600). A
    /// stale socket is replaced. Defaults to none.
    pub fn unix(mut self, path: impl Into<PathBuf>) -> ServerBuilder {
        self.unix = Some(path.into());
        self
    }

    /// Sets the token that requests need as `Authorization: Bearer TOKEN`. Defaults to a new random
    /// token.
    pub fn token(mut self, token: impl Into<String>) -> ServerBuilder {
        self.token = TokenChoice::Given(token.into());
        self
    }

    /// Sets the SHA-256 of the token, so that this process does not know the token itself.
    #[cfg(feature = "agent")]
    pub(crate) fn token_sha256(mut self, hash: [u8; 32]) -> ServerBuilder {
        self.token = TokenChoice::Sha256(hash);
        self
    }

    /// Lets all users connect to the Unix socket who can search its directory.
    #[cfg(feature = "agent")]
    pub(crate) fn unix_for_all(mut self) -> ServerBuilder {
        self.unix_mode = 0o666;
        self
    }

    /// Disables authentication: anyone who can connect can run commands. Allowed only for loopback
    /// addresses, which all users of the machine can connect to, and Unix sockets.
    pub fn no_auth(mut self) -> ServerBuilder {
        self.token = TokenChoice::None { anywhere: false };
        self
    }

    /// Disables authentication on any address. Use this only in a private network.
    pub fn no_auth_anywhere(mut self) -> ServerBuilder {
        self.token = TokenChoice::None { anywhere: true };
        self
    }

    /// Sets the maximum number of concurrent connections. Defaults to 800.
    pub fn max_connections(mut self, count: usize) -> ServerBuilder {
        self.max_connections = count;
        self
    }

    /// Sets the maximum number of concurrent calls. Defaults to 128.
    pub fn max_calls(mut self, count: usize) -> ServerBuilder {
        self.max_calls = count;
        self
    }

    /// Sets the maximum size of an uploaded archive as it is sent, in bytes. Defaults to 4 GiB.
    pub fn max_upload(mut self, bytes: u64) -> ServerBuilder {
        self.max_upload = bytes;
        self
    }

    /// Sets the memory that all connections and calls share, in bytes. It is reserved before a body, the
    /// output of a command or an archive takes memory; if none is left, the response is 503 with
    /// `Retry-After`. A third is for connections, which limits their number. At least 8 MiB. Defaults to
    /// 256 MiB.
    pub fn memory_budget(mut self, bytes: u64) -> ServerBuilder {
        self.memory_budget = bytes;
        self
    }

    /// Sets the maximum TTL. A request with a longer one gets 400, as for the other maxima. Without one the
    /// TTL is 900 s or the maximum, whichever is shorter. Defaults to no maximum.
    pub fn max_ttl(mut self, ttl: Duration) -> ServerBuilder {
        self.maxima.ttl = Some(ttl);
        self
    }

    /// Sets the maximum memory limit of a sandbox as a Kubernetes quantity, such as `2Gi`. A request
    /// without a limit gets the maximum if it is below 1 GiB, the default of local sandboxes, and
    /// otherwise the backend's default. Defaults to no maximum.
    pub fn max_memory(mut self, memory: impl Into<String>) -> ServerBuilder {
        self.maxima.memory = Some(memory.into());
        self
    }

    /// Sets the maximum storage limit of a sandbox as a Kubernetes quantity, such as `2Gi`. A request
    /// without a limit gets the maximum if it is below 512 MiB, the default of local sandboxes, and
    /// otherwise the backend's default. Defaults to no maximum.
    pub fn max_storage(mut self, storage: impl Into<String>) -> ServerBuilder {
        self.maxima.storage = Some(storage.into());
        self
    }

    /// Sets the maximum CPU limit of a sandbox as a Kubernetes quantity, such as `2` or `500m`. A request
    /// without a limit gets the maximum. Defaults to no maximum.
    pub fn max_cpu(mut self, cpu: impl Into<String>) -> ServerBuilder {
        self.maxima.cpu = Some(cpu.into());
        self
    }

    /// Sets the maximum number of sandboxes that clients of this server have created and that have
    /// neither been deleted nor expired. The creation of another one gets 429 with `Retry-After`, which
    /// this crate's client retries. Defaults to no maximum.
    pub fn max_sandboxes(mut self, count: usize) -> ServerBuilder {
        self.maxima.sandboxes = Some(count);
        self
    }

    /// Allows an image. Can be called several times: a request for any other image then gets 400. A request
    /// without an image gets the backend's default. Defaults to all images.
    pub fn allow_image(mut self, image: impl Into<String>) -> ServerBuilder {
        self.maxima.images.push(image.into());
        self
    }

    /// Sets how long a client may keep the server waiting for a part of a body, in either direction. Each
    /// KiB that it transfers earns a second of that time back. Defaults to 30 s.
    pub fn body_idle(mut self, time: Duration) -> ServerBuilder {
        self.body_idle = time;
        self
    }

    /// Sets how long running calls may continue after the server is stopped. Defaults to 10 s.
    pub fn grace(mut self, time: Duration) -> ServerBuilder {
        self.grace = time;
        self
    }

    /// Binds to the addresses. Clients can connect from now on, and get responses once
    /// [`Server::run`] is called.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for invalid settings;
    /// [`Io`](crate::ErrorKind::Io) if an address or a path is not available.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// use noxrunner::server::Server;
    ///
    /// let everywhere = || Server::builder(client.backend().clone()).tcp("0.0.0.0:0");
    /// assert!(everywhere().no_auth().bind().is_err());
    /// assert!(everywhere().no_auth_anywhere().bind().is_ok());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn bind(mut self) -> Result<Server> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        self.check()?;
        let failed = |e| Error::io("cannot create a token", e);
        let auth = match &self.token {
            TokenChoice::New => Auth::Token(new_token().map_err(failed)?),
            TokenChoice::Given(token) => Auth::Token(token.clone()),
            #[cfg(feature = "agent")]
            TokenChoice::Sha256(hash) => Auth::Sha256(*hash),
            TokenChoice::None { .. } => Auth::None,
        };
        let runtime = self.runtime()?;
        let (listeners, local_addr) = {
            let _entered = runtime.enter();
            self.listen()?
        };
        let (budget, connections) = Budget::new(self.memory_budget, self.max_connections);
        let service = Service {
            backend: self.backend,
            auth,
            calls: Arc::new(Semaphore::new(self.max_calls)),
            budget,
            maxima: Arc::new(Maxima::new(self.maxima)?),
            max_upload: self.max_upload,
            body_idle: self.body_idle,
            health: Arc::default(),
        };
        Ok(Server {
            listeners,
            local_addr,
            service: Arc::new(service),
            admission: Arc::new(Admission::new(connections)),
            grace: self.grace,
            stop: watch::Sender::new(false),
            runtime,
        })
    }

    fn runtime(&self) -> Result<Runtime> {
        // Calls run on other threads. With a worker for each processor, one that has nothing to do would be
        // woken for each request, and compete with the call.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = processors.div_ceil(2).min(4);
        Builder::new_multi_thread()
            .worker_threads(threads)
            // One more for health checks.
            .max_blocking_threads(self.max_calls + 1)
            .thread_name("noxrunner-server")
            .enable_all()
            .build()
            .map_err(|e| Error::io("cannot start the server's threads", e))
    }

    /// Listens on all addresses, and returns the first one.
    fn listen(&self) -> Result<(Vec<Listener>, Option<SocketAddr>)> {
        let mut listeners = Vec::new();
        let mut local_addr = None;
        for addr in &self.tcp {
            let (listener, addr) = listen_on(*addr)
                .map_err(|e| Error::io(format_args!("cannot listen on {addr}"), e))?;
            local_addr.get_or_insert(addr);
            listeners.push(Listener::Tcp(listener));
        }
        if let Some(path) = &self.unix {
            let socket = UnixSocket::bind(path, self.unix_mode)
                .map_err(|e| Error::io(format_args!("cannot listen on {}", path.display()), e))?;
            listeners.push(Listener::Unix(socket));
        }
        Ok((listeners, local_addr))
    }

    fn check(&self) -> Result<()> {
        if self.tcp.is_empty() && self.unix.is_none() {
            return Err(Error::invalid(
                "no address to listen on: set one with tcp() or unix()",
            ));
        }
        self.check_token()?;
        if self.max_connections == 0 || self.max_calls == 0 {
            return Err(Error::invalid(
                "max_connections and max_calls must not be 0",
            ));
        }
        if self.max_connections > Semaphore::MAX_PERMITS || self.max_calls > MAX_CALLS {
            return Err(Error::invalid("max_connections or max_calls is too large"));
        }
        if self.memory_budget < MIN_BUDGET {
            return Err(Error::invalid("memory_budget must be at least 8 MiB"));
        }
        Ok(())
    }

    fn check_token(&self) -> Result<()> {
        match &self.token {
            TokenChoice::Given(token) if token.is_empty() => Err(Error::invalid(
                "the token is empty: omit it to create a new one, or use no_auth()",
            )),
            TokenChoice::Given(token) if !token.bytes().all(|b| b.is_ascii_graphic()) => {
                Err(Error::invalid(
                    "the token has characters that a header cannot carry: use visible ASCII without spaces",
                ))
            }
            TokenChoice::None { anywhere: false } => {
                match self.tcp.iter().find(|addr| !addr.ip().is_loopback()) {
                    Some(addr) => Err(Error::invalid(format!(
                        "without authentication, anyone who can connect to {addr} could run commands: listen on a loopback address, or use no_auth_anywhere()"
                    ))),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

/// Creates a token of 128 bits from the operating system's source of randomness.
fn new_token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

fn listen_on(addr: SocketAddr) -> io::Result<(tokio::net::TcpListener, SocketAddr)> {
    // std sets SO_REUSEADDR, so that the port is available after a restart.
    let listener = std::net::TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    Ok((tokio::net::TcpListener::from_std(listener)?, addr))
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder")
            .field("tcp", &self.tcp)
            .field("unix", &self.unix)
            .finish_non_exhaustive()
    }
}

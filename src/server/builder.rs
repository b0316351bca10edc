//! The settings of a server, and how it comes to listen.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::{Semaphore, watch};

use super::Server;
use super::call::Service;
use super::gate::Gate;
use super::listen::{Listener, UnixSocket};
use crate::backend::Backend;
use crate::error::{Error, Result};

/// Settings of a [`Server`].
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # use noxrunner::server::Server;
/// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
/// let server = builder.token("s3cret").max_calls(8).bind()?;
/// assert_eq!(server.token(), Some("s3cret"));
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[must_use]
pub struct ServerBuilder {
    backend: Arc<dyn Backend>,
    tcp: Vec<SocketAddr>,
    unix: Option<PathBuf>,
    auth: Auth,
    max_connections: usize,
    max_calls: usize,
    max_upload: u64,
    body_idle: Duration,
    grace: Duration,
    error: Option<Error>,
}

#[derive(Clone)]
enum Auth {
    Made,
    Token(String),
    None { anywhere: bool },
}

impl ServerBuilder {
    pub(super) fn new(backend: Arc<dyn Backend>) -> ServerBuilder {
        ServerBuilder {
            backend,
            tcp: Vec::new(),
            unix: None,
            auth: Auth::Made,
            max_connections: 800,
            max_calls: 128,
            max_upload: 4 << 30,
            body_idle: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            error: None,
        }
    }

    /// Listens there, too: `127.0.0.1:8080`, `[::1]:0`. A name stands for all its addresses.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// let server = builder.tcp("[::1]:0").bind()?; // beside the first one
    /// assert!(server.local_addr().unwrap().is_ipv4());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn tcp(mut self, addr: impl ToSocketAddrs) -> ServerBuilder {
        match addr.to_socket_addrs() {
            Ok(addrs) => self.tcp.extend(addrs),
            Err(e) => {
                let error = Error::invalid(format!("the address to listen at: {e}"));
                self.error.get_or_insert(error.with_source(e));
            }
        }
        self
    }

    /// Listens to a Unix socket that only this user can use (mode 0600). One that nobody listens to
    /// any more is replaced.
    ///
    /// ```
    /// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// let socket = dir.path().join("noxrunner.sock");
    /// let server = Server::builder(client.backend().clone()).unix(&socket).bind()?;
    /// assert!(socket.exists() && server.local_addr().is_none());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn unix(mut self, path: impl Into<PathBuf>) -> ServerBuilder {
        self.unix = Some(path.into());
        self
    }

    /// What requests have to bring as `Authorization: Bearer`. By default one is made.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// assert_eq!(builder.token("s3cret").bind()?.token(), Some("s3cret"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn token(mut self, token: impl Into<String>) -> ServerBuilder {
        self.auth = Auth::Token(token.into());
        self
    }

    /// Everybody who reaches it may run commands. Only where it listens to loopback addresses and Unix
    /// sockets; all users of this machine reach the former.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// assert_eq!(builder.no_auth().bind()?.token(), None);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn no_auth(mut self) -> ServerBuilder {
        self.auth = Auth::None { anywhere: false };
        self
    }

    /// The same on any address: for networks where nobody else is.
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
    pub fn no_auth_anywhere(mut self) -> ServerBuilder {
        self.auth = Auth::None { anywhere: true };
        self
    }

    /// How many clients may be connected at a time. Defaults to 800.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// let error = builder.max_connections(0).bind().unwrap_err();
    /// assert!(error.to_string().contains("must not be 0"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn max_connections(mut self, count: usize) -> ServerBuilder {
        self.max_connections = count;
        self
    }

    /// How many calls may run at a time. Defaults to 128.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// let error = builder.max_calls(0).bind().unwrap_err();
    /// assert!(error.to_string().contains("must not be 0"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn max_calls(mut self, count: usize) -> ServerBuilder {
        self.max_calls = count;
        self
    }

    /// How large an uploaded archive may be, in bytes as sent. Defaults to 4 GiB.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// # let builder = builder.no_auth();
    /// let server = builder.max_upload(100).bind()?;
    /// let (url, stopper) = (format!("http://{}", server.local_addr().unwrap()), server.stopper());
    /// let running = std::thread::spawn(move || server.run());
    /// let sandbox = noxrunner::Client::new(url)?.create("demo", noxrunner::SandboxSpec::new())?;
    /// let error = sandbox.write("large", vec![7; 1000]).unwrap_err();
    /// assert_eq!(error.status(), Some(413));
    /// # stopper.stop();
    /// # running.join().unwrap()?;
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn max_upload(mut self, bytes: u64) -> ServerBuilder {
        self.max_upload = bytes;
        self
    }

    /// How long a body may stand still, in either direction. Defaults to 30 s.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// use std::time::Duration;
    ///
    /// assert!(builder.body_idle(Duration::from_secs(5)).bind().is_ok());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn body_idle(mut self, time: Duration) -> ServerBuilder {
        self.body_idle = time;
        self
    }

    /// How long running calls may take to finish once it is stopped. Defaults to 10 s.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// use std::time::Duration;
    ///
    /// assert!(builder.grace(Duration::from_secs(60)).bind().is_ok());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn grace(mut self, time: Duration) -> ServerBuilder {
        self.grace = time;
        self
    }

    /// Listens from here on; nobody is answered before [`Server::run`].
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for settings that make no sense together,
    /// [`Io`](crate::ErrorKind::Io) where an address or a path can't be had.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// let first = builder.bind()?;
    /// let taken = first.local_addr().unwrap();
    /// let error = Server::bind(taken, client.backend().clone()).unwrap_err();
    /// assert!(error.to_string().contains(&format!("cannot listen at {taken}")));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn bind(self) -> Result<Server> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.check()?;
        let gate = Gate::new(match self.auth {
            Auth::Made => Some(make_token().map_err(|e| Error::io("cannot make a token", e))?),
            Auth::Token(token) => Some(token),
            Auth::None { .. } => None,
        });
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(4));
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .max_blocking_threads(self.max_calls)
            .thread_name("noxrunner-server")
            .enable_all()
            .build()
            .map_err(|e| Error::io("cannot start the server's threads", e))?;
        let inside = runtime.enter();
        let mut listeners = Vec::new();
        let mut local_addr = None;
        for addr in self.tcp {
            let (listener, addr) = listen_to(addr)
                .map_err(|e| Error::io(format_args!("cannot listen at {addr}"), e))?;
            local_addr.get_or_insert(addr);
            listeners.push(Listener::Tcp(listener));
        }
        if let Some(path) = &self.unix {
            let socket = UnixSocket::bind(path)
                .map_err(|e| Error::io(format_args!("cannot listen at {}", path.display()), e))?;
            listeners.push(Listener::Unix(socket));
        }
        let service = Service::new(
            self.backend,
            gate,
            self.max_calls,
            self.max_upload,
            self.body_idle,
        );
        drop(inside);
        Ok(Server {
            listeners,
            local_addr,
            service: Arc::new(service),
            connections: Arc::new(Semaphore::new(self.max_connections)),
            grace: self.grace,
            stop: watch::Sender::new(false),
            runtime,
        })
    }

    fn check(&self) -> Result<()> {
        if self.tcp.is_empty() && self.unix.is_none() {
            return Err(Error::invalid(
                "the server has nowhere to listen: give it an address with tcp(), or a path with unix()",
            ));
        }
        match &self.auth {
            Auth::Token(token) if token.is_empty() => {
                return Err(Error::invalid(
                    "the token is empty: leave it out to have one made, or use no_auth()",
                ));
            }
            Auth::Token(token) if !token.bytes().all(|b| b.is_ascii_graphic()) => {
                return Err(Error::invalid(
                    "the token has characters that a header can't carry: use visible ASCII without spaces",
                ));
            }
            Auth::None { anywhere: false } => {
                if let Some(addr) = self.tcp.iter().find(|addr| !addr.ip().is_loopback()) {
                    return Err(Error::invalid(format!(
                        "without a token everybody who reaches {addr} could run commands: listen at a loopback address, or use no_auth_anywhere()"
                    )));
                }
            }
            _ => {}
        }
        if self.max_connections == 0 || self.max_calls == 0 {
            return Err(Error::invalid(
                "max_connections and max_calls must not be 0",
            ));
        }
        if self.max_connections > Semaphore::MAX_PERMITS || self.max_calls > 100_000 {
            return Err(Error::invalid(
                "max_connections or max_calls is more than any machine can have",
            ));
        }
        Ok(())
    }
}

/// 128 bits of the operating system's random numbers.
fn make_token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

fn listen_to(addr: SocketAddr) -> io::Result<(tokio::net::TcpListener, SocketAddr)> {
    // std's own sets SO_REUSEADDR, so that a restart finds the port free.
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

//! A v1 server over any [`Backend`].
//!
//! - `listen`: where it listens, and the connections that come from there.
//! - `connection`: deadlines of one connection.
//! - `gate`: who is let in.
//! - `route`: which call a request is.
//! - `call`: the calls.
//! - `body`: archives between the network and a blocking backend.

mod body;
mod call;
mod connection;
mod gate;
mod listen;
mod route;

use std::fmt;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::{self, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};

use self::call::Service;
use self::gate::Gate;
use self::listen::{Listener, UnixSocket};
use crate::backend::Backend;
use crate::error::{Error, Result};

/// A NoxRunner v1 server over any [`Backend`]: sandboxes on this machine for others, a gateway in front
/// of another server, or a backend of your own.
///
/// [`run`](Server::run) blocks until it is [stopped](Server::stopper) from another thread. Every request
/// but `GET /healthz` needs a bearer token, which is made unless it is [given](ServerBuilder::token).
///
/// ```
/// use noxrunner::server::Server;
/// use noxrunner::{Client, LocalBackend, SandboxSpec};
///
/// let server = Server::bind("127.0.0.1:0", LocalBackend::builder().build()?)?;
/// let url = format!("http://{}", server.local_addr().unwrap());
/// let token = server.token().unwrap().to_owned();
/// let stopper = server.stopper();
/// let running = std::thread::spawn(move || server.run());
///
/// let client = Client::builder(&url).token(token).build()?;
/// let sandbox = client.create("demo", SandboxSpec::new())?;
/// assert_eq!(sandbox.exec(["echo", "hi"])?.stdout(), "hi\n");
///
/// stopper.stop();
/// running.join().unwrap()?;
/// # Ok::<_, noxrunner::Error>(())
/// ```
///
/// # What it holds to
///
/// - A head is complete within 10 s and 64 KiB. A body's next byte comes within the
///   [idle time](ServerBuilder::body_idle), and the client takes its answer as fast. A connection without a
///   request is closed after 60 s.
/// - As many [connections](ServerBuilder::max_connections) and [calls](ServerBuilder::max_calls) at once as
///   it is told; over that the answer is 503 with `Retry-After`.
/// - JSON of up to 8 MiB, archives of up to [`max_upload`](ServerBuilder::max_upload). Both ways archives
///   are streamed: memory does not grow with them.
/// - A client that goes away while its command runs takes the command with it.
/// - Requests with an `Origin` are refused, and JSON without its content type: no web page
///   reaches a sandbox. Where it runs without a token, so are host names that are not this machine's.
/// - A backend that panics answers 500.
pub struct Server {
    // Before the runtime, so that the sockets are closed first.
    listeners: Vec<Listener>,
    local_addr: Option<SocketAddr>,
    service: Arc<Service>,
    connections: Arc<Semaphore>,
    grace: Duration,
    stop: watch::Sender<bool>,
    runtime: Runtime,
}

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

/// Stops a [`Server`], from any thread; made by [`Server::stopper`].
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # use noxrunner::server::Server;
/// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
/// let server = builder.bind()?;
/// let stopper = server.stopper();
/// let running = std::thread::spawn(move || server.run());
/// stopper.clone().stop();
/// assert!(running.join().unwrap().is_ok());
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// No new work: running calls have the [grace](ServerBuilder::grace) to finish, and are ended
    /// then.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// let server = builder.bind()?;
    /// server.stopper().stop();
    /// server.run()?; // ends at once
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Server {
    /// Listens there, with a token made for it. Port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// Where the address can't be had; the text says why.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// use noxrunner::server::Server;
    ///
    /// let server = Server::bind("127.0.0.1:0", client.backend().clone())?;
    /// assert_ne!(server.local_addr().unwrap().port(), 0);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn bind(addr: impl ToSocketAddrs, backend: impl Backend + 'static) -> Result<Server> {
        Server::builder(backend).tcp(addr).bind()
    }

    /// The settings of a server.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// use noxrunner::server::Server;
    ///
    /// let server = Server::builder(client.backend().clone()).tcp("[::1]:0").no_auth().bind()?;
    /// assert!(server.local_addr().unwrap().is_ipv6());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn builder(backend: impl Backend + 'static) -> ServerBuilder {
        ServerBuilder {
            backend: Arc::new(backend),
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

    /// The first address, with the port that it got. None where it only has a Unix socket.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// let server = builder.bind()?;
    /// assert!(server.local_addr().unwrap().ip().is_loopback());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// What requests have to bring. None where they need nothing.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// assert_eq!(builder.bind()?.token().unwrap().len(), 32);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.service.gate.token()
    }

    /// Stops it from elsewhere.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// let server = builder.bind()?;
    /// let stopper = server.stopper();
    /// let running = std::thread::spawn(move || server.run());
    /// stopper.stop();
    /// assert!(running.join().unwrap().is_ok());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Serves until it is stopped. What the backend has made for itself alone, like sandboxes of this
    /// process, ends with it.
    ///
    /// # Errors
    ///
    /// Where no connection can be accepted any more.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::server::Server;
    /// # let builder = Server::builder(client.backend().clone()).tcp("127.0.0.1:0");
    /// let server = builder.no_auth().bind()?;
    /// let (url, stopper) = (format!("http://{}", server.local_addr().unwrap()), server.stopper());
    /// let running = std::thread::spawn(move || server.run());
    /// assert!(noxrunner::Client::new(url)?.is_healthy()?);
    /// stopper.stop();
    /// assert!(running.join().unwrap().is_ok());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn run(self) -> Result<()> {
        let Server {
            listeners,
            service,
            connections,
            grace,
            stop,
            runtime,
            ..
        } = self;
        let serve = async {
            let mut stopped = stop.subscribe();
            let (done, mut all_done) = tokio::sync::mpsc::channel::<()>(1);
            for listener in listeners {
                let accepting = listener.accept_all(
                    Arc::clone(&service),
                    Arc::clone(&connections),
                    stop.subscribe(),
                    done.clone(),
                );
                tokio::spawn(accepting);
            }
            drop(done);
            let _ = stopped.wait_for(|stopped| *stopped).await;
            // Every connection has a sender, and goes when it has answered.
            let _ = tokio::time::timeout(grace, all_done.recv()).await;
        };
        runtime.block_on(serve);
        // Ends what is left; a command is cancelled with its connection.
        runtime.shutdown_timeout(END_WAIT);
        Ok(())
    }
}

/// How long cancelled calls may take to be over.
const END_WAIT: Duration = Duration::from_secs(5);

impl ServerBuilder {
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

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder")
            .field("tcp", &self.tcp)
            .field("unix", &self.unix)
            .finish_non_exhaustive()
    }
}

/// Which of two comes first; the other is left where it is.
enum First<A, B> {
    One(A),
    Other(B),
}

/// The first one has precedence.
async fn first<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> First<A, B> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| {
        if let Poll::Ready(value) = one.as_mut().poll(cx) {
            return Poll::Ready(First::One(value));
        }
        other.as_mut().poll(cx).map(First::Other)
    })
    .await
}

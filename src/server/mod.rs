//! A v1 server over any [`Backend`].
//!
//! - `listen`: where it listens, and the connections that come from there.
//! - `connection`: deadlines of one connection.
//! - `gate`: who is let in.
//! - `route`: which call a request is.
//! - `call`: the calls.
//! - `body`: archives between the network and a blocking backend.

mod body;
mod builder;
mod call;
mod connection;
mod gate;
mod listen;
mod route;

use std::fmt;
use std::future::{Future, poll_fn};
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

pub use self::builder::ServerBuilder;
use self::call::Service;
use self::listen::Listener;
use crate::backend::Backend;
use crate::error::Result;

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
        ServerBuilder::new(Arc::new(backend))
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

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("local_addr", &self.local_addr)
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

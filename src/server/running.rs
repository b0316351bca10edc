//! The server, from `run` to its stop.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::admission::Admission;
use super::listener::Listener;
use super::service::Service;
use crate::error::Result;

/// Maximum time for cancelled calls to end.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// A NoxRunner v1 server over any [`Backend`](crate::Backend): local sandboxes for other machines, a
/// gateway in front of another server, or your own backend.
///
/// [`run`](Server::run) blocks until another thread [stops](Server::stopper) the server. Every request
/// except `GET /healthz` needs a bearer token, which is created unless you
/// [set one](super::ServerBuilder::token).
///
/// ```
/// use noxrunner::server::Server;
/// use noxrunner::{Client, LocalBackend, SandboxSpec};
///
/// let server = Server::bind("127.0.0.1:0", LocalBackend::new()?)?;
/// let url = format!("http://{}", server.local_addr().unwrap());
/// let token = server.token().unwrap().to_owned();
/// let stopper = server.stopper();
/// let running = std::thread::spawn(move || server.run());
///
/// let client = Client::builder(&url).token(token).build()?;
/// let sandbox = client.create("demo", SandboxSpec::new())?;
/// assert_eq!(sandbox.run(["echo", "hi"])?.stdout(), "hi\n");
///
/// stopper.stop();
/// running.join().unwrap()?;
/// # Ok::<_, noxrunner::Error>(())
/// ```
///
/// # Limits
///
/// - The head of a request must arrive within 10 s and fit into 64 KiB, a JSON body within 60 s. A client
///   may keep the server waiting for the [idle time](super::ServerBuilder::body_idle) in total, while it
///   sends a body and while it reads a response. Each KiB that it transfers earns a second of that time
///   back, so a transfer of any length must keep a rate of 1 KiB/s. A connection without a request is closed
///   after 60 s, or 10 s if it has not sent a valid request yet. A client may read live output as slowly
///   as it likes: its command waits, and keeps its place among the calls.
/// - The numbers of concurrent [connections](super::ServerBuilder::max_connections) and
///   [calls](super::ServerBuilder::max_calls) are limited. Over the limit the response is 503 with
///   `Retry-After`. An address may have three quarters of the connections. Half of them may be without a
///   valid request; beyond that, the oldest of those is closed. Health checks need none of the calls.
/// - [Memory](super::ServerBuilder::memory_budget) for connections, bodies, output and archives is reserved
///   before it is used. If none is left, the response is 503 with `Retry-After`. A command that has run
///   still gets its response: if there is no memory for its whole output within 10 s, the output is cut
///   and marked as truncated.
/// - JSON bodies may have 8 MiB, archives [`max_upload`](super::ServerBuilder::max_upload). Archives are
///   streamed in both directions, so memory does not grow with them.
/// - If a client disconnects while its command is running, the command is cancelled.
/// - Requests with an `Origin` header are refused, and so is JSON without its content type, so that no web
///   page can use the server. Without a token, only localhost and IP addresses are allowed as host.
/// - A backend that panics causes a response of 500.
pub struct Server {
    // Dropped before the runtime, so that the sockets are closed first.
    pub(super) listeners: Vec<Listener>,
    pub(super) local_addr: Option<SocketAddr>,
    pub(super) service: Arc<Service>,
    pub(super) admission: Arc<Admission>,
    pub(super) grace: Duration,
    pub(super) stop: watch::Sender<bool>,
    pub(super) runtime: Runtime,
}

/// Stops a [`Server`], from any thread. Created by [`Server::stopper`].
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// Stops the server. It accepts no new requests. Running calls get the
    /// [grace period](super::ServerBuilder::grace) to finish, and are then cancelled.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Server {
    /// Returns the first address that the server listens on, with its actual port. `None` if the server
    /// listens only on a Unix socket.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// Returns the token that requests need, or `None` if authentication is disabled.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.service.auth.token()
    }

    /// Returns a handle that stops the server.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Serves requests until the server is stopped. The backend is dropped then, so sandboxes that end
    /// with their backend end with the server.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn run(self) -> Result<()> {
        let Server {
            listeners,
            service,
            admission,
            grace,
            stop,
            runtime,
            ..
        } = self;
        let serve = async {
            let mut stopped = stop.subscribe();
            let (connection_open, mut all_closed) = mpsc::channel::<()>(1);
            for listener in listeners {
                let accepting = listener.accept_all(
                    Arc::clone(&service),
                    Arc::clone(&admission),
                    stop.subscribe(),
                    connection_open.clone(),
                );
                tokio::spawn(accepting);
            }
            drop(connection_open);
            let _ = stopped.wait_for(|stopped| *stopped).await;
            // Every connection holds a sender and drops it after its response.
            let _ = tokio::time::timeout(grace, all_closed.recv()).await;
        };
        runtime.block_on(serve);
        // Drops the remaining connections, which cancels their commands.
        runtime.shutdown_timeout(CANCEL_TIMEOUT);
        Ok(())
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

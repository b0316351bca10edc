//! The client: where sandboxes come from.

use std::fmt;
use std::sync::Arc;

use crate::backend::Backend;
use crate::error::{ErrorKind, Result};
use crate::http::{HttpBackend, HttpBackendBuilder};
use crate::sandbox::Sandbox;
use crate::session_id::SessionId;
use crate::spec::SandboxSpec;

/// Settings of a [`Client`] over HTTP; see [`HttpBackendBuilder`].
pub type ClientBuilder = HttpBackendBuilder<Client>;

/// A client of a backend.
///
/// It is as cheap to clone as an [`Arc`], and clones share connections. `Client` is `Send` and `Sync`.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// std::thread::scope(|scope| {
///     for name in ["a", "b"] {
///         let client = client.clone();
///         scope.spawn(move || client.create(name, noxrunner::SandboxSpec::new()).unwrap());
///     }
/// });
/// assert_eq!(client.sandbox("a")?.run(["echo", "hi"])?.stdout(), "hi\n");
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Clone)]
pub struct Client {
    backend: Arc<dyn Backend>,
}

impl Client {
    /// Creates a client of the server at `base_url` with the default settings. Sends nothing. The URL is
    /// `http://HOST:PORT` or `https://HOST`, both with an optional path, or `unix:///PATH` for a Unix
    /// socket.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if this is not such a URL, if the path of a Unix socket
    /// exceeds the system's limit, or if a proxy variable in the environment is invalid; [`Unsupported`](ErrorKind::Unsupported) for
    /// `https` without the feature `tls`.
    ///
    /// # Example
    ///
    /// ```
    /// use noxrunner::{Client, ErrorKind};
    ///
    /// let client = Client::new("http://127.0.0.1:8080")?;
    /// let client = Client::new("unix:///run/noxrunner.sock")?;
    /// assert_eq!(Client::new("127.0.0.1:8080").unwrap_err().kind(), ErrorKind::InvalidInput);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "NoxRunnerClient")]
    pub fn new(base_url: impl AsRef<str>) -> Result<Client> {
        Client::builder(base_url).build()
    }

    /// Returns a builder for a client of the server at `base_url`.
    pub fn builder(base_url: impl AsRef<str>) -> ClientBuilder {
        HttpBackendBuilder::new(base_url.as_ref())
    }

    /// Creates a client of local sandboxes, isolated in Linux namespaces. Needs no server, daemon,
    /// root or image. The sandboxes end with this process; [`LocalBackend`](crate::LocalBackend) has
    /// persistent ones and other settings.
    ///
    /// # Errors
    ///
    /// [`Isolation`](ErrorKind::Isolation) if this machine cannot create an isolated sandbox; the
    /// message explains why and what to do. [`Unsupported`](ErrorKind::Unsupported) on other systems
    /// than Linux.
    ///
    /// # Example
    ///
    /// ```
    /// use noxrunner::{Client, SandboxSpec};
    ///
    /// let sandbox = Client::local()?.create("demo", SandboxSpec::new())?;
    /// assert_eq!(sandbox.run(["id", "-un"])?.stdout(), "sandbox\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[cfg(feature = "local")]
    pub fn local() -> Result<Client> {
        crate::local::LocalBackend::new().map(Client::with_backend)
    }

    /// Creates a client of any backend, including your own.
    #[must_use]
    pub fn with_backend(backend: impl Backend + 'static) -> Client {
        Client {
            backend: Arc::new(backend),
        }
    }

    /// Returns the backend.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Creates the sandbox `id`. If it already exists, this renews its TTL from the spec and leaves
    /// everything else as it is. Sends one `PUT`, which may be repeated.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for an invalid id or TTL.
    /// [`Unauthorized`](ErrorKind::Unauthorized), [`NotReady`](ErrorKind::NotReady) and
    /// [`Status`](ErrorKind::Status) if the backend refuses.
    /// [`Connect`](ErrorKind::Connect), [`Timeout`](ErrorKind::Timeout) and
    /// [`OutcomeUnknown`](ErrorKind::OutcomeUnknown) if it does not answer, and
    /// [`Protocol`](ErrorKind::Protocol) if its answer does not follow NoxRunner v1.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// use noxrunner::SandboxSpec;
    ///
    /// let sandbox = client.create("demo", SandboxSpec::new().memory("256Mi"))?;
    /// assert!(sandbox.info().unwrap().expires_at_time().is_some());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "create_sandbox")]
    pub fn create(&self, id: impl AsRef<str>, spec: SandboxSpec) -> Result<Sandbox> {
        self.sandbox(id)?.create(spec)
    }

    /// Returns a handle to the sandbox `id`. Sends nothing, so this does not check that the sandbox
    /// exists.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for an invalid id; see [`SessionId::new`].
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// let sandbox = client.sandbox("never-created")?;
    /// assert!(sandbox.touch().unwrap_err().is_not_found());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn sandbox(&self, id: impl AsRef<str>) -> Result<Sandbox> {
        let id = SessionId::new(id)?;
        Ok(Sandbox::new(Arc::clone(&self.backend), id))
    }

    /// Checks the backend's health. Sends one `GET /healthz`, which may be repeated.
    ///
    /// # Errors
    ///
    /// [`NotReady`](ErrorKind::NotReady) if the backend is not healthy;
    /// [`Connect`](ErrorKind::Connect) or [`Timeout`](ErrorKind::Timeout) if it does not answer;
    /// [`Protocol`](ErrorKind::Protocol) if the answer does not come from a NoxRunner backend.
    pub fn health(&self) -> Result<()> {
        let checked = self.backend.health();
        checked.map_err(|e| e.context(|| "health check".into()))
    }

    /// Returns whether the backend is healthy.
    ///
    /// # Errors
    ///
    /// The same as for [`health`](Client::health), except that `NotReady` is `Ok(false)`.
    #[doc(alias = "health_check")]
    pub fn is_healthy(&self) -> Result<bool> {
        match self.health() {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotReady => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl From<HttpBackend> for Client {
    fn from(backend: HttpBackend) -> Client {
        Client::with_backend(backend)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_send_and_sync() {
        fn shared<T: Clone + Send + Sync + 'static>() {}
        shared::<Client>();
        shared::<Sandbox>();
    }
}

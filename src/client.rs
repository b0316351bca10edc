//! The handle that everything starts from.

use std::fmt;
use std::sync::Arc;

use crate::backend::Backend;
use crate::error::Result;
use crate::http::{ClientBuilder, HttpBackend};

/// A backend to make sandboxes on.
///
/// # Threads and cloning
///
/// A clone is as cheap as an `Arc`, and shares connections. `Client` is `Send` and `Sync`: give a
/// clone to each thread.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// std::thread::scope(|scope| {
///     for name in ["a", "b"] {
///         let client = client.clone();
///         scope.spawn(move || client.create(name, noxrunner::SandboxSpec::new()).unwrap());
///     }
/// });
/// assert_eq!(client.sandbox("a")?.exec(["echo", "hi"])?.stdout(), "hi\n");
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Clone)]
pub struct Client {
    backend: Arc<dyn Backend>,
}

impl Client {
    /// A client of the server at `base_url`, with the default settings. Sends nothing yet.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if it is not an `http` or `https` URL, or
    /// a proxy variable of the environment is not usable;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for `https` without the feature `tls`.
    ///
    /// # Example
    ///
    /// ```
    /// use noxrunner::{Client, ErrorKind};
    ///
    /// let client = Client::new("http://127.0.0.1:8080")?;
    /// assert_eq!(Client::new("127.0.0.1:8080").unwrap_err().kind(), ErrorKind::InvalidInput);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "NoxRunnerClient")]
    pub fn new(base_url: impl AsRef<str>) -> Result<Client> {
        Client::builder(base_url).build()
    }

    /// A client of the server at `base_url`, with settings.
    ///
    /// ```
    /// use noxrunner::Client;
    ///
    /// let client = Client::builder("https://sandboxes.example.com").token("s3cret").build()?;
    /// assert!(client.sandbox("demo").is_ok());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn builder(base_url: impl AsRef<str>) -> ClientBuilder {
        HttpBackend::builder(base_url)
    }

    /// A client of sandboxes on this machine, each isolated in namespaces of its own: no server, no
    /// daemon, no root and no image needed. Linux only. They end with this process; for those that
    /// outlive it, and for the other settings, see [`LocalBackend`](crate::LocalBackend).
    ///
    /// # Errors
    ///
    /// [`Isolation`](crate::ErrorKind::Isolation) where this machine does not let a sandbox be made:
    /// the text says why, and what can be done. [`Unsupported`](crate::ErrorKind::Unsupported) on
    /// other systems.
    ///
    /// # Example
    ///
    /// ```
    /// use noxrunner::{Client, SandboxSpec};
    ///
    /// let sandbox = Client::local()?.create("demo", SandboxSpec::new())?;
    /// assert_eq!(sandbox.exec(["id", "-un"])?.stdout(), "sandbox\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[cfg(feature = "local")]
    pub fn local() -> Result<Client> {
        Ok(Client::with_backend(
            crate::LocalBackend::builder().build()?,
        ))
    }

    /// A client of any backend, yours included.
    ///
    /// ```
    /// use noxrunner::{Client, HttpBackend};
    ///
    /// let client = Client::with_backend(HttpBackend::new("http://127.0.0.1:8080")?);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn with_backend(backend: impl Backend + 'static) -> Client {
        Client {
            backend: Arc::new(backend),
        }
    }

    /// The backend itself: v1 as seven methods.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// use noxrunner::Backend;
    ///
    /// client.backend().health()?;
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
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
    fn handles_go_to_other_threads() {
        fn shared<T: Clone + Send + Sync + 'static>() {}
        shared::<Client>();
        shared::<crate::Sandbox>();
    }
}

//! `GET /healthz`.

use crate::client::Client;
use crate::error::{ErrorKind, Result};

impl Client {
    /// Asks the backend whether it is healthy. Sends one `GET /healthz`; safe to repeat.
    ///
    /// # Errors
    ///
    /// [`NotReady`](ErrorKind::NotReady) if it says that it is not; [`Connect`](ErrorKind::Connect)
    /// or [`Timeout`](ErrorKind::Timeout) if it says nothing, [`Protocol`](ErrorKind::Protocol) if
    /// something else than a NoxRunner backend answers.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// client.health()?;
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn health(&self) -> Result<()> {
        self.backend()
            .health()
            .map_err(|e| e.context(|| "health".into()))
    }

    /// Whether the backend says that it is healthy.
    ///
    /// # Errors
    ///
    /// As [`health`](Client::health), but "not ready" is `Ok(false)`.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// assert!(client.is_healthy()?);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "health_check")]
    pub fn is_healthy(&self) -> Result<bool> {
        match self.health() {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotReady => Ok(false),
            Err(e) => Err(e),
        }
    }
}

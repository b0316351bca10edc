//! Settings of the local backend.

use std::path::PathBuf;
use std::sync::Arc;

use super::backend::LocalBackend;
#[cfg(target_os = "linux")]
use super::confined::ConfinedTier;
#[cfg(not(target_os = "linux"))]
use super::errors::unsupported;
use super::isolation::Isolation;
use super::plain::PlainTier;
use super::state_dir::default_state_dir;
use super::tier::SandboxTier;
use crate::error::Result;

/// Settings of a [`LocalBackend`].
///
/// ```
/// use noxrunner::{Isolation, LocalBackend};
///
/// let plain = LocalBackend::builder().isolation(Isolation::None).build()?;
/// assert_eq!(plain.isolation(), Isolation::None);
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct LocalBackendBuilder {
    isolation: Isolation,
    persistent: bool,
    state_dir: Option<PathBuf>,
}

impl LocalBackend {
    /// Creates a backend with the default settings.
    ///
    /// # Errors
    ///
    /// The same as for [`LocalBackendBuilder::build`].
    pub fn new() -> Result<LocalBackend> {
        LocalBackend::builder().build()
    }

    /// Returns the default settings, to be changed and [built](LocalBackendBuilder::build).
    pub fn builder() -> LocalBackendBuilder {
        LocalBackendBuilder::default()
    }
}

impl LocalBackendBuilder {
    /// Sets the isolation tier that commands run in. The backend never falls back to a weaker tier.
    /// Defaults to [`Isolation::Namespaces`].
    pub fn isolation(mut self, isolation: Isolation) -> LocalBackendBuilder {
        self.isolation = isolation;
        self
    }

    /// Sets whether sandboxes outlive the process that created them. Persistent sandboxes end with
    /// their TTL or when they are deleted, and all processes of this user can use them by id.
    /// Sandboxes of [`Isolation::None`] are always persistent. Defaults to false.
    ///
    /// ```
    /// use noxrunner::{Client, LocalBackend, SandboxSpec};
    ///
    /// # let dir = tempfile::tempdir().unwrap();
    /// let persistent = LocalBackend::builder().persistent(true);
    /// # let persistent = persistent.state_dir(dir.path());
    /// let first = Client::with_backend(persistent.clone().build()?);
    /// first.create("notes", SandboxSpec::new())?.write("note", "hi")?;
    /// // This could be another process:
    /// let second = Client::with_backend(persistent.build()?);
    /// assert_eq!(second.sandbox("notes")?.read("note")?, b"hi");
    /// assert!(second.sandbox("notes")?.delete()?);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn persistent(mut self, persistent: bool) -> LocalBackendBuilder {
        self.persistent = persistent;
        self
    }

    /// Sets the directory for persistent sandboxes and for files that do not fit in memory. It must
    /// belong to this user and not be writable by others. It is created if it does not exist, with
    /// mode 0700 for everything below it.
    ///
    /// Defaults to `noxrunner` in `$XDG_STATE_HOME` or `~/.local/state`. For root without
    /// namespaces it defaults to `/var/lib/noxrunner`, because those sandboxes run as another user,
    /// who must be able to reach it.
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> LocalBackendBuilder {
        self.state_dir = Some(dir.into());
        self
    }

    /// Creates the backend. Unless sandboxes are persistent, this starts and removes one sandbox to
    /// check that the tier works on this machine.
    ///
    /// # Errors
    ///
    /// - [`Isolation`](crate::ErrorKind::Isolation) if this machine does not support the tier. The
    ///   message names the failed step, its probable cause and the alternatives.
    /// - [`Io`](crate::ErrorKind::Io) if the state directory cannot be created, belongs to another
    ///   user or is accessible to others.
    /// - [`Unsupported`](crate::ErrorKind::Unsupported) if this platform or build has no isolation.
    pub fn build(self) -> Result<LocalBackend> {
        let isolation = self.isolation;
        let tier: Arc<dyn SandboxTier> = match isolation {
            Isolation::None => {
                let state_dir = self.state_dir.map_or_else(default_state_dir, Ok)?;
                Arc::new(PlainTier::open(&state_dir)?)
            }
            #[cfg(target_os = "linux")]
            Isolation::Namespaces | Isolation::Landlock => Arc::new(ConfinedTier::open(
                isolation,
                self.state_dir,
                self.persistent,
            )?),
            #[cfg(not(target_os = "linux"))]
            Isolation::Namespaces | Isolation::Landlock => {
                return Err(unsupported("isolated sandboxes require Linux"));
            }
        };
        Ok(LocalBackend { tier, isolation })
    }
}

//! The handle to a sandbox: touch and delete. Other modules add calls to it.

mod readiness;
pub(crate) mod renewal;

use std::fmt;
use std::sync::Arc;

use crate::backend::Backend;
use crate::error::{Result, one_line};
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};

/// A handle to a sandbox. It is cheap to clone; dropping it does not delete the sandbox.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// let same = client.sandbox("demo")?;
/// sandbox.write("a.txt", "one")?;
/// assert_eq!(same.read("a.txt")?, b"one");
/// assert!(same.delete()?);
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Clone)]
pub struct Sandbox {
    backend: Arc<dyn Backend>,
    id: SessionId,
    /// The backend's answer, if this handle created the sandbox.
    info: Option<SandboxInfo>,
    /// The spec that this handle created the sandbox with.
    spec: Option<SandboxSpec>,
}

impl Sandbox {
    pub(crate) fn new(backend: Arc<dyn Backend>, id: SessionId) -> Sandbox {
        Sandbox {
            backend,
            id,
            info: None,
            spec: None,
        }
    }

    /// Creates the sandbox in the backend, or renews its TTL if it exists.
    pub(crate) fn create(mut self, spec: SandboxSpec) -> Result<Sandbox> {
        let info = self.context("create", || {
            spec.check()?;
            self.backend.create(&self.id, &spec)
        })?;
        self.info = Some(info);
        self.spec = Some(spec);
        Ok(self)
    }

    /// Returns the session id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.id.as_str()
    }

    /// Returns the backend's answer to the creation, or `None` for a handle from
    /// [`Client::sandbox`](crate::Client::sandbox).
    #[must_use]
    pub fn info(&self) -> Option<&SandboxInfo> {
        self.info.as_ref()
    }

    /// Resets the sandbox's TTL. Sends one `POST …/touch`, which may be repeated.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) if the sandbox does not exist or has expired;
    /// otherwise the same as for [`Client::create`](crate::Client::create).
    pub fn touch(&self) -> Result<()> {
        self.context("touch", || self.backend.touch(&self.id))
    }

    /// Deletes the sandbox and everything that runs in it, and returns whether it existed. Sends one
    /// `DELETE`, which may be repeated: if the response to an earlier attempt was lost, this returns
    /// `false` for a sandbox that this very call deleted.
    ///
    /// # Errors
    ///
    /// The same as for [`Client::create`](crate::Client::create).
    #[doc(alias = "delete_sandbox")]
    pub fn delete(&self) -> Result<bool> {
        self.context("delete", || self.backend.delete(&self.id))
    }

    /// Returns the TTL that this handle created the sandbox with.
    pub(crate) fn ttl(&self) -> Option<std::time::Duration> {
        self.spec.as_ref().map(SandboxSpec::get_ttl)
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub(crate) fn session_id(&self) -> &SessionId {
        &self.id
    }

    /// Runs `call` and adds the operation and this sandbox to its error.
    pub(crate) fn context<T>(
        &self,
        operation: &str,
        call: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        call().map_err(|e| {
            e.context(|| format!("{operation} sandbox {:?}", one_line(self.id.as_str())))
        })
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("id", &self.id)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

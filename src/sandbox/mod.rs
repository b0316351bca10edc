//! The handle to a sandbox: touch and delete. Other modules add calls to it.

mod readiness;
pub(crate) mod renewal;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::Backend;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};
use crate::upload::Upload;

/// Timeout of the command that checks whether the sandbox exists.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

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
    pub(crate) fn ttl(&self) -> Option<Duration> {
        self.spec.as_ref().map(SandboxSpec::get_ttl)
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub(crate) fn session_id(&self) -> &SessionId {
        &self.id
    }

    /// Sends an upload. A 404 of a sandbox that runs commands means that the backend has no uploads.
    pub(crate) fn send_upload(&self, dest: &str, archive: Upload<'_>) -> Result<()> {
        let probe = || Command::new("true").timeout(PROBE_TIMEOUT);
        match self.backend.upload(&self.id, dest, archive) {
            Err(e) if e.is_not_found() && self.backend.exec(&self.id, &probe()).is_ok() => {
                Err(missing_call("uploads", e))
            }
            result => result,
        }
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

/// Returns the error of a call that the backend does not have.
pub(crate) fn missing_call(calls: &str, error: Error) -> Error {
    let message = format!("this backend has no {calls}");
    Error::new(ErrorKind::Unsupported, message).with_source(error)
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("id", &self.id)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

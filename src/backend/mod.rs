//! NoxRunner v1 as seven methods.

use std::io::Read;
use std::sync::Arc;

use crate::error::Result;
use crate::exec::Command;
use crate::output::Output;
use crate::spec::{SandboxInfo, SandboxSpec, SessionId};
use crate::upload::Upload;

/// One v1 backend. [`HttpBackend`](crate::HttpBackend) and
/// [`LocalBackend`](crate::LocalBackend) are two; write your own and hand it to
/// [`Client::with_backend`](crate::Client::with_backend).
///
/// Arguments were checked by the caller: a command is not empty, paths are absolute, times are
/// neither zero nor absurd. Errors carry no operation and no id: the caller puts them there.
///
/// The example `custom_backend` has a whole one. A backend is called through a client, or directly:
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// use noxrunner::{Backend, Command, SandboxSpec, SessionId};
///
/// let backend: &dyn Backend = &**client.backend();
/// let id = SessionId::new("demo")?;
/// backend.health()?;
/// let info = backend.create(&id, &SandboxSpec::new())?;
/// assert_eq!(info.pod_name(), "local-demo");
/// assert_eq!(backend.exec(&id, &Command::from(["echo", "hi"]))?.stdout(), "hi\n");
/// let archive = backend.download(&id, "/workspace")?;
/// assert!(backend.delete(&id)?);
/// assert!(backend.touch(&id).unwrap_err().is_not_found());
/// # drop(archive);
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[doc(alias = "SandboxBackend")]
pub trait Backend: Send + Sync {
    /// `GET /healthz`.
    ///
    /// # Errors
    ///
    /// [`NotReady`](crate::ErrorKind::NotReady) where the backend says that it is not healthy.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::{Backend, Command, SandboxSpec, SessionId, Upload};
    /// # let (backend, id) = (client.backend(), SessionId::new("demo")?);
    /// backend.health()?;
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    fn health(&self) -> Result<()>;

    /// `PUT /v1/sandboxes/{id}`: creates the sandbox, or where it exists starts its TTL again from
    /// the spec and leaves the rest as it is.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a spec that it can't read.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::{Backend, Command, SandboxSpec, SessionId, Upload};
    /// # let (backend, id) = (client.backend(), SessionId::new("demo")?);
    /// let info = backend.create(&id, &SandboxSpec::new())?;
    /// assert!(!info.pod_name().is_empty());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo>;

    /// `POST /v1/sandboxes/{id}/touch`: starts the TTL again.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown or expired sandbox.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::{Backend, Command, SandboxSpec, SessionId, Upload};
    /// # let (backend, id) = (client.backend(), SessionId::new("demo")?);
    /// # backend.create(&id, &SandboxSpec::new())?;
    /// backend.touch(&id)?;
    /// assert!(backend.touch(&SessionId::new("another")?).is_err());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    fn touch(&self, id: &SessionId) -> Result<()>;

    /// `POST /v1/sandboxes/{id}/exec`: runs a command to its end, or to its time limit.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown or expired sandbox. A command that
    /// fails is not an error.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::{Backend, Command, SandboxSpec, SessionId, Upload};
    /// # let (backend, id) = (client.backend(), SessionId::new("demo")?);
    /// # backend.create(&id, &SandboxSpec::new())?;
    /// let out = backend.exec(&id, &Command::from(["sh", "-c", "exit 3"]))?;
    /// assert_eq!(out.exit_code(), 3);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output>;

    /// `POST /v1/sandboxes/{id}/files/upload`: unpacks a tar archive, gzip-compressed or plain,
    /// below `dest`, which is created.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown sandbox,
    /// [`Archive`](crate::ErrorKind::Archive) for an archive that is damaged or refused.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::{Backend, Command, SandboxSpec, SessionId, Upload};
    /// # let (backend, id) = (client.backend(), SessionId::new("demo")?);
    /// # backend.create(&id, &SandboxSpec::new())?;
    /// let mut archive = backend.download(&id, "/workspace")?;
    /// backend.upload(&id, "/workspace/copy", Upload::from_reader(&mut archive, None))?;
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()>;

    /// `GET /v1/sandboxes/{id}/files/download`: a tar archive, gzip-compressed or plain, of all
    /// below `src`, with names relative to it.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown sandbox or path.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::{Backend, Command, SandboxSpec, SessionId, Upload};
    /// # let (backend, id) = (client.backend(), SessionId::new("demo")?);
    /// # backend.create(&id, &SandboxSpec::new())?;
    /// let mut archive = Vec::new();
    /// std::io::Read::read_to_end(&mut backend.download(&id, "/workspace")?, &mut archive)?;
    /// assert!(!archive.is_empty());
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>>;

    /// `DELETE /v1/sandboxes/{id}`: false if there was none.
    ///
    /// # Errors
    ///
    /// Where the sandbox could not be deleted as a whole.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # use noxrunner::{Backend, Command, SandboxSpec, SessionId, Upload};
    /// # let (backend, id) = (client.backend(), SessionId::new("demo")?);
    /// # backend.create(&id, &SandboxSpec::new())?;
    /// assert!(backend.delete(&id)?);
    /// assert!(!backend.delete(&id)?);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    fn delete(&self, id: &SessionId) -> Result<bool>;
}

/// A backend that is shared, as [`Client::backend`](crate::Client::backend) gives it.
impl<B: Backend + ?Sized> Backend for Arc<B> {
    fn health(&self) -> Result<()> {
        (**self).health()
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        (**self).create(id, spec)
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        (**self).touch(id)
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        (**self).exec(id, command)
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        (**self).upload(id, dest, archive)
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        (**self).download(id, src)
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        (**self).delete(id)
    }
}

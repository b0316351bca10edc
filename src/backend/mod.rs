//! The `Backend` trait: NoxRunner v1 as Rust methods.

pub(crate) mod events;
pub(crate) mod wire;

use std::io::Read;
use std::sync::Arc;

use crate::chunk::{Chunk, Stream};
use crate::command::Command;
use crate::error::Result;
use crate::output::Output;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};
use crate::upload::Upload;

/// A NoxRunner v1 backend.
///
/// [`HttpBackend`](crate::HttpBackend) and [`LocalBackend`](crate::LocalBackend) implement this trait.
/// Implement it yourself and pass the backend to
/// [`Client::with_backend`](crate::Client::with_backend); the example `custom_backend` does.
///
/// The caller has validated the arguments: a command is not empty, paths are absolute, durations are
/// neither zero nor absurd. Errors need not name the operation or the session id, because the caller
/// adds both.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// use noxrunner::{Backend, Command, SandboxSpec, SessionId, Upload};
///
/// let backend: &dyn Backend = &**client.backend();
/// let id = SessionId::new("demo")?;
/// backend.health()?;
/// let info = backend.create(&id, &SandboxSpec::new())?;
/// assert_eq!(info.pod_name(), "local-demo");
/// assert_eq!(backend.exec(&id, &Command::from(["echo", "hi"]))?.stdout(), "hi\n");
/// let mut archive = backend.download(&id, "/workspace")?;
/// backend.upload(&id, "/workspace/copy", Upload::from_reader(&mut archive, None))?;
/// assert!(backend.delete(&id)?);
/// assert!(backend.touch(&id).unwrap_err().is_not_found());
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[doc(alias = "SandboxBackend")]
pub trait Backend: Send + Sync {
    /// `GET /healthz`: checks the backend's health.
    ///
    /// # Errors
    ///
    /// [`NotReady`](crate::ErrorKind::NotReady) if the backend is not healthy.
    fn health(&self) -> Result<()>;

    /// `PUT /v1/sandboxes/{id}`: creates the sandbox. If it already exists, this renews its TTL from
    /// the spec and leaves everything else as it is.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a spec that the backend does not accept.
    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo>;

    /// `POST /v1/sandboxes/{id}/touch`: resets the TTL.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) if the sandbox does not exist or has expired.
    fn touch(&self, id: &SessionId) -> Result<()>;

    /// `POST /v1/sandboxes/{id}/exec`: runs a command until it finishes or exceeds its timeout. A
    /// non-zero exit code is not an error.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) if the sandbox does not exist or has expired.
    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output>;

    /// Runs a command as [`exec`](Backend::exec) does, and passes its output to `sink` while it runs.
    ///
    /// An error of the sink ends the command and is returned. Time spent in the sink does not count
    /// against the command's timeout. The streams of the returned output are ignored:
    /// [`Sandbox::exec_live`](crate::Sandbox::exec_live) fills them in.
    ///
    /// The default runs `exec`, and then passes on one chunk per stream.
    ///
    /// # Errors
    ///
    /// The errors of `exec` and of the sink.
    fn exec_live(
        &self,
        id: &SessionId,
        command: &Command,
        sink: &mut dyn FnMut(Chunk<'_>) -> Result<()>,
    ) -> Result<Output> {
        pass_on(self.exec(id, command)?, sink)
    }

    /// Returns true if [`exec`](Backend::exec) and [`exec_live`](Backend::exec_live) give a command its
    /// [stdin](Command::get_stdin) while it runs. Defaults to false:
    /// [`Sandbox::exec`](crate::Sandbox::exec) then uploads stdin before it runs the command, and
    /// commands have none here.
    fn streams_stdin(&self) -> bool {
        false
    }

    /// `POST /v1/sandboxes/{id}/files/upload`: unpacks a tar archive, compressed with gzip or not, in
    /// the directory `dest`, which is created.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) if the sandbox does not exist;
    /// [`Archive`](crate::ErrorKind::Archive) if the archive is damaged or refused.
    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()>;

    /// `GET /v1/sandboxes/{id}/files/download`: archives everything below `src`, with names relative
    /// to it, as tar, compressed with gzip or not.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) if the sandbox or the path does not exist.
    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>>;

    /// `DELETE /v1/sandboxes/{id}`: deletes the sandbox, and returns whether it existed.
    ///
    /// # Errors
    ///
    /// Any, if the sandbox could not be deleted completely.
    fn delete(&self, id: &SessionId) -> Result<bool>;
}

/// Gets the output of a command while it runs.
pub(crate) type Sink<'a> = dyn FnMut(Chunk<'_>) -> Result<()> + 'a;

/// Passes the streams of an output to a sink, one chunk each. Returns the output without them.
pub(crate) fn pass_on(out: Output, sink: &mut Sink<'_>) -> Result<Output> {
    for (stream, bytes) in [
        (Stream::Stdout, out.stdout_bytes()),
        (Stream::Stderr, out.stderr_bytes()),
    ] {
        if !bytes.is_empty() {
            sink(Chunk::new(stream, bytes))?;
        }
    }
    // May have been inferred from the lengths of the streams.
    let truncated = out.truncated();
    Ok(out
        .with_truncated(truncated)
        .with_streams(Vec::new(), Vec::new()))
}

/// Logs a call as one debug line.
#[cfg(any(feature = "docker", feature = "local"))]
pub(crate) fn logged<T>(
    backend: &str,
    call: &str,
    id: &SessionId,
    run: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let started = std::time::Instant::now();
    let result = run();
    let millis = started.elapsed().as_millis();
    match &result {
        Ok(_) => log::debug!("{backend} {call} {id:?}: {millis} ms"),
        Err(e) => log::debug!("{backend} {call} {id:?}: {millis} ms: {e:#}"),
    }
    result
}

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

    fn exec_live(
        &self,
        id: &SessionId,
        command: &Command,
        sink: &mut dyn FnMut(Chunk<'_>) -> Result<()>,
    ) -> Result<Output> {
        (**self).exec_live(id, command, sink)
    }

    fn streams_stdin(&self) -> bool {
        (**self).streams_stdin()
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

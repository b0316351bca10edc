//! `PUT`, `DELETE` and `touch` of `/v1/sandboxes/{id}`, and when a sandbox is ready.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::exec::{Command, check_time};
use crate::os::time;
use crate::spec::{SandboxInfo, SandboxSpec, SessionId};

/// A handle to one sandbox. Cheap to clone, `Send` and `Sync`; dropping it deletes nothing.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// let same = client.sandbox("demo")?;
/// sandbox.write("a.txt", "one")?;
/// assert_eq!(same.read("a.txt")?, b"one");
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Clone)]
pub struct Sandbox {
    backend: Arc<dyn Backend>,
    id: SessionId,
    info: Option<SandboxInfo>,
    /// What this handle created it with.
    spec: Option<SandboxSpec>,
}

impl Client {
    /// Creates the sandbox `id`, or makes sure that it exists; then its TTL starts again from the
    /// spec and the rest stays as it is. Sends one `PUT`; safe to repeat.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for an id or a TTL that can't be, what the backend
    /// answers, and [`Connect`](ErrorKind::Connect), [`Timeout`](ErrorKind::Timeout) or
    /// [`OutcomeUnknown`](ErrorKind::OutcomeUnknown) where it doesn't.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// use noxrunner::SandboxSpec;
    ///
    /// let sandbox = client.create("demo", SandboxSpec::new())?;
    /// assert!(sandbox.info().unwrap().expires_at_time().is_some());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "create_sandbox")]
    pub fn create(&self, id: impl AsRef<str>, spec: SandboxSpec) -> Result<Sandbox> {
        let mut sandbox = self.sandbox(id)?;
        let info = sandbox.named("create of", || {
            spec.check()?;
            self.backend().create(&sandbox.id, &spec)
        })?;
        sandbox.info = Some(info);
        sandbox.spec = Some(spec);
        Ok(sandbox)
    }

    /// A handle to the sandbox `id`. Sends nothing, so it does not say whether there is one.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for an id that can't be; see [`SessionId::new`].
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// let sandbox = client.sandbox("never created")?;
    /// assert!(sandbox.touch().unwrap_err().is_not_found());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn sandbox(&self, id: impl AsRef<str>) -> Result<Sandbox> {
        let id = SessionId::new(id)?;
        Ok(Sandbox {
            backend: Arc::clone(self.backend()),
            id,
            info: None,
            spec: None,
        })
    }
}

impl Sandbox {
    /// The id the sandbox was made with.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert_eq!(sandbox.id(), "demo");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> &str {
        self.id.as_str()
    }

    /// What the backend answered when this handle created the sandbox; none for a handle from
    /// [`Client::sandbox`].
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert!(!sandbox.info().unwrap().pod_name().is_empty());
    /// assert!(client.sandbox("demo")?.info().is_none());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn info(&self) -> Option<&SandboxInfo> {
        self.info.as_ref()
    }

    /// The TTL that this handle created the sandbox with.
    pub(crate) fn time_to_live(&self) -> Option<Duration> {
        self.spec.as_ref().map(SandboxSpec::time_to_live)
    }

    /// Starts the TTL again. Sends one `POST …/touch`; safe to repeat.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if there is no such sandbox, or it has expired; else as
    /// [`create`](Client::create).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.touch()?;
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn touch(&self) -> Result<()> {
        self.named("touch of", || self.backend.touch(&self.id))
    }

    /// Deletes the sandbox with all that runs in it. False if there was none: also where an
    /// earlier try of this same call was lost on the way back and did delete it.
    /// Sends one `DELETE`; safe to repeat.
    ///
    /// # Errors
    ///
    /// As [`create`](Client::create), but that there is none is no error.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert!(sandbox.delete()?);
    /// assert!(!sandbox.delete()?);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "delete_sandbox")]
    pub fn delete(&self) -> Result<bool> {
        self.named("delete of", || self.backend.delete(&self.id))
    }

    /// Waits until a command runs in the sandbox, at most for `timeout`: runs `echo ready` until
    /// it answers `ready`, with pauses from 0.1 s to 2 s.
    ///
    /// # Errors
    ///
    /// [`NotReady`](ErrorKind::NotReady) when the time is over, with the last reason; at once, what
    /// waiting can't mend: a time of zero, a refused token, a sandbox that can't be isolated.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// use std::time::Duration;
    ///
    /// let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.wait_until_ready(Duration::from_secs(60))?;
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "wait_for_pod_ready")]
    pub fn wait_until_ready(&self, timeout: Duration) -> Result<()> {
        self.named("readiness of", || {
            check_time("the time to wait", timeout)?;
            self.poll_until_ready(timeout)
        })
    }

    fn poll_until_ready(&self, timeout: Duration) -> Result<()> {
        const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
        const LONGEST_PAUSE: Duration = Duration::from_secs(2);
        let end = Instant::now() + timeout;
        let mut pause = Duration::from_millis(100);
        loop {
            let left = end
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            let mut probe = Command::from(["echo", "ready"]).timeout(PROBE_TIMEOUT.min(left));
            probe.give_up_after = Some(left);
            let last = match self.backend.exec(&self.id, &probe) {
                Ok(out) if out.success() && out.stdout().trim() == "ready" => return Ok(()),
                Ok(out) => Error::new(
                    ErrorKind::NotReady,
                    format!(
                        "the probe exited with {} and said {:?}",
                        out.exit_code(),
                        one_line(&out.stdout())
                    ),
                ),
                Err(e) => match e.kind() {
                    ErrorKind::InvalidInput
                    | ErrorKind::Unauthorized
                    | ErrorKind::Isolation
                    | ErrorKind::Unsupported => return Err(e),
                    _ => e,
                },
            };
            let left = end.saturating_duration_since(Instant::now());
            if left <= pause {
                let message = format!(
                    "not ready after {:.1} s; at last: {last}",
                    timeout.as_secs_f64()
                );
                return Err(Error::new(ErrorKind::NotReady, message).with_source(last));
            }
            std::thread::sleep(pause);
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub(crate) fn session_id(&self) -> &SessionId {
        &self.id
    }

    /// Runs `call`; its error then names the operation and this sandbox.
    pub(crate) fn named<T>(&self, operation: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
        call().map_err(|e| {
            e.context(|| format!("{operation} sandbox {:?}", one_line(self.id.as_str())))
        })
    }
}

/// How often a sandbox of this TTL is touched.
pub(crate) fn third(ttl: Duration) -> Duration {
    // On the wire there are whole seconds.
    Duration::from_secs(time::whole_seconds(ttl).max(1)) / 3
}

/// Starts a TTL again, also where the backend has no touch (a minimal one): then by a second creation, once
/// a command has shown that the sandbox is there. Without that, one that is lost would come back empty.
#[derive(Default)]
pub(crate) struct Renewal {
    /// It has worked once: then it is not the call that is missing.
    touch_works: bool,
}

impl Renewal {
    pub(crate) fn renew(&mut self, sandbox: &Sandbox) -> Result<()> {
        const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
        let refused = match sandbox.touch() {
            Ok(()) => {
                self.touch_works = true;
                return Ok(());
            }
            Err(e) if !self.touch_works && is_of_a_missing_call(&e) => e,
            Err(e) => return Err(e),
        };
        let Some(spec) = &sandbox.spec else {
            return Err(refused);
        };
        match sandbox.exec(Command::new("true").timeout(PROBE_TIMEOUT)) {
            Ok(_) => sandbox
                .named("renewal of", || sandbox.backend.create(&sandbox.id, spec))
                .map(drop),
            Err(e) => Err(e),
        }
    }
}

fn is_of_a_missing_call(error: &Error) -> bool {
    matches!(error.status(), Some(404 | 405 | 501)) || error.kind() == ErrorKind::Unsupported
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("id", &self.id)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

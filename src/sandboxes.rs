//! `PUT`, `DELETE` and `touch` of `/v1/sandboxes/{id}`, and when a sandbox is ready.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::backend::Backend;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::exec::{Command, check_time};
use crate::time;

/// How long a sandbox lives unless it is touched, if the spec does not say otherwise.
///
/// ```
/// use noxrunner::{DEFAULT_TTL, SandboxSpec};
///
/// assert_eq!(SandboxSpec::new().time_to_live(), DEFAULT_TTL);
/// ```
pub const DEFAULT_TTL: Duration = Duration::from_secs(900);

/// The longest session id, in bytes. Longer ones would not fit the request line of many servers.
///
/// ```
/// use noxrunner::{MAX_SESSION_ID, SessionId};
///
/// assert!(SessionId::new("x".repeat(MAX_SESSION_ID)).is_ok());
/// assert!(SessionId::new("x".repeat(MAX_SESSION_ID + 1)).is_err());
/// ```
pub const MAX_SESSION_ID: usize = 1024;

/// The name of a sandbox, chosen by its user. Any text will do but the empty one, `.` and `..`,
/// which can't be one segment of a URL path.
///
/// ```
/// use noxrunner::SessionId;
///
/// assert_eq!(SessionId::new("build 7/ä")?.as_str(), "build 7/ä");
/// assert!(SessionId::new("..").is_err());
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// Checks the text once, so that no backend has to.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for the empty text, `.`, `..`, one with a NUL
    /// byte, and one over [`MAX_SESSION_ID`] bytes.
    ///
    /// # Example
    ///
    /// ```
    /// let error = noxrunner::SessionId::new("").unwrap_err();
    /// assert!(error.to_string().contains("it is empty"));
    /// ```
    pub fn new(id: impl AsRef<str>) -> Result<SessionId> {
        let id = id.as_ref();
        let refused = match id {
            "" => "it is empty".to_owned(),
            "." | ".." => "\".\" and \"..\" can't be one segment of a path".to_owned(),
            _ if id.contains('\0') => "it contains a NUL byte".to_owned(),
            _ if id.len() > MAX_SESSION_ID => {
                format!(
                    "it is {} bytes long, the limit is {MAX_SESSION_ID}",
                    id.len()
                )
            }
            _ => return Ok(SessionId(id.into())),
        };
        Err(Error::invalid(format!(
            "session id {:?}: {refused}",
            one_line(id)
        )))
    }

    /// The id as it was given.
    ///
    /// ```
    /// assert_eq!(noxrunner::SessionId::new("a/b")?.as_str(), "a/b");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// What a sandbox is to be. What is not set is not sent.
///
/// ```
/// use noxrunner::SandboxSpec;
/// use std::time::Duration;
///
/// let spec = SandboxSpec::new().ttl(Duration::from_secs(1800)).memory("1Gi");
/// assert_eq!(spec.memory_limit(), Some("1Gi"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxSpec {
    /// None is the default.
    ttl: Option<Duration>,
    image: Option<String>,
    cpu: Option<String>,
    memory: Option<String>,
    storage: Option<String>,
}

impl SandboxSpec {
    /// The defaults: 900 s to live, the rest up to the backend.
    ///
    /// ```
    /// use noxrunner::SandboxSpec;
    ///
    /// assert_eq!(SandboxSpec::new().memory_limit(), None);
    /// ```
    #[must_use]
    pub fn new() -> SandboxSpec {
        SandboxSpec::default()
    }

    /// How long the sandbox lives from now, and from each touch. Defaults to 900 s, at most 365
    /// days; rounded up to whole seconds.
    ///
    /// ```
    /// use noxrunner::SandboxSpec;
    /// use std::time::Duration;
    ///
    /// let spec = SandboxSpec::new().ttl(Duration::from_secs(60));
    /// assert_eq!(spec.time_to_live().as_secs(), 60);
    /// ```
    #[doc(alias = "ttl_seconds")]
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> SandboxSpec {
        self.ttl = Some(ttl);
        self
    }

    /// The container image, like `python:3.10`. Defaults to the backend's own. Locally there are
    /// no images: it is ignored, and [`SandboxInfo::ignored`] says so.
    ///
    /// ```
    /// use noxrunner::SandboxSpec;
    ///
    /// assert_eq!(SandboxSpec::new().image("python:3.12").image_name(), Some("python:3.12"));
    /// ```
    #[must_use]
    pub fn image(mut self, image: impl Into<String>) -> SandboxSpec {
        self.image = Some(image.into());
        self
    }

    /// The processor limit in Kubernetes notation, like `1` or `500m`. Defaults to the backend's own.
    ///
    /// ```
    /// use noxrunner::SandboxSpec;
    ///
    /// assert_eq!(SandboxSpec::new().cpu("500m").cpu_limit(), Some("500m"));
    /// ```
    #[doc(alias = "cpu_limit")]
    #[must_use]
    pub fn cpu(mut self, cpu: impl Into<String>) -> SandboxSpec {
        self.cpu = Some(cpu.into());
        self
    }

    /// The memory limit in Kubernetes notation, like `512Mi`. Defaults to the backend's own.
    ///
    /// ```
    /// use noxrunner::SandboxSpec;
    ///
    /// assert_eq!(SandboxSpec::new().memory("512Mi").memory_limit(), Some("512Mi"));
    /// ```
    #[doc(alias = "memory_limit")]
    #[must_use]
    pub fn memory(mut self, memory: impl Into<String>) -> SandboxSpec {
        self.memory = Some(memory.into());
        self
    }

    /// The storage limit in Kubernetes notation, like `2Gi`. Defaults to the backend's own.
    ///
    /// ```
    /// use noxrunner::SandboxSpec;
    ///
    /// assert_eq!(SandboxSpec::new().storage("2Gi").storage_limit(), Some("2Gi"));
    /// ```
    #[doc(alias = "ephemeral_storage_limit")]
    #[must_use]
    pub fn storage(mut self, storage: impl Into<String>) -> SandboxSpec {
        self.storage = Some(storage.into());
        self
    }

    /// How long the sandbox is to live.
    ///
    /// ```
    /// use noxrunner::SandboxSpec;
    ///
    /// assert_eq!(SandboxSpec::new().time_to_live().as_secs(), 900);
    /// ```
    #[must_use]
    pub fn time_to_live(&self) -> Duration {
        self.ttl.unwrap_or(DEFAULT_TTL)
    }

    /// The image that was asked for.
    ///
    /// ```
    /// use noxrunner::SandboxSpec;
    ///
    /// assert_eq!(SandboxSpec::new().image_name(), None);
    /// ```
    #[must_use]
    pub fn image_name(&self) -> Option<&str> {
        self.image.as_deref()
    }

    /// The processor limit that was asked for.
    ///
    /// ```
    /// use noxrunner::SandboxSpec;
    ///
    /// assert_eq!(SandboxSpec::new().cpu_limit(), None);
    /// ```
    #[must_use]
    pub fn cpu_limit(&self) -> Option<&str> {
        self.cpu.as_deref()
    }

    /// The memory limit that was asked for.
    ///
    /// ```
    /// use noxrunner::SandboxSpec;
    ///
    /// assert_eq!(SandboxSpec::new().memory_limit(), None);
    /// ```
    #[must_use]
    pub fn memory_limit(&self) -> Option<&str> {
        self.memory.as_deref()
    }

    /// The storage limit that was asked for.
    ///
    /// ```
    /// use noxrunner::SandboxSpec;
    ///
    /// assert_eq!(SandboxSpec::new().storage_limit(), None);
    /// ```
    #[must_use]
    pub fn storage_limit(&self) -> Option<&str> {
        self.storage.as_deref()
    }

    /// With this TTL, if it has none.
    pub(crate) fn or_ttl(mut self, ttl: Duration) -> SandboxSpec {
        self.ttl.get_or_insert(ttl);
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_time("the time to live", self.time_to_live())
    }
}

/// What the backend answered to the creation of a sandbox.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// assert!(sandbox.info().unwrap().expires_at_time().is_some());
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxInfo {
    name: String,
    expires_at: String,
    ignored: Vec<String>,
}

impl SandboxInfo {
    /// For a [`Backend`]: its own name for the sandbox, and when it expires (ISO 8601).
    ///
    /// ```
    /// use noxrunner::SandboxInfo;
    /// use std::time::{Duration, UNIX_EPOCH};
    ///
    /// let info = SandboxInfo::new("pod-1", "1970-01-01T00:01:00Z");
    /// assert_eq!(info.expires_at(), "1970-01-01T00:01:00Z");
    /// assert_eq!(info.expires_at_time(), Some(UNIX_EPOCH + Duration::from_secs(60)));
    /// ```
    #[must_use]
    pub fn new(pod_name: impl Into<String>, expires_at: impl Into<String>) -> SandboxInfo {
        SandboxInfo {
            name: pod_name.into(),
            expires_at: expires_at.into(),
            ignored: Vec::new(),
        }
    }

    /// For a [`Backend`] that knows when the sandbox expires as a time.
    ///
    /// ```
    /// use noxrunner::SandboxInfo;
    /// use std::time::{Duration, UNIX_EPOCH};
    ///
    /// let info = SandboxInfo::expiring("pod-1", UNIX_EPOCH + Duration::from_secs(60));
    /// assert_eq!(info.expires_at(), "1970-01-01T00:01:00Z");
    /// ```
    #[must_use]
    pub fn expiring(pod_name: impl Into<String>, expires_at: SystemTime) -> SandboxInfo {
        SandboxInfo::new(pod_name, time::format(expires_at))
    }

    /// For a [`Backend`]: what of the spec it took no notice of.
    ///
    /// ```
    /// use noxrunner::SandboxInfo;
    ///
    /// let info = SandboxInfo::new("pod-1", "2026-01-02T12:34:56Z");
    /// assert_eq!(info.with_ignored(vec!["image".to_owned()]).ignored(), ["image"]);
    /// ```
    #[must_use]
    pub fn with_ignored(mut self, ignored: Vec<String>) -> SandboxInfo {
        self.ignored = ignored;
        self
    }

    /// The backend's own name for the sandbox.
    ///
    /// ```
    /// use noxrunner::SandboxInfo;
    ///
    /// let info = SandboxInfo::new("pod-1", "2026-01-02T12:34:56Z");
    /// assert_eq!(info.pod_name(), "pod-1");
    /// ```
    #[must_use]
    pub fn pod_name(&self) -> &str {
        &self.name
    }

    /// When the sandbox expires unless it is touched, in the backend's own words.
    ///
    /// ```
    /// use noxrunner::SandboxInfo;
    ///
    /// let info = SandboxInfo::new("pod-1", "2026-01-02T12:34:56Z");
    /// assert_eq!(info.expires_at(), "2026-01-02T12:34:56Z");
    /// ```
    #[must_use]
    pub fn expires_at(&self) -> &str {
        &self.expires_at
    }

    /// The same as a time, if the backend's words are ISO 8601.
    ///
    /// ```
    /// use noxrunner::SandboxInfo;
    ///
    /// assert!(SandboxInfo::new("pod-1", "2026-01-02T12:34:56Z").expires_at_time().is_some());
    /// assert!(SandboxInfo::new("pod-1", "soon").expires_at_time().is_none());
    /// ```
    #[must_use]
    pub fn expires_at_time(&self) -> Option<SystemTime> {
        time::parse(&self.expires_at)
    }

    /// What of the spec the backend said it took no notice of, like `image`. Empty over HTTP.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// let spec = noxrunner::SandboxSpec::new().image("python:3.12");
    /// let sandbox = client.create("demo", spec)?; // a local one
    /// assert_eq!(sandbox.info().unwrap().ignored(), ["image"]);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

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
            Err(e) if e.is_not_found() => Err(refused),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_no_path_can_hold_are_refused_by_name() {
        for (id, reason) in [
            ("", "empty"),
            (".", "segment"),
            ("..", "segment"),
            ("a\0b", "NUL"),
        ] {
            let error = SessionId::new(id).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(reason), "{error}");
        }
        assert!(
            SessionId::new("x".repeat(1025))
                .unwrap_err()
                .to_string()
                .contains("1025 bytes")
        );
    }

    #[test]
    fn odd_ids_are_ids() {
        for id in [
            "a/b",
            "a?b",
            "a#b",
            "a%2Fb",
            "a b",
            "ä",
            "...",
            &"x".repeat(300),
        ] {
            assert_eq!(SessionId::new(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn zero_and_absurd_ttls_are_refused() {
        let check = |ttl| SandboxSpec::new().ttl(ttl).check().unwrap_err().to_string();
        assert!(check(Duration::ZERO).contains("time to live is zero"));
        assert!(check(Duration::MAX).contains("365 days"));
    }
}

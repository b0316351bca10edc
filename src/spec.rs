//! What a sandbox is to be, and what the backend made of that: ids, specs and answers.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result, one_line};
use crate::exec::check_time;
use crate::os::time;

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
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for the empty text, `.`, `..`, one with a NUL
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
    /// For a [`Backend`](crate::Backend): its own name for the sandbox, and when it expires (ISO 8601).
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

    /// For a [`Backend`](crate::Backend) that knows when the sandbox expires as a time.
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

    /// For a [`Backend`](crate::Backend): what of the spec it took no notice of.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

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

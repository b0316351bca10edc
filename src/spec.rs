//! Settings of a new sandbox, and the backend's answer.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::lenient_json::{known, text};
use crate::os::time;
use crate::validate::check_duration;

/// TTL of a sandbox whose spec does not set one: 900 s.
pub const DEFAULT_TTL: Duration = Duration::from_secs(900);

/// Settings of a new sandbox. Settings that are not set are not sent.
///
/// ```
/// use noxrunner::SandboxSpec;
/// use std::time::Duration;
///
/// let spec = SandboxSpec::new().ttl(Duration::from_secs(1800)).memory("1Gi");
/// assert_eq!(spec.get_memory(), Some("1Gi"));
/// assert_eq!(spec.get_cpu(), None);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxSpec {
    pub(crate) ttl: Option<Duration>,
    pub(crate) image: Option<String>,
    pub(crate) cpu: Option<String>,
    pub(crate) memory: Option<String>,
    pub(crate) storage: Option<String>,
}

impl SandboxSpec {
    /// Creates a spec with a TTL of 900 s. Everything else is up to the backend.
    #[must_use]
    pub fn new() -> SandboxSpec {
        SandboxSpec::default()
    }

    /// Sets the TTL: how long the sandbox lives after its creation and after each touch. Rounded up
    /// to whole seconds; at most 365 days. Defaults to 900 s.
    #[doc(alias = "ttl_seconds")]
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> SandboxSpec {
        self.ttl = Some(ttl);
        self
    }

    /// Sets the container image, such as `python:3.10`. The local backend has no images: it ignores
    /// this, and [`SandboxInfo::ignored`] says so. Defaults to the backend's own image.
    #[must_use]
    pub fn image(mut self, image: impl Into<String>) -> SandboxSpec {
        self.image = Some(image.into());
        self
    }

    /// Sets the CPU limit as a Kubernetes quantity, such as `1` or `500m`. Defaults to the backend's
    /// own limit.
    #[doc(alias = "cpu_limit")]
    #[must_use]
    pub fn cpu(mut self, cpu: impl Into<String>) -> SandboxSpec {
        self.cpu = Some(cpu.into());
        self
    }

    /// Sets the memory limit as a Kubernetes quantity, such as `512Mi`. Defaults to the backend's own
    /// limit.
    #[doc(alias = "memory_limit")]
    #[must_use]
    pub fn memory(mut self, memory: impl Into<String>) -> SandboxSpec {
        self.memory = Some(memory.into());
        self
    }

    /// Sets the storage limit as a Kubernetes quantity, such as `2Gi`. Defaults to the backend's own
    /// limit.
    #[doc(alias = "ephemeral_storage_limit")]
    #[must_use]
    pub fn storage(mut self, storage: impl Into<String>) -> SandboxSpec {
        self.storage = Some(storage.into());
        self
    }

    /// Returns the TTL, or the default of 900 s.
    #[must_use]
    pub fn get_ttl(&self) -> Duration {
        self.ttl.unwrap_or(DEFAULT_TTL)
    }

    /// Returns the container image, if set.
    #[must_use]
    pub fn get_image(&self) -> Option<&str> {
        self.image.as_deref()
    }

    /// Returns the CPU limit, if set.
    #[must_use]
    pub fn get_cpu(&self) -> Option<&str> {
        self.cpu.as_deref()
    }

    /// Returns the memory limit, if set.
    #[must_use]
    pub fn get_memory(&self) -> Option<&str> {
        self.memory.as_deref()
    }

    /// Returns the storage limit, if set.
    #[must_use]
    pub fn get_storage(&self) -> Option<&str> {
        self.storage.as_deref()
    }

    /// Sets the TTL if the spec does not have one.
    pub(crate) fn or_ttl(mut self, ttl: Duration) -> SandboxSpec {
        self.ttl.get_or_insert(ttl);
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_duration("TTL", self.get_ttl())
    }
}

/// A backend's answer to the creation of a sandbox.
///
/// As JSON it is the answer of NoxRunner v1: `podName`, `expiresAt`, and `ignored` if anything was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[must_use]
pub struct SandboxInfo {
    #[serde(deserialize_with = "text")]
    pod_name: String,
    #[serde(deserialize_with = "text")]
    expires_at: String,
    /// An extension of v1.
    #[serde(
        default,
        deserialize_with = "known",
        skip_serializing_if = "Vec::is_empty"
    )]
    ignored: Vec<String>,
}

impl SandboxInfo {
    /// Creates the answer of a [`Backend`](crate::Backend) from its own name for the sandbox and the
    /// time when it expires, in ISO 8601.
    pub fn new(pod_name: impl Into<String>, expires_at: impl Into<String>) -> SandboxInfo {
        SandboxInfo {
            pod_name: pod_name.into(),
            expires_at: expires_at.into(),
            ignored: Vec::new(),
        }
    }

    /// Same as [`new`](SandboxInfo::new), for a backend that knows the time as a [`SystemTime`].
    pub fn expiring(pod_name: impl Into<String>, expires_at: SystemTime) -> SandboxInfo {
        SandboxInfo::new(pod_name, time::format(expires_at))
    }

    /// Sets the names of the settings that the backend ignored.
    pub fn with_ignored(mut self, ignored: Vec<String>) -> SandboxInfo {
        self.ignored = ignored;
        self
    }

    /// Returns the backend's own name for the sandbox. Empty if the backend sent null.
    #[must_use]
    pub fn pod_name(&self) -> &str {
        &self.pod_name
    }

    /// Returns when the sandbox expires unless it is touched, as the backend wrote it.
    #[must_use]
    pub fn expires_at(&self) -> &str {
        &self.expires_at
    }

    /// Returns when the sandbox expires unless it is touched, or `None` if the backend's text is not
    /// ISO 8601.
    #[must_use]
    pub fn expires_at_time(&self) -> Option<SystemTime> {
        time::parse(&self.expires_at)
    }

    /// Returns the names of the settings that the backend reports as ignored, such as `image`.
    #[must_use]
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_absurd_ttls_are_refused() {
        let check = |ttl| SandboxSpec::new().ttl(ttl).check().unwrap_err().to_string();
        assert!(check(Duration::ZERO).contains("TTL is zero"));
        assert!(check(Duration::MAX).contains("365 days"));
    }
}

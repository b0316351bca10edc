//! Shared parts of the backends for container engines and Kubernetes.

mod agent_cache;
mod sandbox_name;
mod token;

use std::time::Duration;

pub(crate) use self::agent_cache::AgentCache;
#[cfg(feature = "kubernetes")]
pub(crate) use self::sandbox_name::sandbox_name;
#[cfg(feature = "docker")]
pub(crate) use self::sandbox_name::{name_hash, scoped_sandbox_name};
#[cfg(feature = "kubernetes")]
pub(crate) use self::token::hex;
pub(crate) use self::token::{random_hex, sha256_hex};
use crate::error::{Error, ErrorKind};
use crate::os::time::whole_seconds;
use crate::spec::SandboxSpec;

/// Minimum TTL that an agent starts with.
const MIN_INITIAL_TTL: Duration = Duration::from_secs(120);

/// Returns the TTL that the agent of a new sandbox starts with, in seconds. The backend sets the TTL of the
/// spec once it has reached the agent; a short one must not expire before.
pub(crate) fn initial_ttl(spec: &SandboxSpec) -> u64 {
    whole_seconds(spec.get_ttl().max(MIN_INITIAL_TTL))
}

/// Creates the error for a sandbox that does not exist, or no longer exists.
pub(crate) fn gone(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::NotFound, text).with_sandbox_gone(true)
}

/// Creates the error for a command that may have run in a sandbox that no longer exists.
pub(crate) fn lost(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::OutcomeUnknown, text).with_sandbox_gone(true)
}

//! Random numbers for names of temporary files and for ids.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Returns a random number from the operating system's source of randomness.
pub(crate) fn random_u64() -> u64 {
    // Each RandomState has new random keys.
    RandomState::new().build_hasher().finish()
}

/// Returns a name for a temporary file or directory that is not in use.
pub(crate) fn temporary_name() -> String {
    format!(".noxrunner-{:016x}", random_u64())
}

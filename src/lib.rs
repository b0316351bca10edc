//! Run commands and move files in sandboxes behind the NoxRunner v1 REST API.
#![deny(missing_docs)]
#![warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a test stops at the first surprise")
)]

#[cfg(not(unix))]
compile_error!(
    "noxrunner builds on Unix systems only: its archives are unpacked with Unix directory descriptors"
);

mod archive;
mod backend;
mod cancel;
mod client;
mod error;
mod exec;
mod files;
mod health;
mod remove;
mod sandboxes;
mod sys;
mod time;

pub use archive::{Extract, Extraction, Refusal};
pub use backend::http::{ClientBuilder, HttpBackend, Retry};
#[cfg(feature = "local")]
pub use backend::local::{Isolation, LocalBackend, LocalBackendBuilder};
pub use backend::{Backend, Upload};
pub use cancel::{Cancel, CancelGuard};
pub use client::Client;
pub use error::{Error, ErrorKind, MAX_ERROR_BODY, Result};
pub use exec::{Command, DEFAULT_COMMAND_TIMEOUT, MAX_ARGUMENT, Output, WORKSPACE};
pub use files::{Contents, Files, MAX_READ};
pub use sandboxes::{DEFAULT_TTL, MAX_SESSION_ID, Sandbox, SandboxInfo, SandboxSpec, SessionId};

/// A number that nobody has used before, for names of temporary files.
fn unique() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // Each RandomState has keys of its own, from the operating system's random numbers.
    RandomState::new().build_hasher().finish()
}

//! The local backend: sandboxes on this machine.

mod backend;
mod builder;
mod cancel_fd;
mod command_pipes;
#[cfg(target_os = "linux")]
mod confined;
#[cfg(all(feature = "agent", target_os = "linux"))]
mod container;
mod environment;
mod errors;
mod exit_code;
mod files;
mod isolation;
mod limits;
mod millis;
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "only isolated sandboxes share paths")
)]
mod options;
mod plain;
mod process_marks;
mod runner;
mod state_dir;
mod stdin_feed;
#[cfg(target_os = "linux")]
mod sys;
mod tier;

pub use self::backend::LocalBackend;
pub use self::builder::LocalBackendBuilder;
#[cfg(all(any(test, fuzzing), target_os = "linux"))]
pub use self::confined::holder_messages;
#[cfg(all(feature = "agent", target_os = "linux"))]
pub(crate) use self::container::ContainerTier;
pub use self::isolation::Isolation;
pub use self::limits::{Enforced, Limit, Limits};

//! Files and directories: into a sandbox, out of it, and within it.

mod download;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod list;
mod local_target;
mod manage;
mod named;
mod read;
mod upload;

pub use self::list::{Entry, EntryKind};
pub use self::named::Files;
pub use self::read::MAX_READ;

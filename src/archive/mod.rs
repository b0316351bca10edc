//! tar.gz out of a directory and into one.
//!
//! An archive that comes from a sandbox was written by an attacker, until proven otherwise:
//! [`Extract`] says what is refused.

mod cursor;
mod encode;
mod merge;
mod pack;
mod read;
mod unpack;

pub(crate) use encode::{Encoder, Spooled};
#[cfg(feature = "local")]
pub(crate) use pack::add_root;
pub(crate) use pack::{Specials, Tree, add_file};
#[cfg(feature = "conformance")]
pub(crate) use pack::{add_directory, add_link};
pub(crate) use read::{Entries, Kind};
#[cfg(feature = "local")]
pub(crate) use unpack::Links;
pub use unpack::{Extract, Extraction, Refusal};

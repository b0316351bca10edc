//! Packing and unpacking tar.gz archives.
//!
//! An archive from a sandbox is treated as hostile: [`Extract`] documents what is refused.

mod contents;
mod cursor;
mod encode;
mod merge;
mod pack;
mod read;
mod unpack;

pub use contents::Contents;
pub(crate) use contents::{archive_contents, archive_dir};
#[cfg(any(feature = "conformance", feature = "local"))]
pub(crate) use encode::Encoder;
pub(crate) use encode::Spooled;
#[cfg(feature = "local")]
pub(crate) use pack::{SpecialFiles, Tree, add_open_file, add_root};
#[cfg(feature = "conformance")]
pub(crate) use pack::{add_directory, add_file, add_link};
pub(crate) use read::{Entries, Kind};
#[cfg(feature = "local")]
pub(crate) use unpack::Links;
pub use unpack::{Extract, Extraction, Refusal};

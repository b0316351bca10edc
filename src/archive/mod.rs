//! Packing and unpacking tar.gz archives.
//!
//! An archive from a sandbox is treated as hostile: [`Extract`] documents what is refused.

mod contents;
mod cursor;
mod encode;
mod entry;
mod extract;
mod extraction;
mod gzip;
mod merge;
mod pack;
mod pack_rules;
mod read;
mod sized_file;
#[cfg(feature = "local")]
mod stream;
mod unpack;

pub use contents::Contents;
pub(crate) use contents::{archive_contents, archive_dir};
#[cfg(feature = "conformance")]
pub(crate) use encode::Encoder;
pub(crate) use encode::{PackedArchive, Spooled};
#[cfg(feature = "conformance")]
pub(crate) use entry::{add_directory, add_file, add_link};
pub use extract::Extract;
pub use extraction::{Extraction, Refusal};
#[cfg(feature = "local")]
pub(crate) use pack::{TreePacker, Unreadable};
#[cfg(feature = "local")]
pub(crate) use pack_rules::PackRules;
pub use pack_rules::{Pack, Symlinks};
pub(crate) use read::{Entries, Kind};
#[cfg(feature = "local")]
pub(crate) use stream::{ArchiveStream, Check};
#[cfg(any(feature = "local", test, fuzzing))]
pub(crate) use unpack::Links;

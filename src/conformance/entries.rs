//! Archives of uploads and downloads.

use std::io::Read;

use crate::archive::{Encoder, Entries, Extract, Kind, add_directory, add_file, add_link};
use crate::error::{Error, Result};

/// Modification time of all entries: any time in the past.
const MTIME: u64 = 1_700_000_000;

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArchiveEntry {
    pub(super) name: String,
    pub(super) mode: u32,
    pub(super) content: EntryContent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryContent {
    File(Vec<u8>),
    Directory,
    Symlink(String),
    Other,
}

pub(super) fn file(name: &str, content: impl Into<Vec<u8>>) -> ArchiveEntry {
    entry(name, 0o644, EntryContent::File(content.into()))
}

pub(super) fn entry(name: &str, mode: u32, content: EntryContent) -> ArchiveEntry {
    let name = name.to_owned();
    ArchiveEntry {
        name,
        mode,
        content,
    }
}

pub(super) fn pack(entries: &[ArchiveEntry]) -> Result<Vec<u8>> {
    let failed = |e| Error::io("cannot create an archive", e);
    let mut encoder = Encoder::new();
    for entry in entries {
        let (name, mode) = (entry.name.as_bytes(), entry.mode);
        match &entry.content {
            EntryContent::File(content) => {
                let size = content.len() as u64;
                add_file(&mut encoder, name, mode, MTIME, size, &mut &**content)
            }
            EntryContent::Directory => add_directory(&mut encoder, name, mode, MTIME),
            EntryContent::Symlink(target) => add_link(&mut encoder, name, target.as_bytes(), MTIME),
            EntryContent::Other => Ok(()),
        }
        .map_err(failed)?;
    }
    let mut archive = Vec::new();
    encoder
        .finish()?
        .upload()?
        .read_to_end(&mut archive)
        .map_err(failed)?;
    Ok(archive)
}

/// Reads an archive. Names have no leading `./` and no trailing slash, and the entry of the root is
/// skipped.
pub(super) fn unpack(archive: &[u8]) -> Result<Vec<ArchiveEntry>> {
    let limits = Extract::new().max_entries(10_000).max_bytes(64 << 20);
    let mut entries = Vec::new();
    Entries::for_each(archive, limits.limits(), |found, content| {
        let name = String::from_utf8_lossy(&found.name).into_owned();
        let name = name.trim_start_matches("./").trim_end_matches('/');
        if matches!(name, "" | ".") || found.kind == Kind::Unreadable {
            return Ok(());
        }
        let content = match &found.kind {
            Kind::File => {
                let mut bytes = Vec::new();
                let read = content.read_to_end(&mut bytes);
                read.map_err(|e| Error::io("cannot read the archive", e))?;
                EntryContent::File(bytes)
            }
            Kind::Directory => EntryContent::Directory,
            Kind::Symlink(target) => {
                EntryContent::Symlink(String::from_utf8_lossy(target).into_owned())
            }
            _ => EntryContent::Other,
        };
        entries.push(entry(name, found.mode, content));
        Ok(())
    })?;
    Ok(entries)
}

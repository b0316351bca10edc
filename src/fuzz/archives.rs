//! Reading archives.

use super::input::{Dribble, Input};
use super::printed::check_shown;
use super::tar_script::{archive, compressed};
use crate::archive::{Entries, Extract, Kind};
use crate::error::Result;
use std::io::Read;

const MAX_ENTRIES: u64 = 64;
const MAX_BYTES: u64 = 256 * 1024;

/// An entry: its name, type, mode, declared size and time.
type Entry = (Vec<u8>, Kind, u32, u64, u64);

/// The entries and contents that were read.
#[derive(Default, PartialEq)]
struct Listing {
    entries: Vec<Entry>,
    contents: Vec<Vec<u8>>,
    is_complete: bool,
}

/// Reads an archive. Limits hold, and neither the sizes of the pieces nor compression make a difference.
pub fn archives(data: &[u8]) {
    let mut input = Input(data);
    let seed = input.byte();
    let archive = archive(&mut input);
    let whole = list(&*archive, true);
    assert!(list(Dribble::new(&archive, seed), true) == whole);

    let skipped = list(&*archive, false);
    assert_eq!(skipped.entries, whole.entries);
    assert_eq!(skipped.is_complete, whole.is_complete);

    if !archive.is_empty() && !archive.starts_with(&[0x1f, 0x8b]) {
        assert!(list(&*compressed(&archive), true) == whole);
    }
    let mut count = 0;
    let limits = Extract::new().max_entries(MAX_ENTRIES).max_bytes(MAX_BYTES);
    let read = Entries::for_each_if_any(&*archive, limits.limits(), |_, _| {
        count += 1;
        Ok(())
    });
    // An archive without entries is an error to one of the two functions only.
    let may_differ = whole.entries.is_empty();
    assert!(may_differ || read.is_ok() == whole.is_complete);
    assert_eq!(count, whole.entries.len());
}

fn list(archive: impl Read, with_contents: bool) -> Listing {
    let mut listing = Listing::default();
    let limits = Extract::new().max_entries(MAX_ENTRIES).max_bytes(MAX_BYTES);
    let read = Entries::for_each(archive, limits.limits(), |entry, content| -> Result<()> {
        listing.entries.push((
            entry.name.clone(),
            entry.kind.clone(),
            entry.mode,
            entry.size,
            entry.mtime,
        ));
        if with_contents {
            let mut bytes = Vec::new();
            let read = content.read_to_end(&mut bytes);
            assert!(bytes.len() as u64 <= entry.size);
            assert_eq!(read.is_ok(), bytes.len() as u64 == entry.size);
            listing.contents.push(bytes);
        }
        Ok(())
    });
    listing.is_complete = read.is_ok();
    if let Err(e) = read {
        check_shown(&e);
        // The number of bytes read from a truncated file depends on the sizes of the pieces.
        listing.contents.pop();
    }
    assert!(listing.entries.len() as u64 <= MAX_ENTRIES);
    let size: usize = listing.contents.iter().map(Vec::len).sum();
    assert!(size as u64 <= MAX_BYTES);
    let names = listing.entries.iter().map(|entry| entry.0.len() as u64);
    assert!(names.sum::<u64>() <= MAX_BYTES);
    listing
}

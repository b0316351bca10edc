//! Archives from short descriptions, so that an input has no checksums and little padding.

use std::io::Read;

use flate2::Compression;
use flate2::read::GzEncoder;
use tar::{EntryType, Header};

use super::input::Input;

const BLOCK: usize = 512;

/// Creates an archive as the first byte says: these bytes, these bytes with valid checksums, or the
/// archive that they describe. It may be compressed.
pub(super) fn archive(input: &mut Input<'_>) -> Vec<u8> {
    let format = input.byte();
    let tar = match format % 4 {
        0 => input.bytes(usize::MAX).to_vec(),
        1 => with_checksums(input.bytes(usize::MAX).to_vec()),
        _ => described(input),
    };
    if format & 4 == 0 {
        tar
    } else {
        compressed(&tar)
    }
}

pub(super) fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = Vec::new();
    let read = GzEncoder::new(bytes, Compression::fast()).read_to_end(&mut gzip);
    read.expect("bytes in memory can be compressed");
    gzip
}

/// Sets the checksums of the headers.
fn with_checksums(mut tar: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while let Some(block) = tar.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let size = header.entry_size().unwrap_or(0);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        at = at
            .saturating_add(size)
            .checked_next_multiple_of(BLOCK)
            .unwrap_or(usize::MAX - BLOCK);
    }
    tar
}

/// Creates an archive of the entries that the input describes.
fn described(input: &mut Input<'_>) -> Vec<u8> {
    let mut tar = Vec::new();
    while !input.is_empty() {
        let kind = input.byte();
        if kind == 0 {
            tar.extend([0; 2 * BLOCK]);
            continue;
        }
        entry(EntryType::new(kind), input, &mut tar);
    }
    tar
}

fn entry(kind: EntryType, input: &mut Input<'_>, tar: &mut Vec<u8>) {
    let flags = input.byte();
    let (has_other_size, repeats, is_damaged) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(input.u16().into());
    header.set_mtime(u64::from(input.byte()) << 24);
    set_field(&mut header, 0, input.short_bytes());
    set_field(&mut header, 157, input.short_bytes());
    let mut content = match kind {
        EntryType::XHeader | EntryType::XGlobalHeader => records(input),
        _ => input.short_bytes().to_vec(),
    };
    if repeats {
        content = content.repeat(input.byte().into());
    }
    header.set_size(if has_other_size {
        input.u64()
    } else {
        content.len() as u64
    });
    header.set_cksum();
    header.as_mut_bytes()[148] ^= u8::from(is_damaged);
    tar.extend(header.as_bytes());
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

/// Sets a field of 100 bytes.
fn set_field(header: &mut Header, at: usize, text: &[u8]) {
    let text = &text[..text.len().min(100)];
    header.as_mut_bytes()[at..at + text.len()].copy_from_slice(text);
}

/// Creates the content of an extended header.
fn records(input: &mut Input<'_>) -> Vec<u8> {
    const KEYS: [&str; 8] = [
        "path",
        "linkpath",
        "size",
        "mtime",
        "GNU.sparse.name",
        "NOXRUNNER.unreadable",
        "comment",
        "",
    ];
    let mut records = Vec::new();
    for _ in 0..input.byte() % 8 {
        let key = KEYS[usize::from(input.byte() % 8)].as_bytes();
        let text = [b" ", key, b"=", input.short_bytes(), b"\n"].concat();
        // The length includes its own digits.
        let length = (1..5).find(|digits| (text.len() + digits).to_string().len() == *digits);
        let length = text.len() + length.unwrap_or(0);
        records.extend(length.to_string().into_bytes());
        records.extend(text);
    }
    records
}

//! Writing the entries of an archive.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use super::encode::Encoder;
use crate::exact_reader::ExactReader;

/// Length of a name in a header, in bytes. A longer name precedes it, in an entry with this name.
const NAME_FIELD: usize = 100;
const LONG_LINK: &[u8] = b"././@LongLink";

/// Key of a record about an entry that is not in the archive, because it could not be read. It is in a
/// global extended header, which other programs ignore.
pub(super) const UNREADABLE: &[u8] = b"NOXRUNNER.unreadable";

fn header(kind: EntryType, mode: u32, mtime: u64, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode & 0o777);
    header.set_mtime(mtime);
    header.set_size(size);
    // Owners of this machine have no meaning elsewhere.
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Adds a header and its small content.
fn add_block<W: Write>(
    encoder: &mut Encoder<W>,
    header: &mut Header,
    name: &[u8],
    content: &[u8],
) -> io::Result<()> {
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_cksum();
    encoder.write_all(header.as_bytes())?;
    encoder.write_all(content)?;
    encoder.pad()
}

/// Adds the headers of an entry under any name. The tar crate's own method cuts a long name at its first
/// byte that is not UTF-8.
fn add<W: Write>(
    encoder: &mut Encoder<W>,
    mut header: Header,
    name: &[u8],
    link: &[u8],
) -> io::Result<()> {
    for (kind, field, text) in [
        (EntryType::GNULongName, 0, name),
        (EntryType::GNULongLink, 157, link),
    ] {
        let fits = text.len().min(NAME_FIELD);
        header.as_mut_bytes()[field..field + fits].copy_from_slice(&text[..fits]);
        if text.len() > NAME_FIELD {
            let with_nul = [text, b"\0"].concat();
            let mut long = self::header(kind, 0o644, 0, with_nul.len() as u64);
            add_block(encoder, &mut long, LONG_LINK, &with_nul)?;
        }
    }
    header.set_cksum();
    encoder.write_all(header.as_bytes())
}

/// Adds an entry for the root, which shows that the archive is one of a directory.
#[cfg(feature = "local")]
pub(super) fn add_root<W: Write>(encoder: &mut Encoder<W>) -> io::Result<()> {
    add_directory(encoder, b".", 0o755, 0)
}

pub(crate) fn add_directory<W: Write>(
    encoder: &mut Encoder<W>,
    name: &[u8],
    mode: u32,
    mtime: u64,
) -> io::Result<()> {
    let header = header(EntryType::Directory, mode, mtime, 0);
    add(encoder, header, &[name, b"/"].concat(), b"")
}

/// Adds the header of a file. Its content and [`Encoder::pad`] must follow.
pub(super) fn start_file<W: Write>(
    encoder: &mut Encoder<W>,
    name: &[u8],
    mode: u32,
    mtime: u64,
    size: u64,
) -> io::Result<()> {
    encoder.announce_file(size);
    add(
        encoder,
        header(EntryType::Regular, mode, mtime, size),
        name,
        b"",
    )
}

/// Adds a file of exactly `size` bytes.
pub(crate) fn add_file<W: Write>(
    encoder: &mut Encoder<W>,
    name: &[u8],
    mode: u32,
    mtime: u64,
    size: u64,
    content: &mut dyn Read,
) -> io::Result<()> {
    start_file(encoder, name, mode, mtime, size)?;
    let mut exact = ExactReader {
        inner: content,
        left: size,
        short: |_| io::ErrorKind::UnexpectedEof.into(),
    };
    io::copy(&mut exact, encoder)?;
    encoder.pad()
}

pub(crate) fn add_link<W: Write>(
    encoder: &mut Encoder<W>,
    name: &[u8],
    target: &[u8],
    mtime: u64,
) -> io::Result<()> {
    let header = header(EntryType::Symlink, 0o777, mtime, 0);
    add(encoder, header, name, target)
}

pub(super) fn add_fifo<W: Write>(
    encoder: &mut Encoder<W>,
    name: &[u8],
    mode: u32,
    mtime: u64,
) -> io::Result<()> {
    add(encoder, header(EntryType::Fifo, mode, mtime, 0), name, b"")
}

/// Adds a device with number 0.
pub(super) fn add_device<W: Write>(
    encoder: &mut Encoder<W>,
    name: &[u8],
    mode: u32,
    mtime: u64,
) -> io::Result<()> {
    add(encoder, header(EntryType::Char, mode, mtime, 0), name, b"")
}

/// Adds the name of an entry that could not be read.
pub(super) fn add_unreadable<W: Write>(encoder: &mut Encoder<W>, name: &[u8]) -> io::Result<()> {
    let record = unreadable_record(name);
    let mut header = header(EntryType::XGlobalHeader, 0o644, 0, record.len() as u64);
    add_block(encoder, &mut header, b"pax_global_header", &record)
}

/// Returns the record of an extended header: its length, the key and the value.
fn unreadable_record(name: &[u8]) -> Vec<u8> {
    let text = [b" ", UNREADABLE, b"=", name, b"\n"].concat();
    // The length includes its own digits.
    let digits = |length: usize| length.to_string().len();
    let mut length = text.len() + digits(text.len());
    length = text.len() + digits(length);
    [length.to_string().as_bytes(), &text].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_of_a_record_includes_its_digits() {
        for length in 0..1100 {
            let record = unreadable_record(&vec![b'x'; length]);
            let text = String::from_utf8(record).unwrap();
            let (digits, rest) = text.split_once(' ').unwrap();
            assert_eq!(digits.parse(), Ok(text.len()));
            assert!(rest.starts_with("NOXRUNNER.unreadable=") && rest.ends_with('\n'));
        }
    }
}

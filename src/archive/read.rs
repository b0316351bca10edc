//! Reading the entries of an untrusted archive.
//!
//! This uses the headers of the tar crate but not its iterator, which loads long names of any size into
//! memory, notices truncation only within an entry, and splits extended records at newlines, which names
//! may contain.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use tar::{EntryType, Header};

use super::entry::UNREADABLE;
use crate::error::{Error, Result};
use crate::exact_reader::ExactReader;

/// Maximum size of the extended headers of an entry, including long names, in bytes.
const MAX_EXTENSIONS: u64 = 1024 * 1024;

/// Size of a block of a tar archive, in bytes.
const BLOCK: usize = 512;

/// Unpacked size from which the ratio is limited, in bytes.
const RATIO_LIMITED_FROM: u64 = 256 * 1024 * 1024;

/// Limits of an archive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnpackLimits {
    pub(crate) entries: u64,
    /// Size of the unpacked archive, including headers.
    pub(crate) bytes: u64,
    /// Ratio of unpacked to received bytes.
    pub(crate) ratio: u64,
}

impl Default for UnpackLimits {
    fn default() -> UnpackLimits {
        UnpackLimits {
            entries: 1_000_000,
            bytes: 64 << 30,
            ratio: 200,
        }
    }
}

#[derive(Debug)]
pub(crate) struct ArchiveEntry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Size of the content in bytes.
    pub(crate) size: u64,
    pub(crate) mtime: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    /// A symbolic link, with its target.
    Symlink(Vec<u8>),
    /// A hard link, with the name of the other entry.
    Hardlink(Vec<u8>),
    Fifo,
    Device,
    Sparse,
    /// Not an entry: the name of one that the sandbox could not archive.
    Unreadable,
    Unknown,
}

/// The entries of a tar archive, which may be compressed with gzip.
pub(crate) struct Entries<R> {
    archive: R,
    read: u64,
    /// The archive may end before its first block, without an end marker.
    may_be_empty: bool,
    /// Names from global headers that have not been returned.
    unreadable: VecDeque<Vec<u8>>,
}

impl Entries<()> {
    /// Calls `each` with every entry and its content, in order. Content that `each` does not read is
    /// skipped. Reads the archive to its last byte, to verify the gzip checksum and notice truncation.
    pub(crate) fn for_each(
        archive: impl Read,
        limits: UnpackLimits,
        each: impl FnMut(&ArchiveEntry, &mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        Entries::read_all(archive, limits, false, each)
    }

    /// Same as [`for_each`](Entries::for_each), but an empty stream counts as an archive without entries.
    pub(crate) fn for_each_if_any(
        archive: impl Read,
        limits: UnpackLimits,
        each: impl FnMut(&ArchiveEntry, &mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        Entries::read_all(archive, limits, true, each)
    }

    fn read_all(
        archive: impl Read,
        limits: UnpackLimits,
        may_be_empty: bool,
        mut each: impl FnMut(&ArchiveEntry, &mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let received = Rc::new(Cell::new(0));
        let inner = decode(archive, &received)?;
        let archive = Limited {
            inner,
            received,
            unpacked: 0,
            limits,
        };
        let mut entries = Entries {
            archive,
            read: 0,
            may_be_empty,
            unreadable: VecDeque::new(),
        };
        while let Some(entry) = entries.next()? {
            if entries.read > limits.entries {
                let text = format!(
                    "archive has more than {} entries, the limit of max_entries()",
                    limits.entries
                );
                return Err(Error::archive(text));
            }
            let mut content = exactly(&mut entries.archive, entry.size);
            each(&entry, &mut content)?;
            let padding = (BLOCK as u64 - entry.size % BLOCK as u64) % BLOCK as u64;
            content.left = content.left.saturating_add(padding);
            io::copy(&mut content, &mut io::sink()).map_err(|e| damaged(e, entries.read))?;
        }
        let rest = io::copy(&mut entries.archive, &mut io::sink());
        rest.map(drop).map_err(|e| damaged(e, entries.read))
    }
}

/// The extended headers of an entry.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<u64>,
    sparse: bool,
    /// Total size of the headers.
    length: u64,
    /// True if the archive must contain another entry.
    pending: bool,
}

impl<R: Read> Entries<R> {
    /// Returns the next entry, or `None` at the end marker.
    fn next(&mut self) -> Result<Option<ArchiveEntry>> {
        let mut extensions = Extensions::default();
        loop {
            let name = if extensions.pending {
                None
            } else {
                self.unreadable.pop_front()
            };
            if let Some(name) = name {
                self.read += 1;
                return Ok(Some(unreadable(name)));
            }
            let header = match self.header()? {
                Some(header) => header,
                None if extensions.pending => {
                    let message = "archive is truncated (no entry after its extended headers)";
                    return Err(Error::archive(message));
                }
                None => return Ok(None),
            };
            let size = header.entry_size().map_err(|e| damaged(e, self.read))?;
            extensions.pending |= header.entry_type() != EntryType::XGlobalHeader;
            match header.entry_type() {
                EntryType::GNULongName => {
                    extensions.name = Some(self.long_name(&mut extensions, size)?)
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(self.long_name(&mut extensions, size)?)
                }
                EntryType::XHeader => self.extended(&mut extensions, size)?,
                // Not part of an entry, but before one, so that their total size is limited.
                EntryType::XGlobalHeader => self.global(&mut extensions, size)?,
                _ => {
                    self.sparse_map(&header)?;
                    self.read += 1;
                    return Ok(Some(describe(&header, extensions, size)));
                }
            }
        }
    }

    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        if !self.block(block)? {
            if self.may_be_empty {
                return Ok(None);
            }
            let text = format!(
                "archive is truncated (no end marker after {} entries)",
                self.read
            );
            return Err(Error::archive(text));
        }
        self.may_be_empty = false;
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        // The checksum field itself counts as spaces.
        let sum = |range: &[u8]| range.iter().map(|b| u32::from(*b)).sum::<u32>();
        let found = sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..]);
        match header.cksum() {
            Ok(said) if said == found => Ok(Some(header)),
            _ => Err(damaged(
                io::Error::other("the checksum of a header is wrong"),
                self.read,
            )),
        }
    }

    /// Reads a block. Returns false at the end of the archive.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut next = (&mut self.archive).take(BLOCK as u64);
        match io::copy(&mut next, &mut block.as_mut_slice()) {
            Ok(0) => Ok(false),
            Ok(_) if next.limit() == 0 => Ok(true),
            Ok(_) => Err(damaged(io::ErrorKind::UnexpectedEof.into(), self.read)),
            Err(e) => Err(damaged(e, self.read)),
        }
    }

    /// Reads the content of an extended header.
    fn extension(&mut self, extensions: &mut Extensions, size: u64) -> Result<Vec<u8>> {
        extensions.length = extensions.length.saturating_add(size);
        if extensions.length > MAX_EXTENSIONS {
            let text = format!("the extended headers of an entry exceed {MAX_EXTENSIONS} bytes");
            return Err(Error::archive(text));
        }
        let padded = size.next_multiple_of(BLOCK as u64);
        let mut content = Vec::new();
        exactly(&mut self.archive, padded)
            .read_to_end(&mut content)
            .map_err(|e| damaged(e, self.read))?;
        content.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        Ok(content)
    }

    fn long_name(&mut self, extensions: &mut Extensions, size: u64) -> Result<Vec<u8>> {
        let mut name = self.extension(extensions, size)?;
        name.truncate(name.iter().position(|b| *b == 0).unwrap_or(name.len()));
        Ok(name)
    }

    /// Parses a global header. Only the names of unreadable entries matter; a damaged one is ignored.
    fn global(&mut self, extensions: &mut Extensions, size: u64) -> Result<()> {
        let content = self.extension(extensions, size)?;
        let mut rest = content.as_slice();
        while let Some((key, value, after)) = record(rest) {
            if key == UNREADABLE {
                self.unreadable.push_back(value.to_vec());
            }
            rest = after;
        }
        Ok(())
    }

    /// Parses records of the form `LENGTH KEY=VALUE\n`, where the length includes itself and the newline.
    fn extended(&mut self, extensions: &mut Extensions, size: u64) -> Result<()> {
        let content = self.extension(extensions, size)?;
        let mut rest = content.as_slice();
        while !rest.is_empty() {
            let (key, value, after) =
                record(rest).ok_or_else(|| Error::archive("an extended header is damaged"))?;
            let text = std::str::from_utf8(value).unwrap_or_default();
            let number = text.split('.').next().and_then(|whole| whole.parse().ok());
            match key {
                b"path" => extensions.name = Some(value.to_vec()),
                b"linkpath" => extensions.link = Some(value.to_vec()),
                b"size" => {
                    let message = "the size in an extended header is not a number";
                    extensions.size = Some(number.ok_or_else(|| Error::archive(message))?);
                }
                b"mtime" => extensions.mtime = number,
                _ if key.starts_with(b"GNU.sparse.") => extensions.sparse = true,
                _ => {}
            }
            rest = after;
        }
        Ok(())
    }

    /// Skips the blocks that list the holes, if this is a sparse file.
    fn sparse_map(&mut self, header: &Header) -> Result<()> {
        /// Offset of the byte that announces another block: in the header, and in later blocks.
        const MORE: [usize; 2] = [482, 504];
        if header.entry_type() != EntryType::GNUSparse {
            return Ok(());
        }
        let mut block = *header.as_bytes();
        let mut more = block[MORE[0]] != 0;
        let mut blocks = 0;
        while more {
            blocks += 1;
            if blocks * BLOCK as u64 > MAX_EXTENSIONS || !self.block(&mut block)? {
                return Err(Error::archive(
                    "the map of a sparse file is truncated or too long",
                ));
            }
            more = block[MORE[1]] != 0;
        }
        Ok(())
    }
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (whole, after) = bytes.split_at_checked(length)?;
    let text = whole.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|b| *b == b'=')?;
    Some((&text[..equals], &text[equals + 1..], after))
}

fn unreadable(name: Vec<u8>) -> ArchiveEntry {
    ArchiveEntry {
        name,
        kind: Kind::Unreadable,
        mode: 0,
        size: 0,
        mtime: 0,
    }
}

fn describe(header: &Header, extensions: Extensions, size: u64) -> ArchiveEntry {
    let name = extensions
        .name
        .unwrap_or_else(|| header.path_bytes().into());
    let link = extensions.link;
    let link = link.or_else(|| Some(header.link_name_bytes()?.into()));
    let link = link.unwrap_or_default();
    let kind = match header.entry_type() {
        _ if extensions.sparse => Kind::Sparse,
        // Archives from before 1988 mark a directory only with a trailing slash.
        EntryType::Regular if name.last() == Some(&b'/') => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(link),
        EntryType::Link => Kind::Hardlink(link),
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char | EntryType::Block => Kind::Device,
        EntryType::GNUSparse => Kind::Sparse,
        _ => Kind::Unknown,
    };
    let size = match header.entry_type() {
        // These may have a size but have no content. GNU tar and Python agree.
        EntryType::Directory | EntryType::Symlink | EntryType::Link => 0,
        EntryType::Fifo | EntryType::Char | EntryType::Block => 0,
        _ => extensions.size.unwrap_or(size),
    };
    ArchiveEntry {
        name,
        kind,
        mode: header.mode().unwrap_or(0o644) & 0o777,
        size,
        mtime: extensions.mtime.or(header.mtime().ok()).unwrap_or(0),
    }
}

/// Returns a reader of exactly `length` bytes. It fails if the archive ends before that.
fn exactly<R: Read>(inner: R, length: u64) -> ExactReader<R, fn(u64) -> io::Error> {
    ExactReader {
        inner,
        left: length,
        short: |_| io::ErrorKind::UnexpectedEof.into(),
    }
}

/// Counts the received bytes.
struct Received<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Received<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.count.set(self.count.get() + got as u64);
        Ok(got)
    }
}

/// Enforces the limits.
struct Limited<R> {
    inner: R,
    received: Rc<Cell<u64>>,
    unpacked: u64,
    limits: UnpackLimits,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.unpacked += got as u64;
        let UnpackLimits { bytes, ratio, .. } = self.limits;
        if self.unpacked > bytes {
            return Err(refused(format!(
                "archive unpacks to more than {bytes} bytes, the limit of max_bytes()"
            )));
        }
        if self.unpacked > RATIO_LIMITED_FROM
            && self.unpacked > self.received.get().saturating_mul(ratio)
        {
            return Err(refused(format!(
                "archive unpacks to more than {ratio} times its size, the limit of max_ratio()"
            )));
        }
        Ok(got)
    }
}

fn refused(rule: String) -> io::Error {
    Error::archive(rule).into_io()
}

fn decode<'a>(archive: impl Read + 'a, received: &Rc<Cell<u64>>) -> Result<Box<dyn Read + 'a>> {
    let mut archive = Received {
        inner: archive,
        count: Rc::clone(received),
    };
    let mut start = Vec::with_capacity(2);
    (&mut archive)
        .take(2)
        .read_to_end(&mut start)
        .map_err(|e| damaged(e, 0))?;
    if start.is_empty() {
        return Err(Error::archive("archive is empty"));
    }
    let gzip = start == [0x1f, 0x8b];
    let whole = BufReader::with_capacity(64 * 1024, io::Cursor::new(start).chain(archive));
    if gzip {
        Ok(Box::new(MultiGzDecoder::new(whole)))
    } else {
        Ok(Box::new(whole))
    }
}

/// Returns the error for an archive that cannot be read after `after` entries. An error of our own keeps
/// its kind.
fn damaged(error: io::Error, after: u64) -> Error {
    match Error::from_io(error) {
        Ok(error) => error,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            Error::archive(format!("archive is truncated after {after} entries")).with_source(e)
        }
        Err(e) if after == 0 => Error::archive("not a tar or tar.gz archive").with_source(e),
        Err(e) => {
            Error::archive(format!("archive is damaged after {after} entries")).with_source(e)
        }
    }
}

//! The entries of an archive that nobody vouches for.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use tar::EntryType;

use crate::error::{Error, Result, io_reason};

/// How much the headers of one entry may take, long names and extensions included, in bytes.
const MAX_HEADERS: u64 = 1024 * 1024;

/// Below this many bytes the ratio of an archive to what is in it does not matter.
const RATIO_MATTERS_FROM: u64 = 256 * 1024 * 1024;

/// What an archive may ask of its reader.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) entries: u64,
    /// All of the archive, unpacked, headers included.
    pub(crate) bytes: u64,
    /// Unpacked over received bytes.
    pub(crate) ratio: u64,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permissions only.
    pub(crate) mode: u32,
    pub(crate) size: u64,
    pub(crate) mtime: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    /// With its target.
    Symlink(Vec<u8>),
    /// With the name of the entry it is another name for.
    Hardlink(Vec<u8>),
    Special(&'static str),
}

/// The entries of a tar archive, gzip-compressed or plain by its first bytes. `each` gets every
/// entry with its content, in order; what it leaves unread is passed over.
pub(crate) struct Entries;

impl Entries {
    /// Reads the archive to its last byte, so that a gzip checksum is verified and a cut one is
    /// noticed wherever it was cut.
    pub(crate) fn for_each(
        archive: impl Read,
        limits: Limits,
        mut each: impl FnMut(&Entry, &mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let gauge = Rc::new(Gauge {
            limits,
            ..Gauge::new()
        });
        let decoded = decode(archive, &gauge)?;
        let mut tar = tar::Archive::new(Metered {
            inner: decoded,
            gauge: Rc::clone(&gauge),
        });
        let mut count = 0;
        let mut entries = tar.entries().map_err(|e| damaged(e, count))?;
        loop {
            gauge.header_left.set(MAX_HEADERS);
            let Some(next) = entries.next() else { break };
            let mut data = next.map_err(|e| damaged(e, count))?;
            gauge.header_left.set(u64::MAX);
            count += 1;
            if count > limits.entries {
                return Err(Error::archive(format!(
                    "more than {} entries, the limit of max_entries()",
                    limits.entries
                )));
            }
            let Some(entry) = describe(&mut data)? else {
                continue;
            };
            let mut content = Content {
                data: &mut data,
                left: entry.size,
            };
            each(&entry, &mut content)?;
            io::copy(&mut content, &mut io::sink()).map_err(|e| damaged(e, count))?;
        }
        if gauge.ended.get() {
            return Err(Error::archive(format!(
                "cut off after {count} entries: its end marker is missing"
            )));
        }
        io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(|e| damaged(e, count))?;
        Ok(())
    }
}

/// Turns an entry's header into ours; none for one that only speaks of others.
fn describe<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Option<Entry>> {
    let name = entry.path_bytes().into_owned();
    let link = || {
        entry
            .link_name_bytes()
            .map(|l| l.into_owned())
            .unwrap_or_default()
    };
    let kind = match entry.header().entry_type() {
        // Archives from before 1988 know a directory by its last byte.
        EntryType::Regular if name.last() == Some(&b'/') => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(link()),
        EntryType::Link => Kind::Hardlink(link()),
        EntryType::XGlobalHeader => return Ok(None),
        EntryType::Fifo => Kind::Special("a FIFO"),
        EntryType::Char | EntryType::Block => Kind::Special("a device"),
        EntryType::GNUSparse => Kind::Special("a sparse file"),
        _ => Kind::Special("of an unknown type"),
    };
    let size = match kind {
        Kind::File => entry.size(),
        _ => 0,
    };
    let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
    let mtime = entry.header().mtime().unwrap_or(0);
    let is_sparse = |key: &[u8]| key.starts_with(b"GNU.sparse.");
    let sparse = entry
        .pax_extensions()
        .ok()
        .flatten()
        .is_some_and(|mut all| all.any(|e| e.is_ok_and(|e| is_sparse(e.key_bytes()))));
    let kind = if sparse {
        Kind::Special("a sparse file")
    } else {
        kind
    };
    Ok(Some(Entry {
        name,
        kind,
        mode,
        size,
        mtime,
    }))
}

/// The content of one entry, which must be as long as its header says.
struct Content<'a, R: Read> {
    data: &'a mut R,
    left: u64,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        match self.data.read(&mut buf[..want])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            got => {
                self.left -= got as u64;
                Ok(got)
            }
        }
    }
}

/// What was read so far, and what may still be.
struct Gauge {
    limits: Limits,
    received: Cell<u64>,
    unpacked: Cell<u64>,
    /// How much may be read before the content of the next entry.
    header_left: Cell<u64>,
    ended: Cell<bool>,
}

impl Gauge {
    fn new() -> Gauge {
        Gauge {
            limits: Limits {
                entries: 0,
                bytes: 0,
                ratio: 0,
            },
            received: Cell::new(0),
            unpacked: Cell::new(0),
            header_left: Cell::new(MAX_HEADERS),
            ended: Cell::new(false),
        }
    }
}

struct Received<R> {
    inner: R,
    gauge: Rc<Gauge>,
}

impl<R: Read> Read for Received<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.gauge
            .received
            .set(self.gauge.received.get() + got as u64);
        Ok(got)
    }
}

struct Metered<R> {
    inner: R,
    gauge: Rc<Gauge>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let gauge = &self.gauge;
        let got = self.inner.read(buf)?;
        if got == 0 && !buf.is_empty() {
            gauge.ended.set(true);
        }
        let unpacked = gauge.unpacked.get() + got as u64;
        gauge.unpacked.set(unpacked);
        let Some(left) = gauge.header_left.get().checked_sub(got as u64) else {
            return Err(refused(format!(
                "an entry's headers take more than {MAX_HEADERS} bytes"
            )));
        };
        gauge.header_left.set(left);
        if unpacked > gauge.limits.bytes {
            return Err(refused(format!(
                "more than {} bytes unpacked, the limit of max_bytes()",
                gauge.limits.bytes
            )));
        }
        let allowed = gauge.received.get().saturating_mul(gauge.limits.ratio);
        if unpacked > RATIO_MATTERS_FROM && unpacked > allowed {
            return Err(refused(format!(
                "unpacks to more than {} times its size, the limit of max_ratio()",
                gauge.limits.ratio
            )));
        }
        Ok(got)
    }
}

fn refused(rule: String) -> io::Error {
    Error::archive(rule).into_io()
}

fn decode<'a>(archive: impl Read + 'a, gauge: &Rc<Gauge>) -> Result<Box<dyn Read + 'a>> {
    let mut archive = Received {
        inner: archive,
        gauge: Rc::clone(gauge),
    };
    let mut start = Vec::with_capacity(2);
    (&mut archive)
        .take(2)
        .read_to_end(&mut start)
        .map_err(|e| damaged(e, 0))?;
    if start.is_empty() {
        return Err(Error::archive("empty: not even one byte of an archive"));
    }
    let gzip = start == [0x1f, 0x8b];
    let whole = BufReader::with_capacity(64 * 1024, io::Cursor::new(start).chain(archive));
    Ok(match gzip {
        true => Box::new(MultiGzDecoder::new(whole)),
        false => Box::new(whole),
    })
}

/// An error of the reader below keeps its own kind; all else is the archive's fault.
fn damaged(error: io::Error, after: u64) -> Error {
    match Error::from_io(error) {
        Ok(error) => error,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            Error::archive(format!("cut off after {after} entries")).with_source(e)
        }
        Err(e) if after == 0 => Error::archive(format!(
            "not a tar archive, gzip-compressed or plain: {}",
            io_reason(&e)
        ))
        .with_source(e),
        Err(e) => Error::archive(format!("damaged after {after} entries: {}", io_reason(&e)))
            .with_source(e),
    }
}

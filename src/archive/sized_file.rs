//! Files whose size is known before they are archived.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::encode::{Encoder, Spooled};
use crate::error::Error;
use crate::os::{self, Extent};

/// Number of bytes that are read before the size is taken from the metadata.
const HEAD: usize = 64 * 1024;

/// Maximum length of a hole that one step writes, in bytes.
const MAX_HOLE: u64 = 16 << 20;

/// The handling of files whose size differs from their metadata, such as those in `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrongSize {
    /// Read it first, into memory or a temporary file.
    Spool,
    Fail,
}

/// A file of this machine, with a size that the archive can announce. Bytes that are appended while it is
/// read are ignored.
pub(super) struct SizedFile {
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) mtime: u64,
    file: File,
    /// The first bytes of the file.
    head: Vec<u8>,
    at: u64,
    /// The data or the hole around `at`.
    extent: Extent,
    buffer: Vec<u8>,
}

impl SizedFile {
    pub(super) fn new(mut file: File, wrong_size: WrongSize) -> io::Result<SizedFile> {
        // The metadata is read last: the file may have grown.
        let mut head = Vec::new();
        (&mut file).take(HEAD as u64).read_to_end(&mut head)?;
        let stat = os::stat_fd(file.as_fd())?;
        let mut size = stat.size.max(HEAD as u64);
        if head.len() < HEAD {
            size = head.len() as u64;
        } else if size == HEAD as u64 && file.read_at(&mut [0], HEAD as u64)? > 0 {
            if wrong_size == WrongSize::Fail {
                return Err(io::Error::other("its size is unknown"));
            }
            // Continues behind the head.
            file = spool(&mut file, &head)?;
            size = file.metadata()?.len();
        }
        Ok(SizedFile {
            size,
            mode: stat.mode,
            mtime: stat.mtime,
            file,
            head,
            at: 0,
            extent: Extent::Data(0),
            buffer: Vec::new(),
        })
    }

    /// Writes the next piece. Returns false at the end.
    pub(super) fn write_piece<W: Write>(&mut self, encoder: &mut Encoder<W>) -> io::Result<bool> {
        if self.at == self.size {
            return Ok(false);
        }
        if self.at == 0 && !self.head.is_empty() {
            let head = std::mem::take(&mut self.head);
            self.at = head.len() as u64;
            return encoder.write_all(&head).map(|()| true);
        }
        if self.extent.end() <= self.at {
            self.extent = os::extent_at(self.file.as_fd(), self.at);
        }
        let end = self.extent.end().min(self.size);
        match self.extent {
            Extent::Hole(_) => {
                let now = os::stat_fd(self.file.as_fd())?.size;
                if now < end {
                    return Err(self.shrank(now));
                }
                let count = (end - self.at).min(MAX_HOLE);
                self.at += count;
                encoder.write_zeros(count)?;
            }
            Extent::Data(_) => self.write_data(end, encoder)?,
        }
        Ok(true)
    }

    fn write_data<W: Write>(&mut self, end: u64, encoder: &mut Encoder<W>) -> io::Result<()> {
        self.buffer.resize(HEAD, 0);
        let length = usize::try_from(end - self.at).unwrap_or(HEAD).min(HEAD);
        match self.file.read_at(&mut self.buffer[..length], self.at) {
            Ok(0) => Err(self.shrank(self.at)),
            Ok(count) => {
                self.at += count as u64;
                encoder.write_all(&self.buffer[..count])
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn shrank(&self, now: u64) -> io::Error {
        let size = self.size;
        io::Error::other(format!(
            "it shrank from {size} to {now} bytes while it was read"
        ))
    }

    /// Writes zeros instead of the rest, which cannot be read. Returns false at the end.
    pub(super) fn write_blank<W: Write>(&mut self, encoder: &mut Encoder<W>) -> io::Result<bool> {
        let count = (self.size - self.at).min(MAX_HOLE);
        self.at += count;
        encoder.write_zeros(count)?;
        Ok(count > 0)
    }
}

/// Copies a file of unknown size to a temporary file.
fn spool(file: &mut File, head: &[u8]) -> io::Result<File> {
    let all = head.chain(file);
    let spooled = Spooled::from_reader(all).map_err(Error::into_io)?;
    spooled.into_file().map_err(Error::into_io)
}

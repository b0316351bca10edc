//! Compressing archives, and keeping them until they are sent.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use super::gzip::Gzip;
use crate::error::{Error, Result};
use crate::os::random::temporary_name;
use crate::progress::ContentMap;
use crate::upload::Upload;

/// Maximum size of an archive in memory, in bytes.
const MAX_IN_MEMORY: usize = 1024 * 1024;

/// Size of a block of a tar archive, in bytes.
const BLOCK: u64 = 512;

/// Writes a tar.gz archive.
pub(crate) struct Encoder<W = Spooled> {
    gzip: Gzip<W>,
    /// Number of unpacked bytes.
    unpacked: u64,
    map: ContentMap,
}

impl Encoder {
    pub(crate) fn new() -> Encoder {
        Encoder::to(Spooled::default())
    }

    /// Ends an archive that is to be uploaded.
    pub(super) fn finish_upload(mut self) -> Result<PackedArchive> {
        let mut map = std::mem::replace(&mut self.map, ContentMap::new());
        let unpacked = self.unpacked;
        let spooled = self.finish()?;
        map.end(spooled.size()?, unpacked);
        Ok(PackedArchive {
            spooled,
            map: Some(map),
        })
    }
}

impl<W: Write> Encoder<W> {
    pub(super) fn to(out: W) -> Encoder<W> {
        Encoder {
            gzip: Gzip::new(out),
            unpacked: 0,
            map: ContentMap::new(),
        }
    }

    /// Returns the writer of the archive. Some bytes may still be buffered.
    #[cfg(feature = "local")]
    pub(super) fn get_mut(&mut self) -> &mut W {
        self.gzip.get_mut()
    }

    pub(super) fn write_zeros(&mut self, count: u64) -> io::Result<()> {
        self.gzip.write_zeros(count)?;
        self.advance(count);
        Ok(())
    }

    /// Records that a file of this size follows.
    pub(super) fn announce_file(&mut self, size: u64) {
        self.map.add_file(size);
    }

    fn advance(&mut self, count: u64) {
        self.unpacked += count;
        self.map.record(self.gzip.written(), self.unpacked);
    }

    /// Fills the last block of an entry.
    pub(super) fn pad(&mut self) -> io::Result<()> {
        self.write_zeros(self.unpacked.next_multiple_of(BLOCK) - self.unpacked)
    }

    pub(crate) fn finish(mut self) -> Result<W> {
        // Two blocks of zeros are the end marker.
        self.gzip
            .write_zeros(2 * BLOCK)
            .and_then(|()| self.gzip.finish())
            .map_err(spool_failed)
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.gzip.write(bytes)?;
        self.advance(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An archive that is ready to be sent.
pub(crate) struct PackedArchive {
    spooled: Spooled,
    /// Unknown for an archive that the caller has made.
    map: Option<ContentMap>,
}

impl PackedArchive {
    pub(crate) fn upload(&self) -> Result<Upload<'_>> {
        Ok(self.spooled.upload()?.with_map(self.map.as_ref()))
    }
}

impl From<Spooled> for PackedArchive {
    fn from(spooled: Spooled) -> PackedArchive {
        PackedArchive { spooled, map: None }
    }
}

/// An archive in memory, or in a deleted temporary file once it is too large. Writing appends to it.
pub(crate) enum Spooled {
    Memory(Vec<u8>),
    File(File),
}

impl Default for Spooled {
    fn default() -> Spooled {
        Spooled::Memory(Vec::new())
    }
}

impl Spooled {
    /// Reads an archive, or any other bytes.
    pub(crate) fn from_reader(reader: impl Read) -> Result<Spooled> {
        let mut spooled = Spooled::default();
        let mut reader = BufReader::with_capacity(64 * 1024, reader);
        // An error of writing is marked as our own.
        io::copy(&mut reader, &mut spooled).map_err(|e| {
            Error::from_io(e).unwrap_or_else(|e| Error::io("cannot read the archive", e))
        })?;
        Ok(spooled)
    }

    pub(crate) fn upload(&self) -> Result<Upload<'_>> {
        match self {
            Spooled::Memory(bytes) => Ok(Upload::from_bytes(bytes)),
            Spooled::File(file) => Upload::from_file(file).map_err(spool_failed),
        }
    }

    fn size(&self) -> Result<u64> {
        match self {
            Spooled::Memory(bytes) => Ok(bytes.len() as u64),
            Spooled::File(file) => Ok(file.metadata().map_err(spool_failed)?.len()),
        }
    }

    pub(super) fn into_file(self) -> Result<File> {
        match self {
            Spooled::Memory(bytes) => deleted_file(&bytes).map_err(spool_failed),
            Spooled::File(file) => Ok(file),
        }
    }
}

fn spool_failed(e: io::Error) -> Error {
    let dir = std::env::temp_dir();
    Error::from_io(e).unwrap_or_else(|e| {
        Error::io(
            format_args!(
                "cannot write a temporary file to {} (TMPDIR)",
                dir.display()
            ),
            e,
        )
    })
}

impl Write for Spooled {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Marked as our own error, so that the caller does not blame what it reads.
        let failed = |e| spool_failed(e).into_io();
        match self {
            Spooled::Memory(buffer) if buffer.len() + bytes.len() > MAX_IN_MEMORY => {
                *self = Spooled::File(deleted_file(buffer).map_err(failed)?);
                self.write(bytes)
            }
            Spooled::Memory(buffer) => buffer.write(bytes),
            Spooled::File(file) => file.write(bytes).map_err(failed),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Creates a file with these bytes, which the system removes when it is closed.
fn deleted_file(bytes: &[u8]) -> io::Result<File> {
    let path = std::env::temp_dir().join(temporary_name());
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    file.write_all(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_archives_are_kept_in_a_file() {
        for size in [0, 10, MAX_IN_MEMORY, MAX_IN_MEMORY + 1, 3 * MAX_IN_MEMORY] {
            let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let spooled = Spooled::from_reader(data.as_slice()).unwrap();
            assert_eq!(matches!(spooled, Spooled::File(_)), size > MAX_IN_MEMORY);
            let mut upload = spooled.upload().unwrap();
            assert_eq!(upload.content_length(), Some(size as u64));
            for _ in 0..2 {
                let mut back = Vec::new();
                upload.read_to_end(&mut back).unwrap();
                assert!(back == data);
                assert!(upload.rewind().unwrap());
            }
        }
    }
}

//! Archives that are created while they are read.

use std::fs::File;
use std::io::{self, Read};

use super::encode::Encoder;
use super::entry::{add_root, start_file};
use super::pack::TreePacker;
use super::sized_file::{SizedFile, WrongSize};
use crate::error::{Error, Result};

/// The archive of a directory or a file. It needs no room on a disk, and ends with its reader.
pub(crate) struct ArchiveStream {
    source: Source,
    /// `None` at the end.
    encoder: Option<Encoder<Vec<u8>>>,
    /// Bytes to be read, and how many of them are.
    ready: Vec<u8>,
    taken: usize,
    check: Check,
}

/// Called before every step. Its error ends the archive.
pub(crate) type Check = Box<dyn FnMut() -> Result<()> + Send>;

enum Source {
    Tree(Box<TreePacker>),
    File(Box<SizedFile>),
}

impl ArchiveStream {
    /// The archive of everything below a directory, with an entry for itself.
    pub(crate) fn of_tree(tree: TreePacker, check: Check) -> io::Result<ArchiveStream> {
        let mut encoder = Encoder::to(Vec::new());
        add_root(&mut encoder)?;
        Ok(ArchiveStream::new(
            Source::Tree(Box::new(tree)),
            encoder,
            check,
        ))
    }

    /// The archive of a single file: one entry, without one for the directory.
    pub(crate) fn of_file(name: &[u8], file: File, check: Check) -> io::Result<ArchiveStream> {
        let file = SizedFile::new(file, WrongSize::Fail)?;
        let mut encoder = Encoder::to(Vec::new());
        start_file(&mut encoder, name, file.mode, file.mtime, file.size)?;
        Ok(ArchiveStream::new(
            Source::File(Box::new(file)),
            encoder,
            check,
        ))
    }

    fn new(source: Source, encoder: Encoder<Vec<u8>>, check: Check) -> ArchiveStream {
        ArchiveStream {
            source,
            encoder: Some(encoder),
            ready: Vec::new(),
            taken: 0,
            check,
        }
    }

    /// Packs the next piece. An archive that fails has no end marker.
    fn step(&mut self) -> Result<()> {
        let Some(encoder) = &mut self.encoder else {
            return Ok(());
        };
        (self.check)()?;
        let more = match &mut self.source {
            Source::Tree(tree) => tree.step(encoder)?,
            Source::File(file) => {
                let failed = |e| Error::io("cannot read the file", e);
                let more = file.write_piece(encoder).map_err(failed)?;
                if !more {
                    encoder.pad().map_err(failed)?;
                }
                more
            }
        };
        self.ready.clear();
        self.taken = 0;
        if more {
            self.ready.append(encoder.get_mut());
        } else if let Some(encoder) = self.encoder.take() {
            self.ready = encoder.finish()?;
        }
        Ok(())
    }
}

impl Read for ArchiveStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // A caller that waits for its receiver asks in this way whether to go on.
        if buf.is_empty() {
            return (self.check)().map(|()| 0).map_err(Error::into_io);
        }
        while self.taken == self.ready.len() && self.encoder.is_some() {
            self.step().map_err(Error::into_io)?;
        }
        let count = buf.len().min(self.ready.len() - self.taken);
        buf[..count].copy_from_slice(&self.ready[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

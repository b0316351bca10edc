//! Packing directories without following symbolic links.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

use super::cursor::{Cursor, Missing, join, split};
use super::encode::Encoder;
use crate::error::{Error, Result};
use crate::exact_reader::ExactReader;
use crate::os::{self, FileType, Stat};

/// Number of places in a tree where a sample is taken, and the size of each sample in bytes.
const SAMPLES: u128 = 16;
const SAMPLE_SIZE: usize = 16 * 1024;

/// Length of a name in a header, in bytes. A longer name precedes it, in an entry with this name.
const NAME_FIELD: usize = 100;
const LONG_LINK: &[u8] = b"././@LongLink";

/// The entries of a directory tree, as they were when it was listed.
pub(crate) struct Tree {
    cursor: Cursor,
    /// The directory's name in error messages.
    shown: PathBuf,
    /// Prefix of the names in the archive.
    prefix: Vec<u8>,
    /// Metadata of the directory itself.
    top: Stat,
    entries: Vec<(Vec<u8>, Stat)>,
}

impl Tree {
    /// Lists a directory. `specials` decides about FIFOs, sockets and devices.
    pub(crate) fn list(root: OwnedFd, shown: &Path, specials: SpecialFiles) -> Result<Tree> {
        let failed = format_args!("cannot read the metadata of {}", shown.display());
        let top = os::stat_fd(root.as_fd()).map_err(|e| Error::io(failed, e))?;
        let mut tree = Tree {
            top,
            cursor: Cursor::new(root),
            shown: shown.to_owned(),
            prefix: Vec::new(),
            entries: Vec::new(),
        };
        let mut todo = vec![Vec::new()];
        while let Some(path) = todo.pop() {
            let entries = tree.list_one(&path, specials)?;
            // Processed from the end.
            let is_dir = |entry: &&(Vec<u8>, Stat)| entry.1.kind == FileType::Directory;
            let dirs = entries.iter().rev().filter(is_dir);
            todo.extend(dirs.map(|(path, _)| path.clone()));
            tree.entries.extend(entries);
        }
        Ok(tree)
    }

    /// Lists one directory, sorted, so that archives of the same tree are equal.
    fn list_one(&mut self, path: &[u8], specials: SpecialFiles) -> Result<Vec<(Vec<u8>, Stat)>> {
        let names = self
            .cursor
            .enter(path, Missing::Fail)
            .and_then(os::read_dir);
        let mut names = names.map_err(|e| self.failed("list", path, e))?;
        names.sort_unstable();
        let mut entries = Vec::new();
        for name in names {
            let here = join(path, &name);
            let dir = self.cursor.enter(path, Missing::Fail);
            match dir.and_then(|dir| os::stat_at(dir, &name)) {
                Ok(stat) if self.is_archived(&here, stat.kind, specials)? => {
                    entries.push((here, stat));
                }
                Ok(_) => {}
                // Deleted since the directory was read.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(self.failed("read the metadata of", &here, e)),
            }
        }
        Ok(entries)
    }

    fn is_archived(&self, path: &[u8], kind: FileType, specials: SpecialFiles) -> Result<bool> {
        match kind {
            FileType::Directory | FileType::File | FileType::Symlink => Ok(true),
            _ if specials == SpecialFiles::Refuse => {
                let shown = self.shown_path(path);
                Err(Error::invalid(format!(
                    "cannot upload {shown}: it is a {kind}, and only files, directories and symbolic links can be uploaded"
                )))
            }
            FileType::Fifo | FileType::Device => Ok(true),
            // An archive cannot hold sockets.
            FileType::Socket => Ok(false),
        }
    }

    /// Sets the prefix of the names in the archive.
    pub(crate) fn below(mut self, prefix: &[u8]) -> Tree {
        self.prefix = prefix.to_vec();
        self
    }

    /// Returns samples of the files, spread over all their bytes.
    pub(crate) fn sample(&mut self) -> Vec<u8> {
        let is_file = |stat: &Stat| stat.kind == FileType::File;
        let size = |stat: &Stat| u128::from(stat.size);
        let files = self.entries.iter().filter(|entry| is_file(&entry.1));
        let total: u128 = files.map(|entry| size(&entry.1)).sum();
        let mut sample = Vec::new();
        let (mut before, mut next) = (0, 0);
        for (path, stat) in self.entries.iter().filter(|entry| is_file(&entry.1)) {
            let mut file = None;
            while next < SAMPLES && next * total / SAMPLES < before + size(stat) {
                let at = u64::try_from(next * total / SAMPLES - before).unwrap_or(0);
                next += 1;
                let file = file.get_or_insert_with(|| open_file(&mut self.cursor, path));
                // Errors are reported when the file is archived.
                let _ = file.as_mut().map(|file| read_sample(file, at, &mut sample));
            }
            before += size(stat);
        }
        sample
    }

    pub(crate) fn write(mut self, encoder: &mut Encoder) -> Result<()> {
        if !self.prefix.is_empty() {
            add_directory(encoder, &self.prefix, self.top.mode, self.top.mtime)
                .map_err(|e| self.failed("archive", b"", e))?;
        }
        for (path, stat) in std::mem::take(&mut self.entries) {
            self.write_entry(encoder, &path, stat)
                .map_err(|e| self.failed("archive", &path, e))?;
        }
        Ok(())
    }

    fn write_entry(&mut self, encoder: &mut Encoder, path: &[u8], stat: Stat) -> io::Result<()> {
        let name = &join(&self.prefix, path);
        match stat.kind {
            FileType::Directory => add_directory(encoder, name, stat.mode, stat.mtime),
            FileType::File => {
                add_open_file(encoder, name, &mut open_file(&mut self.cursor, path)?, None)
            }
            FileType::Symlink => {
                let (parent, last) = split(path);
                let target = os::readlinkat(self.cursor.enter(parent, Missing::Fail)?, last)?;
                add_link(encoder, name, &target, stat.mtime)
            }
            FileType::Fifo => {
                let header = header(EntryType::Fifo, stat.mode, stat.mtime, 0);
                add_empty(encoder, header, name, b"")
            }
            FileType::Device | FileType::Socket => {
                let header = header(EntryType::Char, stat.mode, stat.mtime, 0);
                add_empty(encoder, header, name, b"")
            }
        }
    }

    fn shown_path(&self, path: &[u8]) -> String {
        let path = self.shown.join(OsStr::from_bytes(path));
        path.display().to_string()
    }

    fn failed(&self, verb: &str, path: &[u8], e: io::Error) -> Error {
        Error::from_io(e).unwrap_or_else(|e| {
            Error::io(format_args!("cannot {verb} {}", self.shown_path(path)), e)
        })
    }
}

/// How to handle FIFOs and devices. Sockets cannot be archived at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpecialFiles {
    Refuse,
    #[cfg_attr(
        not(feature = "local"),
        expect(dead_code, reason = "only local sandboxes may have them")
    )]
    Keep,
}

fn read_sample(file: &mut File, at: u64, sample: &mut Vec<u8>) -> io::Result<usize> {
    file.seek(SeekFrom::Start(at))?;
    file.take(SAMPLE_SIZE as u64).read_to_end(sample)
}

/// Opens a file without waiting if a FIFO has replaced it.
fn open_file(cursor: &mut Cursor, path: &[u8]) -> io::Result<File> {
    let (parent, name) = split(path);
    let dir = cursor.enter(parent, Missing::Fail)?;
    let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = os::openat(dir, name, flags, 0)?;
    match os::stat_fd(file.as_fd())?.kind {
        FileType::File => Ok(File::from(file)),
        _ => Err(io::Error::other("no longer a file")),
    }
}

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

/// Adds an entry under any name. The tar crate's own method cuts a long name at its first byte that is
/// not UTF-8.
fn add(
    encoder: &mut Encoder,
    mut header: Header,
    name: &[u8],
    link: &[u8],
    content: &mut dyn Read,
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
            long.as_mut_bytes()[..LONG_LINK.len()].copy_from_slice(LONG_LINK);
            long.set_cksum();
            encoder.tar.append(&long, with_nul.as_slice())?;
        }
    }
    header.set_cksum();
    encoder.tar.append(&header, content)
}

fn add_empty(encoder: &mut Encoder, header: Header, name: &[u8], link: &[u8]) -> io::Result<()> {
    add(encoder, header, name, link, &mut io::empty())
}

/// Adds an entry for the root, which shows that the archive is one of a directory.
#[cfg(feature = "local")]
pub(crate) fn add_root(encoder: &mut Encoder) -> io::Result<()> {
    add_directory(encoder, b".", 0o755, 0)
}

pub(crate) fn add_directory(
    encoder: &mut Encoder,
    name: &[u8],
    mode: u32,
    mtime: u64,
) -> io::Result<()> {
    let header = header(EntryType::Directory, mode, mtime, 0);
    add_empty(encoder, header, &[name, b"/"].concat(), b"")
}

/// Adds a file of exactly `size` bytes. Bytes that are appended meanwhile are ignored. It is an error if the
/// file shrinks.
pub(crate) fn add_file(
    encoder: &mut Encoder,
    name: &[u8],
    mode: u32,
    mtime: u64,
    size: u64,
    content: &mut dyn Read,
) -> io::Result<()> {
    let header = header(EntryType::Regular, mode, mtime, size);
    let mut exact = ExactReader {
        inner: content,
        left: size,
        short: |missing| {
            let now = size - missing;
            io::Error::other(format!(
                "it shrank from {size} to {now} bytes while it was read"
            ))
        },
    };
    add(encoder, header, name, b"", &mut exact)
}

/// Adds an open file with its current size and time, and with its own mode unless `mode` replaces it.
pub(crate) fn add_open_file(
    encoder: &mut Encoder,
    name: &[u8],
    file: &mut File,
    mode: Option<u32>,
) -> io::Result<()> {
    // It may have grown or been replaced since it was found.
    let stat = os::stat_fd(file.as_fd())?;
    let mode = mode.unwrap_or(stat.mode);
    add_file(encoder, name, mode, stat.mtime, stat.size, file)
}

pub(crate) fn add_link(
    encoder: &mut Encoder,
    name: &[u8],
    target: &[u8],
    mtime: u64,
) -> io::Result<()> {
    let header = header(EntryType::Symlink, 0o777, mtime, 0);
    add_empty(encoder, header, name, target)
}

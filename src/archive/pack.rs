//! Packing directories.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::vec;

use super::cursor::{Cursor, Missing, split};
use super::encode::Encoder;
use super::entry::{add_device, add_directory, add_fifo, add_link, add_unreadable, start_file};
use super::pack_rules::{PackRules, Symlinks};
use super::sized_file::{SizedFile, WrongSize};
use super::unpack::MAX_NAME;
use crate::error::{Error, Result};
use crate::os::{self, FileType, Stat};
use crate::printable::printable;

/// The handling of entries that cannot be archived: unreadable files, sockets, and paths that are too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Fail. FIFOs and devices are refused as well.
    Fail,
    /// Leave it out and put its name into the archive.
    Report,
}

/// Packs a directory tree step by step. Memory is bounded by the names in the directories that are open,
/// and by the maximum length of a path.
pub(crate) struct TreePacker {
    cursor: Cursor,
    /// The directory's name in error messages.
    shown: PathBuf,
    unreadable: Unreadable,
    rules: PackRules,
    /// Prefix of the names in the archive, with its slash.
    prefix: Vec<u8>,
    /// Length of the part of the prefix that the rules do not apply to.
    outside_rules: usize,
    /// Metadata of the directory itself.
    top: Stat,
    /// The path of the current entry below the directory.
    path: Vec<u8>,
    /// The directories above the current entry.
    open: Vec<OpenDir>,
    /// The current entry, if it is a file.
    file: Option<SizedFile>,
    /// True if the rest of the file cannot be read.
    is_blank: bool,
    /// The current entry, if it is a link to a directory.
    followed: Option<Box<TreePacker>>,
    /// The directories above this one, if it is the target of a link.
    above: Vec<DirId>,
}

/// A directory, with the names that are not packed yet.
struct OpenDir {
    id: DirId,
    path_length: usize,
    names: vec::IntoIter<Vec<u8>>,
}

/// File system and inode of a directory.
type DirId = (u64, u64);

impl TreePacker {
    pub(crate) fn new(
        root: OwnedFd,
        shown: &Path,
        unreadable: Unreadable,
        rules: PackRules,
    ) -> Result<TreePacker> {
        let shown_root = shown.display();
        let failed = |e| Error::io(format_args!("cannot read the metadata of {shown_root}"), e);
        let top = os::stat_fd(root.as_fd()).map_err(failed)?;
        let mut packer = TreePacker {
            top,
            cursor: Cursor::new(root),
            shown: shown.to_owned(),
            unreadable,
            rules,
            prefix: Vec::new(),
            outside_rules: 0,
            path: Vec::new(),
            open: Vec::new(),
            file: None,
            is_blank: false,
            followed: None,
            above: Vec::new(),
        };
        packer.enter_dir().map_err(|e| packer.failed("list", e))?;
        Ok(packer)
    }

    /// Writes all of it, below a directory of this name.
    pub(super) fn write_below<W: Write>(
        mut self,
        name: &[u8],
        encoder: &mut Encoder<W>,
    ) -> Result<()> {
        add_directory(encoder, name, self.top.mode, self.top.mtime)
            .map_err(|e| self.failed("archive", e))?;
        self.prefix = [name, b"/"].concat();
        self.outside_rules = self.prefix.len();
        self.write_all(encoder)
    }

    pub(super) fn write_all<W: Write>(mut self, encoder: &mut Encoder<W>) -> Result<()> {
        while self.step(encoder)? {}
        Ok(())
    }

    /// Writes an entry, or a piece of a file. Returns false at the end.
    pub(super) fn step<W: Write>(&mut self, encoder: &mut Encoder<W>) -> Result<bool> {
        if let Some(file) = self.file.take() {
            let stepped = self.file_step(file, encoder);
            stepped.map_err(|e| self.failed("archive", e))?;
            return Ok(true);
        }
        if let Some(mut followed) = self.followed.take() {
            if followed.step(encoder)? {
                self.followed = Some(followed);
            }
            return Ok(true);
        }
        let Some(dir) = self.open.last_mut() else {
            return Ok(false);
        };
        self.path.truncate(dir.path_length);
        let Some(name) = dir.names.next() else {
            self.open.pop();
            return Ok(true);
        };
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(&name);
        let stat = self.stat().map_err(|e| ("read the metadata of", e));
        let written = stat.and_then(|stat| {
            let written = self.entry(stat, encoder);
            written.map_err(|e| ("archive", e))
        });
        match written {
            // Deleted since the directory was read.
            Err((_, e)) if e.kind() == io::ErrorKind::NotFound => {}
            Err((verb, e)) => self.skip(verb, e, encoder)?,
            Ok(()) => {}
        }
        Ok(true)
    }

    fn stat(&mut self) -> io::Result<Stat> {
        // With a slash behind the name of a directory.
        if self.prefix.len() + self.path.len() >= MAX_NAME {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        let (parent, name) = split(&self.path);
        os::stat_at(self.cursor.enter(parent, Missing::Fail)?, name)
    }

    /// Writes an entry, except for the content of a file.
    fn entry<W: Write>(&mut self, stat: Stat, encoder: &mut Encoder<W>) -> io::Result<()> {
        let name = [&*self.prefix, &*self.path].concat();
        let is_dir = stat.kind == FileType::Directory;
        if !self.rules.accept(&name[self.outside_rules..], is_dir) {
            return Ok(());
        }
        if self.unreadable == Unreadable::Fail {
            self.check_kind(stat.kind).map_err(Error::into_io)?;
        }
        match stat.kind {
            FileType::Directory => {
                add_directory(encoder, &name, stat.mode, stat.mtime)?;
                self.enter_dir()
            }
            FileType::File => {
                let file = open_file(&mut self.cursor, &self.path)?;
                self.start_file(&name, file, encoder)
            }
            FileType::Symlink => self.link(&name, stat, encoder),
            FileType::Fifo => add_fifo(encoder, &name, stat.mode, stat.mtime),
            FileType::Device => add_device(encoder, &name, stat.mode, stat.mtime),
            FileType::Socket => Err(io::Error::other("an archive cannot hold a socket")),
        }
    }

    fn start_file<W: Write>(
        &mut self,
        name: &[u8],
        file: File,
        encoder: &mut Encoder<W>,
    ) -> io::Result<()> {
        let wrong_size = match self.unreadable {
            Unreadable::Fail => WrongSize::Spool,
            Unreadable::Report => WrongSize::Fail,
        };
        let file = SizedFile::new(file, wrong_size)?;
        start_file(encoder, name, file.mode, file.mtime, file.size)?;
        self.file = Some(file);
        Ok(())
    }

    fn link<W: Write>(
        &mut self,
        name: &[u8],
        stat: Stat,
        encoder: &mut Encoder<W>,
    ) -> io::Result<()> {
        match self.rules.symlinks {
            Symlinks::Skip => Ok(()),
            Symlinks::Keep => {
                let (parent, last) = split(&self.path);
                let target = os::readlinkat(self.cursor.enter(parent, Missing::Fail)?, last)?;
                add_link(encoder, name, &target, stat.mtime)
            }
            Symlinks::Follow => self.follow(name, encoder),
        }
    }

    /// Writes what a link leads to in its place.
    fn follow<W: Write>(&mut self, name: &[u8], encoder: &mut Encoder<W>) -> io::Result<()> {
        // Looks first, because opening a device can have effects.
        let target = self.open_target(libc::O_PATH).map_err(|e| match e.kind() {
            // Not a file that was just deleted.
            io::ErrorKind::NotFound => io::Error::other("the target of the link does not exist"),
            _ => e,
        })?;
        let stat = os::stat_fd(target.as_fd())?;
        self.check_kind(stat.kind).map_err(Error::into_io)?;
        let target = self.open_target(libc::O_RDONLY | libc::O_NONBLOCK)?;
        if stat.kind == FileType::File {
            return self.start_file(name, File::from(target), encoder);
        }
        let followed = self.followed(name, target).map_err(Error::into_io)?;
        add_directory(encoder, name, stat.mode, stat.mtime)?;
        self.followed = Some(Box::new(followed));
        Ok(())
    }

    fn open_target(&mut self, flags: libc::c_int) -> io::Result<OwnedFd> {
        let (parent, link) = split(&self.path);
        os::openat(self.cursor.enter(parent, Missing::Fail)?, link, flags, 0)
    }

    /// Returns a packer for the directory that a link leads to.
    fn followed(&self, name: &[u8], target: OwnedFd) -> Result<TreePacker> {
        let shown = self.shown.join(OsStr::from_bytes(&self.path));
        let mut packer = TreePacker::new(target, &shown, self.unreadable, self.rules.clone())?;
        let open = self.open.iter().map(|dir| dir.id);
        packer.above = self.above.iter().copied().chain(open).collect();
        if packer
            .above
            .contains(&(packer.top.device, packer.top.inode))
        {
            let shown = shown.display();
            let message = format!("{shown} is a symbolic link to a directory that contains it");
            return Err(Error::invalid(message));
        }
        packer.prefix = [name, b"/"].concat();
        packer.outside_rules = self.outside_rules;
        Ok(packer)
    }

    fn check_kind(&self, kind: FileType) -> Result<()> {
        if matches!(
            kind,
            FileType::Directory | FileType::File | FileType::Symlink
        ) {
            return Ok(());
        }
        let shown = self.shown_path();
        Err(Error::invalid(format!(
            "cannot upload {shown}: it is a {kind}, and only files, directories and symbolic links can be uploaded"
        )))
    }

    /// Lists the current directory, sorted, so that archives of the same tree are equal.
    fn enter_dir(&mut self) -> io::Result<()> {
        let dir = self.cursor.enter(&self.path, Missing::Fail)?;
        let stat = os::stat_fd(dir)?;
        let mut names = os::read_dir(dir)?;
        names.sort_unstable();
        self.open.push(OpenDir {
            id: (stat.device, stat.inode),
            path_length: self.path.len(),
            names: names.into_iter(),
        });
        Ok(())
    }

    /// Writes a piece of the current file. If it cannot be read, the announced size is filled with zeros.
    fn file_step<W: Write>(
        &mut self,
        mut file: SizedFile,
        encoder: &mut Encoder<W>,
    ) -> io::Result<()> {
        let more = match self.is_blank {
            true => file.write_blank(encoder),
            false => file.write_piece(encoder),
        };
        let more = match more {
            Err(_) if self.unreadable == Unreadable::Report && !self.is_blank => {
                self.is_blank = true;
                true
            }
            more => more?,
        };
        if more {
            self.file = Some(file);
            return Ok(());
        }
        encoder.pad()?;
        if std::mem::take(&mut self.is_blank) {
            add_unreadable(encoder, &[&*self.prefix, &*self.path].concat())?;
        }
        Ok(())
    }

    /// Reports an entry that cannot be archived.
    fn skip<W: Write>(
        &mut self,
        verb: &str,
        error: io::Error,
        encoder: &mut Encoder<W>,
    ) -> Result<()> {
        // Not about this entry.
        let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOMEM];
        let is_exhausted = error.raw_os_error().is_some_and(|e| exhausted.contains(&e));
        if self.unreadable == Unreadable::Fail || is_exhausted {
            return Err(self.failed(verb, error));
        }
        let shown = self.shown_path();
        log::debug!("cannot {verb} {}: {error}", printable(&shown));
        let name = [&*self.prefix, &*self.path].concat();
        add_unreadable(encoder, &name).map_err(|e| self.failed("archive", e))
    }

    fn shown_path(&self) -> String {
        let path = self.shown.join(OsStr::from_bytes(&self.path));
        path.display().to_string()
    }

    fn failed(&self, verb: &str, e: io::Error) -> Error {
        Error::from_io(e)
            .unwrap_or_else(|e| Error::io(format_args!("cannot {verb} {}", self.shown_path()), e))
    }
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

//! Moving an unpacked archive from a staging directory to its target.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::cursor::{Cursor, Missing, join};
use super::extract::Extract;
use super::extraction::Extraction;
use super::unpack::{Links, shown};
use crate::error::{Error, Result};
use crate::os::chmod::chmod_dir_at;
use crate::os::random::temporary_name;
use crate::os::remove_tree::remove_at;
use crate::os::{self, FileType, open_dir};

impl Extract {
    /// Unpacks into `target`. A new target appears once the archive is complete, or not at all. In an
    /// existing one, nothing changes before the archive is complete.
    pub(crate) fn unpack_to_path(&self, archive: impl Read, target: &Path) -> Result<Extraction> {
        let failed = |e| Error::io(format_args!("cannot create {}", target.display()), e);
        match open_dir(target) {
            Ok(dir) => self.unpack_to_dir(archive, dir.as_fd(), dir.as_fd(), Links::Inside),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let shown = target.display();
                let name = target.file_name().ok_or_else(|| {
                    Error::invalid(format!("cannot create {shown}: it has no file name"))
                })?;
                let parent = match target.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent,
                    _ => Path::new("."),
                };
                let parents = NewParents::create(parent).map_err(failed)?;
                let parent = open_dir(parent).map_err(failed)?;
                let done =
                    self.unpack_to_new_dir(archive, parent.as_fd(), name.as_encoded_bytes())?;
                parents.keep();
                Ok(done)
            }
            Err(e) => Err(failed(e)),
        }
    }

    fn unpack_to_new_dir(
        &self,
        archive: impl Read,
        parent: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Extraction> {
        let stage = Stage::new(parent)?;
        let (done, directories) = self.unpack(archive, stage.open()?, Links::Inside)?;
        directories.finish(stage.dir.as_fd(), &BTreeSet::new())?;
        os::renameat(parent, &stage.name, parent, name).map_err(|e| {
            let name = String::from_utf8_lossy(name);
            Error::io(format_args!("cannot rename the download to {name:?}"), e)
        })?;
        Ok(done)
    }

    /// Unpacks into an existing directory, through a staging directory in `stages` on the same file
    /// system.
    pub(crate) fn unpack_to_dir(
        &self,
        archive: impl Read,
        target: BorrowedFd<'_>,
        stages: BorrowedFd<'_>,
        links: Links,
    ) -> Result<Extraction> {
        let stage = Stage::new(stages)?;
        let (done, directories) = self.unpack(archive, stage.open()?, links)?;
        // The first pass only checks, so that a conflict is found before anything is moved.
        Merge::new(stage.dir.as_fd(), target)?.run(true)?;
        let existed = Merge::new(stage.dir.as_fd(), target)?.run(false)?;
        directories.finish(target, &existed)?;
        Ok(done)
    }
}

/// Parent directories that were created for a target. They are removed unless they are kept.
struct NewParents(Vec<PathBuf>);

impl NewParents {
    fn create(parent: &Path) -> io::Result<NewParents> {
        let missing = parent
            .ancestors()
            .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
        let created = NewParents(missing.map(Path::to_owned).collect());
        std::fs::create_dir_all(parent)?;
        Ok(created)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewParents {
    fn drop(&mut self) {
        // The deepest first. A directory that is no longer empty stays.
        for dir in &self.0 {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// A staging directory, which is removed when it is dropped.
struct Stage<'a> {
    parent: BorrowedFd<'a>,
    name: Vec<u8>,
    dir: OwnedFd,
}

impl<'a> Stage<'a> {
    fn new(parent: BorrowedFd<'a>) -> Result<Stage<'a>> {
        let name = temporary_name().into_bytes();
        let create = || {
            os::mkdirat(parent, &name, 0o777)?;
            os::open_dir_at(parent, &name)
        };
        let dir = create().map_err(|e| Error::io("cannot create a directory to unpack in", e))?;
        // The lock shows other processes that the directory is in use. Some file systems lack locks.
        let _ = os::lock(dir.as_fd());
        Ok(Stage { parent, name, dir })
    }

    fn open(&self) -> Result<OwnedFd> {
        self.dir
            .try_clone()
            .map_err(|e| Error::io("cannot unpack", e))
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        // Usually renamed, or emptied by the merge.
        if let Err(e) = remove_at(self.parent, &self.name) {
            if e.kind() != io::ErrorKind::NotFound {
                log::warn!("cannot remove {}: {e}", String::from_utf8_lossy(&self.name));
            }
        }
    }
}

struct Merge {
    from: Cursor,
    to: Cursor,
    /// The file system of both directories.
    device: u64,
    /// Directories without write permission that were made writable, with their modes.
    read_only: Vec<(Vec<u8>, u32)>,
}

impl Merge {
    fn new(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Merge> {
        let both = || {
            Ok(Merge {
                from: Cursor::new(from.try_clone_to_owned()?),
                to: Cursor::new(to.try_clone_to_owned()?),
                device: os::stat_fd(from)?.device,
                read_only: Vec::new(),
            })
        };
        both().map_err(|e| Error::io("cannot merge", e))
    }

    /// Walks the staged tree and moves it to the target, unless `dry_run` is set. Directories that are
    /// missing in the target are moved with their contents. Returns the directories that existed before.
    fn run(mut self, dry_run: bool) -> Result<BTreeSet<Vec<u8>>> {
        let mut existed = BTreeSet::new();
        let mut todo = vec![Vec::new()];
        while let Some(path) = todo.pop() {
            let failed = |e| Error::io(format_args!("cannot write to {:?}", shown(&path)), e);
            let both = self.directory(&path, dry_run);
            todo.extend(both.map_err(|e| Error::from_io(e).unwrap_or_else(failed))?);
            existed.insert(path);
        }
        for (path, mode) in self.read_only {
            let restored = self
                .to
                .enter(&path, Missing::Fail)
                .and_then(|dir| chmod_dir_at(dir, b".", mode));
            restored.map_err(|e| Error::io("cannot restore the mode of a directory", e))?;
        }
        Ok(existed)
    }

    /// Merges one directory, and returns its subdirectories that are in both trees.
    fn directory(&mut self, path: &[u8], dry_run: bool) -> io::Result<Vec<Vec<u8>>> {
        let mut both = Vec::new();
        let from = self.from.enter(path, Missing::Fail)?;
        let to = self.to.enter(path, Missing::Fail)?;
        let target = os::stat_fd(to)?;
        if target.device != self.device {
            return Err(conflict(path, "another file system is mounted there").into_io());
        }
        if !dry_run && target.mode & 0o200 == 0 {
            chmod_dir_at(to, b".", target.mode | 0o200)?;
            self.read_only.push((path.to_vec(), target.mode));
        }
        for name in os::read_dir(from)? {
            let here = join(path, &name);
            let staged = os::stat_at(from, &name)?.kind;
            let there = match os::stat_at(to, &name) {
                Ok(stat) => Some(stat.kind),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(e),
            };
            let conflicting = match (staged == FileType::Directory, there) {
                (true, Some(FileType::Directory)) => {
                    both.push(here);
                    continue;
                }
                (true, Some(FileType::Symlink)) => {
                    "the target has a symbolic link there, and links are not followed"
                }
                (true, Some(_)) => "the target has a file there",
                (false, Some(FileType::Directory)) => "the target has a directory there",
                (_, _) if !dry_run => {
                    os::renameat(from, &name, to, &name)?;
                    continue;
                }
                (_, _) => continue,
            };
            return Err(conflict(&here, conflicting).into_io());
        }
        Ok(both)
    }
}

fn conflict(path: &[u8], what: &str) -> Error {
    let name = shown(path);
    Error::archive(format!(
        "entry {name:?} is refused: {what}; remove it first"
    ))
}

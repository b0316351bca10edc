//! From the staging directory to where the archive was wanted.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::cursor::{Cursor, Missing, join};
use super::unpack::{Extract, Extraction, Links};
use crate::error::{Error, Result};
use crate::os::random::temporary_name;
use crate::os::remove_tree::remove_at;
use crate::os::{self, FileType, open_dir};

impl Extract {
    /// Unpacks into `target`, which is made if need be. Where it did not exist, it appears as a
    /// whole or not at all; where it did, nothing in it is touched before all has arrived.
    pub(crate) fn unpack_to_path(&self, archive: impl Read, target: &Path) -> Result<Extraction> {
        let failed = |e| Error::io(format_args!("cannot make {}", target.display()), e);
        match open_dir(target) {
            Ok(dir) => self.unpack_to_dir(archive, dir.as_fd(), dir.as_fd(), Links::Inside),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let name = target.file_name().ok_or_else(|| {
                    Error::invalid(format!(
                        "{} does not exist and has no last name to make",
                        target.display()
                    ))
                })?;
                let parent = match target.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent,
                    _ => Path::new("."),
                };
                let made = Parents::make(parent).map_err(failed)?;
                let parent = open_dir(parent).map_err(failed)?;
                let done =
                    self.unpack_to_new_dir(archive, parent.as_fd(), name.as_encoded_bytes())?;
                made.keep();
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
            Error::io(
                format_args!(
                    "cannot put {:?} in its place",
                    String::from_utf8_lossy(name)
                ),
                e,
            )
        })?;
        Ok(done)
    }

    /// Unpacks into a directory that exists, by way of a stage in `stages`, on the same file system.
    pub(crate) fn unpack_to_dir(
        &self,
        archive: impl Read,
        target: BorrowedFd<'_>,
        stages: BorrowedFd<'_>,
        links: Links,
    ) -> Result<Extraction> {
        let stage = Stage::new(stages)?;
        let (done, directories) = self.unpack(archive, stage.open()?, links)?;
        // Once to look, once to move: a conflict is found before anything has moved.
        Merge::new(stage.dir.as_fd(), target)?.run(false)?;
        let existed = Merge::new(stage.dir.as_fd(), target)?.run(true)?;
        directories.finish(target, &existed)?;
        Ok(done)
    }
}

/// Directories that were made above a target, gone again when dropped unless it came to be.
struct Parents(Vec<PathBuf>);

impl Parents {
    fn make(parent: &Path) -> io::Result<Parents> {
        let missing = parent
            .ancestors()
            .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
        let made = Parents(missing.map(Path::to_owned).collect());
        std::fs::create_dir_all(parent)?;
        Ok(made)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        // The deepest first; one that somebody else has put something into stays.
        for dir in &self.0 {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// A directory of our own, gone when dropped.
struct Stage<'a> {
    parent: BorrowedFd<'a>,
    name: Vec<u8>,
    dir: OwnedFd,
}

impl<'a> Stage<'a> {
    fn new(parent: BorrowedFd<'a>) -> Result<Stage<'a>> {
        let name = temporary_name().into_bytes();
        let make = || {
            os::mkdirat(parent, &name, 0o777)?;
            os::open_dir_at(parent, &name)
        };
        let dir = make().map_err(|e| Error::io("cannot make a directory to unpack in", e))?;
        // Tells others that it is in use. Not all file systems can, and it is not needed for more.
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
        // Moved away as a whole, or emptied by the merge: then there is little or nothing here.
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
    /// The file system of both.
    device: u64,
    /// Directories that were closed to their owner, with their modes.
    closed: Vec<(Vec<u8>, u32)>,
}

impl Merge {
    fn new(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Merge> {
        let both = || {
            Ok(Merge {
                from: Cursor::new(from.try_clone_to_owned()?),
                to: Cursor::new(to.try_clone_to_owned()?),
                device: os::stat_fd(from)?.device,
                closed: Vec::new(),
            })
        };
        both().map_err(|e| Error::io("cannot merge", e))
    }

    /// Walks the staged tree; where a directory is missing in the target, it goes there as a whole.
    /// Answers which directories were there before.
    fn run(mut self, really: bool) -> Result<BTreeSet<Vec<u8>>> {
        let mut existed = BTreeSet::new();
        let mut todo = vec![Vec::new()];
        while let Some(path) = todo.pop() {
            let name = || crate::error::one_line(&String::from_utf8_lossy(&path));
            let failed = |e| Error::io(format_args!("cannot write into {:?}", name()), e);
            for here in self
                .directory(&path, really)
                .map_err(|e| Error::from_io(e).unwrap_or_else(failed))?
            {
                todo.push(here);
            }
            existed.insert(path);
        }
        for (path, mode) in self.closed {
            let close = self
                .to
                .enter(&path, Missing::Fail)
                .and_then(|dir| os::chmodat(dir, b".", mode));
            close.map_err(|e| Error::io("cannot close a directory again", e))?;
        }
        Ok(existed)
    }

    /// Answers the directories in it that are in both trees.
    fn directory(&mut self, path: &[u8], really: bool) -> io::Result<Vec<Vec<u8>>> {
        let mut both = Vec::new();
        let from = self.from.enter(path, Missing::Fail)?;
        let to = self.to.enter(path, Missing::Fail)?;
        let target = os::stat_fd(to)?;
        if target.device != self.device {
            return Err(conflict(path, "another file system is mounted there").into_io());
        }
        if really && target.mode & 0o200 == 0 {
            os::chmodat(to, b".", target.mode | 0o200)?;
            self.closed.push((path.to_vec(), target.mode));
        }
        for name in os::read_dir(from)? {
            let here = join(path, &name);
            let staged = os::stat_at(from, &name)?.kind;
            let there = match os::stat_at(to, &name) {
                Ok(stat) => Some(stat.kind),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(e),
            };
            let in_the_way = match (staged == FileType::Directory, there) {
                (true, Some(FileType::Directory)) => {
                    both.push(here);
                    continue;
                }
                (true, Some(FileType::Symlink)) => {
                    "a link stands in the target, and nothing is written through it"
                }
                (true, Some(_)) => "a file stands in the target",
                (false, Some(FileType::Directory)) => "a directory stands in the target",
                (_, _) if really => {
                    os::renameat(from, &name, to, &name)?;
                    continue;
                }
                (_, _) => continue,
            };
            return Err(conflict(&here, in_the_way).into_io());
        }
        Ok(both)
    }
}

fn conflict(path: &[u8], what: &str) -> Error {
    let name = crate::error::one_line(&String::from_utf8_lossy(path));
    Error::archive(format!(
        "entry {name:?} is refused: {what}; remove it first"
    ))
}

//! From the staging directory to where the archive was wanted.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::cursor::{Cursor, Missing, join};
use super::unpack::{Extract, Extraction, Links};
use crate::error::{Error, Result};
use crate::remove::remove_at;
use crate::sys::{self, FileType, open_dir};

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
                std::fs::create_dir_all(parent).map_err(failed)?;
                let parent = open_dir(parent).map_err(failed)?;
                self.unpack_to_new_dir(archive, parent.as_fd(), name.as_encoded_bytes())
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
        directories.finish(stage.dir.as_fd())?;
        sys::renameat(parent, &stage.name, parent, name).map_err(|e| {
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
        Merge::new(stage.dir.as_fd(), target)?.run(true)?;
        directories.finish(target)?;
        Ok(done)
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
        let name = format!(".noxrunner-{:016x}", crate::unique()).into_bytes();
        let make = || {
            sys::mkdirat(parent, &name, 0o777)?;
            sys::open_dir_at(parent, &name)
        };
        let dir = make().map_err(|e| Error::io("cannot make a directory to unpack in", e))?;
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
}

impl Merge {
    fn new(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Merge> {
        let cursor = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(Cursor::new);
        let both = || {
            io::Result::Ok(Merge {
                from: cursor(from)?,
                to: cursor(to)?,
            })
        };
        both().map_err(|e| Error::io("cannot merge", e))
    }

    /// Walks the staged tree; where a directory is missing in the target, it goes there as a whole.
    fn run(mut self, really: bool) -> Result<()> {
        let mut todo = vec![Vec::new()];
        while let Some(path) = todo.pop() {
            let failed = |e| {
                Error::io(
                    format_args!("cannot write into {:?}", String::from_utf8_lossy(&path)),
                    e,
                )
            };
            let from = self.from.enter(&path, Missing::Fail).map_err(failed)?;
            let to = self.to.enter(&path, Missing::Fail).map_err(failed)?;
            for name in sys::read_dir(from).map_err(failed)? {
                let here = join(&path, &name);
                let staged = sys::stat_at(from, &name).map_err(failed)?.kind;
                let there = match sys::stat_at(to, &name) {
                    Ok(stat) => Some(stat.kind),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                    Err(e) => return Err(failed(e)),
                };
                match (staged == FileType::Directory, there) {
                    (true, Some(FileType::Directory)) => todo.push(here),
                    (true, Some(FileType::Symlink)) => {
                        return Err(conflict(
                            &here,
                            "a link stands in the target, and nothing is written through it",
                        ));
                    }
                    (true, Some(_)) => return Err(conflict(&here, "a file stands in the target")),
                    (false, Some(FileType::Directory)) => {
                        return Err(conflict(&here, "a directory stands in the target"));
                    }
                    (_, _) if really => sys::renameat(from, &name, to, &name).map_err(failed)?,
                    (_, _) => {}
                }
            }
        }
        Ok(())
    }
}

fn conflict(path: &[u8], what: &str) -> Error {
    let name = crate::error::one_line(&String::from_utf8_lossy(path));
    Error::archive(format!(
        "entry {name:?} is refused: {what}; remove it first"
    ))
}

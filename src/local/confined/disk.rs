//! A directory for the files of a sandbox that are too many for the memory.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::local::state::{Access, StateDir};
use crate::os;
use crate::os::remove_tree::remove_at;

/// A directory that goes when this is dropped. It is locked until then: where this process is
/// killed, the next one that makes a sandbox on disk finds it unlocked, and removes it.
pub(super) struct Disk {
    path: PathBuf,
    /// Not the holder's to keep: it leads to where the sandbox must not get.
    locked: OwnedFd,
}

impl Disk {
    /// Below the state directory.
    pub(super) fn make(state_dir: &Path, access: Access, user: Option<u32>) -> Result<Disk> {
        let state = StateDir::open(state_dir, &["disks"], access)?;
        let disks = state.path("disks");
        let lock = state.lock()?;
        let left: Vec<_> = fs::read_dir(&disks)
            .into_iter()
            .flatten()
            .filter_map(|entry| left_behind(entry.ok()?.path()))
            .collect();
        let path = disks.join(format!("{:016x}", crate::os::random::random_u64()));
        let locked = make_dir(&path, user)?;
        let disk = Disk { path, locked };
        os::lock(disk.locked.as_fd())
            .map_err(|e| Error::io(format_args!("cannot lock {}", disk.path.display()), e))?;
        drop(lock);
        for (path, _held) in left {
            remove(&path).unwrap_or_else(|e| log::warn!("{e}"));
        }
        Ok(disk)
    }

    /// For the holder.
    pub(super) fn dir(&self) -> Result<OwnedFd> {
        let copy = self.locked.try_clone();
        copy.map_err(|e| Error::io("cannot copy a file descriptor", e))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        remove(&self.path).unwrap_or_else(|e| log::warn!("{e}"));
    }
}

/// None where its holder still runs.
fn left_behind(path: PathBuf) -> Option<(PathBuf, File)> {
    let dir = File::open(&path).ok()?;
    let ours = os::lock(dir.as_fd()).ok()?;
    ours.then_some((path, dir))
}

/// Makes a directory that only this user has, and who the files belong to.
pub(super) fn make_dir(path: &Path, user: Option<u32>) -> Result<OwnedFd> {
    let failed = |e| Error::io(format_args!("cannot make {}", path.display()), e);
    DirBuilder::new().mode(0o700).create(path).map_err(failed)?;
    if user.is_some() {
        chown(path, user, user).map_err(failed)?;
    }
    Ok(File::open(path).map_err(failed)?.into())
}

/// Removes a directory with all that a sandbox may have put there, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = || {
        let parent = File::open(path.parent().unwrap_or(Path::new("/")))?;
        let name = path.file_name().unwrap_or_default();
        remove_at(parent.as_fd(), name.as_encoded_bytes())
    };
    match removed() {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(
            format_args!("cannot remove {}", path.display()),
            e,
        )),
        _ => Ok(()),
    }
}

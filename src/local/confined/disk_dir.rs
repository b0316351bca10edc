//! Directories for the files of sandboxes that are too large for memory.

use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::local::state_dir::{Access, StateDir, lock_dir, remove_dir};
use crate::os;
use crate::os::random::random_u64;

/// Name of the files' directory in the directory of a persistent sandbox.
pub(super) const FILES: &str = "files";

/// A directory that is removed on drop. It is locked until then. If this process is killed, the next
/// one that creates a sandbox on disk finds it unlocked and removes it.
pub(super) struct DiskDir {
    pub(super) path: PathBuf,
    /// The holder must close its copy of this descriptor, because it leads out of the sandbox.
    locked: OwnedFd,
}

impl DiskDir {
    /// Creates a directory below the state directory. Removes those that other processes left.
    pub(super) fn create(state_dir: &Path, access: Access, user: Option<u32>) -> Result<DiskDir> {
        let state = StateDir::open(state_dir, &["disks"], access)?;
        let disks = state.path("disks");
        let lock = state.lock()?;
        let abandoned: Vec<_> = fs::read_dir(&disks)
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                // The sandbox of a locked directory still runs.
                let path = entry.ok()?.path();
                lock_dir(&path).map(|locked| (path, locked))
            })
            .collect();
        let path = disks.join(format!("{:016x}", random_u64()));
        let locked = create_dir(&path, user)?;
        let disk = DiskDir { path, locked };
        os::lock(disk.locked.as_fd())
            .map_err(|e| Error::io(format_args!("cannot lock {}", disk.path.display()), e))?;
        drop(lock);
        for (path, _locked) in abandoned {
            remove_dir(&path).unwrap_or_else(|e| log::warn!("{e:#}"));
        }
        Ok(disk)
    }

    /// Returns a copy of the descriptor for the holder.
    pub(super) fn try_clone_fd(&self) -> Result<OwnedFd> {
        let copy = self.locked.try_clone();
        copy.map_err(|e| Error::io("cannot copy a file descriptor", e))
    }
}

impl Drop for DiskDir {
    fn drop(&mut self) {
        remove_dir(&self.path).unwrap_or_else(|e| log::warn!("{e:#}"));
    }
}

/// Creates a private directory that belongs to the user.
pub(super) fn create_dir(path: &Path, user: Option<u32>) -> Result<OwnedFd> {
    let failed = |e| Error::io(format_args!("cannot create {}", path.display()), e);
    DirBuilder::new().mode(0o700).create(path).map_err(failed)?;
    if user.is_some() {
        chown(path, user, user).map_err(failed)?;
    }
    Ok(File::open(path).map_err(failed)?.into())
}

//! The directories of all sandboxes, found by session id.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::process_marks::{SANDBOX_MARK, kill_marked};
use super::record::PlainRecord;
use crate::error::{Error, Result};
use crate::local::errors::no_such_sandbox;
use crate::local::files::SandboxFiles;
use crate::local::millis::millis;
use crate::local::state_dir::{
    Access, RECORD, StateDir, file_name, lock_dir, read_record, remove_dir,
};
use crate::os;
use crate::os::random::random_u64;
use crate::os::remove_tree::remove_at;
use crate::session_id::SessionId;

/// Subdirectory of the state directory for sandboxes.
const SANDBOXES: &str = "sandboxes";

/// Subdirectory of the state directory for sandboxes that are being removed.
const REMOVED: &str = "removed";

pub(super) struct Store {
    state: StateDir,
}

/// The directory of a sandbox that exists.
pub(super) struct PlainSandbox {
    dir: PathBuf,
    pub(super) token: String,
}

impl Store {
    pub(super) fn open(dir: &Path) -> Result<Store> {
        let state = StateDir::open(dir, &[SANDBOXES, REMOVED], Access::None)?;
        Ok(Store { state })
    }

    pub(super) fn check(&self) -> Result<()> {
        self.state.check()
    }

    /// Creates a sandbox, or renews the TTL of an existing one. Returns its directory's name and when
    /// it expires.
    pub(super) fn create(&self, id: &SessionId, ttl: Duration) -> Result<(String, SystemTime)> {
        let name = file_name(id)?;
        let lock = self.state.lock()?;
        let expired = self.set_expired_aside();
        let dir = self.state.path(SANDBOXES).join(&name);
        let existing = read_record::<PlainRecord>(&dir)?;
        let is_new = existing.is_none();
        let mut record = existing.unwrap_or_else(|| PlainRecord::new(id));
        record.ttl_millis = millis(ttl);
        let expires = record.renew();
        let written = if is_new {
            create_dirs(&dir).and_then(|()| record.write(&dir))
        } else {
            record.write(&dir)
        };
        drop(lock);
        for (path, _locked) in expired {
            end_and_remove(&path).unwrap_or_else(|e| log::warn!("{e:#}"));
        }
        written.map_err(|e| Error::io(format_args!("cannot create {}", dir.display()), e))?;
        Ok((name, expires))
    }

    pub(super) fn touch(&self, id: &SessionId) -> Result<()> {
        let _lock = self.state.lock()?;
        let (dir, mut record) = self.unexpired(id)?;
        record.renew();
        record
            .write(&dir)
            .map_err(|e| Error::io(format_args!("cannot write to {}", dir.display()), e))
    }

    pub(super) fn find(&self, id: &SessionId) -> Result<PlainSandbox> {
        let (dir, record) = self.unexpired(id)?;
        Ok(PlainSandbox {
            dir,
            token: record.token,
        })
    }

    pub(super) fn delete(&self, id: &SessionId) -> Result<bool> {
        let lock = self.state.lock()?;
        let existed = match self.unexpired(id) {
            Ok(_) => true,
            Err(e) if e.is_not_found() => false,
            Err(e) => return Err(e),
        };
        let dir = self.state.path(SANDBOXES).join(file_name(id)?);
        if dir.exists() {
            let (path, _locked) = self.set_aside(&dir)?;
            drop(lock);
            end_and_remove(&path)?;
        }
        Ok(existed)
    }

    /// Returns the directory and the record of a sandbox that has not expired.
    fn unexpired(&self, id: &SessionId) -> Result<(PathBuf, PlainRecord)> {
        let dir = self.state.path(SANDBOXES).join(file_name(id)?);
        match read_record::<PlainRecord>(&dir)? {
            Some(record) if !record.is_expired() => Ok((dir, record)),
            _ => Err(no_such_sandbox()),
        }
    }

    /// Moves a sandbox out of the way with one rename, so that its id is free at once.
    fn set_aside(&self, dir: &Path) -> Result<RemovedDir> {
        let path = self
            .state
            .path(REMOVED)
            .join(format!("{:016x}", random_u64()));
        let rename = || {
            // A directory can only be moved if its owner may write to it.
            fs::set_permissions(dir, Permissions::from_mode(0o700))?;
            let locked = File::open(dir)?;
            // A command of the sandbox may hold the lock. That does not prevent the removal.
            os::lock(locked.as_fd())?;
            fs::rename(dir, &path)?;
            Ok(locked)
        };
        match rename() {
            Ok(locked) => Ok((path, locked)),
            Err(e) => Err(Error::io(
                format_args!("cannot remove {}", dir.display()),
                e,
            )),
        }
    }

    /// Sets aside the sandboxes that have expired or whose creation was interrupted. Returns them and
    /// those that an earlier process set aside but did not remove. Skips unreadable records.
    fn set_expired_aside(&self) -> Vec<RemovedDir> {
        let list = |name: &str| {
            let entries = fs::read_dir(self.state.path(name))
                .ok()
                .into_iter()
                .flatten();
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect::<Vec<_>>()
        };
        let mut removed: Vec<RemovedDir> = list(REMOVED)
            .into_iter()
            .filter_map(|path| lock_dir(&path).map(|locked| (path, locked)))
            .collect();
        for dir in list(SANDBOXES) {
            let expired = read_record::<PlainRecord>(&dir)
                .is_ok_and(|record| record.is_none_or(|record| record.is_expired()));
            match expired.then(|| self.set_aside(&dir)) {
                Some(Ok(aside)) => removed.push(aside),
                Some(Err(e)) => log::warn!("{e:#}"),
                None => {}
            }
        }
        removed
    }
}

/// Kills the processes of a sandbox that was set aside, then removes its files.
fn end_and_remove(path: &Path) -> Result<()> {
    if let Ok(Some(record)) = read_record::<PlainRecord>(path) {
        kill_marked(SANDBOX_MARK, &record.token);
    }
    remove_dir(path)
}

/// The path of a sandbox that was set aside. It is locked, so that no other process removes it at the
/// same time.
type RemovedDir = (PathBuf, File);

impl PlainSandbox {
    /// Returns false if the sandbox was deleted since it was found.
    pub(super) fn exists(&self) -> bool {
        self.dir.join(RECORD).exists()
    }

    /// Returns the directory that is `/` for paths in the sandbox.
    pub(super) fn root_path(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub(super) fn files(&self) -> Result<SandboxFiles> {
        let open = |path: PathBuf| {
            let dir = File::open(&path);
            dir.map_err(|e| Error::io(format_args!("cannot open {}", path.display()), e))
        };
        Ok(SandboxFiles {
            root: open(self.root_path())?.into(),
            stages: open(self.dir.join("stages"))?.into(),
            root_path: Some(self.root_path()),
            user: None,
        })
    }

    /// Removes the partly unpacked uploads of processes that were killed.
    pub(super) fn remove_stale_stages(&self) -> Result<()> {
        let dir = self.dir.join("stages");
        let failed = |e| Error::io(format_args!("cannot open {}", dir.display()), e);
        let stages = File::open(&dir).map_err(failed)?;
        for stage in fs::read_dir(&dir).map_err(failed)?.flatten() {
            if let Some(_locked) = lock_stale(&stage) {
                remove_at(stages.as_fd(), stage.file_name().as_encoded_bytes()).unwrap_or_else(
                    |e| log::warn!("cannot remove {}: {e}", stage.path().display()),
                );
            }
        }
        Ok(())
    }
}

/// Locks a stage that no process uses. Stages in use are locked, except for a moment after their
/// creation, so a stage must also have a minimum age.
fn lock_stale(stage: &fs::DirEntry) -> Option<File> {
    const MIN_AGE: Duration = Duration::from_secs(60);
    let modified = stage.metadata().ok()?.modified().ok()?;
    let age = modified.elapsed().ok()?;
    lock_dir(&stage.path()).filter(|_| age > MIN_AGE)
}

fn create_dirs(dir: &Path) -> io::Result<()> {
    for name in ["", "root", "root/workspace", "root/tmp", "stages"] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir.join(name))?;
    }
    Ok(())
}

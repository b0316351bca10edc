//! Which sandboxes there are: a directory each, and a file that says until when.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::super::files::Files;
use super::super::state::{Access, StateDir, file_name};
use super::runner;
use crate::error::{Error, ErrorKind, Result};
use crate::os;
use crate::os::remove_tree::remove_at;
use crate::session_id::SessionId;

pub(super) struct Store {
    state: StateDir,
}

/// What is kept of a sandbox beside its files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    id: String,
    ttl_millis: u64,
    expires_unix_millis: u64,
    /// Marks the sandbox's processes.
    token: String,
}

impl Record {
    fn new(id: &SessionId) -> Record {
        let token = format!(
            "{:016x}{:016x}",
            crate::os::random::random_u64(),
            crate::os::random::random_u64()
        );
        Record {
            id: id.as_str().to_owned(),
            ttl_millis: 0,
            expires_unix_millis: 0,
            token,
        }
    }

    fn extend(&mut self) -> SystemTime {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let end = now + Duration::from_millis(self.ttl_millis);
        self.expires_unix_millis = millis(end);
        UNIX_EPOCH + end
    }

    fn is_expired(&self) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        millis(now) >= self.expires_unix_millis
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One sandbox that exists.
pub(super) struct Place {
    dir: PathBuf,
    pub(super) token: String,
}

impl Store {
    pub(super) fn open(dir: &Path) -> Result<Store> {
        let state = StateDir::open(dir, &["sandboxes", "removed"], Access::None)?;
        Ok(Store { state })
    }

    pub(super) fn check(&self) -> Result<()> {
        self.state.check()
    }

    pub(super) fn create(&self, id: &SessionId, ttl: Duration) -> Result<(String, SystemTime)> {
        let name = file_name(id)?;
        let lock = self.state.lock()?;
        let expired = self.take_expired();
        let dir = self.state.path("sandboxes").join(&name);
        let (mut record, new) = match read_record(&dir)? {
            Some(record) => (record, false),
            None => (Record::new(id), true),
        };
        record.ttl_millis = millis(ttl);
        let expires = record.extend();
        let written = (|| {
            if new {
                make_dirs(&dir)?;
            }
            write_record(&dir, &record)
        })();
        drop(lock);
        for gone in expired {
            self.remove(&gone).unwrap_or_else(|e| log::warn!("{e}"));
        }
        written.map_err(|e| Error::io(format_args!("cannot make {}", dir.display()), e))?;
        Ok((name, expires))
    }

    pub(super) fn touch(&self, id: &SessionId) -> Result<()> {
        let _lock = self.state.lock()?;
        let (dir, mut record) = self.living(id)?;
        record.extend();
        write_record(&dir, &record)
            .map_err(|e| Error::io(format_args!("cannot write to {}", dir.display()), e))
    }

    pub(super) fn find(&self, id: &SessionId) -> Result<Place> {
        let (dir, record) = self.living(id)?;
        Ok(Place {
            dir,
            token: record.token,
        })
    }

    pub(super) fn delete(&self, id: &SessionId) -> Result<bool> {
        let lock = self.state.lock()?;
        let existed = match self.living(id) {
            Ok(_) => true,
            Err(e) if e.is_not_found() => false,
            Err(e) => return Err(e),
        };
        let dir = self.state.path("sandboxes").join(file_name(id)?);
        let gone = match dir.exists() {
            true => Some(self.set_aside(&dir)?),
            false => None,
        };
        drop(lock);
        if let Some(gone) = gone {
            self.remove(&gone)?;
        }
        Ok(existed)
    }

    fn living(&self, id: &SessionId) -> Result<(PathBuf, Record)> {
        let dir = self.state.path("sandboxes").join(file_name(id)?);
        match read_record(&dir)? {
            Some(record) if !record.is_expired() => Ok((dir, record)),
            _ => Err(Error::new(ErrorKind::NotFound, "no such sandbox")),
        }
    }

    /// Moves a sandbox out of the way in one step, so that its id is free at once.
    fn set_aside(&self, dir: &Path) -> Result<Gone> {
        let path = self
            .state
            .path("removed")
            .join(format!("{:016x}", crate::os::random::random_u64()));
        let aside = || {
            // A directory that its owner may not write to can't be moved.
            fs::set_permissions(dir, Permissions::from_mode(0o700))?;
            let held = File::open(dir)?;
            // A command of the sandbox can hold it as well; that keeps nobody from removing it.
            os::lock(held.as_fd())?;
            fs::rename(dir, &path)?;
            Ok(held)
        };
        match aside() {
            Ok(held) => Ok(Gone { path, _held: held }),
            Err(e) => Err(Error::io(
                format_args!("cannot remove {}", dir.display()),
                e,
            )),
        }
    }

    /// Sets aside what has expired or was never finished, and what an earlier process has left
    /// there. What can't be looked at is left alone.
    fn take_expired(&self) -> Vec<Gone> {
        let list = |name: &str| {
            let entries = fs::read_dir(self.state.path(name))
                .ok()
                .into_iter()
                .flatten();
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect::<Vec<_>>()
        };
        let mut gone: Vec<Gone> = list("removed")
            .into_iter()
            .filter_map(Gone::left_behind)
            .collect();
        for dir in list("sandboxes") {
            let over = match read_record(&dir) {
                Ok(record) => record.is_none_or(|record| record.is_expired()),
                Err(_) => false,
            };
            match over.then(|| self.set_aside(&dir)) {
                Some(Ok(aside)) => gone.push(aside),
                Some(Err(e)) => log::warn!("{e}"),
                None => {}
            }
        }
        gone
    }

    /// Ends the processes of a sandbox that was set aside, then removes its files.
    fn remove(&self, gone: &Gone) -> Result<()> {
        if let Ok(Some(record)) = read_record(&gone.path) {
            runner::kill_marked(runner::SANDBOX_MARK, &record.token);
        }
        let failed = |e| Error::io(format_args!("cannot remove {}", gone.path.display()), e);
        let parent = File::open(self.state.path("removed")).map_err(failed)?;
        let name = gone.path.file_name().unwrap_or_default();
        match remove_at(parent.as_fd(), name.as_encoded_bytes()) {
            // Another process was faster.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(failed),
        }
    }
}

/// A sandbox that was set aside. Whoever removes it holds its lock: two at once would be in each
/// other's way.
struct Gone {
    path: PathBuf,
    _held: File,
}

impl Gone {
    /// None where somebody is at it.
    fn left_behind(path: PathBuf) -> Option<Gone> {
        let held = File::open(&path).ok()?;
        let ours = os::lock(held.as_fd()).ok()?;
        ours.then_some(Gone { path, _held: held })
    }
}

impl Place {
    /// Whether the sandbox was not deleted meanwhile.
    pub(super) fn is_there(&self) -> bool {
        self.dir.join("sandbox.json").exists()
    }

    /// The directory that is `/` for paths in the sandbox.
    pub(super) fn root_path(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub(super) fn files(&self) -> Result<Files> {
        let open = |path: PathBuf| {
            let dir = File::open(&path);
            dir.map_err(|e| Error::io(format_args!("cannot open {}", path.display()), e))
        };
        Ok(Files {
            root: open(self.root_path())?.into(),
            stages: open(self.dir.join("stages"))?.into(),
            root_path: Some(self.root_path()),
            user: None,
        })
    }

    /// Removes what a killed process has left where uploads are unpacked first.
    pub(super) fn sweep_stages(&self) -> Result<()> {
        const LEFT_BEHIND: Duration = Duration::from_secs(60);
        let dir = self.dir.join("stages");
        let failed = |e| Error::io(format_args!("cannot open {}", dir.display()), e);
        let stages = File::open(&dir).map_err(failed)?;
        for stage in fs::read_dir(&dir).map_err(failed)?.flatten() {
            // Those in use are locked, but for a moment after they were made.
            let old = stage
                .metadata()
                .ok()
                .and_then(|found| found.modified().ok()?.elapsed().ok());
            let held = File::open(stage.path()).ok();
            let unused = held
                .as_ref()
                .is_some_and(|held| os::lock(held.as_fd()).is_ok_and(|ours| ours));
            if unused && old.is_some_and(|old| old > LEFT_BEHIND) {
                remove_at(stages.as_fd(), stage.file_name().as_encoded_bytes()).unwrap_or_else(
                    |e| log::warn!("cannot remove {}: {e}", stage.path().display()),
                );
            }
        }
        Ok(())
    }
}

fn make_dirs(dir: &Path) -> io::Result<()> {
    for name in ["", "root", "root/workspace", "root/tmp", "stages"] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir.join(name))?;
    }
    Ok(())
}

/// None where a sandbox is not there or was never finished.
fn read_record(dir: &Path) -> Result<Option<Record>> {
    let path = dir.join("sandbox.json");
    let failed = |e| Error::io(format_args!("cannot read {}", path.display()), e);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| failed(e.into())),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(failed(e)),
    }
}

/// Replaces the file in one step: a reader sees the old one or the new one.
fn write_record(dir: &Path, record: &Record) -> io::Result<()> {
    let new = dir.join("sandbox.json.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    fs::rename(new, dir.join("sandbox.json"))
}

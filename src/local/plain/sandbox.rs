//! A sandbox: a directory with its files and its record.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::local::files::SandboxFiles;
use crate::local::millis::{millis, since_epoch};
use crate::local::process_marks::random_token;
use crate::local::state_dir::{RECORD, lock_dir};
use crate::os::remove_tree::remove_at;
use crate::session_id::SessionId;

/// The record of a sandbox, in a JSON file in its directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PlainRecord {
    id: String,
    pub(super) ttl_millis: u64,
    expires_unix_millis: u64,
    /// Marks the sandbox's processes.
    pub(super) token: String,
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
}

impl PlainRecord {
    /// Creates a record that has expired, until it is [renewed](PlainRecord::renew).
    pub(super) fn new(id: &SessionId, env: BTreeMap<String, String>) -> PlainRecord {
        PlainRecord {
            id: id.as_str().to_owned(),
            ttl_millis: 0,
            expires_unix_millis: 0,
            token: random_token(),
            env,
        }
    }

    /// Restarts the TTL and returns when it expires.
    pub(super) fn renew(&mut self) -> SystemTime {
        let end = since_epoch() + Duration::from_millis(self.ttl_millis);
        self.expires_unix_millis = millis(end);
        UNIX_EPOCH + end
    }

    pub(super) fn is_expired(&self) -> bool {
        millis(since_epoch()) >= self.expires_unix_millis
    }
}

/// The directory of a sandbox that exists.
pub(super) struct PlainSandbox {
    pub(super) dir: PathBuf,
    pub(super) token: String,
    /// Environment variables of all commands.
    pub(super) env: BTreeMap<String, String>,
}

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
            stages: Some(open(self.dir.join("stages"))?.into()),
            root_is_shared: false,
            root_path: Some(self.root_path()),
            user: None,
            room: None,
        })
    }

    /// Removes the partly unpacked uploads of processes that were killed.
    pub(super) fn remove_stale_stages(&self) -> Result<()> {
        let dir = self.dir.join("stages");
        let failed = |e| Error::io(format_args!("cannot open {}", dir.display()), e);
        let stages = File::open(&dir).map_err(failed)?;
        for stage in fs::read_dir(&dir).map_err(failed)?.flatten() {
            if let Some(_locked) = lock_stale(&stage) {
                remove_at(stages.as_fd(), stage.file_name().as_encoded_bytes())
                    .unwrap_or_else(|e| log::warn!("cannot remove {:?}: {e}", stage.path()));
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

/// Creates the directory of a sandbox with its subdirectories.
pub(super) fn create_dirs(dir: &Path) -> io::Result<()> {
    for name in ["", "root", "root/workspace", "root/tmp", "stages"] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir.join(name))?;
    }
    Ok(())
}

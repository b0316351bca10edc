//! Sandboxes that outlive the process that has made them: each has a directory, with the socket that
//! its holder listens to and a file that says which process that is.

use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::disk::remove;
use super::reaper::on_end;
use super::sandbox::{Held, Sandbox, gone};
use super::{Maker, Tie, sys as own_sys};
use crate::error::{Error, Result};
use crate::local::Isolation;
use crate::local::state::{StateDir, file_name};
use crate::os;
use crate::session_id::SessionId;
use crate::spec::SandboxSpec;

pub(super) struct Persistent {
    state: StateDir,
    /// Which directory there.
    part: &'static str,
    isolation: Isolation,
}

/// Which process holds a sandbox, and whom its files belong to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    id: String,
    process: u32,
    /// Tells it from a later process with its number: clock ticks since the machine's start.
    started: u64,
    user: Option<u32>,
}

const RECORD: &str = "sandbox.json";

/// Its files, if they are not in memory.
pub(super) const FILES: &str = "files";

impl Persistent {
    pub(super) fn open(maker: &Maker) -> Result<Persistent> {
        // Nobody gets a sandbox of another tier by its id.
        let parts: &[&str] = match maker.isolation {
            Isolation::Landlock => &["persistent-landlock"],
            _ => &["persistent"],
        };
        let state = StateDir::open(&maker.state_dir()?, parts, maker.access())?;
        let persistent = Persistent {
            state,
            part: parts[0],
            isolation: maker.isolation,
        };
        persistent.sweep()?;
        Ok(persistent)
    }

    pub(super) fn check(&self) -> Result<()> {
        self.state.check()
    }

    fn dir(&self, id: &SessionId) -> Result<PathBuf> {
        Ok(self.state.path(self.part).join(file_name(id)?))
    }

    pub(super) fn find(&self, id: &SessionId) -> Result<Sandbox> {
        self.running(&self.dir(id)?)?.ok_or_else(gone)
    }

    pub(super) fn create(&self, id: &SessionId, spec: &SandboxSpec, maker: &Maker) -> Result<()> {
        let dir = self.dir(id)?;
        let _lock = self.state.lock()?;
        if let Some(sandbox) = self.running(&dir)? {
            return sandbox.touch(Some(spec.get_ttl()));
        }
        remove(&dir)?;
        let made = self.make(&dir, id, spec, maker);
        if made.is_err() {
            let _ = remove(&dir);
        }
        made
    }

    pub(super) fn delete(&self, id: &SessionId) -> Result<bool> {
        let dir = self.dir(id)?;
        let _lock = self.state.lock()?;
        let sandbox = self.running(&dir)?;
        if let Some(sandbox) = &sandbox {
            sandbox.end();
        }
        remove(&dir)?;
        Ok(sandbox.is_some())
    }

    /// Removes what is left of those that have ended.
    fn sweep(&self) -> Result<()> {
        let _lock = self.state.lock()?;
        let entries = fs::read_dir(self.state.path(self.part));
        for entry in entries.into_iter().flatten().flatten() {
            let dir = entry.path();
            // What can't be looked at is left alone.
            if let Ok(None) = self.running(&dir) {
                remove(&dir).unwrap_or_else(|e| log::warn!("{e}"));
            }
        }
        Ok(())
    }

    fn make(&self, dir: &Path, id: &SessionId, spec: &SandboxSpec, maker: &Maker) -> Result<()> {
        let failed = |e| Error::io(format_args!("cannot make {}", dir.display()), e);
        let mode = maker.access().mode();
        DirBuilder::new().mode(mode).create(dir).map_err(failed)?;
        let opened: OwnedFd = File::open(dir).map_err(failed)?.into();
        let listener = own_sys::listen(opened.as_fd()).map_err(failed)?;
        let sandbox = maker.make(spec, Tie::Directory { listener, dir })?;
        let record = Record {
            id: id.as_str().to_owned(),
            process: sandbox.held.process,
            started: start_time(sandbox.held.process).unwrap_or_default(),
            user: sandbox.held.user,
        };
        let written = serde_json::to_vec(&record)
            .map_err(std::io::Error::from)
            .and_then(|bytes| fs::write(dir.join(RECORD), bytes));
        if let Err(e) = written {
            sandbox.end();
            return Err(failed(e));
        }
        let (state, dir, process) = (self.state.clone(), dir.to_owned(), record.process);
        on_end(Arc::clone(&sandbox.held.pidfd), move || {
            // Where this process is gone by then, the next one that opens the directory does it.
            let Ok(_lock) = state.lock() else { return };
            if read(&dir).is_ok_and(|record| record.is_some_and(|found| found.process == process)) {
                let _ = remove(&dir);
            }
        });
        Ok(())
    }

    /// The sandbox of a directory, if it runs.
    fn running(&self, dir: &Path) -> Result<Option<Sandbox>> {
        let Some(record) = read(dir)? else {
            return Ok(None);
        };
        // The process is taken first, and then known to be the one: its number is not free meanwhile.
        let Some(pidfd) = os::pidfd_open(record.process) else {
            return Ok(None);
        };
        if start_time(record.process) != Some(record.started) {
            return Ok(None);
        }
        let Ok(opened) = File::open(dir) else {
            return Ok(None);
        };
        let place = (self.isolation == Isolation::Landlock).then(|| dir.join(FILES));
        let held = Held {
            process: record.process,
            pidfd: Arc::new(pidfd),
            user: record.user,
            place,
        };
        let sandbox = Sandbox::of_another(opened.into(), held);
        Ok(sandbox.is_running().then_some(sandbox))
    }
}

fn read(dir: &Path) -> Result<Option<Record>> {
    let path = dir.join(RECORD);
    let failed = |e| Error::io(format_args!("cannot read {}", path.display()), e);
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(record) => Ok(Some(record)),
            // Its writer was killed, and it is no more than a name.
            Err(e) if e.is_eof() => Ok(None),
            Err(e) => Err(failed(e.into())),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// Field 22 of its stat, which follows the name in brackets that comes second.
fn start_time(process: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{process}/stat")).ok()?;
    let after_name = stat.rsplit(|byte| *byte == b')').next()?;
    let field = after_name.split(|byte| *byte == b' ').nth(20)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

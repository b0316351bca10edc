//! Finds persistent sandboxes by id. Each has a directory with the socket of its holder and a
//! record of the holder process.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::disk_dir::FILES;
use super::factory::{Lifetime, SandboxFactory};
use super::protocol::Features;
use super::reaper::on_end;
use super::sandbox::{ConfinedSandbox, HolderProcess, RequestSocket, Resources};
use crate::error::{Error, Result};
use crate::local::errors::no_such_sandbox;
use crate::local::isolation::Isolation;
use crate::local::limits::RequestedLimits;
use crate::local::state_dir::{StateDir, file_name, read_record, remove_dir, write_record};
use crate::local::sys;
use crate::os;
use crate::session_id::SessionId;
use crate::spec::SandboxSpec;

/// Minimum time between two removals of the directories of ended sandboxes. With a thousand sandboxes, one takes
/// tens of milliseconds.
const REMOVAL_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct PersistentRegistry {
    state: StateDir,
    /// The subdirectory of this tier.
    subdir: &'static str,
    isolation: Isolation,
    /// Time of the last removal of the directories of ended sandboxes.
    removed_at: Mutex<Instant>,
}

/// The process that holds a sandbox, and the owner of its files.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HolderRecord {
    id: String,
    process: u32,
    /// Start time of the process in clock ticks since boot. It tells the process from a later one with
    /// the same process id.
    started: u64,
    user: Option<u32>,
    #[serde(default)]
    limits: RequestedLimits,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

impl PersistentRegistry {
    pub(super) fn open(factory: &SandboxFactory) -> Result<PersistentRegistry> {
        // Each tier has its own ids, so that no caller gets a sandbox of a weaker tier by its id.
        let isolation = factory.isolation;
        let subdirs: &[&str] = match isolation {
            Isolation::Landlock => &["persistent-landlock"],
            _ => &["persistent"],
        };
        let state = StateDir::open(&factory.state_dir()?, subdirs, factory.access())?;
        let registry = PersistentRegistry {
            state,
            subdir: subdirs[0],
            isolation,
            removed_at: Mutex::new(Instant::now()),
        };
        let lock = registry.state.lock()?;
        registry.remove_ended();
        drop(lock);
        Ok(registry)
    }

    pub(super) fn check(&self) -> Result<()> {
        self.state.check()
    }

    fn dir(&self, id: &SessionId) -> Result<PathBuf> {
        Ok(self.state.path(self.subdir).join(file_name(id)?))
    }

    pub(super) fn find(&self, id: &SessionId) -> Result<ConfinedSandbox> {
        self.running(&self.dir(id)?)?.ok_or_else(no_such_sandbox)
    }

    /// Creates a sandbox, or renews the TTL of a running one. Returns the names of the limits that
    /// stay as they are.
    pub(super) fn create(
        &self,
        id: &SessionId,
        spec: &SandboxSpec,
        factory: &SandboxFactory,
    ) -> Result<Vec<String>> {
        let dir = self.dir(id)?;
        let _lock = self.state.lock()?;
        if self.removal_is_due() {
            self.remove_ended();
        }
        if let Some(sandbox) = self.running(&dir)? {
            match sandbox.touch(Some(spec.get_ttl())) {
                // Its holder has just ended.
                Err(e) if e.is_not_found() => sandbox.end(),
                result => return result.map(|()| sandbox.limits.ignored(spec)),
            }
        }
        remove_dir(&dir)?;
        self.start(&dir, id, spec, factory).inspect_err(|_| {
            let _ = remove_dir(&dir);
        })?;
        Ok(Vec::new())
    }

    pub(super) fn delete(&self, id: &SessionId) -> Result<bool> {
        let dir = self.dir(id)?;
        let _lock = self.state.lock()?;
        let sandbox = self.running(&dir)?;
        if let Some(sandbox) = &sandbox {
            sandbox.end();
        }
        remove_dir(&dir)?;
        Ok(sandbox.is_some())
    }

    /// Returns true at most once per [`REMOVAL_PAUSE`].
    fn removal_is_due(&self) -> bool {
        let mut removed_at = self
            .removed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_due = removed_at.elapsed() >= REMOVAL_PAUSE;
        if is_due {
            *removed_at = Instant::now();
        }
        is_due
    }

    /// Removes the directories of sandboxes that have ended. Skips those with an unreadable record. The
    /// caller must hold the lock.
    fn remove_ended(&self) {
        let entries = fs::read_dir(self.state.path(self.subdir));
        for entry in entries.into_iter().flatten().flatten() {
            let dir = entry.path();
            if let Ok(None) = self.running(&dir) {
                remove_dir(&dir).unwrap_or_else(|e| log::warn!("{e:#}"));
            }
        }
    }

    fn start(
        &self,
        dir: &Path,
        id: &SessionId,
        spec: &SandboxSpec,
        factory: &SandboxFactory,
    ) -> Result<()> {
        let failed = |e| Error::io(format_args!("cannot create {}", dir.display()), e);
        let mode = factory.access().mode();
        DirBuilder::new().mode(mode).create(dir).map_err(failed)?;
        let opened: OwnedFd = File::open(dir).map_err(failed)?.into();
        let listener = sys::listen(opened.as_fd()).map_err(failed)?;
        let sandbox = factory.create(spec, Lifetime::Persistent { listener, dir })?;
        let process = &sandbox.process;
        let recorded = start_time(process.pid).and_then(|started| {
            let record = HolderRecord {
                id: id.as_str().to_owned(),
                process: process.pid,
                started,
                user: process.user,
                limits: sandbox.limits.clone(),
                env: sandbox.env.clone(),
            };
            write_record(dir, &record)
        });
        if let Err(e) = recorded {
            sandbox.end();
            return Err(failed(e));
        }
        self.remove_at_end(dir, process);
        Ok(())
    }

    /// Removes the directory when the process has ended. If this process ends first, another one that
    /// opens the state directory or creates a sandbox in it removes the directory.
    fn remove_at_end(&self, dir: &Path, process: &HolderProcess) {
        let (state, dir, pid) = (self.state.clone(), dir.to_owned(), process.pid);
        on_end(Arc::clone(&process.pidfd), move || {
            let Ok(_lock) = state.lock() else { return };
            let record: Result<Option<HolderRecord>> = read_record(&dir);
            if record.is_ok_and(|record| record.is_some_and(|r| r.process == pid)) {
                let _ = remove_dir(&dir);
            }
        });
    }

    /// Returns the sandbox of a directory if it is running.
    fn running(&self, dir: &Path) -> Result<Option<ConfinedSandbox>> {
        let Some(record) = read_record::<HolderRecord>(dir)? else {
            return Ok(None);
        };
        let (pidfd, opened) = match open_holder(&record, dir) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(None),
            Err(e) if is_gone(&e) => return Ok(None),
            Err(e) => return Err(Error::io(format_args!("cannot open {}", dir.display()), e)),
        };
        let process = HolderProcess {
            pid: record.process,
            pidfd: Arc::new(pidfd),
            user: record.user,
            host_dir: (self.isolation == Isolation::Landlock).then(|| dir.join(FILES)),
        };
        let sandbox = ConfinedSandbox {
            socket: RequestSocket::Directory(opened),
            process,
            features: Features::default(),
            limits: record.limits,
            env: record.env,
            resources: Resources::default(),
        };
        Ok(sandbox.is_running().then_some(sandbox))
    }
}

/// Opens the holder of a record and the directory of its socket. Returns `None` if the process is another
/// one.
fn open_holder(record: &HolderRecord, dir: &Path) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    // The pidfd is opened before the start time is compared, so that the process cannot be replaced in
    // between.
    let pidfd = os::pidfd_open(record.process)?;
    if start_time(record.process)? != record.started {
        return Ok(None);
    }
    Ok(Some((pidfd, File::open(dir)?.into())))
}

/// Returns true for the error of a process or a directory that does not exist. Other errors, such as too
/// many open descriptors, say nothing about the sandbox.
fn is_gone(error: &io::Error) -> bool {
    // EINVAL: the number belongs to a thread of another process.
    let gone = [libc::ENOENT, libc::ESRCH, libc::EINVAL];
    error
        .raw_os_error()
        .is_some_and(|errno| gone.contains(&errno))
}

/// Returns field 22 of `/proc/PID/stat`. The second field, the program's name in parentheses, can
/// contain any character, so fields are counted after its end.
fn start_time(process: u32) -> io::Result<u64> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read(&path)?;
    let after_name = stat.rsplit(|byte| *byte == b')').next();
    let mut fields = after_name.unwrap_or_default().split(|byte| *byte == b' ');
    let field = fields
        .nth(20)
        .and_then(|field| std::str::from_utf8(field).ok());
    let started = field.and_then(|field| field.parse().ok());
    started
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("cannot parse {path}")))
}

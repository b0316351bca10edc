//! The tier [`Isolation::None`](crate::local::isolation::Isolation::None): finds sandboxes by session id.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::sandbox::{PlainRecord, PlainSandbox, create_dirs};
use crate::backend::Sink;
use crate::command::Command;
use crate::error::{Error, Result};
use crate::local::errors::no_such_sandbox;
use crate::local::files::SandboxFiles;
use crate::local::limits::Limits;
use crate::local::millis::millis;
use crate::local::process_marks::{SANDBOX_MARK, kill_marked};
use crate::local::runner::{self, Environment, Place, inherited};
use crate::local::state_dir::{
    Access, StateDir, file_name, lock_dir, read_record, remove_dir, write_record,
};
use crate::local::tier::SandboxTier;
use crate::os;
use crate::os::random::random_u64;
use crate::output::Output;
use crate::sandbox_path::WORKSPACE;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};

/// Subdirectory of the state directory for sandboxes.
const SANDBOXES: &str = "sandboxes";

/// Subdirectory of the state directory for sandboxes that are being removed.
const REMOVED: &str = "removed";

pub(crate) struct PlainTier {
    state: StateDir,
    /// Environment variables of new sandboxes.
    env: BTreeMap<String, String>,
}

impl PlainTier {
    pub(crate) fn open(state_dir: &Path, env: BTreeMap<String, String>) -> Result<PlainTier> {
        let state = StateDir::open(state_dir, &[SANDBOXES, REMOVED], Access::None)?;
        Ok(PlainTier { state, env })
    }

    fn find(&self, id: &SessionId) -> Result<PlainSandbox> {
        let (dir, record) = self.unexpired(id)?;
        Ok(PlainSandbox {
            dir,
            token: record.token,
            env: record.env,
        })
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
        let name = format!("{:016x}", random_u64());
        let path = self.state.path(REMOVED).join(name);
        let rename = || -> io::Result<File> {
            // A directory can only be moved if its owner may write to it.
            fs::set_permissions(dir, Permissions::from_mode(0o700))?;
            let locked = File::open(dir)?;
            // A command of the sandbox may hold the lock. That does not prevent the removal.
            os::lock(locked.as_fd())?;
            fs::rename(dir, &path)?;
            Ok(locked)
        };
        let locked =
            rename().map_err(|e| Error::io(format_args!("cannot remove {}", dir.display()), e))?;
        Ok((path, locked))
    }

    /// Sets aside the sandboxes that have expired or whose creation was interrupted. Returns them and
    /// those that an earlier process set aside but did not remove. Skips unreadable records.
    fn set_expired_aside(&self) -> Vec<RemovedDir> {
        let list = |name: &str| {
            let entries = fs::read_dir(self.state.path(name)).into_iter().flatten();
            let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
            paths.collect::<Vec<_>>()
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

impl SandboxTier for PlainTier {
    fn health(&self) -> Result<()> {
        self.state.check()
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        let name = file_name(id)?;
        let lock = self.state.lock()?;
        let expired = self.set_expired_aside();
        let dir = self.state.path(SANDBOXES).join(&name);
        let existing = read_record::<PlainRecord>(&dir)?;
        let is_new = existing.is_none();
        let mut record = existing.unwrap_or_else(|| PlainRecord::new(id, self.env.clone()));
        record.ttl_millis = millis(spec.get_ttl());
        let expires = record.renew();
        let written = if is_new {
            create_dirs(&dir).and_then(|()| write_record(&dir, &record))
        } else {
            write_record(&dir, &record)
        };
        drop(lock);
        for (path, _locked) in expired {
            end_and_remove(&path).unwrap_or_else(|e| log::warn!("{e:#}"));
        }
        written.map_err(|e| Error::io(format_args!("cannot create {}", dir.display()), e))?;
        Ok(SandboxInfo::expiring(format!("local-{name}"), expires).with_ignored(ignored(spec)))
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        let _lock = self.state.lock()?;
        let (dir, mut record) = self.unexpired(id)?;
        record.renew();
        write_record(&dir, &record)
            .map_err(|e| Error::io(format_args!("cannot write to {}", dir.display()), e))
    }

    fn exec<'a>(
        &self,
        id: &SessionId,
        command: &Command,
        sink: Option<&'a mut Sink<'a>>,
    ) -> Result<Output> {
        let sandbox = self.find(id)?;
        let workdir = sandbox
            .files()
            .and_then(|files| files.resolve_workdir(command.get_workdir()))
            // Its files may have gone since.
            .or_else(|e| self.find(id).and(Err(e)))?;
        let place = Place {
            workdir: &workdir.path,
            env: environment(&sandbox),
            sandbox_token: &sandbox.token,
            exists: &|| sandbox.exists(),
            prepare: |_| {},
        };
        runner::run(command, place, sink)
    }

    fn files(&self, id: &SessionId) -> Result<SandboxFiles> {
        let sandbox = self.find(id)?;
        sandbox.remove_stale_stages()?;
        sandbox.files()
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
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

    fn limits(&self, _: &SandboxSpec) -> Result<Limits> {
        Ok(Limits::NONE)
    }

    fn missing(&self) -> Result<Vec<&'static str>> {
        Ok(Vec::new())
    }
}

/// Returns the environment variables of all commands of a sandbox.
fn environment(sandbox: &PlainSandbox) -> Environment {
    let root = sandbox.root_path();
    let workspace = root.join(WORKSPACE.trim_start_matches('/'));
    let mut env = inherited(["PATH"]);
    env.insert("HOME".into(), workspace.clone().into());
    env.insert("NOX_WORKSPACE".into(), workspace.into());
    env.insert("TMPDIR".into(), root.join("tmp").into());
    let own = sandbox.env.iter();
    env.extend(own.map(|(name, value)| (name.into(), value.into())));
    env
}

/// Returns the names of the settings that this tier ignores.
fn ignored(spec: &SandboxSpec) -> Vec<String> {
    let fields = [
        ("image", spec.get_image()),
        ("cpu", spec.get_cpu()),
        ("memory", spec.get_memory()),
        ("storage", spec.get_storage()),
    ];
    let set = fields.iter().filter(|(_, value)| value.is_some());
    set.map(|(name, _)| (*name).to_owned()).collect()
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

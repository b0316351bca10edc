//! Sandboxes that are nothing but a directory: commands are plain processes of this user.

mod runner;
mod store;

use std::io;
use std::path::Path;

use self::store::Store;
use super::Tier;
use super::files::{Files, path_failed};
use super::limits::{Limit, Limits};
use crate::command::Command;
use crate::error::Result;
use crate::output::Output;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};

pub(super) struct Plain {
    store: Store,
}

impl Plain {
    pub(super) fn open(state_dir: &Path) -> Result<Plain> {
        let store = Store::open(state_dir)?;
        Ok(Plain { store })
    }
}

impl Tier for Plain {
    fn health(&self) -> Result<()> {
        self.store.check()
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        let (name, expires) = self.store.create(id, spec.get_ttl())?;
        let asked = [
            ("image", spec.get_image()),
            ("cpu", spec.get_cpu()),
            ("memory", spec.get_memory()),
            ("storage", spec.get_storage()),
        ];
        let ignored = asked
            .iter()
            .filter(|(_, value)| value.is_some())
            .map(|(name, _)| (*name).to_owned());
        Ok(SandboxInfo::expiring(format!("local-{name}"), expires).with_ignored(ignored.collect()))
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        self.store.touch(id)
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        let place = self.store.find(id)?;
        let workdir = command.get_workdir();
        let found = place.files()?.resolve(workdir);
        let found = found.and_then(|dir| match dir.is_dir() {
            true => Ok(dir),
            false => Err(io::ErrorKind::NotADirectory.into()),
        });
        let found = found.map_err(|e| path_failed("workdir", workdir, e))?;
        runner::run(command, &found.path, &place)
    }

    fn files(&self, id: &SessionId) -> Result<Files> {
        let place = self.store.find(id)?;
        place.sweep_stages()?;
        place.files()
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        self.store.delete(id)
    }

    fn limits(&self, _: &SandboxSpec) -> Result<Limits> {
        Ok(Limits {
            cpu_millis: Limit::NONE,
            memory: Limit::NONE,
            storage: Limit::NONE,
            processes: Limit::NONE,
            open_files: Limit::NONE,
        })
    }

    fn missing(&self) -> Result<Vec<&'static str>> {
        Ok(Vec::new())
    }
}

//! The tier [`Isolation::None`](crate::local::isolation::Isolation::None).

use std::path::Path;

use super::runner;
use super::store::Store;
use crate::command::Command;
use crate::error::Result;
use crate::local::files::SandboxFiles;
use crate::local::limits::{Limit, Limits};
use crate::local::tier::SandboxTier;
use crate::output::Output;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};

pub(crate) struct PlainTier {
    store: Store,
}

impl PlainTier {
    pub(crate) fn open(state_dir: &Path) -> Result<PlainTier> {
        let store = Store::open(state_dir)?;
        Ok(PlainTier { store })
    }
}

impl SandboxTier for PlainTier {
    fn health(&self) -> Result<()> {
        self.store.check()
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        let (name, expires) = self.store.create(id, spec.get_ttl())?;
        let fields = [
            ("image", spec.get_image()),
            ("cpu", spec.get_cpu()),
            ("memory", spec.get_memory()),
            ("storage", spec.get_storage()),
        ];
        let ignored = fields
            .iter()
            .filter(|(_, value)| value.is_some())
            .map(|(name, _)| (*name).to_owned());
        Ok(SandboxInfo::expiring(format!("local-{name}"), expires).with_ignored(ignored.collect()))
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        self.store.touch(id)
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        let sandbox = self.store.find(id)?;
        let workdir = sandbox.files()?.resolve_workdir(command.get_workdir())?;
        runner::run(command, &workdir.path, &sandbox)
    }

    fn files(&self, id: &SessionId) -> Result<SandboxFiles> {
        let sandbox = self.store.find(id)?;
        sandbox.remove_stale_stages()?;
        sandbox.files()
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

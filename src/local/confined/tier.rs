//! The tiers [`Isolation::Namespaces`] and [`Isolation::Landlock`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::factory::{Lifetime, SandboxFactory};
use super::persistent_registry::PersistentRegistry;
use super::process_registry::ProcessRegistry;
use super::sandbox::ConfinedSandbox;
use crate::backend::Sink;
use crate::command::Command;
use crate::error::{ErrorKind, Result};
use crate::local::files::SandboxFiles;
use crate::local::isolation::Isolation;
use crate::local::limits::{Limit, Limits, OPEN_FILES, PROCESSES};
use crate::local::options::SandboxOptions;
use crate::local::tier::SandboxTier;
use crate::output::Output;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};
use crate::upload::Upload;

pub(crate) struct ConfinedTier {
    factory: SandboxFactory,
    registry: Registry,
}

/// Finds sandboxes by id.
enum Registry {
    /// Sandboxes that end with this process.
    Process(ProcessRegistry),
    Persistent(PersistentRegistry),
}

impl ConfinedTier {
    /// Opens the tier. For sandboxes that end with this process, runs a program in a trial sandbox,
    /// because nothing less shows whether the machine supports the tier. For persistent sandboxes the
    /// first creation shows it.
    pub(crate) fn open(
        isolation: Isolation,
        state_dir: Option<PathBuf>,
        persistent: bool,
        options: SandboxOptions,
    ) -> Result<ConfinedTier> {
        let factory = SandboxFactory::new(isolation, state_dir, persistent, options)?;
        let registry = if persistent {
            Registry::Persistent(PersistentRegistry::open(&factory)?)
        } else {
            factory.features()?;
            Registry::Process(ProcessRegistry::new())
        };
        Ok(ConfinedTier { factory, registry })
    }

    fn find(&self, id: &SessionId) -> Result<Arc<ConfinedSandbox>> {
        match &self.registry {
            Registry::Process(registry) => registry.find(id),
            Registry::Persistent(registry) => registry.find(id).map(Arc::new),
        }
    }
}

impl SandboxTier for ConfinedTier {
    fn health(&self) -> Result<()> {
        match &self.registry {
            Registry::Process(_) => Ok(()),
            Registry::Persistent(registry) => registry.check(),
        }
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        let ttl = spec.get_ttl();
        let mut ignored = match &self.registry {
            Registry::Process(registry) => {
                let create = || self.factory.create(spec, Lifetime::Process);
                let (sandbox, is_new) = registry.find_or_create(id, create)?;
                let renewed = if is_new {
                    Ok(())
                } else {
                    sandbox.touch(Some(ttl))
                };
                match renewed {
                    // Its holder has just ended.
                    Err(e) if e.is_not_found() => {
                        registry.delete(id)?;
                        registry.find_or_create(id, create)?;
                        Vec::new()
                    }
                    result => result.map(|()| sandbox.limits.ignored(spec))?,
                }
            }
            Registry::Persistent(registry) => registry.create(id, spec, &self.factory)?,
        };
        let info = SandboxInfo::expiring(format!("local-{id}"), SystemTime::now() + ttl);
        ignored.extend(spec.get_image().map(|_| "image".to_owned()));
        Ok(info.with_ignored(ignored))
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        self.find(id)?.touch(None)
    }

    fn exec<'a>(
        &self,
        id: &SessionId,
        command: &Command,
        sink: Option<&'a mut Sink<'a>>,
    ) -> Result<Output> {
        let sandbox = self.find(id)?;
        let result = sandbox.exec(command, sink);
        // Other errors may come after the start of the command.
        result.map_err(|e| match e.kind() {
            ErrorKind::InvalidInput => sandbox.cause(e),
            _ => e,
        })
    }

    fn files(&self, id: &SessionId) -> Result<SandboxFiles> {
        let sandbox = self.find(id)?;
        sandbox.files().map_err(|e| sandbox.cause(e))
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        let sandbox = self.find(id)?;
        let result = sandbox.upload(dest, archive);
        result.map_err(|e| sandbox.cause(e))
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        match &self.registry {
            Registry::Process(registry) => registry.delete(id),
            Registry::Persistent(registry) => registry.delete(id),
        }
    }

    fn limits(&self, spec: &SandboxSpec) -> Result<Limits> {
        let limits = self.factory.resolve_limits(spec)?;
        let by_cgroup = self.factory.cgroups.is_some();
        let cpu_millis = limits
            .cpu_millis
            .map_or(Limit::NONE, |millis| Limit::new(millis, by_cgroup));
        // Without /proc nothing can be watched.
        let is_watched = by_cgroup || self.factory.features()?.proc_mounted;
        let memory = if is_watched {
            Limit::new(limits.memory, by_cgroup)
        } else {
            Limit::NONE
        };
        Ok(Limits {
            cpu_millis,
            memory,
            storage: Limit::new(limits.storage, !limits.on_disk),
            processes: Limit::new(PROCESSES, self.factory.counts_own_processes()),
            open_files: Limit::new(OPEN_FILES, true),
        })
    }

    fn missing(&self) -> Result<Vec<&'static str>> {
        let features = self.factory.features()?;
        let present = [
            ("landlock", features.landlock > 0),
            ("proc", features.proc_mounted),
        ];
        let missing = present.iter().filter(|(_, present)| !present);
        Ok(missing.map(|(name, _)| *name).collect())
    }
}

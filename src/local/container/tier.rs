//! One sandbox with a TTL, whose root directory is that of this process.

use std::fs::File;
use std::path::PathBuf;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::oom_kills::OomKills;
use crate::backend::Sink;
use crate::cancel::Cancel;
use crate::command::Command;
use crate::error::{Error, Result};
use crate::local::errors::{ended_during_command, no_such_sandbox};
use crate::local::exit_code::KILLED;
use crate::local::files::SandboxFiles;
use crate::local::limits::Limits;
use crate::local::process_marks::{SANDBOX_MARK, kill_marked, random_token};
use crate::local::runner::{self, Environment, Place};
use crate::local::tier::SandboxTier;
use crate::output::{KilledBy, Output};
use crate::sandbox_path::WORKSPACE;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};

/// The tier of the agent. It never uses files of the host, because the container is the isolation.
pub(crate) struct ContainerTier {
    id: SessionId,
    state: Mutex<State>,
    /// Environment variables of all commands.
    env: Environment,
    /// Marks the processes of the sandbox.
    token: String,
    oom_kills: OomKills,
    /// Changes a process before it is started.
    prepare: fn(&mut process::Command),
}

struct State {
    ttl: Duration,
    /// When the sandbox expires. `None` after its end.
    expires: Option<Instant>,
    /// Those of the running commands.
    running: Vec<(u64, Cancel)>,
    last_run: u64,
}

impl ContainerTier {
    pub(crate) fn new(
        id: SessionId,
        ttl: Duration,
        prepare: fn(&mut process::Command),
    ) -> ContainerTier {
        let mut env: Environment = std::env::vars_os().collect();
        env.entry("HOME".into()).or_insert_with(|| WORKSPACE.into());
        env.insert("NOX_WORKSPACE".into(), WORKSPACE.into());
        ContainerTier {
            id,
            state: Mutex::new(State {
                ttl,
                expires: Some(Instant::now() + ttl),
                running: Vec::new(),
                last_run: 0,
            }),
            env,
            token: random_token(),
            oom_kills: OomKills::open(),
            prepare,
        }
    }

    /// Returns how long the sandbox lives unless its TTL is renewed, or `None` after its end.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        let expires = self.lock().expires?;
        let left = expires.saturating_duration_since(Instant::now());
        Some(left).filter(|left| !left.is_zero())
    }

    /// Ends the sandbox: cancels its commands and kills its processes.
    pub(crate) fn end(&self) {
        let running = {
            let mut state = self.lock();
            state.expires = None;
            std::mem::take(&mut state.running)
        };
        for (_, cancel) in running {
            cancel.cancel();
        }
        kill_marked(SANDBOX_MARK, &self.token);
    }

    /// Restarts the TTL and returns when it expires. `ttl` replaces it.
    fn renew(&self, id: &SessionId, ttl: Option<Duration>) -> Result<SystemTime> {
        self.check(id)?;
        let mut state = self.lock();
        if state.expires.is_none() {
            return Err(no_such_sandbox());
        }
        state.ttl = ttl.unwrap_or(state.ttl);
        state.expires = Some(Instant::now() + state.ttl);
        Ok(SystemTime::now() + state.ttl)
    }

    /// Checks that the sandbox has this id and exists.
    fn check(&self, id: &SessionId) -> Result<()> {
        match self.time_left() {
            Some(_) if *id == self.id => Ok(()),
            _ => Err(no_such_sandbox()),
        }
    }

    /// Lets the end of the sandbox cancel a command.
    fn register(&self, command: &Command) -> Running<'_> {
        let mut state = self.lock();
        state.last_run += 1;
        let number = state.last_run;
        if let Some(cancel) = command.get_cancel() {
            state.running.push((number, cancel.clone()));
        }
        Running { tier: self, number }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command that runs.
struct Running<'a> {
    tier: &'a ContainerTier,
    number: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.tier.lock();
        state.running.retain(|(number, _)| *number != self.number);
    }
}

impl SandboxTier for ContainerTier {
    fn health(&self) -> Result<()> {
        self.check(&self.id)
    }

    /// Renews the TTL. The container has the limits already.
    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        let expires = self.renew(id, Some(spec.get_ttl()))?;
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Ok(SandboxInfo::expiring(name.trim(), expires))
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        self.renew(id, None).map(drop)
    }

    fn exec<'a>(
        &self,
        id: &SessionId,
        command: &Command,
        sink: Option<&'a mut Sink<'a>>,
    ) -> Result<Output> {
        self.check(id)?;
        let _running = self.register(command);
        let workdir = self.files(id)?.resolve_workdir(command.get_workdir())?;
        let place = Place {
            workdir: &workdir.path,
            env: self.env.clone(),
            sandbox_token: &self.token,
            exists: &|| self.check(id).is_ok(),
            prepare: self.prepare,
        };
        let kills = self.oom_kills.count();
        let result = runner::run(command, place, sink);
        if self.time_left().is_none() {
            return Err(ended_during_command());
        }
        let out = result?;
        if out.exit_code() == KILLED && !out.timed_out() && self.oom_kills.count() > kills {
            return Ok(out.with_killed_by(KilledBy::Memory));
        }
        Ok(out)
    }

    fn files(&self, id: &SessionId) -> Result<SandboxFiles> {
        self.check(id)?;
        let root = File::open("/").map_err(|e| Error::io("cannot open /", e))?;
        Ok(SandboxFiles {
            root: root.into(),
            stages: None,
            root_is_shared: true,
            root_path: Some(PathBuf::from("/")),
            user: None,
            room: None,
        })
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        let existed = self.check(id).is_ok();
        if existed {
            self.end();
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

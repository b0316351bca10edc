//! The sandboxes on an engine: finding them, and explaining why one has ended.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::connection::Connection;
use super::container::Container;
use super::dirs::{self, SandboxDirs};
use super::engine::{Engine, TIMEOUT};
use crate::backend::Backend;
use crate::engine::{AgentCache, gone, lost, scoped_sandbox_name};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::http::HttpBackend;
use crate::session_id::SessionId;

/// Minimum time between two cleanups of directories that are left behind.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Maximum time that a failed call waits for the engine to notice the end of the container.
const END_WAIT: Duration = Duration::from_secs(5);

pub(super) struct Sandboxes {
    pub(super) engine: Engine,
    pub(super) dirs: SandboxDirs,
    pub(super) cache: AgentCache<Connection>,
    pub(super) last_sweep: Mutex<Option<Instant>>,
}

/// A container with the name of a sandbox.
pub(super) enum Found {
    Nothing,
    /// Created, but not started yet.
    New(Container),
    Running(Container),
    Ended(Container),
}

impl Sandboxes {
    /// Returns the name of a sandbox's container. Users have different ones, so that their session ids do not
    /// collide.
    pub(super) fn name(&self, id: &SessionId) -> String {
        scoped_sandbox_name(self.dirs.path(), id)
    }

    /// Looks for the container of a sandbox.
    pub(super) fn find(&self, id: &SessionId) -> Result<Found> {
        let name = self.name(id);
        let Some(container) = self.engine.inspect(&name)? else {
            return Ok(Found::Nothing);
        };
        match container.session_id() {
            Some(other) if other == id.as_str() => {}
            other => {
                let owner = match other {
                    Some(other) => format!("is that of session id {:?}", one_line(other)),
                    None => "does not belong to noxrunner".to_owned(),
                };
                let text = format!("container {name} {owner}: use another session id");
                return Err(Error::invalid(text));
            }
        }
        Ok(match &*container.state.status {
            "created" | "configured" | "initialized" => Found::New(container),
            _ if container.state.running => Found::Running(container),
            _ => Found::Ended(container),
        })
    }

    /// Returns the connection to a sandbox, from the cache if it is there.
    pub(super) fn connection(&self, id: &SessionId) -> Result<Arc<Connection>> {
        if let Some(connection) = self.cache.get(id) {
            return Ok(connection);
        }
        let container = match self.find(id)? {
            Found::Running(container) => container,
            Found::New(_) => return Err(not_ready()),
            Found::Nothing | Found::Ended(_) => return Err(gone("no such sandbox")),
        };
        let connection = Connection::open(&container, &self.dirs)?.ok_or_else(not_ready)?;
        Ok(self.cache.insert(id, connection))
    }

    /// Calls the agent of a sandbox. If the call was not received, because another client has replaced the
    /// sandbox, it is repeated.
    pub(super) fn call<T>(
        &self,
        id: &SessionId,
        effect: Effect,
        mut call: impl FnMut(&HttpBackend) -> Result<T>,
    ) -> Result<T> {
        let connection = self.connection(id)?;
        let error = match call(&connection.agent) {
            Err(error) if may_have_ended(&error) => error,
            result => return result,
        };
        let not_received = error.kind() == ErrorKind::Connect;
        match self.end_of(id, &connection) {
            Ok(Some(End::Replaced)) if not_received => {
                let connection = self.connection(id)?;
                call(&connection.agent)
            }
            end => Err(explain(error, effect, end)),
        }
    }

    /// Replaces the error of a transfer or a create by the reason why the sandbox has ended, if it has.
    pub(super) fn explain(&self, id: &SessionId, connection: &Connection, error: Error) -> Error {
        if may_have_ended(&error) {
            explain(error, Effect::InSandbox, self.end_of(id, connection))
        } else {
            error
        }
    }

    /// Returns how a sandbox has ended, or `None` if it has not. Cleans up after one that has.
    fn end_of(&self, id: &SessionId, connection: &Connection) -> Result<Option<End>> {
        let by = Instant::now() + END_WAIT;
        let end = loop {
            match self.engine.inspect(&connection.container)? {
                None => break self.end_of_removed(id, connection)?,
                Some(container) if container.state.is_paused() => {
                    return Ok(Some(End::Paused));
                }
                Some(container) if !container.state.running => {
                    break End::Ended(container.state.end());
                }
                // The engine may not have noticed yet.
                Some(_) if Instant::now() > by || connection.agent.health().is_ok() => {
                    return Ok(None);
                }
                Some(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        self.forget(id, &connection.container);
        self.remove_dir(&connection.dir);
        Ok(Some(end))
    }

    fn end_of_removed(&self, id: &SessionId, connection: &Connection) -> Result<End> {
        if let Found::New(_) | Found::Running(_) = self.find(id)? {
            return Ok(End::Replaced);
        }
        let recorded = self.engine.recorded_end(&connection.container);
        Ok(End::Ended(
            recorded.unwrap_or_else(|| "container removed".to_owned()),
        ))
    }

    /// Removes the connection to a container from the cache.
    fn forget(&self, id: &SessionId, container: &str) {
        self.cache
            .remove_if(id, |connection| connection.container == container);
    }

    /// Removes the directory of a sandbox that has ended, unless it is another user's.
    pub(super) fn remove_dir(&self, dir: &Path) {
        if self.dirs.contains(dir) {
            dirs::remove(dir);
        }
    }

    /// Deletes a sandbox. Returns whether it existed.
    pub(super) fn delete(&self, id: &SessionId) -> Result<bool> {
        let (container, existed) = match self.find(id)? {
            Found::Nothing => return Ok(false),
            Found::Ended(container) => (container, false),
            Found::New(container) | Found::Running(container) => (container, true),
        };
        self.forget(id, &container.id);
        self.engine
            .remove(&container.id, Instant::now() + TIMEOUT)?;
        self.remove_dir(&container.dir());
        Ok(existed)
    }

    /// Removes the remains of sandboxes, such as the directories of those that have expired. Does nothing if it did
    /// so a moment ago.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        {
            let mut last = self
                .last_sweep
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| now < last + SWEEP_INTERVAL) {
                return;
            }
            *last = Some(now);
        }
        if let Err(e) = self.dirs.sweep(|| self.dirs_in_use()) {
            log::warn!("{}: cannot clean up: {e:#}", self.engine.name());
        }
    }

    /// Removes abandoned containers of this user, and returns the directories of all others.
    fn dirs_in_use(&self) -> Result<Vec<PathBuf>> {
        let now = SystemTime::now();
        let mut in_use = Vec::new();
        for listed in self.engine.sandboxes()? {
            let Some(dir) = listed.dir() else {
                continue;
            };
            if self.dirs.contains(&dir) && listed.is_abandoned(now) {
                self.engine.remove(&listed.id, Instant::now() + TIMEOUT)?;
            } else {
                in_use.push(dir);
            }
        }
        Ok(in_use)
    }
}

/// The effect of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// At most the sandbox, so nothing matters once that has ended.
    InSandbox,
    /// It runs a command, which may have had effects elsewhere.
    Command,
}

/// The end of a sandbox.
enum End {
    /// With the reason, in the words of the engine.
    Ended(String),
    /// Another client has created a new one.
    Replaced,
    /// It has not, but its processes do not run.
    Paused,
}

/// Returns true for errors that a call has if the sandbox ends.
fn may_have_ended(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Connect
        | ErrorKind::OutcomeUnknown
        | ErrorKind::Timeout
        | ErrorKind::Protocol => true,
        // The agent is about to exit.
        ErrorKind::NotFound => error.is_sandbox_gone(),
        _ => false,
    }
}

/// Returns the error of a call, given how the sandbox has ended.
fn explain(error: Error, effect: Effect, end: Result<Option<End>>) -> Error {
    let may_have_run = effect == Effect::Command && error.kind() == ErrorKind::OutcomeUnknown;
    match end {
        Ok(None) => error,
        Ok(Some(End::Ended(reason))) if may_have_run => ended_while_running(&reason),
        Ok(Some(End::Replaced)) if may_have_run => {
            ended_while_running("another client replaced it")
        }
        Ok(Some(End::Ended(reason))) => gone(format!("no such sandbox: {reason}")),
        Ok(Some(End::Replaced)) => gone("no such sandbox: another client replaced it"),
        Ok(Some(End::Paused)) => {
            Error::new(error.kind(), format!("{error:#}; the container is paused"))
        }
        Err(of_engine) => {
            let text = format!("{error:#}; and the container cannot be inspected: {of_engine:#}");
            Error::new(error.kind(), text).with_sandbox_gone(error.is_sandbox_gone())
        }
    }
}

fn ended_while_running(reason: &str) -> Error {
    lost(format!(
        "the sandbox ended while the command ran: {reason}; the command may have run"
    ))
}

fn not_ready() -> Error {
    Error::new(ErrorKind::NotReady, "the sandbox is being created")
}

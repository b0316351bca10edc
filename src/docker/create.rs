//! Creating sandboxes.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::auth::registry_auth;
use super::connection::Connection;
use super::container::{AGENT_PROGRAM, Access, Container, NewContainer};
use super::dirs::write_token;
use super::engine::{Created, MAX_UNSTARTED};
use super::image::{Image, Pull, pull};
use super::options::Limits;
use super::sandboxes::{Found, Sandboxes};
use super::settings::Settings;
use crate::backend::Backend as _;
use crate::engine::{random_hex, sha256_hex};
use crate::error::{Error, ErrorKind, Result};
use crate::printable::printable;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};

/// Maximum time until the socket of a running agent appears.
const SOCKET_WAIT: Duration = Duration::from_secs(30);

/// Longest pause between two looks at an agent or another client's container.
const PAUSE: Duration = Duration::from_millis(20);

/// Interval of looks at a container whose agent does not answer yet.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// One call of create.
pub(super) struct Creation<'a> {
    pub(super) sandboxes: &'a Sandboxes,
    pub(super) settings: &'a Settings,
    pub(super) id: &'a SessionId,
    pub(super) spec: &'a SandboxSpec,
    limits: Limits,
    deadline: Instant,
}

/// The result of an attempt to create a container.
enum Attempt {
    Done(SandboxInfo),
    /// Another container has the name.
    NameTaken,
    NoImage,
}

/// A look for a sandbox that exists already.
enum Existing {
    Nothing,
    Renewed(SandboxInfo),
    WaitFor(&'static str),
}

impl<'a> Creation<'a> {
    pub(super) fn new(
        sandboxes: &'a Sandboxes,
        settings: &'a Settings,
        id: &'a SessionId,
        spec: &'a SandboxSpec,
    ) -> Result<Creation<'a>> {
        Ok(Creation {
            sandboxes,
            settings,
            id,
            spec,
            limits: settings.options.limits(spec)?,
            deadline: Instant::now() + settings.create_timeout,
        })
    }

    /// Creates the sandbox, or renews its TTL if it exists.
    pub(super) fn run(mut self) -> Result<SandboxInfo> {
        if let Some(connection) = self.sandboxes.cache.get(self.id) {
            match self.renew(&connection) {
                Ok(info) => return Ok(info),
                // It has ended, or the engine was restarted.
                Err(e) => drop(self.sandboxes.explain(self.id, &connection, e)),
            }
        }
        let image = match self.settings.options.image(self.spec) {
            Ok(image) => image,
            // An existing sandbox has one.
            Err(e) => return self.existing()?.ok_or(e),
        };
        Image::parse(image)?;
        self.sandboxes.sweep();
        if self.settings.pull == Pull::Always {
            if let Some(info) = self.existing()? {
                return Ok(info);
            }
            self.pull(image)?;
        }
        let mut may_pull = self.settings.pull == Pull::Missing;
        loop {
            let info = match self.attempt(image)? {
                Attempt::Done(info) => Some(info),
                Attempt::NameTaken => self.existing()?,
                Attempt::NoImage if may_pull => {
                    self.pull(image)?;
                    may_pull = false;
                    None
                }
                Attempt::NoImage => return Err(self.no_image(image)),
            };
            if let Some(info) = info {
                return Ok(info);
            }
            self.check_deadline("the name of its container is in use")?;
            std::thread::sleep(PAUSE);
        }
    }

    pub(super) fn left(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        left.max(Duration::from_millis(1))
    }

    fn check_deadline(&self, waiting_for: &str) -> Result<()> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        let seconds = self.settings.create_timeout.as_secs_f64();
        let text = format!("timed out after {seconds:.0} s: {waiting_for}");
        Err(Error::new(ErrorKind::Timeout, text))
    }

    fn pull(&mut self, image: &str) -> Result<()> {
        let started = Instant::now();
        let auth = registry_auth(&Image::parse(image)?)?;
        let on_progress = self.settings.on_pull_progress.as_deref();
        let timeout = self.settings.pull_timeout;
        pull(&self.sandboxes.engine, image, auth, timeout, on_progress)?;
        // The time for creating the container starts again.
        self.deadline += started.elapsed();
        Ok(())
    }

    fn no_image(&self, image: &str) -> Error {
        let engine = self.sandboxes.engine.name();
        let advice = match self.settings.pull {
            Pull::Never => ", and pulling is disabled",
            _ => " after it was pulled",
        };
        Error::invalid(format!("{engine} has no image {image:?}{advice}"))
    }

    /// Renews the TTL of a sandbox by its agent.
    fn renew(&self, connection: &Connection) -> Result<SandboxInfo> {
        let spec = SandboxSpec::new().ttl(self.spec.get_ttl());
        let info = connection.agent.create(self.id, &spec)?;
        let name = self.sandboxes.name(self.id);
        Ok(SandboxInfo::new(name, info.expires_at()).with_ignored(self.ignored(connection)))
    }

    /// Returns the names of the settings that the sandbox does not have.
    fn ignored(&self, connection: &Connection) -> Vec<String> {
        let mut names = connection.requested.ignored(self.spec);
        names.extend(connection.enforced.missing(&self.limits));
        if self.limits.on_disk {
            names.push("storage");
        }
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(str::to_owned).collect()
    }

    /// Renews the TTL of the sandbox if it exists, and waits while another client creates or deletes it.
    fn existing(&self) -> Result<Option<SandboxInfo>> {
        let mut unstarted = None;
        loop {
            match self.look_for_existing(&mut unstarted)? {
                Existing::Renewed(info) => return Ok(Some(info)),
                Existing::Nothing => return Ok(None),
                Existing::WaitFor(what) => self.check_deadline(what)?,
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// `unstarted` is a container that was not started yet, and when it was first seen.
    fn look_for_existing(&self, unstarted: &mut Option<(String, Instant)>) -> Result<Existing> {
        match self.sandboxes.find(self.id)? {
            Found::Nothing => Ok(Existing::Nothing),
            Found::Ended(container) => self.discard(&container),
            Found::New(container) => {
                let now = Instant::now();
                let seen = unstarted.take().filter(|(id, _)| *id == container.id);
                let since = seen.map_or(now, |(_, since)| since);
                if now > since + MAX_UNSTARTED {
                    // Its creator has ended.
                    return self.discard(&container);
                }
                *unstarted = Some((container.id, since));
                Ok(Existing::WaitFor("another client creates the sandbox"))
            }
            Found::Running(container) if container.state.is_paused() => {
                Ok(Existing::WaitFor("its container is paused"))
            }
            Found::Running(container) => Ok(match self.adopt(&container)? {
                Some(info) => Existing::Renewed(info),
                None => Existing::WaitFor("the agent of the existing sandbox does not answer"),
            }),
        }
    }

    /// Renews the TTL of a running sandbox. Returns `None` if its agent does not answer yet, or no longer.
    fn adopt(&self, container: &Container) -> Result<Option<SandboxInfo>> {
        let Some(connection) = Connection::open_new(container, &self.sandboxes.dirs)? else {
            return Ok(None);
        };
        match self.renew(&connection) {
            Ok(info) => {
                connection.seal()?;
                self.sandboxes.cache.insert(self.id, connection);
                Ok(Some(info))
            }
            Err(e) if is_no_answer(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Removes a container that has ended or was never started.
    fn discard(&self, container: &Container) -> Result<Existing> {
        self.sandboxes.engine.remove(&container.id, self.deadline)?;
        self.sandboxes.remove_dir(&container.dir());
        Ok(Existing::Nothing)
    }

    /// Creates a container and starts it. Leaves nothing behind if that fails.
    fn attempt(&self, image: &str) -> Result<Attempt> {
        let is_shared = !self.settings.loopback_port;
        let hold = self.sandboxes.dirs.hold(self.deadline)?;
        let dir = self.sandboxes.dirs.create(is_shared)?;
        let mut cleanup = Cleanup {
            creation: self,
            container: None,
            dir: &dir,
        };
        let created = self.create(image, &dir);
        drop(hold);
        let id = match created? {
            Created::Container(id) => id,
            Created::NoImage => return Ok(Attempt::NoImage),
            Created::NameTaken => match self.sandboxes.find(self.id)? {
                // The request was sent again after its response was lost.
                Found::New(container) if container.dir() == Path::new(&dir) => container.id,
                _ => return Ok(Attempt::NameTaken),
            },
        };
        cleanup.container = Some(id.clone());
        self.check_runtime(&id)?;
        self.fill(&id)?;
        let started = self.sandboxes.engine.start(&id, self.left());
        started.map_err(|e| self.sharing_hint(e, &dir))?;
        let (connection, info) = self.wait_for_agent(&id).map_err(|e| match e {
            NoAnswer::Ended(end) => self.ended_early(image, &end),
            NoAnswer::Failed(e) => e,
        })?;
        connection.seal()?;
        self.sandboxes.cache.insert(self.id, connection);
        cleanup.container = None;
        cleanup.dir = "";
        Ok(Attempt::Done(info))
    }

    fn create(&self, image: &str, dir: &str) -> Result<Created> {
        let config = self.config(image, dir)?;
        let name = self.sandboxes.name(self.id);
        let created = self.sandboxes.engine.create(&name, &config, self.left());
        created.map_err(|e| self.sharing_hint(e, dir))
    }

    /// Returns the configuration of a container with this directory.
    pub(super) fn config(&self, image: &str, dir: &str) -> Result<Value> {
        let token_hash = if self.settings.loopback_port {
            let token = random_hex()?;
            write_token(dir, &token)?;
            Some(sha256_hex(&token))
        } else {
            None
        };
        let access = match &token_hash {
            Some(token_hash) => Access::Port { token_hash },
            None => Access::Socket {
                program: &self.settings.agent_path,
            },
        };
        let container = NewContainer {
            id: self.id,
            spec: self.spec,
            image,
            options: &self.settings.options,
            limits: &self.limits,
            dir,
            access,
        };
        Ok(container.to_json())
    }

    /// Refuses an engine that ignores the runtime, as Podman does: it would isolate less than was asked for.
    fn check_runtime(&self, container: &str) -> Result<()> {
        let Some(runtime) = &self.settings.options.runtime else {
            return Ok(());
        };
        match self.sandboxes.engine.inspect(container)? {
            Some(container) if container.runtime() != runtime => {
                let engine = self.sandboxes.engine.name();
                let text = format!(
                    "{engine} ignores the runtime {runtime:?} of containers: set the default runtime of its service instead"
                );
                Err(Error::new(ErrorKind::Unsupported, text))
            }
            _ => Ok(()),
        }
    }

    /// Names the alternative if the engine cannot see the host's files. `dir` is the directory of the sandbox.
    fn sharing_hint(&self, error: Error, dir: &str) -> Error {
        let text = format!("{error:#}");
        let ours = [dir, &self.settings.agent_path, AGENT_PROGRAM];
        let names_ours = ours.iter().any(|path| text.contains(path));
        let causes = ["no such file", "does not exist", "permission denied"];
        let is_missing = causes.iter().any(|cause| text.contains(cause));
        if names_ours && is_missing && !self.settings.loopback_port {
            return Error::new(error.kind(), format!("{text}; {NOT_SHARED}"));
        }
        error
    }

    /// Copies what must be in the container before it starts.
    pub(super) fn fill(&self, container: &str) -> Result<()> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut is_empty = true;
        let failed = |e| Error::io("cannot pack the agent program", e);
        if self.limits.on_disk {
            append(&mut tar, "workspace/", 0o1777, &[]).map_err(failed)?;
            is_empty = false;
        }
        if self.settings.loopback_port {
            let program = fs::read(&*self.settings.agent_path).map_err(failed)?;
            append(&mut tar, ".noxrunner/", 0o755, &[]).map_err(failed)?;
            append(&mut tar, ".noxrunner/noxrc", 0o755, &program).map_err(failed)?;
            is_empty = false;
        }
        if is_empty {
            return Ok(());
        }
        let archive = tar.into_inner().map_err(failed)?;
        self.sandboxes
            .engine
            .put_archive(container, archive, self.left())
    }

    /// Asks the agent of a new container until it answers.
    fn wait_for_agent(&self, id: &str) -> std::result::Result<(Connection, SandboxInfo), NoAnswer> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        // The container's port or labels do not change.
        let mut container = self.look(id)?;
        let mut looked = Instant::now();
        loop {
            let connection = Connection::open_new(&container, &self.sandboxes.dirs)?;
            let has_socket = connection.is_some();
            let info = connection.as_ref().map(|connection| self.renew(connection));
            match (connection, info) {
                (Some(connection), Some(Ok(info))) => return Ok((connection, info)),
                (_, Some(Err(e))) if !is_no_answer(&e) => return Err(e.into()),
                _ => {}
            }
            if looked.elapsed() > LOOK_INTERVAL {
                container = self.look(id)?;
                looked = Instant::now();
            }
            if !has_socket && started.elapsed() > SOCKET_WAIT {
                let dir = container.dir();
                let text = format!(
                    "the container runs, but the socket of its agent does not appear in {}: {NOT_SHARED}",
                    dir.display()
                );
                return Err(Error::new(ErrorKind::Unsupported, text).into());
            }
            self.check_deadline("the agent in the container does not answer")?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE);
        }
    }

    /// Looks at a container that was started.
    fn look(&self, id: &str) -> std::result::Result<Container, NoAnswer> {
        let end = match self.sandboxes.engine.inspect(id)? {
            Some(container) if container.state.running => return Ok(container),
            Some(container) => container.state.end(),
            None => {
                let recorded = self.sandboxes.engine.recorded_end(id);
                recorded.unwrap_or_else(|| "container removed".to_owned())
            }
        };
        Err(NoAnswer::Ended(end))
    }

    /// Creates the error for a container that has ended before its agent answered.
    fn ended_early(&self, image: &str, end: &str) -> Error {
        let words = self.last_words(image);
        let words = words.map_or(String::new(), |words| format!("; the agent wrote: {words}"));
        let text = format!("the sandbox ended before its agent answered: {end}{words}");
        Error::new(ErrorKind::Status, text)
    }
}

/// The reason why an agent has not answered.
enum NoAnswer {
    /// The container has ended, in the words of the engine.
    Ended(String),
    Failed(Error),
}

impl From<Error> for NoAnswer {
    fn from(error: Error) -> NoAnswer {
        NoAnswer::Failed(error)
    }
}

const NOT_SHARED: &str = "the engine cannot use this machine's files, for example because it runs in a virtual machine, \
    this program runs in a container, or SELinux forbids it: use a loopback port with \
    DockerBackendBuilder::loopback_port() (noxrc: --docker-port)";

/// Returns true for the errors of an agent that does not listen yet, or no longer.
fn is_no_answer(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Connect | ErrorKind::OutcomeUnknown | ErrorKind::NotReady
    )
}

fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    name: &str,
    mode: u32,
    content: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    if name.ends_with('/') {
        header.set_entry_type(tar::EntryType::Directory);
    }
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content)
}

/// Removes the container and the directory of a sandbox that could not be created.
struct Cleanup<'a> {
    creation: &'a Creation<'a>,
    container: Option<String>,
    dir: &'a str,
}

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        let sandboxes = self.creation.sandboxes;
        if let Some(container) = &self.container {
            let by = Instant::now() + Duration::from_secs(30);
            if let Err(e) = sandboxes.engine.remove(container, by) {
                let container = printable(container);
                log::warn!("cannot remove container {container}: {e:#}");
            }
        }
        if !self.dir.is_empty() {
            sandboxes.remove_dir(Path::new(self.dir));
        }
    }
}

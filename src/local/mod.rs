//! Sandboxes on this machine.

#[cfg(target_os = "linux")]
mod confined;
mod files;
mod isolation;
mod limits;
mod plain;
mod quantity;
mod state;
mod streams;

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::files::Files;
pub use self::isolation::Isolation;
pub use self::limits::{Enforced, Limit, Limits};
use self::plain::Plain;
use crate::backend::Backend;
use crate::cancel::Cancel;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::output::Output;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};
use crate::upload::Upload;

/// Exit codes as shells have them.
const TIMED_OUT: i32 = 124;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;
const KILLED: i32 = 128 + libc::SIGKILL;

/// Sandboxes on this machine, without a server, a daemon, root, an image or any set-up.
///
/// # What a sandbox is
///
/// - `/workspace` is empty at first and the working directory. It, `/tmp` and background processes stay
///   from one exec to the next, as in a pod, until the sandbox ends.
/// - `/usr` and the other directories of programs are the machine's own, read-only. `/etc` has what
///   programs look up, and nothing of the machine's users, name or network. The image of a spec means
///   nothing here, and [`SandboxInfo::ignored`] says so.
/// - A command runs as user `sandbox`, 1000, without rights. It gets `LANG`, `LC_ALL`, `LC_CTYPE` and
///   `TZ` of this process, `PATH`, `HOME`, `TMPDIR`, `USER`, `LOGNAME` and `NOX_WORKSPACE` of the
///   sandbox, and its own variables; nothing else. Its stdin is empty, and it has no terminal.
/// - There is no network but loopback, and each sandbox has its own.
/// - Each stream is kept up to 1 MiB. A command that runs out of time is ended with all that it has
///   started, whatever that did to escape, and answers 124; background processes of earlier commands
///   live on.
/// - A command may kill what watches over it; then all processes of the sandbox are killed, and the
///   answer is 137. Its files stay.
/// - Sandboxes are found by id in the backend that has made them. They end with the process that has
///   made them, however that ends, with their TTL, or when the backend is dropped; the end of a thread
///   changes nothing. [Persistent](LocalBackendBuilder::persistent) ones end with their TTL or when they
///   are deleted.
///
/// # Limits
///
/// Memory (by default 1 GiB, or half of the machine's if that is less) is that of all processes
/// together, files in memory included. It is watched from outside, several times a second at most: a
/// sandbox can pass it for a few milliseconds before its largest process is killed. One process alone
/// can't have more. Storage (by default 512 MiB, or half of the memory limit if that is less) is the
/// size of all files in `/workspace` and `/tmp`. They are in memory, unless the spec asks for more than
/// half of the memory limit or an eighth of the memory that is free; then they are in a directory of the
/// state directory, which is watched as the memory is, and a sandbox that passes its limit has its
/// processes killed. A CPU limit is rounded up to
/// whole CPUs. [`limits`](LocalBackend::limits) says what holds for a spec.
///
/// Where a cgroup v2 with `memory` is delegated to this process alone (as by `systemd-run --user --scope
/// -p Delegate=yes`), limits of memory and CPU are exact, for sandboxes that are not persistent: each
/// gets a cgroup of its own, and this process moves to `noxrunner-host` below its present one.
///
/// A sandbox may have 512 processes, and nothing but a cgroup keeps them from taking all the CPU time
/// that the machine has for others meanwhile: where that matters, set a CPU limit.
///
/// # What it protects from
///
/// Mistakes, curious programs and ordinary malice: commands reach no files, processes, sockets, keys or
/// devices of this machine. It shares the kernel, and a bug in that is a way out. What is
/// world-readable in `/usr`, the kernel's version and the load can be seen. It is not for hostile
/// multi-tenant work.
///
/// # Without namespaces
///
/// [`Isolation::Landlock`] is for machines that give nobody namespaces: Docker's default profile,
/// AppArmor's restriction. What differs:
///
/// - `/workspace` and `/tmp` are directories of this machine: in the state directory, as root below
///   `/var/lib/noxrunner`. They are `/workspace` and `/tmp` in `workdir`, `dest` and `src`, and
///   `$NOX_WORKSPACE` and `$TMPDIR` to commands, which start in the first. Nothing else can be written
///   or, but for programs, their settings and `/proc`, be read.
/// - There are no sockets but connected pairs, and no shared memory of System V or POSIX.
/// - The machine's processes and their arguments can be seen, but neither looked into nor signalled.
/// - Commands run as this user; as root, as an id that nobody else has. Landlock does not watch over
///   `stat`, `chmod`, `chown` and the like: a plain user's own files can be seen to exist and have their
///   mode changed.
/// - Memory and storage are watched. The process limit of a plain user is that of all its processes.
/// - A command can kill or stop the holder: that ends the whole sandbox.
///
/// # Without isolation
///
/// [`Isolation::None`] **protects from nothing**: a sandbox is a directory, and commands are plain
/// processes of this user.
///
/// - A sandbox is there for all processes of this user until its TTL is over or it is deleted.
/// - `/workspace` and `/tmp` in `workdir`, `dest` and `src` are directories of the sandbox. Arguments are
///   not changed: use relative paths there, or `$NOX_WORKSPACE` in a shell.
/// - A command that runs out of time is ended with its process group (on Linux, with all that it
///   started). If this process is killed while a command runs, its time limit is not kept: it ends with
///   the sandbox.
/// - The limits of the spec are ignored, and [`SandboxInfo::ignored`] says so.
/// - An expired sandbox is no longer there for any call; what it leaves on disk is removed by the next
///   creation of any sandbox.
///
/// ```
/// use noxrunner::{Client, Isolation, LocalBackend, SandboxSpec};
///
/// let backend = LocalBackend::builder().build()?;
/// assert_eq!(backend.isolation(), Isolation::Namespaces);
/// let sandbox = Client::with_backend(backend).create("demo", SandboxSpec::new())?;
/// assert_eq!(sandbox.exec(["echo", "hi"])?.stdout(), "hi\n");
/// # Ok::<_, noxrunner::Error>(())
/// ```
pub struct LocalBackend {
    tier: Box<dyn Tier>,
    isolation: Isolation,
}

/// Settings of a [`LocalBackend`].
///
/// ```
/// use noxrunner::{Isolation, LocalBackend};
///
/// let backend = LocalBackend::builder().build()?;
/// assert_eq!(backend.isolation(), Isolation::Namespaces, "unless another is asked for");
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct LocalBackendBuilder {
    isolation: Isolation,
    persistent: bool,
    state_dir: Option<PathBuf>,
}

impl LocalBackend {
    /// Creates a backend with the default settings.
    ///
    /// # Errors
    ///
    /// The same as for [`LocalBackendBuilder::build`].
    pub fn new() -> Result<LocalBackend> {
        LocalBackend::builder().build()
    }

    /// The settings of a local backend.
    ///
    /// ```
    /// use noxrunner::{Client, LocalBackend, SandboxSpec};
    ///
    /// let client = Client::with_backend(LocalBackend::builder().build()?);
    /// assert!(client.create("demo", SandboxSpec::new())?.exec(["true"])?.success());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn builder() -> LocalBackendBuilder {
        LocalBackendBuilder::default()
    }

    /// The tier that commands run in.
    ///
    /// ```
    /// use noxrunner::{Isolation, LocalBackend};
    ///
    /// assert_eq!(LocalBackend::builder().build()?.isolation(), Isolation::Namespaces);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// What a sandbox with this spec may take, and how far it is held to that here.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a limit that is not in Kubernetes notation.
    ///
    /// # Example
    ///
    /// ```
    /// use noxrunner::{Enforced, LocalBackend, SandboxSpec};
    ///
    /// let backend = LocalBackend::builder().build()?;
    /// let limits = backend.limits(&SandboxSpec::new().memory("256Mi"))?;
    /// assert_eq!(limits.memory.amount, Some(256 << 20));
    /// assert_ne!(limits.memory.enforced, Enforced::No);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn limits(&self, spec: &SandboxSpec) -> Result<Limits> {
        spec.check()?;
        self.tier.limits(spec)
    }

    /// What this machine could not give to the sandboxes, and they are made without: `landlock`
    /// where the kernel has none (before 5.19), `proc` where it may not be mounted (in a container
    /// that hides parts of its own).
    ///
    /// # Errors
    ///
    /// Where a sandbox had to be made to know, and could not be.
    ///
    /// # Example
    ///
    /// ```
    /// use noxrunner::LocalBackend;
    ///
    /// for what in LocalBackend::builder().build()?.missing()? {
    ///     println!("sandboxes here are without: {what}");
    /// }
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn missing(&self) -> Result<Vec<&'static str>> {
        self.tier.missing()
    }
}

impl LocalBackendBuilder {
    /// The tier that commands run in. Defaults to [`Isolation::Namespaces`]; nobody gets a weaker
    /// one than was asked for.
    ///
    /// ```
    /// use noxrunner::{Isolation, LocalBackend};
    ///
    /// let plain = LocalBackend::builder().isolation(Isolation::None).build()?;
    /// assert_eq!(plain.isolation(), Isolation::None);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn isolation(mut self, isolation: Isolation) -> LocalBackendBuilder {
        self.isolation = isolation;
        self
    }

    /// Sandboxes live until their TTL is over or they are deleted, whatever becomes of the process that
    /// has made them, and all processes of this user reach them by id. By default they end with the
    /// process that has made them, and only the backend that did knows them. Without isolation they
    /// are persistent anyway.
    ///
    /// ```
    /// use noxrunner::{Client, LocalBackend, SandboxSpec};
    ///
    /// # let dir = tempfile::tempdir().unwrap();
    /// let kept = LocalBackend::builder().persistent(true);
    /// # let kept = kept.state_dir(dir.path());
    /// let sandbox = Client::with_backend(kept.clone().build()?).create("kept", SandboxSpec::new())?;
    /// sandbox.write("note", "hi")?;
    /// // As another process would:
    /// let other = Client::with_backend(kept.build()?);
    /// assert_eq!(other.sandbox("kept")?.read("note")?, b"hi");
    /// assert!(other.sandbox("kept")?.delete()?);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn persistent(mut self, persistent: bool) -> LocalBackendBuilder {
        self.persistent = persistent;
        self
    }

    /// Where sandboxes that outlive this process are kept, and files that are too many for the memory: a
    /// directory of this user's own that
    /// others can't write to. It is made if need be, and all below it is made with mode 0700.
    /// Defaults to `noxrunner` in `$XDG_STATE_HOME`, or in `~/.local/state`; for root without namespaces
    /// to `/var/lib/noxrunner`, as its sandboxes run as somebody else and must come there.
    ///
    /// ```
    /// # let (_client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// use noxrunner::{Client, LocalBackend, SandboxSpec};
    ///
    /// let mine = dir.path().join("sandboxes");
    /// let backend = LocalBackend::builder().persistent(true).state_dir(&mine).build()?;
    /// let sandbox = Client::with_backend(backend).create("demo", SandboxSpec::new())?;
    /// assert!(mine.exists());
    /// assert!(sandbox.delete()?);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> LocalBackendBuilder {
        self.state_dir = Some(dir.into());
        self
    }

    /// The backend.
    ///
    /// # Errors
    ///
    /// [`Isolation`](ErrorKind::Isolation) where this machine does not let the tier be made: the
    /// text names the step, the system's answer, its probable cause and the way out.
    /// [`Io`](ErrorKind::Io) if the state directory can't be made, belongs to another user or is
    /// open to others.
    ///
    /// # Example
    ///
    /// ```
    /// use noxrunner::{Backend, LocalBackend};
    ///
    /// LocalBackend::builder().build()?.health()?;
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn build(self) -> Result<LocalBackend> {
        let tier: Box<dyn Tier> = match self.isolation {
            Isolation::None => {
                let state_dir = self.state_dir.map_or_else(default_state_dir, Ok)?;
                Box::new(Plain::open(&state_dir)?)
            }
            #[cfg(target_os = "linux")]
            confined => {
                let maker = confined::Maker::new(confined, self.state_dir, self.persistent)?;
                Box::new(match self.persistent {
                    true => confined::Confined::persistent(maker)?,
                    false => confined::Confined::tied(maker)?,
                })
            }
            #[cfg(not(target_os = "linux"))]
            Isolation::Namespaces | Isolation::Landlock => {
                return Err(isolation::unsupported("sandboxes need Linux"));
            }
        };
        Ok(LocalBackend {
            tier,
            isolation: self.isolation,
        })
    }
}

fn default_state_dir() -> Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    state.map(|dir| dir.join("noxrunner")).ok_or_else(|| {
        Error::new(ErrorKind::Io, "neither XDG_STATE_HOME nor HOME is an absolute path: choose a directory with state_dir()")
    })
}

/// What a tier does; its arguments were checked.
trait Tier: Send + Sync {
    fn health(&self) -> Result<()>;
    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo>;
    fn touch(&self, id: &SessionId) -> Result<()>;
    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output>;
    fn files(&self, id: &SessionId) -> Result<Files>;
    fn delete(&self, id: &SessionId) -> Result<bool>;
    fn limits(&self, spec: &SandboxSpec) -> Result<Limits>;
    fn missing(&self) -> Result<Vec<&'static str>>;
}

impl Backend for LocalBackend {
    fn health(&self) -> Result<()> {
        self.tier.health()
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        spec.check()?;
        logged("create", id, || self.tier.create(id, spec))
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        logged("touch", id, || self.tier.touch(id))
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        command.check()?;
        command.check_no_files()?;
        let is_cancelled = || command.get_cancel().is_some_and(Cancel::is_cancelled);
        let cancelled = || Error::new(ErrorKind::Cancelled, "cancelled");
        logged("exec", id, || {
            if is_cancelled() {
                return Err(cancelled());
            }
            let out = self.tier.exec(id, command)?;
            if out.exit_code() == KILLED && !out.timed_out() && is_cancelled() {
                return Err(cancelled().with_output(out));
            }
            Ok(out)
        })
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        logged("upload", id, || self.tier.files(id)?.upload(dest, archive))
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        logged("download", id, || self.tier.files(id)?.download(src))
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        logged("delete", id, || self.tier.delete(id))
    }
}

/// Logs a call as one debug line.
fn logged<T>(call: &str, id: &SessionId, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let result = run();
    let millis = started.elapsed().as_millis();
    match &result {
        Ok(_) => log::debug!("local {call} {id:?}: {millis} ms"),
        Err(e) => log::debug!("local {call} {id:?}: {millis} ms: {e:#}"),
    }
    result
}

/// What a shell would say of a command that can't be run.
fn not_run(name: &str, code: i32, why: &str, took: Duration) -> Output {
    let stderr = format!("{}: {why}\n", one_line(name));
    Output::new(code, "", stderr, took)
        .with_timed_out(false)
        .with_truncated(false)
}

impl fmt::Debug for LocalBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBackend")
            .field("isolation", &self.isolation)
            .finish_non_exhaustive()
    }
}

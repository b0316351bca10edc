//! Settings of the local backend.

use std::path::PathBuf;
use std::sync::Arc;

use super::backend::LocalBackend;
#[cfg(target_os = "linux")]
use super::confined::ConfinedTier;
#[cfg(not(target_os = "linux"))]
use super::errors::unsupported;
use super::isolation::Isolation;
use super::options::SandboxOptions;
use super::plain::PlainTier;
use super::state_dir::default_state_dir;
use super::tier::SandboxTier;
use crate::error::Result;

/// Settings of a [`LocalBackend`].
///
/// ```
/// use noxrunner::{Isolation, LocalBackend};
///
/// let plain = LocalBackend::builder().isolation(Isolation::None).build()?;
/// assert_eq!(plain.isolation(), Isolation::None);
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct LocalBackendBuilder {
    isolation: Isolation,
    persistent: bool,
    state_dir: Option<PathBuf>,
    options: SandboxOptions,
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

    /// Returns the default settings, to be changed and [built](LocalBackendBuilder::build).
    pub fn builder() -> LocalBackendBuilder {
        LocalBackendBuilder::default()
    }
}

impl LocalBackendBuilder {
    /// Sets the isolation tier that commands run in. The backend never falls back to a weaker tier.
    /// Defaults to [`Isolation::Namespaces`].
    pub fn isolation(mut self, isolation: Isolation) -> LocalBackendBuilder {
        self.isolation = isolation;
        self
    }

    /// Sets whether sandboxes outlive the process that created them. Persistent sandboxes end with
    /// their TTL or when they are deleted, and all processes of this user can use them by id.
    /// Sandboxes of [`Isolation::None`] are always persistent. Defaults to false.
    ///
    /// ```
    /// use noxrunner::{Client, LocalBackend, SandboxSpec};
    ///
    /// # let dir = tempfile::tempdir().unwrap();
    /// let persistent = LocalBackend::builder().persistent(true);
    /// # let persistent = persistent.state_dir(dir.path());
    /// let first = Client::with_backend(persistent.clone().build()?);
    /// first.create("notes", SandboxSpec::new())?.write("note", "hi")?;
    /// // This could be another process:
    /// let second = Client::with_backend(persistent.build()?);
    /// assert_eq!(second.sandbox("notes")?.read("note")?, b"hi");
    /// assert!(second.sandbox("notes")?.delete()?);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn persistent(mut self, persistent: bool) -> LocalBackendBuilder {
        self.persistent = persistent;
        self
    }

    /// Sets the directory for persistent sandboxes and for files that do not fit in memory. It must
    /// belong to this user and not be writable by others. It is created if it does not exist, with
    /// mode 0700 for everything below it.
    ///
    /// Defaults to `noxrunner` in `$XDG_STATE_HOME` or `~/.local/state`. For root without
    /// namespaces it defaults to `/var/lib/noxrunner`, because those sandboxes run as another user,
    /// who must be able to reach it.
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> LocalBackendBuilder {
        self.state_dir = Some(dir.into());
        self
    }

    /// Sets whether memory and CPU limits are enforced by the cgroup v2 that is delegated to this process,
    /// as with `systemd-run --user --scope -p Delegate=yes`. This process must be alone in that cgroup. It
    /// moves to the child cgroup `noxrunner-host`, and each sandbox gets a cgroup beside that.
    ///
    /// Defaults to false. As root, sandboxes get cgroups without this, and this process is not moved. If
    /// there is no cgroup, a watcher enforces the memory limit; see
    /// [`LocalBackend::limits`](LocalBackend#limits). [Persistent](Self::persistent) sandboxes are refused,
    /// because their cgroups would not be removed.
    pub fn delegated_cgroup(mut self, delegated: bool) -> LocalBackendBuilder {
        self.options.delegated_cgroup = delegated;
        self
    }

    /// Shows a file or directory of the host in all sandboxes, read-only and at the same path. Can be
    /// called several times. Defaults to none.
    ///
    /// Commands can read what their user may read, and connect to sockets and write to FIFOs below the
    /// path. As root, that is what everyone may read. Paths above or below the sandbox's own directories
    /// such as `/workspace`, `/tmp` and `/etc` are refused. [`Isolation::None`] shows all paths anyway.
    ///
    /// ```no_run
    /// use noxrunner::{Client, Command, LocalBackend, SandboxSpec};
    ///
    /// let backend = LocalBackend::builder()
    ///     .read_only("/home/me/.cargo")
    ///     .read_only("/home/me/.rustup")
    ///     .env("PATH", "/home/me/.cargo/bin:/usr/bin:/bin")
    ///     .env("RUSTUP_HOME", "/home/me/.rustup")
    ///     .env("CARGO_HOME", "/tmp/cargo");
    /// let sandbox = Client::with_backend(backend.build()?).create("build", SandboxSpec::new())?;
    /// sandbox.upload_dir("./project", "/workspace")?;
    /// sandbox.run(["cargo", "build", "--offline"])?;
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn read_only(mut self, path: impl Into<PathBuf>) -> LocalBackendBuilder {
        self.options.read_only.push(path.into());
        self
    }

    /// Sets whether sandboxes use the host's network. Commands then reach everything that the host
    /// reaches: the internet, the local network, services on the host's `localhost`, and a cloud's
    /// metadata service. Before Linux 6.12 they also reach the host's abstract Unix sockets. They get
    /// the host's `/etc/hosts` and `/etc/resolv.conf`. [`Isolation::None`] always uses the host's
    /// network. Defaults to false.
    pub fn network(mut self, network: bool) -> LocalBackendBuilder {
        self.options.network = network;
        self
    }

    /// Sets an environment variable of all commands. A command's own variables take precedence. Nothing
    /// else of this process's environment is passed on, except `LANG`, `LC_ALL`, `LC_CTYPE` and `TZ`.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> LocalBackendBuilder {
        self.options.env.insert(name.into(), value.into());
        self
    }

    /// Creates the backend. Unless sandboxes are persistent, this starts and removes one sandbox to
    /// check that the tier works on this machine.
    ///
    /// # Errors
    ///
    /// - [`Isolation`](crate::ErrorKind::Isolation) if this machine does not support the tier. The
    ///   message names the failed step, its probable cause and the alternatives.
    /// - [`Io`](crate::ErrorKind::Io) if the state directory cannot be created, belongs to another
    ///   user or is accessible to others.
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput) if a read-only path is relative, does not exist
    ///   or would hide a directory of the sandbox, or an environment variable is not valid.
    /// - [`Unsupported`](crate::ErrorKind::Unsupported) if this platform or build has no isolation.
    pub fn build(self) -> Result<LocalBackend> {
        let isolation = self.isolation;
        self.options.check()?;
        let tier: Arc<dyn SandboxTier> = match isolation {
            Isolation::None => {
                let state_dir = self.state_dir.map_or_else(default_state_dir, Ok)?;
                Arc::new(PlainTier::open(&state_dir, self.options.env)?)
            }
            #[cfg(target_os = "linux")]
            Isolation::Namespaces | Isolation::Landlock => Arc::new(ConfinedTier::open(
                isolation,
                self.state_dir,
                self.persistent,
                self.options,
            )?),
            #[cfg(not(target_os = "linux"))]
            Isolation::Namespaces | Isolation::Landlock => {
                return Err(unsupported("isolated sandboxes require Linux"));
            }
        };
        Ok(LocalBackend { tier, isolation })
    }
}

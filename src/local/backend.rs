//! The local backend: argument checks, logging and cancellation, the same for every tier.

use std::fmt;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::exit_code::KILLED;
use super::isolation::Isolation;
use super::limits::Limits;
use super::tier::SandboxTier;
use crate::backend::{Backend, Sink, logged, pass_on};
use crate::cancel::Cancel;
use crate::chunk::Chunk;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::os::{self, Stat};
use crate::output::Output;
use crate::sandbox_path::SandboxPath;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};
use crate::upload::Upload;

/// Interval of the checks that the sandbox of a download still exists.
const EXISTENCE_INTERVAL: Duration = Duration::from_millis(250);

/// Sandboxes on this machine. Requires no server, daemon, root rights, image or setup.
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
///
/// # Sandboxes
///
/// - **Files.** `/workspace` is the working directory and starts empty. `/workspace`, `/tmp` and
///   background processes persist between execs until the sandbox ends, as in a pod.
/// - **Programs.** `/usr` and the other program directories are the host's, read-only. So are the
///   entries of `/etc` that belong to root and that everyone can read, except those that identify or
///   authenticate the machine: users, host names, networks, disks, `environment`, and the settings of
///   SSH, package managers, containers and VPNs. `passwd`, `group`, `hosts`, `hostname`,
///   `resolv.conf` and `nsswitch.conf` are generated.
///   `/sys` contains only the processors and memory nodes.
///   The image of a spec is ignored and listed in [`SandboxInfo::ignored`].
/// - **User.** Commands run as user `sandbox` (1000) without capabilities. They have no terminal, but can
///   create up to 64 pseudo-terminals.
/// - **Stdin** is empty, or a pipe to which [`Command::stdin`] is written while the command runs.
/// - **Debuggers.** Processes of a sandbox can trace and read each other, but not the holder and the
///   supervisors, which start the commands.
/// - **Environment.** Commands get `PATH`, `HOME`, `TMPDIR`, `USER`, `LOGNAME` and `NOX_WORKSPACE`;
///   the variables `LANG`, `LC_ALL`, `LC_CTYPE` and `TZ` of this process; and their own variables.
/// - **Network.** Each sandbox has a private loopback interface and no other network.
/// - **Options.** [`read_only`](crate::LocalBackendBuilder::read_only),
///   [`network`](crate::LocalBackendBuilder::network) and [`env`](crate::LocalBackendBuilder::env) open
///   sandboxes further. A sandbox keeps the options that it was created with.
/// - **Output.** Each stream is kept up to 1 MiB, and passed on without a limit by
///   [`exec_live`](crate::Sandbox::exec_live).
/// - **Timeout.** A command that exceeds its timeout is killed together with all processes that it
///   started, and exits with 124. Background processes of earlier commands keep running.
/// - **Supervisor.** A command can kill its supervisor. All processes of the sandbox are then
///   killed and the exit code is 137. Files are kept.
/// - **Lifetime.** A sandbox ends with its TTL, with the process that created it, or when the
///   backend is dropped. Only that backend can find it by id.
///   [Persistent](crate::LocalBackendBuilder::persistent) sandboxes end with their TTL or when they
///   are deleted.
///
/// # Limits
///
/// [`limits`](LocalBackend::limits) returns the limits of a spec and how strictly they are
/// enforced.
///
/// | limit | default | enforcement |
/// | --- | --- | --- |
/// | memory | 1 GiB, at most half of the machine's | all processes and in-memory files together, watched |
/// | storage | 512 MiB, at most half of the memory limit | all files in `/workspace` and `/tmp` |
/// | CPU | none | rounded up to whole CPUs |
/// | processes | 512 | exact |
/// | open files | 1024 per process | exact |
///
/// - **Watched memory.** What is used counts, not what is reserved: private memory, swap and page
///   tables of all processes, shared memory, files in memory and System V objects, each once. The
///   sandbox's holder process checks it up to a hundred times a second. A sandbox can exceed the
///   limit for some milliseconds before its largest processes are killed;
///   [`Output::killed_by`](crate::Output::killed_by) reports that. Not counted: buffers of sockets
///   and pipes, and shared memory without a file that is unmapped in small pieces.
/// - **Storage** is in memory. If the spec asks for more than half of the memory limit or an eighth
///   of the free memory, the files are in the state directory instead. They are counted before each
///   exec and each upload and while commands write, including files without a name that are still
///   open or mapped. A sandbox that exceeds the limit has its processes killed; commands that only
///   remove files still work. Files without a name cannot be seen if their process is not dumpable,
///   or if their descriptors are in the queue of a socket. Their size is estimated from the free
///   space of the file system, so files that other programs write may get such a process killed.
/// - **Exact limits.** With a cgroup v2, memory and CPU limits are exact: as root each sandbox gets its
///   own, where the machine has the `memory` controller; other users ask for it with
///   [`delegated_cgroup`](crate::LocalBackendBuilder::delegated_cgroup). Persistent sandboxes have
///   none. A cgroup does not count the files that this process uploads.
/// - **CPU time.** Without a cgroup or a CPU limit, the 512 processes of a sandbox can take all CPU
///   time of the machine. Set a CPU limit if that matters.
///
/// # Security
///
/// A sandbox protects against mistakes and casual attacks: commands cannot reach the host's files,
/// processes, sockets, keys or devices. It is not a boundary for hostile multi-tenant code, because
/// all sandboxes share the host's kernel. Its known limits:
///
/// - Commands can see world-readable files in `/usr` and `/etc`, the kernel version and the system load.
///   `/proc/self/mountinfo` shows where the host's directories are mounted.
/// - Files in `/usr` that belong to this user are readable even if nobody else can read them, except
///   for root's sandboxes. Named Unix sockets in `/usr` can be connected to, with this user's id.
/// - Commands can watch `/usr` with inotify, which shows the programs that the host starts, and can lock
///   its files with `flock`. A sandbox has 16 inotify instances and 8192 watches.
/// - A crash can start the host's handler of core dumps, if it is a program (`kernel.core_pattern`).
/// - 32-bit programs are killed, and stderr says so. Calls for asynchronous I/O contexts, huge pages,
///   io_uring, BPF, keyrings and sockets other than TCP, UDP, ICMP and Unix fail. So does
///   `memfd_create` without a cgroup, which must count the memory.
///
/// # Without namespaces
///
/// [`Isolation::Landlock`] is for machines that do not allow user namespaces, for example because
/// of Docker's default profile or AppArmor. It differs as follows:
///
/// - `/workspace` and `/tmp` are directories of this machine, below the state directory (as root,
///   below `/var/lib/noxrunner`). `workdir`, `dest` and `src` accept them as `/workspace` and
///   `/tmp`; commands find them in `$NOX_WORKSPACE` and `$TMPDIR`. Nothing else can be written.
///   Only programs, their settings and `/proc` can be read.
/// - Commands can use connected pairs of sockets, but no other sockets and no System V or POSIX
///   shared memory.
/// - The host's processes and their arguments are visible, but cannot be inspected or signalled.
///   Debuggers and tracers do not work, and there are no pseudo-terminals.
/// - Commands run as this user; as root, under an otherwise unused user id. Landlock does not
///   restrict `stat`, `chmod`, `chown` and similar calls: commands can check whether this user's
///   files exist, and change their mode. The next backend restores the mode of the state directory.
///   inotify and extended attributes are not available.
/// - Memory and storage are watched. The process limit counts all processes of this user, except as
///   root.
/// - A command can kill or stop the holder. That ends the whole sandbox.
///
/// # Without isolation
///
/// [`Isolation::None`] **provides no protection**: a sandbox is a directory, and commands are plain
/// processes of this user.
///
/// - All processes of this user can use a sandbox until its TTL expires or it is deleted.
/// - `/workspace` and `/tmp` in `workdir`, `dest` and `src` are directories of the sandbox.
///   Arguments are passed unchanged: use relative paths, or `$NOX_WORKSPACE` in a shell.
/// - A command that exceeds its timeout is killed with its process group, on Linux with all
///   processes that it started. If this process is killed while a command runs, the command's
///   timeout is not enforced; the command ends with the sandbox.
/// - The limits of the spec are ignored and listed in [`SandboxInfo::ignored`].
/// - Calls to an expired sandbox fail with [`NotFound`](ErrorKind::NotFound). The next creation of
///   any sandbox removes its files.
pub struct LocalBackend {
    pub(super) tier: Arc<dyn SandboxTier>,
    pub(super) isolation: Isolation,
}

impl LocalBackend {
    /// Creates the backend of the agent in a container.
    #[cfg(all(feature = "agent", target_os = "linux"))]
    pub(crate) fn in_container(tier: Arc<super::container::ContainerTier>) -> LocalBackend {
        let isolation = Isolation::None;
        LocalBackend { tier, isolation }
    }

    /// Returns the isolation tier that commands run in.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Returns the limits of a sandbox with this spec, and how strictly they are enforced here.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if a limit is not in Kubernetes notation.
    ///
    /// # Example
    ///
    /// ```
    /// use noxrunner::{Enforced, LocalBackend, SandboxSpec};
    ///
    /// let backend = LocalBackend::builder().build()?;
    /// let limits = backend.limits(&SandboxSpec::new().memory("256Mi"))?;
    /// assert_eq!(limits.memory().amount(), Some(256 << 20));
    /// assert_ne!(limits.memory().enforced(), Enforced::No);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn limits(&self, spec: &SandboxSpec) -> Result<Limits> {
        spec.check()?;
        self.tier.limits(spec)
    }

    /// Returns the optional protections that sandboxes lack on this machine: `landlock` if the kernel
    /// does not have it (before 5.19), `proc` if it cannot be mounted (in a container that masks parts
    /// of its own `/proc`).
    ///
    /// # Errors
    ///
    /// The error of creating a sandbox, if one had to be created to find out.
    pub fn missing(&self) -> Result<Vec<&'static str>> {
        self.tier.missing()
    }

    fn run<'a>(
        &self,
        id: &SessionId,
        command: &Command,
        sink: Option<&'a mut Sink<'a>>,
    ) -> Result<Output> {
        command.check()?;
        command.check_no_files(true)?;
        let is_cancelled = || command.get_cancel().is_some_and(Cancel::is_cancelled);
        let cancelled = || Error::new(ErrorKind::Cancelled, "cancelled");
        logged("local", "exec", id, || {
            if is_cancelled() {
                return Err(cancelled());
            }
            let out = self.tier.exec(id, command, sink)?;
            if out.exit_code() == KILLED && !out.timed_out() && is_cancelled() {
                return Err(cancelled().with_output(out));
            }
            Ok(out)
        })
    }
}

impl Backend for LocalBackend {
    fn health(&self) -> Result<()> {
        self.tier.health()
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        spec.check()?;
        logged("local", "create", id, || self.tier.create(id, spec))
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        logged("local", "touch", id, || self.tier.touch(id))
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        self.run(id, command, None)
    }

    fn exec_live(
        &self,
        id: &SessionId,
        command: &Command,
        sink: &mut dyn FnMut(Chunk<'_>) -> Result<()>,
    ) -> Result<Output> {
        let out = self.run(id, command, Some(&mut *sink))?;
        pass_on(out, sink)
    }

    fn streams_stdin(&self) -> bool {
        true
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        let dest = SandboxPath::new("dest", dest)?;
        let dest = dest.as_text()?;
        logged("local", "upload", id, || {
            self.tier.upload(id, dest, archive)
        })
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        let src = SandboxPath::new("src", src)?;
        let src = src.as_text()?;
        logged("local", "download", id, || {
            let files = self.tier.files(id)?;
            let root = os::stat_fd(files.root.as_fd())
                .map_err(|e| Error::io("cannot read the metadata of the sandbox", e))?;
            let check = check_existence(Arc::downgrade(&self.tier), id.clone(), root);
            let archive = files.download(src, Box::new(check))?;
            Ok(Box::new(archive) as Box<dyn Read + Send>)
        })
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        logged("local", "delete", id, || self.tier.delete(id))
    }
}

/// Returns a check that fails once the sandbox with this root no longer exists.
fn check_existence(
    tier: Weak<dyn SandboxTier>,
    id: SessionId,
    root: Stat,
) -> impl FnMut() -> Result<()> + Send {
    let mut checked = Instant::now();
    move || {
        if checked.elapsed() < EXISTENCE_INTERVAL {
            return Ok(());
        }
        checked = Instant::now();
        // The backend was dropped, so this cannot be checked. The files are still open.
        let Some(tier) = tier.upgrade() else {
            return Ok(());
        };
        let is_same = match tier.files(&id) {
            Ok(files) => os::stat_fd(files.root.as_fd())
                .is_ok_and(|now| (now.device, now.inode) == (root.device, root.inode)),
            Err(e) => !e.is_not_found(),
        };
        if is_same {
            return Ok(());
        }
        let message = "the sandbox was deleted or has expired";
        Err(Error::new(ErrorKind::NotFound, message))
    }
}

impl fmt::Debug for LocalBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBackend")
            .field("isolation", &self.isolation)
            .finish_non_exhaustive()
    }
}

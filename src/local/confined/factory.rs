//! Creates sandboxes: chooses limits, rules and user, and starts the holder with them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use super::cgroup::{Cgroup, DelegatedCgroup};
use super::disk_dir::{DiskDir, FILES, create_dir};
use super::etc::{HostEtc, change_times};
use super::identity;
use super::launch::start_holder;
use super::policy::{self, HostAccess};
use super::protocol::{Features, Setup, SetupFds, Step};
use super::sandbox::{ConfinedSandbox, Resources};
use super::seccomp;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::local::errors::{setup_failed, unsupported};
use crate::local::isolation::Isolation;
use crate::local::limits::{OPEN_FILES, PROCESSES, RequestedLimits, ResolvedLimits};
use crate::local::millis::millis;
use crate::local::options::SandboxOptions;
use crate::local::state_dir::{Access, default_state_dir};
use crate::local::sys;
use crate::os;
use crate::os::random::random_u64;
use crate::spec::SandboxSpec;

/// First Landlock version that can restrict signals.
const LANDLOCK_SIGNALS: u32 = 6;

/// First Landlock version that allows renames between directories.
const LANDLOCK_RENAMES: u32 = 2;

pub(super) struct SandboxFactory {
    pub(super) isolation: Isolation,
    access: HostAccess,
    /// Environment variables of all commands.
    env: BTreeMap<String, String>,
    root: Mutex<Option<Arc<Root>>>,
    /// The seccomp filters that deny and that allow changes to the CPU affinity, in this order.
    filters: [OnceLock<Vec<u8>>; 2],
    /// Result of the trial sandbox.
    features: OnceLock<Features>,
    /// Directory for files that are not in memory. `None` for the default.
    state_dir: Option<PathBuf>,
    /// Not used for persistent sandboxes: only this process could remove their cgroups.
    pub(super) cgroups: Option<DelegatedCgroup>,
}

/// The parts of the host that commands can access.
struct Root {
    /// The change times of `/etc` before the scan.
    changed: Vec<Option<SystemTime>>,
    etc: HostEtc,
    /// The steps that create a private root.
    steps: Vec<Step>,
    /// The shared paths that only root can reach.
    staged: Vec<String>,
}

/// The event that ends a sandbox, besides its TTL.
pub(super) enum Lifetime<'a> {
    /// The end of this process.
    Process,
    /// A deletion. All processes of this user reach the sandbox by the socket in its directory.
    Persistent { listener: OwnedFd, dir: &'a Path },
}

impl SandboxFactory {
    pub(super) fn new(
        isolation: Isolation,
        state_dir: Option<PathBuf>,
        persistent: bool,
        options: SandboxOptions,
    ) -> Result<SandboxFactory> {
        if !cfg!(noxrunner_holder) {
            return Err(unsupported(
                "this build does not include the holder of local sandboxes",
            ));
        }
        let access = HostAccess {
            paths: options.shared_paths()?,
            network: options.network,
        };
        let factory = SandboxFactory {
            isolation,
            access,
            env: options.env,
            root: Mutex::default(),
            filters: Default::default(),
            features: OnceLock::new(),
            state_dir,
            cgroups: choose_cgroup(isolation, persistent, options.delegated_cgroup)?,
        };
        factory.check_paths()?;
        Ok(factory)
    }

    /// Checks that sandboxes without namespaces can reach the shared paths.
    fn check_paths(&self) -> Result<()> {
        let unreachable = self.access.unreachable(runs_as_other_user());
        match unreachable.first() {
            Some(path) if !self.has_namespaces() => Err(Error::invalid(format!(
                "read-only path {} is in a directory that is not searchable by other users, and sandboxes without namespaces run as another user",
                path.path
            ))),
            _ => Ok(()),
        }
    }

    fn has_namespaces(&self) -> bool {
        self.isolation == Isolation::Namespaces
    }

    /// Returns true if the process limit counts only the processes of the sandbox.
    pub(super) fn counts_own_processes(&self) -> bool {
        self.has_namespaces() || self.access() == Access::Search
    }

    /// Returns the access to the state directory that sandboxes need. Without namespaces, commands of
    /// root run as another user, who must be able to open their files by path.
    pub(super) fn access(&self) -> Access {
        if !self.has_namespaces() && os::effective_uid() == 0 {
            Access::Search
        } else {
            Access::None
        }
    }

    pub(super) fn state_dir(&self) -> Result<PathBuf> {
        match (&self.state_dir, self.access()) {
            (Some(dir), _) => Ok(dir.clone()),
            (None, Access::None) => default_state_dir(),
            // Other users cannot search root's home directory.
            (None, Access::Search) => Ok(PathBuf::from("/var/lib/noxrunner")),
        }
    }

    pub(super) fn resolve_limits(&self, spec: &SandboxSpec) -> Result<ResolvedLimits> {
        let limits = ResolvedLimits::new(spec)?;
        let on_disk = limits.on_disk || !self.has_namespaces();
        Ok(ResolvedLimits { on_disk, ..limits })
    }

    /// Returns which optional features this machine has. Creates a trial sandbox the first time.
    pub(super) fn features(&self) -> Result<Features> {
        if let Some(features) = self.features.get() {
            return Ok(*features);
        }
        let trial = self.create(&SandboxSpec::new(), Lifetime::Process)?;
        let ran = trial.exec(&Command::from(["true"]), None);
        trial.end();
        let ran = ran?;
        if !ran.success() {
            let text = format!("cannot run a program in a sandbox: true: {}", ran.stderr());
            return Err(Error::new(ErrorKind::Isolation, text.trim_end()));
        }
        Ok(*self.features.get_or_init(|| trial.features))
    }

    pub(super) fn create(
        &self,
        spec: &SandboxSpec,
        lifetime: Lifetime<'_>,
    ) -> Result<ConfinedSandbox> {
        let limits = self.resolve_limits(spec)?;
        let mut setup = self.setup(&limits, spec.get_ttl());
        setup.become_id = identity::choose_user()
            .map_err(|step| self.failed(step, io::Error::from_raw_os_error(libc::EPERM)))?;
        let mut fds = SetupFds::default();
        let mut host_dir = None;
        let mut disk = None;
        if limits.on_disk {
            let (path, fd) = match lifetime {
                Lifetime::Process => {
                    let state_dir = self.state_dir()?;
                    let new = DiskDir::create(&state_dir, self.access(), setup.become_id)?;
                    let new = disk.insert(new);
                    (new.path.clone(), new.try_clone_fd()?)
                }
                Lifetime::Persistent { dir, .. } => {
                    let path = dir.join(FILES);
                    let fd = create_dir(&path, setup.become_id)?;
                    (path, fd)
                }
            };
            fds.files_dir = Some(fd);
            host_dir = Some(path).filter(|_| !self.has_namespaces());
        }
        self.add_policy(&mut setup, host_dir.as_deref())?;
        match lifetime {
            Lifetime::Process => {
                setup.bound_to_host = true;
                let this = os::pidfd_open(std::process::id());
                fds.host = Some(this.map_err(|e| self.failed("open a pidfd (Linux 5.3)", e))?);
            }
            Lifetime::Persistent { listener, .. } => {
                setup.listens = true;
                fds.listener = Some(listener);
            }
        }
        let resources = Resources {
            disk,
            cgroup: self.create_cgroup(&limits)?,
        };
        let sandbox = start_holder(self.isolation, &setup, &fds, resources, host_dir)?;
        Ok(ConfinedSandbox {
            limits: RequestedLimits::new(spec),
            env: self.env.clone(),
            ..sandbox
        })
    }

    fn setup(&self, limits: &ResolvedLimits, ttl: Duration) -> Setup {
        let usable = sys::usable_cpus();
        let whole_cpus = limits.cpu_millis.filter(|_| self.cgroups.is_none());
        let cpus = whole_cpus.map(|millis| choose_cpus(&usable, millis));
        let cpus = cpus.unwrap_or_default();
        let commands_use = if cpus.is_empty() { &usable } else { &cpus };
        // A tmpfs block is a page. Each file takes one, plus about a quarter of a page that the
        // storage limit does not count.
        let inodes = (limits.storage / 4096).max(1024);
        Setup {
            own_namespaces: self.has_namespaces(),
            host_network: self.access.network,
            ttl_millis: millis(ttl),
            hostname: "sandbox".to_owned(),
            data_options: format!("size={},nr_inodes={inodes},mode=755", limits.storage),
            filter: self.filter(cpus.is_empty()).clone(),
            rlimits: rlimits(limits),
            max_processes: PROCESSES + self.counted_processes(),
            cpu_count: commands_use.len() as u64,
            cpus,
            watched_memory: self.cgroups.is_none().then_some(limits.memory),
            watched_storage: limits.on_disk.then_some(limits.storage),
            on_disk: limits.on_disk,
            ..Setup::default()
        }
    }

    /// Returns the seccomp filter. `affinity` allows changes to the CPU affinity.
    fn filter(&self, affinity: bool) -> &Vec<u8> {
        self.filters[usize::from(affinity)].get_or_init(|| {
            seccomp::program(&seccomp::Options {
                own_namespaces: self.has_namespaces(),
                network: self.access.network,
                memory_files: self.cgroups.is_some(),
                affinity,
            })
        })
    }

    /// Adds the root and the Landlock rules. `host_dir` is the files' directory if commands see it at
    /// its path on the host.
    fn add_policy(&self, setup: &mut Setup, host_dir: Option<&Path>) -> Result<()> {
        let root = self.root().map_err(|e| self.failed("list /etc", e))?;
        let Some(host_dir) = host_dir else {
            setup.steps = root.steps.clone();
            setup.staged = root.staged.clone();
            setup.rules = policy::rules();
            return Ok(());
        };
        setup.rules = policy::rules_at(host_dir, &root.etc, &self.access);
        // Sandboxes of root have an unused user id, so that they cannot signal other processes anyway.
        setup.min_landlock = if setup.become_id.is_some() {
            LANDLOCK_RENAMES
        } else {
            LANDLOCK_SIGNALS
        };
        Ok(())
    }

    /// Returns the root of new sandboxes. Scans `/etc` the first time and after changes to it.
    fn root(&self) -> io::Result<Arc<Root>> {
        let changed = change_times();
        let mut root = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        match &*root {
            Some(root) if root.changed == changed => Ok(Arc::clone(root)),
            _ => {
                let etc = HostEtc::scan()?;
                let staged = self.access.unreachable(runs_as_other_user());
                let steps = policy::root_steps(
                    "size=64m,nr_inodes=4k,mode=1777",
                    &etc,
                    &self.access,
                    &staged,
                );
                let scanned = Root {
                    changed,
                    etc,
                    steps,
                    staged: staged
                        .iter()
                        .map(|path| path.target.to_string_lossy().into_owned())
                        .collect(),
                };
                Ok(Arc::clone(root.insert(Arc::new(scanned))))
            }
        }
    }

    fn create_cgroup(&self, limits: &ResolvedLimits) -> Result<Option<Cgroup>> {
        self.cgroups
            .as_ref()
            .map(|cgroups| cgroups.create(limits))
            .transpose()
            .map_err(|e| self.failed("create a cgroup", e))
    }

    fn failed(&self, step: &str, error: io::Error) -> Error {
        setup_failed(self.isolation, step, error)
    }

    /// Returns the number of processes outside of the sandbox that count against its limit. The kernel
    /// counts processes per user and namespace.
    fn counted_processes(&self) -> u64 {
        if self.counts_own_processes() {
            0
        } else {
            identity::processes_of_this_user()
        }
    }
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the constants are signed with musl"
)]
fn rlimits(limits: &ResolvedLimits) -> Vec<(u32, u64)> {
    let mut rlimits = vec![
        (libc::RLIMIT_NOFILE as u32, OPEN_FILES),
        (libc::RLIMIT_CORE as u32, 0),
        (libc::RLIMIT_MEMLOCK as u32, 64 * 1024),
        (libc::RLIMIT_SIGPENDING as u32, 1024),
        (libc::RLIMIT_RTPRIO as u32, 0),
        (libc::RLIMIT_NICE as u32, 0),
    ];
    if limits.on_disk {
        rlimits.push((libc::RLIMIT_FSIZE as u32, limits.storage));
    }
    rlimits
}

/// Returns true if sandboxes run as another user than this process.
fn runs_as_other_user() -> bool {
    os::effective_uid() == 0
}

/// Returns the cgroup in which sandboxes get their own, if there is one.
fn choose_cgroup(
    isolation: Isolation,
    persistent: bool,
    delegated: bool,
) -> Result<Option<DelegatedCgroup>> {
    if persistent && delegated {
        let text =
            "persistent sandboxes cannot use delegated_cgroup: their cgroups would not be removed";
        return Err(Error::invalid(text));
    }
    if delegated {
        let own = DelegatedCgroup::of_this_process().map(Some);
        return own.map_err(|e| setup_failed(isolation, "use the delegated cgroup", e));
    }
    if persistent || os::effective_uid() != 0 {
        return Ok(None);
    }
    Ok(DelegatedCgroup::of_root())
}

/// Chooses CPUs for a limit, starting at a random one. Returns an empty list if the limit allows all
/// usable CPUs.
fn choose_cpus(usable: &[u32], millis: u64) -> Vec<u32> {
    let mut cpus = usable.to_vec();
    let count = usize::try_from(millis.div_ceil(1000)).unwrap_or(usize::MAX);
    if count >= cpus.len() {
        return Vec::new();
    }
    let first = random_u64() as usize % cpus.len();
    cpus.rotate_left(first);
    cpus.truncate(count);
    cpus
}

//! Sandboxes that the kernel confines, each held by a process of its own.

mod cgroup;
mod disk;
mod identity;
mod persistent;
mod policy;
#[path = "../holder/protocol.rs"]
#[allow(dead_code, reason = "each side uses its half")]
mod protocol;
mod reaper;
mod registry;
mod sandbox;
mod seccomp;
mod sys;

pub(super) use sys::FileUser;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use self::cgroup::Delegated;
use self::disk::Disk;
use self::persistent::Persistent;
use self::protocol::{Found, Setup, Step};
use self::registry::Registry;
use self::sandbox::{Goods, NotMade, Sandbox};
use super::files::Files;
use super::isolation;
use super::limits::{Amounts, Enforced, Limit, Limits, OPEN_FILES, PROCESSES};
use super::state::Access;
use super::{Isolation, Tier, default_state_dir};
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::output::Output;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};

pub(super) struct Confined {
    maker: Maker,
    kept: Kept,
}

/// Where sandboxes are found by id.
enum Kept {
    /// In this process, which they end with.
    Tied(Registry),
    Persistent(Persistent),
}

impl Confined {
    /// Sandboxes that end with this process. Makes one and runs a program in it: nothing less tells
    /// whether that can be done here.
    pub(super) fn tied(maker: Maker) -> Result<Confined> {
        maker.found()?;
        let kept = Kept::Tied(Registry::new());
        Ok(Confined { maker, kept })
    }

    /// Sandboxes that are kept for other processes. Whether they can be made, the first one tells.
    pub(super) fn persistent(maker: Maker) -> Result<Confined> {
        let kept = Kept::Persistent(Persistent::open(&maker)?);
        Ok(Confined { maker, kept })
    }

    fn find(&self, id: &SessionId) -> Result<Arc<Sandbox>> {
        match &self.kept {
            Kept::Tied(registry) => registry.find(id),
            Kept::Persistent(persistent) => persistent.find(id).map(Arc::new),
        }
    }
}

/// What a sandbox is made with.
pub(super) struct Maker {
    isolation: Isolation,
    root: Vec<Step>,
    found: OnceLock<Found>,
    /// Where files go that are not in memory; None for the usual place.
    state_dir: Option<PathBuf>,
    /// For sandboxes that end with this process: nobody else could remove theirs.
    cgroups: Option<Delegated>,
}

/// What a sandbox ends with, or is reached by.
enum Tie<'a> {
    ThisProcess,
    Directory {
        listener: OwnedFd,
        /// Where it is.
        dir: &'a Path,
    },
}

impl Maker {
    pub(super) fn new(
        isolation: Isolation,
        state_dir: Option<PathBuf>,
        persistent: bool,
    ) -> Result<Maker> {
        if !cfg!(noxrunner_holder) {
            return Err(isolation::unsupported(
                "this build has no holder for local sandboxes",
            ));
        }
        Ok(Maker {
            isolation,
            root: policy::root("size=64m,nr_inodes=4k,mode=1777"),
            found: OnceLock::new(),
            state_dir,
            cgroups: if persistent { None } else { Delegated::find() },
        })
    }

    fn own_namespaces(&self) -> bool {
        self.isolation == Isolation::Namespaces
    }

    /// Commands of root run as somebody else, who must come to the files where they are.
    fn access(&self) -> Access {
        match !self.own_namespaces() && crate::os::effective_uid() == 0 {
            true => Access::Pass,
            false => Access::None,
        }
    }

    fn state_dir(&self) -> Result<PathBuf> {
        match (&self.state_dir, self.access()) {
            (Some(dir), _) => Ok(dir.clone()),
            (None, Access::None) => default_state_dir(),
            // Root's own directory lets nobody pass.
            (None, Access::Pass) => Ok(PathBuf::from("/var/lib/noxrunner")),
        }
    }

    fn amounts(&self, spec: &SandboxSpec) -> Result<Amounts> {
        let amounts = Amounts::of(spec)?;
        let on_disk = amounts.on_disk || !self.own_namespaces();
        Ok(Amounts { on_disk, ..amounts })
    }

    /// What the machine has of that which a sandbox can do without; tried once.
    fn found(&self) -> Result<Found> {
        if let Some(found) = self.found.get() {
            return Ok(*found);
        }
        let trial = self.make(&SandboxSpec::new(), Tie::ThisProcess)?;
        let ran = trial.exec(&Command::from(["true"]));
        trial.end();
        let ran = ran?;
        if !ran.success() {
            let text = format!("cannot run a program in a sandbox: true: {}", ran.stderr());
            return Err(Error::new(ErrorKind::Isolation, text.trim_end()));
        }
        Ok(*self.found.get_or_init(|| trial.found))
    }

    fn setup(&self, amounts: &Amounts, ttl: Duration) -> Setup {
        let whole_cpus = amounts.cpu_millis.filter(|_| self.cgroups.is_none());
        let cpus = whole_cpus.map(choose_cpus).unwrap_or_default();
        let filter = seccomp::program(&seccomp::Options {
            own_namespaces: self.own_namespaces(),
            // The watcher would see such a file only while it is mapped.
            memfd: false,
            affinity: cpus.is_empty(),
        });
        // A block of files in memory is a page. Each file takes one, and about a quarter of
        // another one that is not counted.
        let inodes = (amounts.storage / 4096).max(1024);
        Setup {
            own_namespaces: self.own_namespaces(),
            ttl_millis: millis(ttl),
            hostname: "sandbox".to_owned(),
            data_options: format!("size={},nr_inodes={inodes},mode=755", amounts.storage),
            filter,
            rlimits: self.rlimits(amounts),
            cpus,
            watched_memory: self.cgroups.is_none().then_some(amounts.memory),
            watched_storage: amounts.on_disk.then_some(amounts.storage),
            on_disk: amounts.on_disk,
            ..Setup::default()
        }
    }

    fn make(&self, spec: &SandboxSpec, tie: Tie<'_>) -> Result<Sandbox> {
        let amounts = self.amounts(spec)?;
        let mut setup = self.setup(&amounts, spec.get_ttl());
        setup.become_id = identity::choose()
            .map_err(|why| self.refused(why, io::Error::from_raw_os_error(libc::EPERM)))?;
        let mut fds = Vec::new();
        let mut disk = None;
        let mut files = None;
        if amounts.on_disk {
            fds.push(match &tie {
                Tie::ThisProcess => {
                    let state_dir = self.state_dir()?;
                    let own = Disk::make(&state_dir, self.access(), setup.become_id)?;
                    let dir = own.dir()?;
                    files = Some(own.path().to_owned());
                    disk = Some(own);
                    dir
                }
                Tie::Directory { dir, .. } => {
                    // Goes with the directory.
                    let path = dir.join(persistent::FILES);
                    let dir = disk::make_dir(&path, setup.become_id)?;
                    files = Some(path);
                    dir
                }
            });
        }
        let place = files.filter(|_| !self.own_namespaces());
        match &place {
            None => {
                setup.steps = self.root.clone();
                setup.rules = policy::rules();
            }
            Some(place) => {
                setup.rules = policy::rules_at(place);
                // The first with signals; nobody has the id that root's sandboxes get.
                setup.least_landlock = if setup.become_id.is_some() { 2 } else { 6 };
            }
        }
        fds.push(match tie {
            Tie::ThisProcess => {
                setup.tied = true;
                let this = crate::os::pidfd_open(std::process::id());
                this.ok_or_else(|| isolation::unsupported("this kernel has no pidfds (Linux 5.3)"))?
            }
            Tie::Directory { listener, .. } => {
                setup.listens = true;
                listener
            }
        });
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let cgroup = self.cgroups.as_ref().map(|cgroups| cgroups.make(&amounts));
        let cgroup = cgroup
            .transpose()
            .map_err(|e| self.refused("make a cgroup", e))?;
        let goods = Goods { disk, cgroup };
        Sandbox::start(&setup, &fds, place, goods)
            .map_err(|NotMade { step, error }| self.refused(&step, error))
    }

    fn refused(&self, step: &str, error: io::Error) -> Error {
        isolation::refused(self.isolation, step, error)
    }

    #[allow(clippy::unnecessary_cast, reason = "the numbers are signed with musl")]
    fn rlimits(&self, amounts: &Amounts) -> Vec<(u32, u64)> {
        // Counted per user and namespace, and so those that are there already count as well.
        let others = match self.own_namespaces() || self.access() == Access::Pass {
            true => 0,
            false => identity::processes_of_this_user(),
        };
        let mut limits = vec![
            (libc::RLIMIT_DATA as u32, amounts.memory),
            (libc::RLIMIT_NPROC as u32, PROCESSES + others),
            (libc::RLIMIT_NOFILE as u32, OPEN_FILES),
            (libc::RLIMIT_CORE as u32, 0),
            (libc::RLIMIT_MEMLOCK as u32, 64 * 1024),
            (libc::RLIMIT_SIGPENDING as u32, 1024),
            (libc::RLIMIT_RTPRIO as u32, 0),
            (libc::RLIMIT_NICE as u32, 0),
        ];
        if amounts.on_disk {
            limits.push((libc::RLIMIT_FSIZE as u32, amounts.storage));
        }
        limits
    }
}

/// As many CPUs as it takes, of those that this process may use; not always the same ones. All
/// where that is all of them.
fn choose_cpus(millis: u64) -> Vec<u32> {
    let mut cpus = sys::usable_cpus();
    let count = usize::try_from(millis.div_ceil(1000)).unwrap_or(usize::MAX);
    if count >= cpus.len() {
        return Vec::new();
    }
    let first = crate::os::random::random_u64() as usize % cpus.len();
    cpus.rotate_left(first);
    cpus.truncate(count);
    cpus
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Tier for Confined {
    fn health(&self) -> Result<()> {
        match &self.kept {
            Kept::Tied(_) => Ok(()),
            Kept::Persistent(persistent) => persistent.check(),
        }
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        let ttl = spec.get_ttl();
        match &self.kept {
            Kept::Tied(registry) => {
                let make = || self.maker.make(spec, Tie::ThisProcess);
                let (sandbox, is_new) = registry.find_or_make(id, make)?;
                if !is_new {
                    sandbox.touch(Some(ttl))?;
                }
            }
            Kept::Persistent(persistent) => persistent.create(id, spec, &self.maker)?,
        }
        let info = SandboxInfo::expiring(format!("local-{id}"), SystemTime::now() + ttl);
        let ignored = spec.get_image().map(|_| "image".to_owned());
        Ok(info.with_ignored(ignored.into_iter().collect()))
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        self.find(id)?.touch(None)
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        self.find(id)?.exec(command)
    }

    fn files(&self, id: &SessionId) -> Result<Files> {
        self.find(id)?.files()
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        match &self.kept {
            Kept::Tied(registry) => registry.delete(id),
            Kept::Persistent(persistent) => persistent.delete(id),
        }
    }

    fn limits(&self, spec: &SandboxSpec) -> Result<Limits> {
        let amounts = self.maker.amounts(spec)?;
        let by_cgroup = match self.maker.cgroups {
            Some(_) => Enforced::Exact,
            None => Enforced::Approximate,
        };
        let cpu_millis = amounts
            .cpu_millis
            .map_or(Limit::NONE, |millis| Limit::new(millis, by_cgroup));
        Ok(Limits {
            cpu_millis,
            memory: Limit::new(amounts.memory, by_cgroup),
            storage: Limit::new(
                amounts.storage,
                match amounts.on_disk {
                    true => Enforced::Approximate,
                    false => Enforced::Exact,
                },
            ),
            processes: Limit::new(
                PROCESSES,
                match self.maker.own_namespaces() || self.maker.access() == Access::Pass {
                    true => Enforced::Exact,
                    false => Enforced::Approximate,
                },
            ),
            open_files: Limit::new(OPEN_FILES, Enforced::Exact),
        })
    }

    fn missing(&self) -> Result<Vec<&'static str>> {
        let found = self.maker.found()?;
        let parts = [
            ("landlock", found.landlock > 0),
            ("proc", found.proc_mounted),
        ];
        let missing = parts.iter().filter(|(_, there)| !there);
        Ok(missing.map(|(name, _)| *name).collect())
    }
}

//! Sandboxes in namespaces of their own, each held by a process of its own.

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

use self::disk::Disk;
use self::persistent::Persistent;
use self::protocol::{Found, Setup, Step};
use self::registry::Registry;
use self::sandbox::{NotMade, Sandbox};
use super::Tier;
use super::default_state_dir;
use super::files::Files;
use super::isolation;
use super::limits::{Amounts, Enforced, Limit, Limits, OPEN_FILES, PROCESSES};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::{Command, Output};
use crate::sandboxes::{SandboxInfo, SandboxSpec, SessionId};

pub(super) struct Namespaces {
    maker: Maker,
    kept: Kept,
}

/// Where sandboxes are found by id.
enum Kept {
    /// In this process, which they end with.
    Tied(Registry),
    Persistent(Persistent),
}

impl Namespaces {
    /// Sandboxes that end with this process. Makes one and runs a program in it: nothing less tells
    /// whether that can be done here.
    pub(super) fn tied(state_dir: Option<PathBuf>) -> Result<Namespaces> {
        let tier = Namespaces {
            maker: Maker::new(state_dir)?,
            kept: Kept::Tied(Registry::new()),
        };
        tier.maker.found()?;
        Ok(tier)
    }

    /// Sandboxes that are kept for other processes. Whether they can be made, the first one tells.
    pub(super) fn persistent(state_dir: &Path) -> Result<Namespaces> {
        Ok(Namespaces {
            maker: Maker::new(Some(state_dir.to_owned()))?,
            kept: Kept::Persistent(Persistent::open(state_dir)?),
        })
    }

    fn find(&self, id: &SessionId) -> Result<Arc<Sandbox>> {
        match &self.kept {
            Kept::Tied(registry) => registry.find(id),
            Kept::Persistent(persistent) => persistent.find(id).map(Arc::new),
        }
    }
}

/// What a sandbox is made with.
struct Maker {
    root: Vec<Step>,
    found: OnceLock<Found>,
    /// Where files go that are too many for the memory; None for the usual place.
    state_dir: Option<PathBuf>,
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
    fn new(state_dir: Option<PathBuf>) -> Result<Maker> {
        if !cfg!(noxrunner_holder) {
            return Err(isolation::unsupported(
                "this build has no holder for local sandboxes",
            ));
        }
        Ok(Maker {
            root: policy::root("size=64m,nr_inodes=4k,mode=1777"),
            found: OnceLock::new(),
            state_dir,
        })
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
        let cpus = amounts.cpu_millis.map(choose_cpus).unwrap_or_default();
        let filter = seccomp::program(&seccomp::Options {
            sockets: true,
            other_processes: true,
            // The watcher would see such a file only while it is mapped.
            memfd: false,
            affinity: cpus.is_empty(),
        });
        // A block of files in memory is a page. Each file takes one, and about a quarter of
        // another one that is not counted.
        let inodes = (amounts.storage / 4096).max(1024);
        Setup {
            ttl_millis: millis(ttl),
            hostname: "sandbox".to_owned(),
            steps: self.root.clone(),
            data_options: format!("size={},nr_inodes={inodes},mode=755", amounts.storage),
            rules: policy::rules(),
            filter,
            rlimits: rlimits(amounts),
            cpus,
            watched_memory: Some(amounts.memory),
            watched_storage: amounts.on_disk.then_some(amounts.storage),
            on_disk: amounts.on_disk,
            ..Setup::default()
        }
    }

    fn make(&self, spec: &SandboxSpec, tie: Tie<'_>) -> Result<Sandbox> {
        let amounts = Amounts::of(spec)?;
        let mut setup = self.setup(&amounts, spec.time_to_live());
        setup.become_id = identity::choose()
            .map_err(|why| isolation::refused(why, io::Error::from_raw_os_error(libc::EPERM)))?;
        let mut fds = Vec::new();
        let mut disk = None;
        if amounts.on_disk {
            fds.push(match &tie {
                Tie::ThisProcess => {
                    let state_dir = self.state_dir.clone().map_or_else(default_state_dir, Ok)?;
                    let (own, dir) = Disk::make(&state_dir, setup.become_id)?;
                    disk = Some(own);
                    dir
                }
                // Goes with the directory.
                Tie::Directory { dir, .. } => disk::make_dir(&dir.join("files"), setup.become_id)?,
            });
        }
        fds.push(match tie {
            Tie::ThisProcess => {
                setup.tied = true;
                let this = crate::sys::pidfd_open(std::process::id());
                this.ok_or_else(|| isolation::unsupported("this kernel has no pidfds (Linux 5.3)"))?
            }
            Tie::Directory { listener, .. } => {
                setup.listens = true;
                listener
            }
        });
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let sandbox = Sandbox::start(&setup, &fds)
            .map_err(|NotMade { step, error }| isolation::refused(&step, error))?;
        Ok(sandbox.with_disk(disk))
    }
}

#[allow(clippy::unnecessary_cast, reason = "the numbers are signed with musl")]
fn rlimits(amounts: &Amounts) -> Vec<(u32, u64)> {
    let mut limits = vec![
        (libc::RLIMIT_DATA as u32, amounts.memory),
        (libc::RLIMIT_NPROC as u32, PROCESSES),
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

/// As many CPUs as it takes, of those that this process may use; not always the same ones. All
/// where that is all of them.
fn choose_cpus(millis: u64) -> Vec<u32> {
    let mut cpus = sys::usable_cpus();
    let count = usize::try_from(millis.div_ceil(1000)).unwrap_or(usize::MAX);
    if count >= cpus.len() {
        return Vec::new();
    }
    let first = crate::unique() as usize % cpus.len();
    cpus.rotate_left(first);
    cpus.truncate(count);
    cpus
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Tier for Namespaces {
    fn health(&self) -> Result<()> {
        match &self.kept {
            Kept::Tied(_) => Ok(()),
            Kept::Persistent(persistent) => persistent.check(),
        }
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        let ttl = spec.time_to_live();
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
        let ignored = spec.image_name().map(|_| "image".to_owned());
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
        let amounts = Amounts::of(spec)?;
        let cpu_millis = amounts.cpu_millis.map_or(Limit::NONE, |millis| {
            Limit::new(millis, Enforced::Approximate)
        });
        Ok(Limits {
            cpu_millis,
            memory: Limit::new(amounts.memory, Enforced::Approximate),
            storage: Limit::new(
                amounts.storage,
                match amounts.on_disk {
                    true => Enforced::Approximate,
                    false => Enforced::Exact,
                },
            ),
            processes: Limit::new(PROCESSES, Enforced::Exact),
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

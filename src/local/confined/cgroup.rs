//! Cgroups with exact limits, if a part of the cgroup v2 tree is delegated to this process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::local::limits::{PROCESSES, ResolvedLimits};
use crate::os;
use crate::os::random::random_u64;

/// The child cgroup for this process. A cgroup that has controllers for its children must not contain
/// processes itself.
const HOST_LEAF: &str = "noxrunner-host";

/// Prefix of the names of the sandboxes' cgroups.
const PREFIX: &str = "noxrunner-sandbox-";

/// Room for the holder and the supervisors, which the process limit of a sandbox does not include.
const OVERHEAD: u64 = 64;

/// Maximum time until killed processes are gone.
const MAX_END_WAIT: Duration = Duration::from_secs(2);

/// A cgroup in which this process can create others.
pub(super) struct DelegatedCgroup {
    dir: PathBuf,
}

/// The cgroup of a sandbox. Drop kills its processes and removes it.
pub(super) struct Cgroup {
    dir: PathBuf,
}

impl DelegatedCgroup {
    /// Returns the top of the tree, where root may create cgroups. Does not move any process.
    pub(super) fn of_root() -> Option<DelegatedCgroup> {
        let mounts = os::read_lossy("/proc/self/mountinfo").ok()?;
        let top = DelegatedCgroup {
            dir: cgroup_dir("0::/", &mounts)?,
        };
        if !top.has_memory() {
            // Fails in a container, whose processes are in this cgroup.
            top.enable_controllers().ok()?;
        }
        top.works().then_some(top)
    }

    /// Returns the cgroup that is delegated to this process, which must be alone in it and moves to a
    /// child of it.
    pub(super) fn of_this_process() -> io::Result<DelegatedCgroup> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let mounts = os::read_lossy("/proc/self/mountinfo")?;
        let dir = cgroup_dir(&own, &mounts).ok_or(io::ErrorKind::Unsupported)?;
        DelegatedCgroup::prepare(&dir, std::process::id())
    }

    fn prepare(own: &Path, process: u32) -> io::Result<DelegatedCgroup> {
        let is_leaf = own.file_name().is_some_and(|name| name == HOST_LEAF);
        let dir = own.parent().filter(|_| is_leaf).unwrap_or(own);
        let delegated = DelegatedCgroup { dir: dir.into() };
        if !delegated.has_memory() && dir == own {
            delegated.move_down(process)?;
        }
        if delegated.works() {
            Ok(delegated)
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Creates a trial cgroup, because writing the limits fails on some systems.
    fn works(&self) -> bool {
        self.has_memory() && self.create(&TRIAL_LIMITS).is_ok()
    }

    /// Returns true if children of the cgroup can have memory limits.
    fn has_memory(&self) -> bool {
        let controllers = fs::read_to_string(self.dir.join("cgroup.subtree_control"));
        controllers.is_ok_and(|list| list.split_whitespace().any(|name| name == "memory"))
    }

    /// Moves this process to a child cgroup and enables the controllers for other children.
    fn move_down(&self, process: u32) -> io::Result<()> {
        let here = fs::read_to_string(self.dir.join("cgroup.procs"))?;
        if here.trim() != process.to_string() || !self.controllers()?.contains(&"memory".to_owned())
        {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let leaf = self.dir.join(HOST_LEAF);
        fs::create_dir(&leaf)?;
        let enable = || {
            fs::write(leaf.join("cgroup.procs"), process.to_string())?;
            self.enable_controllers()
        };
        enable().inspect_err(|_| {
            let _ = fs::write(self.dir.join("cgroup.procs"), process.to_string());
            let _ = fs::remove_dir(&leaf);
        })
    }

    fn controllers(&self) -> io::Result<Vec<String>> {
        let available = fs::read_to_string(self.dir.join("cgroup.controllers"))?;
        Ok(available.split_whitespace().map(str::to_owned).collect())
    }

    /// Enables the controllers for children of this cgroup.
    fn enable_controllers(&self) -> io::Result<()> {
        let available = self.controllers()?.into_iter();
        let wanted = available.filter(|name| ["memory", "pids", "cpu"].contains(&&**name));
        let wanted: Vec<String> = wanted.map(|name| format!("+{name}")).collect();
        fs::write(self.dir.join("cgroup.subtree_control"), wanted.join(" "))
    }

    pub(super) fn create(&self, limits: &ResolvedLimits) -> io::Result<Cgroup> {
        let name = format!("{PREFIX}{:016x}", random_u64());
        let cgroup = Cgroup {
            dir: self.dir.join(name),
        };
        fs::create_dir(&cgroup.dir)?;
        let set = |name: &str, value: String| fs::write(cgroup.dir.join(name), value);
        set("memory.max", limits.memory.to_string())?;
        // Fails if the kernel does not account swap.
        let _ = set("memory.swap.max", "0".to_owned());
        let _ = set("pids.max", (PROCESSES + OVERHEAD).to_string());
        if let Some(millis) = limits.cpu_millis {
            // Microseconds per period of 100 ms.
            set(
                "cpu.max",
                format!("{} 100000", millis.saturating_mul(100).max(1000)),
            )?;
        }
        Ok(cgroup)
    }
}

const TRIAL_LIMITS: ResolvedLimits = ResolvedLimits {
    cpu_millis: Some(1000),
    memory: 64 << 20,
    storage: 0,
    on_disk: false,
};

impl Cgroup {
    /// Moves a process into the cgroup. Processes that it starts later are in the cgroup too.
    pub(super) fn add(&self, process: u32) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.procs"), process.to_string())
    }

    /// Returns how often the kernel has killed a process because of the memory limit.
    pub(super) fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(self.dir.join("memory.events")).unwrap_or_default();
        let count = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Kills processes that are left. The file does not exist before Linux 5.14.
        let _ = fs::write(self.dir.join("cgroup.kill"), "1");
        let end = Instant::now() + MAX_END_WAIT;
        while let Err(e) = fs::remove_dir(&self.dir) {
            if e.kind() != io::ErrorKind::ResourceBusy || Instant::now() > end {
                log::warn!("cannot remove the cgroup {}: {e}", self.dir.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Returns the directory of a process's cgroup, from its `/proc/PID/cgroup` and `mountinfo`.
fn cgroup_dir(own: &str, mounts: &str) -> Option<PathBuf> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next()? != "cgroup2" {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let below = Path::new(own).strip_prefix(root).ok()?;
        Some(Path::new(at).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_dir_is_found_from_mountinfo() {
        let mounts = "25 30 0:23 / /proc rw - proc proc rw\n\
             31 30 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        let found = |own| cgroup_dir(own, mounts);
        assert_eq!(
            found("3:cpu:/x\n0::/user.slice/a.scope\n"),
            Some("/sys/fs/cgroup/user.slice/a.scope".into())
        );
        assert_eq!(found("0::/\n"), Some("/sys/fs/cgroup/".into()));
        assert_eq!(found("3:cpu:/x\n"), None);
        let part = "31 30 0:27 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(cgroup_dir("0::/a/b", part), Some("/sys/fs/cgroup/b".into()));
        assert_eq!(cgroup_dir("0::/c", part), None);
        assert_eq!(
            cgroup_dir("0::/a", "31 30 0:27 / /x rw - cgroup cpu rw"),
            None
        );
    }

    /// Creates plain files in place of the kernel's, to read what is written to them.
    fn tree(processes: &str, controllers: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("cgroup.procs"), processes).unwrap();
        fs::write(own.join("cgroup.controllers"), controllers).unwrap();
        fs::write(own.join("cgroup.subtree_control"), "").unwrap();
        dir
    }

    #[test]
    fn single_process_moves_to_a_child_and_creates_cgroups() {
        let tree = tree("77\n", "cpu io memory pids\n");
        let own = tree.path().join("own");
        // The kernel would list the controllers without plus signs, so the check for memory fails.
        assert!(DelegatedCgroup::prepare(&own, 77).is_err());
        let read = |path: &str| fs::read_to_string(own.join(path)).unwrap();
        assert_eq!(read("noxrunner-host/cgroup.procs"), "77");
        assert_eq!(read("cgroup.subtree_control"), "+cpu +memory +pids");

        fs::write(own.join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        let delegated = DelegatedCgroup::prepare(&own.join(HOST_LEAF), 77).unwrap();
        let limits = ResolvedLimits {
            cpu_millis: Some(1500),
            memory: 1 << 30,
            ..TRIAL_LIMITS
        };
        let cgroup = delegated.create(&limits).unwrap();
        cgroup.add(78).unwrap();
        let read = |name: &str| fs::read_to_string(cgroup.dir.join(name)).unwrap();
        assert_eq!(read("memory.max"), "1073741824");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("pids.max"), (PROCESSES + OVERHEAD).to_string());
        assert_eq!(read("cgroup.procs"), "78");
    }

    #[test]
    fn cgroup_without_delegation_is_not_changed() {
        for (processes, controllers) in [
            ("77\n78\n", "memory"),
            ("77\n", "cpu pids"),
            ("78\n", "memory"),
        ] {
            let tree = tree(processes, controllers);
            let own = tree.path().join("own");
            assert!(DelegatedCgroup::prepare(&own, 77).is_err());
            assert!(!own.join(HOST_LEAF).exists());
        }
        assert!(DelegatedCgroup::prepare(Path::new("/nonexistent/cgroup"), 77).is_err());
    }
}

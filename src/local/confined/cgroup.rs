//! Exact limits, where a part of the cgroup v2 tree is delegated to this process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::local::limits::{Amounts, PROCESSES};

/// Where this process goes, as a cgroup with limits for others has no processes of its own.
const OWN_LEAF: &str = "noxrunner-host";

/// What the names of the sandboxes' cgroups begin with.
const PREFIX: &str = "noxrunner-sandbox-";

/// The holder and the supervisors, which are no processes of the sandbox's.
const OURS: u64 = 64;

/// How long killed processes may take to be gone.
const MAX_END_WAIT: Duration = Duration::from_secs(2);

/// A cgroup below which this process makes others.
pub(super) struct Delegated {
    dir: PathBuf,
}

/// The cgroup of one sandbox; removed with this, with all in it.
pub(super) struct Cgroup {
    dir: PathBuf,
}

impl Delegated {
    /// None where nothing is delegated, and limits have to be watched instead. The process moves to
    /// a cgroup of its own below, if it is alone in its present one.
    pub(super) fn find() -> Option<Delegated> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        Delegated::prepare(&directory(&own, &mounts)?, std::process::id())
    }

    fn prepare(own: &Path, process: u32) -> Option<Delegated> {
        let dir = match own.file_name()?.to_str()? {
            OWN_LEAF => own.parent()?,
            _ => own,
        };
        let delegated = Delegated { dir: dir.into() };
        if !delegated.has_memory() && dir == own {
            delegated.move_down(process).ok()?;
        }
        // A limit that can't be written is none.
        let works = delegated.has_memory() && delegated.make(&TRIAL).is_ok();
        works.then_some(delegated)
    }

    fn has_memory(&self) -> bool {
        let controllers = fs::read_to_string(self.dir.join("cgroup.subtree_control"));
        controllers.is_ok_and(|list| list.split_whitespace().any(|name| name == "memory"))
    }

    fn move_down(&self, process: u32) -> io::Result<()> {
        let here = fs::read_to_string(self.dir.join("cgroup.procs"))?;
        let available = fs::read_to_string(self.dir.join("cgroup.controllers"))?;
        let has = |name| available.split_whitespace().any(|found| found == name);
        if here.trim() != process.to_string() || !has("memory") {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let leaf = self.dir.join(OWN_LEAF);
        fs::create_dir(&leaf)?;
        let enable = || {
            fs::write(leaf.join("cgroup.procs"), process.to_string())?;
            let wanted = ["memory", "pids", "cpu"]
                .into_iter()
                .filter(|name| has(name));
            let wanted: Vec<String> = wanted.map(|name| format!("+{name}")).collect();
            fs::write(self.dir.join("cgroup.subtree_control"), wanted.join(" "))
        };
        enable().inspect_err(|_| {
            let _ = fs::write(self.dir.join("cgroup.procs"), process.to_string());
            let _ = fs::remove_dir(&leaf);
        })
    }

    pub(super) fn make(&self, amounts: &Amounts) -> io::Result<Cgroup> {
        let name = format!("{PREFIX}{:016x}", crate::os::random::random_u64());
        let cgroup = Cgroup {
            dir: self.dir.join(name),
        };
        fs::create_dir(&cgroup.dir)?;
        let set = |name: &str, value: String| fs::write(cgroup.dir.join(name), value);
        set("memory.max", amounts.memory.to_string())?;
        // Not every kernel counts swap.
        let _ = set("memory.swap.max", "0".to_owned());
        let _ = set("pids.max", (PROCESSES + OURS).to_string());
        if let Some(millis) = amounts.cpu_millis {
            // Microseconds in each tenth of a second.
            set(
                "cpu.max",
                format!("{} 100000", millis.saturating_mul(100).max(1000)),
            )?;
        }
        Ok(cgroup)
    }
}

/// Made to see whether it can be.
const TRIAL: Amounts = Amounts {
    cpu_millis: Some(1000),
    memory: 64 << 20,
    storage: 0,
    on_disk: false,
};

impl Cgroup {
    /// With all that it starts from then on.
    pub(super) fn add(&self, process: u32) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.procs"), process.to_string())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The processes are ended already, or about to be. Before Linux 5.14 there is no such file.
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

/// Where the cgroup of a process is, by its `/proc/PID/cgroup` and `mountinfo`.
fn directory(own: &str, mounts: &str) -> Option<PathBuf> {
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
    fn the_own_cgroup_is_found_where_it_is_mounted() {
        let mounts = "25 30 0:23 / /proc rw - proc proc rw\n\
             31 30 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        let found = |own| directory(own, mounts);
        assert_eq!(
            found("3:cpu:/x\n0::/user.slice/a.scope\n"),
            Some("/sys/fs/cgroup/user.slice/a.scope".into())
        );
        assert_eq!(found("0::/\n"), Some("/sys/fs/cgroup/".into()));
        assert_eq!(found("3:cpu:/x\n"), None);
        let part = "31 30 0:27 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(directory("0::/a/b", part), Some("/sys/fs/cgroup/b".into()));
        assert_eq!(directory("0::/c", part), None);
        assert_eq!(
            directory("0::/a", "31 30 0:27 / /x rw - cgroup cpu rw"),
            None
        );
    }

    /// Plain files for the kernel's: what is written there can be seen.
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
    fn a_process_that_is_alone_moves_down_and_makes_others() {
        let tree = tree("77\n", "cpu io memory pids\n");
        let own = tree.path().join("own");
        // The kernel would list them without the signs.
        assert!(Delegated::prepare(&own, 77).is_none());
        let read = |path: &str| fs::read_to_string(own.join(path)).unwrap();
        assert_eq!(read("noxrunner-host/cgroup.procs"), "77");
        assert_eq!(read("cgroup.subtree_control"), "+memory +pids +cpu");

        fs::write(own.join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        let delegated = Delegated::prepare(&own.join(OWN_LEAF), 77).unwrap();
        let amounts = Amounts {
            cpu_millis: Some(1500),
            memory: 1 << 30,
            ..TRIAL
        };
        let cgroup = delegated.make(&amounts).unwrap();
        cgroup.add(78).unwrap();
        let of = |name: &str| fs::read_to_string(cgroup.dir.join(name)).unwrap();
        assert_eq!(of("memory.max"), "1073741824");
        assert_eq!(of("memory.swap.max"), "0");
        assert_eq!(of("cpu.max"), "150000 100000");
        assert_eq!(of("pids.max"), (PROCESSES + OURS).to_string());
        assert_eq!(of("cgroup.procs"), "78");
    }

    #[test]
    fn what_is_not_delegated_is_left_alone() {
        for (processes, controllers) in [
            ("77\n78\n", "memory"),
            ("77\n", "cpu pids"),
            ("78\n", "memory"),
        ] {
            let tree = tree(processes, controllers);
            let own = tree.path().join("own");
            assert!(Delegated::prepare(&own, 77).is_none());
            assert!(!own.join(OWN_LEAF).exists());
        }
        assert!(Delegated::prepare(Path::new("/nonexistent/cgroup"), 77).is_none());
    }
}

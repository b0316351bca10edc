//! The number of processes that the kernel has killed because of the container's memory limit.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// The file of this process's cgroup that has the count.
pub(super) struct OomKills(Option<File>);

impl OomKills {
    pub(super) fn open() -> OomKills {
        OomKills(candidates().into_iter().find_map(|path| {
            let file = File::open(path).ok()?;
            count(&file).map(|_| file)
        }))
    }

    /// Returns the count, or 0 if it is not known.
    pub(super) fn count(&self) -> u64 {
        self.0.as_ref().and_then(count).unwrap_or(0)
    }
}

/// Returns the files that may have the count. A container sees its own cgroup as the root, or the whole
/// hierarchy.
fn candidates() -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own: Vec<[&str; 2]> = own.lines().filter_map(controllers_and_path).collect();
    let files = [
        ("", "/sys/fs/cgroup", "memory.events"),
        ("memory", "/sys/fs/cgroup/memory", "memory.oom_control"),
    ];
    let mut found = Vec::new();
    for (controller, mount, file) in files {
        let is_own = |controllers: &str| controllers.split(',').any(|name| name == controller);
        let own = own.iter().filter(|[controllers, _]| is_own(controllers));
        for path in own.map(|[_, path]| *path).chain([""]) {
            found.push(PathBuf::from(format!("{mount}{path}/{file}")));
        }
    }
    found
}

/// Splits a line of `/proc/self/cgroup`: `NUMBER:CONTROLLERS:PATH`.
fn controllers_and_path(line: &str) -> Option<[&str; 2]> {
    let mut parts = line.splitn(3, ':').skip(1);
    Some([parts.next()?, parts.next()?.trim_end_matches('/')])
}

fn count(file: &File) -> Option<u64> {
    let mut text = [0; 1024];
    let length = file.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..length]).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_cgroups_have_the_count() {
        for text in [
            "low 0\nhigh 0\nmax 7\noom 4\noom_kill 3\noom_group_kill 0\n",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            fs::write(&path, text).unwrap();
            assert_eq!(count(&File::open(path).unwrap()), Some(3));
        }
    }

    #[test]
    fn paths_are_those_of_the_memory_controller() {
        let line = controllers_and_path("4:memory,cpu:/docker/a:b").unwrap();
        assert_eq!(line, ["memory,cpu", "/docker/a:b"]);
        assert_eq!(controllers_and_path("0::/").unwrap(), ["", ""]);
    }
}

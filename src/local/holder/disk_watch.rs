//! The storage limit of files on disk. A child process counts their size.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::processes::kill_everything;
use crate::sys::isolation::file_system_space;
use crate::sys::process::{WaitStatus, exit, fork};

/// Minimum time between counts. Counting many files takes long.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// Maximum time between counts.
const MAX_INTERVAL: Duration = Duration::from_secs(10);

pub(crate) struct DiskWatch {
    limit: u64,
    /// Free bytes of the file system at the last count. The files cannot have grown by more than the
    /// difference to the present value.
    free: u64,
    counted: Instant,
    /// The process that counts the files.
    counter: Option<u32>,
}

impl DiskWatch {
    pub(crate) fn new(limit: u64, data: &OwnedFd) -> DiskWatch {
        DiskWatch {
            limit,
            free: free_space(data),
            counted: Instant::now(),
            counter: None,
        }
    }

    /// Starts a count of the files if one is due.
    pub(crate) fn check(&mut self, data: &OwnedFd, now: Instant) {
        let free = free_space(data);
        let due = now >= self.counted + MAX_INTERVAL || self.free.saturating_sub(free) > self.limit;
        if self.counter.is_some() || !due || now < self.counted + MIN_INTERVAL {
            return;
        }
        match fork() {
            Ok(None) => {
                let fits = files_fit(&["workspace", "tmp"], self.limit);
                exit(if fits { 0 } else { 1 });
            }
            Ok(counter) => {
                self.counter = counter;
                self.free = free;
                self.counted = now;
            }
            // The process limit is reached. The next check tries again.
            Err(_) => {}
        }
    }

    /// Handles the end of a child. If it was the counter and the files exceed the limit, or a
    /// command has killed it, all processes are killed.
    pub(crate) fn child_ended(&mut self, pid: u32, status: WaitStatus) {
        if self.counter == Some(pid) {
            self.counter = None;
            if status != WaitStatus::Exited(0) {
                kill_everything();
            }
        }
    }
}

fn free_space(data: &OwnedFd) -> u64 {
    file_system_space(data.as_fd()).map_or(u64::MAX, |space| space.free)
}

/// Returns true if the files below the directories are within the limit, and false if a directory
/// cannot be read, because it may hide files.
fn files_fit(dirs: &[&str], limit: u64) -> bool {
    // Empty files take space too.
    const MIN_FILE: u64 = 4096;
    let mut used = 0_u64;
    let mut dirs: Vec<PathBuf> = dirs.iter().map(PathBuf::from).collect();
    while let Some(dir) = dirs.pop() {
        let entries = match read_any_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => return false,
        };
        for entry in entries.flatten() {
            // The file may have been removed.
            let Ok(found) = entry.metadata() else {
                continue;
            };
            used += (found.blocks() * 512).max(MIN_FILE);
            if found.is_dir() {
                dirs.push(entry.path());
            }
        }
        if used > limit {
            return false;
        }
    }
    true
}

/// Reads a directory, after restoring its owner's permissions if necessary.
fn read_any_dir(dir: &PathBuf) -> io::Result<fs::ReadDir> {
    fs::read_dir(dir).or_else(|_| {
        let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
        fs::read_dir(dir)
    })
}

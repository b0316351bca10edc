//! The other processes of the sandbox: who descends from whom, and who takes how much memory.

use std::collections::HashSet;
use std::path::PathBuf;
use std::{fs, io, process};

use crate::sys;

/// Kills all of the sandbox but this process.
pub(crate) fn kill_everything() {
    if is_first() {
        sys::kill_all();
        return;
    }
    // What is stopped starts nothing, and counts: at the latest, the rest come to the limit.
    let mut stopped = HashSet::new();
    while let Ok(found) = descendants(process::id()) {
        let new: Vec<u32> = found.into_iter().filter(|p| stopped.insert(*p)).collect();
        if new.is_empty() {
            break;
        }
        new.into_iter().for_each(sys::stop_process);
    }
    stopped.into_iter().for_each(sys::kill_process);
}

/// Whether this is the first process of a namespace, in which there is nothing but the sandbox.
fn is_first() -> bool {
    process::id() == 1
}

/// Each process with its parent. An error where there is no /proc.
fn processes() -> io::Result<Vec<(u32, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Gone meanwhile, or the name of the program is no text; what follows it is.
        let stat = fs::read(format!("/proc/{process}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(|byte| *byte == b')').next().unwrap_or_default();
        let mut fields = after_name.split(|byte| *byte == b' ').skip(2);
        let parent = fields.next().and_then(|field| str::from_utf8(field).ok());
        if let Some(parent) = parent.and_then(|parent| parent.parse().ok()) {
            found.push((process, parent));
        }
    }
    Ok(found)
}

/// Every process that this one has started, and those that they have started.
pub(crate) fn descendants(of: u32) -> io::Result<Vec<u32>> {
    let processes = processes()?;
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        let children = processes.iter().filter(|(_, of)| *of == parent);
        found.extend(children.map(|(process, _)| *process));
    }
    found.remove(0);
    Ok(found)
}

fn of_the_sandbox() -> Vec<u32> {
    let found = match is_first() {
        true => processes().map(|all| all.into_iter().map(|(process, _)| process).collect()),
        false => descendants(process::id()).map(|mut found| {
            found.push(process::id());
            found
        }),
    };
    found.unwrap_or_default()
}

#[derive(Clone, Copy, Default)]
struct Memory {
    own: u64,
    shared: u64,
}

/// What the processes hold in memory that is their own, and what they share. The last one is the
/// one to end if it is too much.
pub(crate) struct Held {
    own: u64,
    shared: u64,
    by_process: Vec<(u64, u32)>,
}

impl Held {
    /// The quick way counts what is shared once for each that uses it.
    pub(crate) fn look(exactly: bool) -> Held {
        let mut held = Held {
            own: 0,
            shared: 0,
            by_process: Vec::new(),
        };
        for number in of_the_sandbox() {
            let exact = exactly.then(|| Memory::exact(number)).flatten();
            let memory = exact.unwrap_or_else(|| Memory::quick(number));
            held.own += memory.own;
            held.shared += memory.shared;
            if number != process::id() {
                held.by_process.push((memory.own + memory.shared, number));
            }
        }
        held.by_process.sort_unstable();
        held
    }

    /// With what is in files in memory, which may be the same that processes share.
    pub(crate) fn total(&self, files: u64) -> u64 {
        self.own + self.shared.max(files)
    }

    /// Kills the largest until the rest is below the limit.
    pub(crate) fn shrink(mut self, files: u64, limit: u64) {
        while self.total(files) > limit {
            let Some((size, process)) = self.by_process.pop() else {
                return;
            };
            sys::kill_process(process);
            self.own = self.own.saturating_sub(size);
        }
    }
}

impl Memory {
    fn quick(process: u32) -> Memory {
        let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        Memory {
            own: kilobytes(&text, "RssAnon:"),
            shared: kilobytes(&text, "RssShmem:"),
        }
    }

    /// Counts what is shared in parts. None for a process that does not let anybody look.
    fn exact(process: u32) -> Option<Memory> {
        let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
        Some(Memory {
            own: kilobytes(&text, "Pss_Anon:"),
            shared: kilobytes(&text, "Pss_Shmem:"),
        })
    }
}

/// A line such as `RssAnon:    1234 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

/// System V shared memory, in bytes: it needs no process to hold it.
pub(crate) fn segments() -> u64 {
    let text = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let mut lines = text.lines();
    let names = lines.next().unwrap_or_default();
    let Some(column) = names.split_whitespace().position(|name| name == "rss") else {
        return 0;
    };
    let resident = lines.filter_map(|line| line.split_whitespace().nth(column));
    resident
        .filter_map(|number| number.parse::<u64>().ok())
        .sum()
}

/// Whether the files below the directories are within the limit. What can't be looked at counts as
/// hidden, and so as not.
pub(crate) fn files_fit(dirs: &[&str], limit: u64) -> bool {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    // A file takes at least this much, also an empty one.
    const LEAST: u64 = 4096;
    let mut taken = 0_u64;
    let mut dirs: Vec<PathBuf> = dirs.iter().map(PathBuf::from).collect();
    while let Some(dir) = dirs.pop() {
        let mut entries = fs::read_dir(&dir);
        if entries.is_err() {
            let _ = fs::set_permissions(&dir, fs::Permissions::from_mode(0o700));
            entries = fs::read_dir(&dir);
        }
        let entries = match entries {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => return false,
        };
        for entry in entries.flatten() {
            // Gone meanwhile.
            let Ok(found) = entry.metadata() else {
                continue;
            };
            taken += (found.blocks() * 512).max(LEAST);
            if found.is_dir() {
                dirs.push(entry.path());
            }
        }
        if taken > limit {
            return false;
        }
    }
    true
}

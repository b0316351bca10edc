//! The memory of the sandbox's processes.

use std::collections::HashMap;
use std::fs;

use crate::mapping::Mapping;

/// The memory of one process, in bytes.
struct ProcessMemory {
    /// The directory in `/proc` that shows it.
    dir: String,
    /// Anonymous pages. Forked processes have pages in common until they write them.
    anonymous: u64,
    /// Page tables and swap, which no other process has.
    own: u64,
    /// The part of shared memory that is present.
    shared: u64,
}

impl ProcessMemory {
    /// Reads the memory of a process. Returns `None` if it has none, because it is ending.
    fn read(pid: u32) -> Option<ProcessMemory> {
        // If the first thread has exited, only the others show the memory that they still use.
        let threads = || {
            fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
        };
        let of_threads = threads()
            .flatten()
            .map(|thread| thread.path().display().to_string());
        let mut dirs = std::iter::once(format!("/proc/{pid}")).chain(of_threads);
        dirs.find_map(ProcessMemory::read_in)
    }

    fn read_in(dir: String) -> Option<ProcessMemory> {
        let status = fs::read_to_string(format!("{dir}/status")).ok()?;
        let optional = |name| field(&status, name).unwrap_or(0);
        Some(ProcessMemory {
            anonymous: field(&status, "RssAnon:")?,
            own: optional("VmSwap:") + optional("VmPTE:"),
            shared: optional("RssShmem:"),
            dir,
        })
    }

    /// Returns the anonymous pages, each divided by the number of processes that have it.
    fn anonymous_share(&self) -> u64 {
        let rollup = fs::read_to_string(format!("{}/smaps_rollup", self.dir));
        let share = rollup.ok().and_then(|text| field(&text, "Pss_Anon:"));
        // A process can forbid this.
        share.unwrap_or(self.anonymous)
    }
}

/// Returns the most that a process and the children that it has waited for can have written: each page has
/// caused a page fault.
fn touched(pid: u32) -> u64 {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name can contain any bytes, and ends with the last parenthesis.
    let after_name = stat.rsplit(|byte| *byte == b')').next().unwrap_or_default();
    let fields = str::from_utf8(after_name).unwrap_or_default().split(' ');
    // Minor faults, those of children, major faults, those of children.
    let faults = fields.skip(8).take(4);
    let faults = faults.filter_map(|field| field.parse::<u64>().ok());
    faults.sum::<u64>().saturating_mul(4096)
}

/// Returns a field such as `RssAnon:    1234 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number.saturating_mul(1024))
}

/// Memory of several processes, in bytes.
#[derive(Default)]
pub(crate) struct MemoryUse {
    /// Page tables and swap.
    own: u64,
    anonymous: u64,
    /// Shared memory that is not in files.
    shared: u64,
    /// Size and process id, the largest process last.
    by_process: Vec<(u64, u32)>,
}

impl MemoryUse {
    /// Measures the memory quickly. Pages count once for each process that has them.
    pub(crate) fn estimate(pids: &[u32]) -> MemoryUse {
        let mut sum = MemoryUse::default();
        for pid in pids {
            if let Some(memory) = ProcessMemory::read(*pid) {
                sum.shared += memory.shared;
                sum.add(*pid, memory.own, memory.anonymous, memory.shared);
            }
        }
        sum.sort()
    }

    /// Measures the memory with each page and each shared object once, and without files in memory. With
    /// `hidden`, an object counts with the size that was ever mapped, as far as the processes can have
    /// written it: a program can unmap pages that the object keeps.
    pub(crate) fn measure(pids: &[u32], objects: &mut SharedObjects, hidden: bool) -> MemoryUse {
        let mut sum = MemoryUse::default();
        let mut present: HashMap<u64, u64> = HashMap::new();
        let mut all_touched = 0;
        for pid in pids {
            let Some(memory) = ProcessMemory::read(*pid) else {
                continue;
            };
            let touched = touched(*pid);
            all_touched += touched;
            let shared = match fs::read_to_string(format!("{}/smaps", memory.dir)) {
                Ok(text) => objects
                    .add_process(&text, &mut present, hidden)
                    .min(touched),
                Err(_) => {
                    let shared = [memory.shared, touched][usize::from(hidden)];
                    sum.shared += shared;
                    shared
                }
            };
            sum.add(*pid, memory.own, memory.anonymous_share(), shared);
        }
        objects.0.retain(|object, _| present.contains_key(object));
        let all_present: u64 = present.values().sum();
        let largest = present
            .iter()
            .map(|(object, size)| objects.0[object].max(*size));
        sum.shared += if hidden {
            largest.sum::<u64>().min(all_touched).max(all_present)
        } else {
            all_present
        };
        sum.sort()
    }

    fn add(&mut self, pid: u32, own: u64, anonymous: u64, shared: u64) {
        self.own += own;
        self.anonymous += anonymous;
        self.by_process.push((own + anonymous + shared, pid));
    }

    fn sort(mut self) -> MemoryUse {
        self.by_process.sort_unstable();
        self
    }

    pub(crate) fn total(&self) -> u64 {
        self.own + self.anonymous + self.shared
    }

    /// Returns the part that is the same in an estimate and a measurement.
    pub(crate) fn own(&self) -> u64 {
        self.own
    }

    pub(crate) fn shared(&self) -> u64 {
        self.shared
    }

    /// Returns the largest processes, whose end frees this much, and whether that suffices.
    pub(crate) fn largest(mut self, excess: u64) -> (Vec<u32>, bool) {
        let mut chosen = Vec::new();
        let mut freed = 0;
        while freed < excess {
            let Some((size, pid)) = self.by_process.pop() else {
                return (chosen, false);
            };
            chosen.push(pid);
            freed += size;
        }
        (chosen, true)
    }
}

/// The largest size that was mapped of each shared object, by inode.
#[derive(Default)]
pub(crate) struct SharedObjects(HashMap<u64, u64>);

impl SharedObjects {
    /// Finds the objects that the processes map, and returns their size.
    pub(crate) fn find(&mut self, pids: &[u32]) -> u64 {
        let mut mapped = HashMap::new();
        for pid in pids {
            let dir = ProcessMemory::read(*pid).map(|memory| memory.dir);
            let maps = dir.and_then(|dir| fs::read_to_string(format!("{dir}/maps")).ok());
            let maps = maps.unwrap_or_default();
            self.add_process(&maps, &mut mapped, true);
        }
        self.0.retain(|object, _| mapped.contains_key(object));
        self.0.values().sum()
    }

    /// Adds what is present of each object that a process maps. Returns the size of all of them.
    fn add_process(&mut self, maps: &str, present: &mut HashMap<u64, u64>, hidden: bool) -> u64 {
        let sizes = shared_mappings(maps).into_iter().map(|mapping| {
            let largest = self.0.entry(mapping.object).or_default();
            *largest = (*largest).max(mapping.end);
            *present.entry(mapping.object).or_default() += mapping.present;
            if hidden { *largest } else { mapping.present }
        });
        sizes.sum()
    }
}

/// A mapping of shared memory that is in no file.
#[derive(Debug, PartialEq, Eq)]
struct SharedMapping {
    /// Inode of the object.
    object: u64,
    /// Position in the object where the mapping ends.
    end: u64,
    /// The part that is present in this process, divided by the number of processes that have it.
    present: u64,
}

/// Parses `/proc/PID/maps` or `smaps`.
fn shared_mappings(text: &str) -> Vec<SharedMapping> {
    let mut found: Vec<SharedMapping> = Vec::new();
    let mut is_shared = false;
    for line in text.lines() {
        // Lines of a mapping begin with an address, lines about it with a capital letter.
        if !line.starts_with(|c: char| c.is_ascii_uppercase()) {
            let mapping = SharedMapping::parse(line);
            is_shared = mapping.is_some();
            found.extend(mapping);
        } else if let (true, Some(size), Some(last)) =
            (is_shared, field(line, "Pss:"), found.last_mut())
        {
            last.present = size;
        }
    }
    found
}

impl SharedMapping {
    fn parse(line: &str) -> Option<SharedMapping> {
        let mapping = Mapping::parse(line)?;
        (mapping.path == "/dev/zero (deleted)").then_some(SharedMapping {
            object: mapping.inode,
            end: mapping.end,
            present: 0,
        })
    }
}

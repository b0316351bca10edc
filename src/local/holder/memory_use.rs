//! The memory of the sandbox's processes.

use std::collections::HashMap;

use crate::mapping::Mapping;
use crate::processes::{read_proc, stat_fields, thread_dirs};

/// The memory of one process, in bytes.
pub(crate) struct ProcessMemory {
    pid: u32,
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
    pub(crate) fn read(pid: u32) -> Option<ProcessMemory> {
        // If the first thread has exited, only the others show the memory that they still use.
        let of_threads = || {
            let mut dirs = thread_dirs(pid).into_iter();
            dirs.find_map(|dir| ProcessMemory::read_in(pid, dir))
        };
        ProcessMemory::read_in(pid, format!("/proc/{pid}")).or_else(of_threads)
    }

    fn read_in(pid: u32, dir: String) -> Option<ProcessMemory> {
        let status = read_proc(format!("{dir}/status")).ok()?;
        let optional = |name| field(&status, name).unwrap_or(0);
        Some(ProcessMemory {
            anonymous: field(&status, "RssAnon:")?,
            own: optional("VmSwap:") + optional("VmPTE:"),
            shared: optional("RssShmem:"),
            pid,
            dir,
        })
    }

    /// Returns the anonymous pages, each divided by the number of processes that have it.
    fn anonymous_share(&self) -> u64 {
        let rollup = read_proc(format!("{}/smaps_rollup", self.dir));
        let share = rollup.ok().and_then(|text| field(&text, "Pss_Anon:"));
        share.unwrap_or_else(|| self.again().map_or(0, |memory| memory.anonymous))
    }

    /// Reads the memory again, after it could not be measured: the process can forbid that, or has ended.
    fn again(&self) -> Option<ProcessMemory> {
        ProcessMemory::read(self.pid)
    }
}

/// Returns the most that a process and the children that it has waited for can have written: each page has
/// caused a page fault.
fn touched(pid: u32) -> u64 {
    // Minor faults, those of children, major faults, those of children.
    let fields = stat_fields(pid).unwrap_or_default();
    let faults = fields.split(' ').skip(7).take(4);
    let faults = faults.filter_map(|field| field.parse::<u64>().ok());
    faults.sum::<u64>().saturating_mul(4096)
}

/// Returns false for a thread of a process that is ending.
pub(crate) fn has_memory(thread: &str) -> bool {
    let status = read_proc(format!("{thread}/status"));
    status.is_ok_and(|status| field(&status, "RssAnon:").is_some())
}

/// Returns a field such as `RssAnon:    1234 kB`, in bytes.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
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
    /// Estimates the memory. Pages count once for each process that has them.
    pub(crate) fn estimate(processes: &[ProcessMemory]) -> MemoryUse {
        let mut sum = MemoryUse::default();
        for memory in processes {
            sum.shared += memory.shared;
            sum.add(memory, memory.anonymous, memory.shared);
        }
        sum.sort()
    }

    /// Measures the memory with each page and each shared object once, and without files in memory. The
    /// second result counts an object with the size that was ever mapped, as far as the processes can have
    /// written it: a program can unmap pages that the object keeps.
    pub(crate) fn measure(
        processes: &[ProcessMemory],
        objects: &mut SharedObjects,
    ) -> (MemoryUse, MemoryUse) {
        let (mut exact, mut ever_mapped) = (MemoryUse::default(), MemoryUse::default());
        let mut present: HashMap<u64, u64> = HashMap::new();
        let mut all_touched = 0;
        for memory in processes {
            let touched = touched(memory.pid);
            all_touched += touched;
            let maps = read_proc(format!("{}/smaps", memory.dir));
            let (shared, mapped) = match &maps {
                Ok(text) => {
                    let (shared, mapped) = objects.add_process(text, &mut present);
                    (shared.min(touched), mapped.min(touched))
                }
                Err(_) => {
                    let again = memory.again();
                    let (shared, mapped) = again.map_or((0, 0), |memory| (memory.shared, touched));
                    exact.shared += shared;
                    ever_mapped.shared += mapped;
                    (shared, mapped)
                }
            };
            let anonymous = memory.anonymous_share();
            exact.add(memory, anonymous, shared);
            ever_mapped.add(memory, anonymous, mapped);
        }
        objects.0.retain(|object, _| present.contains_key(object));
        let all_present: u64 = present.values().sum();
        let largest = present
            .iter()
            .map(|(object, size)| objects.0[object].max(*size));
        exact.shared += all_present;
        let largest = sum_of_mapped(largest);
        ever_mapped.shared += largest.min(all_touched).max(all_present);
        (exact.sort(), ever_mapped.sort())
    }

    fn add(&mut self, memory: &ProcessMemory, anonymous: u64, shared: u64) {
        self.own += memory.own;
        self.anonymous += anonymous;
        let size = memory.own + anonymous + shared;
        self.by_process.push((size, memory.pid));
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

    /// Returns the size of the largest process.
    pub(crate) fn largest_size(&self) -> u64 {
        self.by_process.last().map_or(0, |(size, _)| *size)
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
    pub(crate) fn find(&mut self, processes: &[ProcessMemory]) -> u64 {
        let mut present = HashMap::new();
        for memory in processes {
            let maps = read_proc(format!("{}/maps", memory.dir)).unwrap_or_default();
            self.add_process(&maps, &mut present);
        }
        self.0.retain(|object, _| present.contains_key(object));
        sum_of_mapped(self.0.values().copied())
    }

    /// Adds what is present of each object that a process maps. Returns the sum of that, and of the
    /// sizes that were ever mapped.
    fn add_process(&mut self, maps: &str, present: &mut HashMap<u64, u64>) -> (u64, u64) {
        let (mut all_present, mut ever_mapped) = (0, 0_u64);
        for mapping in shared_mappings(maps) {
            let largest = self.0.entry(mapping.object).or_default();
            *largest = (*largest).max(mapping.end);
            *present.entry(mapping.object).or_default() += mapping.present;
            all_present += mapping.present;
            ever_mapped = ever_mapped.saturating_add(*largest);
        }
        (all_present, ever_mapped)
    }
}

/// Adds sizes that programs choose, because mappings need no memory.
pub(crate) fn sum_of_mapped(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
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

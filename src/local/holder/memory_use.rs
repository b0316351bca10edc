//! The memory of the sandbox's processes.

use std::collections::HashMap;
use std::fs;

/// The memory of one process, in bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct ProcessMemory {
    /// Memory that no other process has: anonymous pages, swap and page tables.
    private: u64,
    /// The part of shared memory that is present.
    shared: u64,
    /// The most that the process and the children that it has waited for can have written to pages.
    touched: u64,
}

impl ProcessMemory {
    /// Parses `/proc/PID/status`. Returns `None` for a process without memory: a kernel thread, or one
    /// that is ending.
    fn parse(status: &str) -> Option<ProcessMemory> {
        Some(ProcessMemory {
            private: field(status, "RssAnon:")?
                + field(status, "VmSwap:").unwrap_or(0)
                + field(status, "VmPTE:").unwrap_or(0),
            shared: field(status, "RssShmem:").unwrap_or(0),
            touched: 0,
        })
    }

    fn read(pid: u32) -> ProcessMemory {
        let status = |path: String| ProcessMemory::parse(&fs::read_to_string(path).ok()?);
        let of_leader = status(format!("/proc/{pid}/status"));
        // If the first thread has exited, its status lacks the memory that the others still use.
        let of_thread = || {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
            let mut paths = threads.flatten().map(|thread| thread.path());
            paths.find_map(|path| status(path.join("status").to_str()?.to_owned()))
        };
        of_leader.or_else(of_thread).unwrap_or_default()
    }

    /// Reads the memory with the number of pages that were ever written: each has caused a page fault.
    fn read_with_faults(pid: u32) -> ProcessMemory {
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The program's name can contain any bytes, and ends with the last parenthesis.
        let after_name = stat.rsplit(|byte| *byte == b')').next().unwrap_or_default();
        let fields = str::from_utf8(after_name).unwrap_or_default().split(' ');
        // Minor faults, those of children, major faults, those of children.
        let faults = fields
            .skip(8)
            .take(4)
            .filter_map(|field| field.parse::<u64>().ok());
        ProcessMemory {
            touched: faults.sum::<u64>().saturating_mul(4096),
            ..ProcessMemory::read(pid)
        }
    }
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
    private: u64,
    /// Shared memory that is not in files.
    shared: u64,
    /// Size and process id, the largest process last.
    by_process: Vec<(u64, u32)>,
}

impl MemoryUse {
    /// Measures the memory quickly. Shared memory counts once for each process that maps it.
    pub(crate) fn estimate(pids: &[u32]) -> MemoryUse {
        let mut sum = MemoryUse::default();
        for pid in pids {
            let memory = ProcessMemory::read(*pid);
            sum.shared += memory.shared;
            sum.add(*pid, memory.private, memory.shared);
        }
        sum.sort()
    }

    /// Measures the memory with each shared object once, and without files in memory. With `hidden`, an
    /// object counts with the size that was ever mapped, as far as the processes can have written it: a
    /// program can unmap pages that the object keeps.
    pub(crate) fn measure(pids: &[u32], objects: &mut SharedObjects, hidden: bool) -> MemoryUse {
        let mut sum = MemoryUse::default();
        let mut present: HashMap<u64, u64> = HashMap::new();
        let mut touched = 0;
        for pid in pids {
            let memory = ProcessMemory::read_with_faults(*pid);
            touched += memory.touched;
            let shared = match fs::read_to_string(format!("/proc/{pid}/smaps")) {
                Ok(text) => objects
                    .add_process(&text, &mut present, hidden)
                    .min(memory.touched),
                // A process can forbid this.
                Err(_) => {
                    let shared = [memory.shared, memory.touched][usize::from(hidden)];
                    sum.shared += shared;
                    shared
                }
            };
            sum.add(*pid, memory.private, shared);
        }
        objects.0.retain(|object, _| present.contains_key(object));
        let all_present: u64 = present.values().sum();
        let largest = present
            .iter()
            .map(|(object, size)| objects.0[object].max(*size));
        sum.shared += if hidden {
            largest.sum::<u64>().min(touched).max(all_present)
        } else {
            all_present
        };
        sum.sort()
    }

    fn add(&mut self, pid: u32, private: u64, shared: u64) {
        self.private += private;
        self.by_process.push((private + shared, pid));
    }

    fn sort(mut self) -> MemoryUse {
        self.by_process.sort_unstable();
        self
    }

    pub(crate) fn total(&self) -> u64 {
        self.private + self.shared
    }

    pub(crate) fn private(&self) -> u64 {
        self.private
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
            let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
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
    /// Parses a line such as `7f00-7f01 rw-s 00000000 00:01 1024  /dev/zero (deleted)`.
    fn parse(line: &str) -> Option<SharedMapping> {
        let line = line.strip_suffix(" /dev/zero (deleted)")?;
        let mut fields = line.split_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let size = hexadecimal(to)?.checked_sub(hexadecimal(from)?)?;
        let offset = hexadecimal(fields.nth(1)?)?;
        Some(SharedMapping {
            object: fields.nth(1)?.parse().ok()?,
            end: offset.checked_add(size)?,
            present: 0,
        })
    }
}

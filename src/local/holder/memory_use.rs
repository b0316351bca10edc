//! The memory of the sandbox's processes.

use std::{fs, process};

use crate::processes::sandbox_processes;
use crate::sys::process::kill_process;

#[derive(Clone, Copy, Default)]
struct ProcessMemory {
    private: u64,
    shared: u64,
}

/// Memory of all processes, in bytes.
#[derive(Default)]
pub(crate) struct MemoryUse {
    private: u64,
    shared: u64,
    /// Size and process id, the largest process last. Without this process.
    by_process: Vec<(u64, u32)>,
}

impl MemoryUse {
    /// Measures the memory quickly: shared memory counts once for each process that maps it.
    pub(crate) fn estimate() -> MemoryUse {
        MemoryUse::sum(estimate)
    }

    /// Measures the memory exactly, where the kernel allows it: shared memory counts in proportion.
    pub(crate) fn measure() -> MemoryUse {
        MemoryUse::sum(|pid| {
            let exact = read_memory(pid, "smaps_rollup", "Pss_Anon:", "Pss_Shmem:");
            exact.unwrap_or_else(|| estimate(pid))
        })
    }

    fn sum(memory_of: impl Fn(u32) -> ProcessMemory) -> MemoryUse {
        let mut sum = MemoryUse::default();
        for pid in sandbox_processes() {
            let memory = memory_of(pid);
            sum.private += memory.private;
            sum.shared += memory.shared;
            if pid != process::id() {
                sum.by_process.push((memory.private + memory.shared, pid));
            }
        }
        sum.by_process.sort_unstable();
        sum
    }

    /// Returns the total with the size of in-memory files, which may be the memory that processes
    /// share.
    pub(crate) fn total(&self, files: u64) -> u64 {
        self.private + self.shared.max(files)
    }

    /// Kills the largest processes until the rest is within the limit.
    pub(crate) fn shrink(mut self, files: u64, limit: u64) {
        while self.total(files) > limit {
            let Some((size, pid)) = self.by_process.pop() else {
                return;
            };
            kill_process(pid);
            self.private = self.private.saturating_sub(size);
        }
    }
}

fn estimate(pid: u32) -> ProcessMemory {
    read_memory(pid, "status", "RssAnon:", "RssShmem:").unwrap_or_default()
}

/// Reads the memory of a process from a file in `/proc`. Returns `None` if it cannot be inspected.
fn read_memory(pid: u32, file: &str, private: &str, shared: &str) -> Option<ProcessMemory> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    Some(ProcessMemory {
        private: field(&text, private),
        shared: field(&text, shared),
    })
}

/// Returns a field such as `RssAnon:    1234 kB`, in bytes.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

/// Returns the size of System V shared memory, in bytes. It exists without a process that maps it.
pub(crate) fn sysv_segments() -> u64 {
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

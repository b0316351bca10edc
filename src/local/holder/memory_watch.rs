//! The memory limit, where no cgroup enforces it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::memory_use::{MemoryUse, ProcessMemory, SharedObjects, field};
use crate::processes::sandbox_processes;
use crate::setup::PreparedSandbox;
use crate::sys::isolation::file_system_space;
use crate::sys::process::cpu_time;
use crate::sysv;

/// Time between two looks while there is plenty of room.
const ROOMY_PAUSE: Duration = Duration::from_secs(1);

/// Room that programs cannot use up quickly, in bytes.
const PLENTY: u64 = 512 << 20;

/// A fall of the machine's free memory that is never a reason to look at the processes early.
const NOISE: u64 = 16 << 20;

/// Time until a killed process no longer counts, even if it still has memory.
const DYING: Duration = Duration::from_secs(1);

/// Watches the memory of the sandbox's processes and files. Looking at many processes takes long, so that
/// happens the more rarely the longer it takes. Reading the machine's free memory is cheap. If that has
/// fallen by half of the room that is left, the processes are looked at earlier.
pub(crate) struct MemoryWatch {
    limit: u64,
    /// The limit minus the memory at the last look.
    room: u64,
    machine: MachineMemory,
    looked: Instant,
    /// CPU time of the last look.
    cost: Duration,
    /// Looks in a row that found no growth. Other programs of the machine use its memory too.
    false_alarms: u32,
    objects: SharedObjects,
    /// Processes that were killed, and when.
    dying: Vec<(u32, Instant)>,
}

impl MemoryWatch {
    pub(crate) fn new(limit: u64) -> MemoryWatch {
        MemoryWatch {
            limit,
            room: limit,
            machine: MachineMemory::new(),
            looked: Instant::now(),
            cost: Duration::ZERO,
            false_alarms: 0,
            objects: SharedObjects::default(),
            dying: Vec::new(),
        }
    }

    /// Returns the time until the next check: until the room could be used up if every CPU allocates
    /// memory as fast as it can.
    pub(crate) fn pause(&self, cpus: u64) -> Duration {
        const BYTES_PER_CPU_AND_MILLI: u64 = 4_000_000;
        let millis = self.room / (BYTES_PER_CPU_AND_MILLI * cpus);
        Duration::from_millis(millis.clamp(10, 250))
    }

    /// Returns the processes that must be killed: the largest ones, if the memory exceeds the limit.
    pub(crate) fn check(&mut self, sandbox: &PreparedSandbox) -> Vec<u32> {
        self.machine.read();
        if !self.is_due(Instant::now()) {
            return Vec::new();
        }
        let before = (cpu_time(), self.room);
        let killed = self.look(sandbox);
        let has_grown = self.room + NOISE / 4 < before.1;
        self.false_alarms = if has_grown { 0 } else { self.false_alarms + 1 };
        self.machine.start_again();
        self.looked = Instant::now();
        self.cost = cpu_time().saturating_sub(before.0);
        let since = self.looked;
        self.dying.extend(killed.iter().map(|pid| (*pid, since)));
        killed
    }

    /// Looks take at most a 25th of the time, but up to half of it while the sandbox uses up memory. While
    /// there is plenty of room, there is one per second.
    fn is_due(&self, now: Instant) -> bool {
        let pause = if self.machine.fallen() > (self.room / 2).max(NOISE) {
            self.cost * (2 << self.false_alarms.min(4)).min(25)
        } else if self.room > PLENTY {
            ROOMY_PAUSE.max(self.cost * 25)
        } else {
            self.cost * 25
        };
        now.saturating_duration_since(self.looked) >= pause
    }

    fn look(&mut self, sandbox: &PreparedSandbox) -> Vec<u32> {
        let now = Instant::now();
        self.dying.retain(|(_, since)| now < *since + DYING);
        let mut pids = sandbox_processes();
        pids.retain(|pid| self.dying.iter().all(|(dying, _)| dying != pid));
        let outside = outside_processes(sandbox);
        let processes: Vec<_> = pids.into_iter().filter_map(ProcessMemory::read).collect();
        let estimate = MemoryUse::estimate(&processes);
        // The exact measurement reads all page tables, and is not needed if these alone are too much.
        let unshared = estimate.own() + outside;
        if unshared > self.limit {
            self.room = 0;
            return free(estimate, unshared - self.limit);
        }
        self.room = self.limit.saturating_sub(estimate.total() + outside);
        // Pages of shared memory that no process maps any more are in no count of the processes.
        let most_hidden = self.machine.shared.saturating_sub(outside);
        if self.room > 0 && most_hidden.min(self.objects.find(&processes)) < self.room {
            return Vec::new();
        }
        let (exact, ever_mapped) = MemoryUse::measure(&processes, &mut self.objects);
        let total = exact.total() + outside;
        self.room = self.limit.saturating_sub(total);
        if self.room == 0 {
            return free(exact, total - self.limit);
        }
        let hidden = ever_mapped
            .shared()
            .min(most_hidden)
            .saturating_sub(exact.shared());
        match (total + hidden).saturating_sub(self.limit) {
            0 => Vec::new(),
            excess => free(ever_mapped, excess),
        }
    }
}

/// Returns the processes whose end frees this much. Removes System V objects if that does not suffice.
fn free(memory: MemoryUse, excess: u64) -> Vec<u32> {
    let (killed, suffices) = memory.largest(excess);
    if !suffices {
        sysv::remove_all();
    }
    killed
}

/// Returns the memory outside of processes: files and System V objects.
fn outside_processes(sandbox: &PreparedSandbox) -> u64 {
    let used = |dir: &OwnedFd| file_system_space(dir.as_fd()).map_or(0, |space| space.used);
    let files = if sandbox.setup.on_disk {
        0
    } else {
        used(&sandbox.data)
    };
    if !sandbox.setup.own_namespaces {
        // The filter denies System V objects, and /dev/shm is the machine's.
        return files;
    }
    let shared = File::open("/dev/shm").map_or(0, |dir| used(&dir.into()));
    files + shared + sysv::size()
}

/// The free and the shared memory of the machine.
struct MachineMemory {
    meminfo: Option<File>,
    available: u64,
    /// The most memory that was available since the last look.
    most_available: u64,
    shared: u64,
}

impl MachineMemory {
    fn new() -> MachineMemory {
        let mut memory = MachineMemory {
            meminfo: File::open("/proc/meminfo").ok(),
            available: u64::MAX,
            most_available: 0,
            shared: 0,
        };
        memory.read();
        memory
    }

    /// Changes nothing without `/proc`.
    fn read(&mut self) {
        let mut buffer = [0; 2048];
        let length = self
            .meminfo
            .as_ref()
            .map(|file| file.read_at(&mut buffer, 0));
        let text = match length {
            Some(Ok(length)) => str::from_utf8(&buffer[..length]).unwrap_or_default(),
            _ => return,
        };
        let fields = (field(text, "MemAvailable:"), field(text, "Shmem:"));
        if let (Some(available), Some(shared)) = fields {
            self.available = available;
            self.most_available = self.most_available.max(available);
            self.shared = shared;
        }
    }

    fn start_again(&mut self) {
        self.most_available = self.available;
    }

    fn fallen(&self) -> u64 {
        self.most_available.saturating_sub(self.available)
    }
}

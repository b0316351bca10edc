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

/// Watches the memory of the sandbox's processes and files. An estimate is cheap. If it exceeds the limit, the
/// memory is measured, which can take long. Both happen the more rarely the longer they take. Reading the
/// machine's free memory is cheaper still. If that has fallen by half of the room that is left, both happen
/// earlier.
pub(crate) struct MemoryWatch {
    limit: u64,
    cpu_count: u64,
    /// The limit minus the memory at the last estimate or measurement.
    room: u64,
    machine: MachineMemory,
    estimates: Timing,
    measurements: Timing,
    /// The last estimate.
    estimated: u64,
    /// The part of the estimate that did not exist at the last measurement: pages that several processes have.
    overestimated: u64,
    /// Checks in a row that found neither growth nor too much. Other programs of the machine use its memory
    /// too.
    false_alarms: u32,
    objects: SharedObjects,
    /// Processes that were killed, and when.
    dying: Vec<(u32, Instant)>,
}

impl MemoryWatch {
    pub(crate) fn new(limit: u64, cpu_count: u64) -> MemoryWatch {
        MemoryWatch {
            limit,
            cpu_count: cpu_count.max(1),
            room: limit,
            machine: MachineMemory::new(),
            estimates: Timing::new(),
            measurements: Timing::new(),
            estimated: 0,
            overestimated: 0,
            false_alarms: 0,
            objects: SharedObjects::default(),
            dying: Vec::new(),
        }
    }

    /// Returns the time until the next check: until the room could be used up if every CPU allocates
    /// memory as fast as it can.
    pub(crate) fn pause(&self) -> Duration {
        const BYTES_PER_CPU_AND_MILLI: u64 = 4_000_000;
        let millis = self.room / (BYTES_PER_CPU_AND_MILLI * self.cpu_count);
        Duration::from_millis(millis.clamp(10, 250))
    }

    /// Returns the processes that must be killed: the largest ones, if the memory exceeds the limit.
    pub(crate) fn check(&mut self, sandbox: &PreparedSandbox) -> Vec<u32> {
        self.machine.read();
        if !self.estimate_is_due() {
            return Vec::new();
        }
        let room = self.room;
        let Some(killed) = self.look(sandbox) else {
            return Vec::new();
        };
        let is_alarm = self.room + NOISE / 4 < room || !killed.is_empty();
        self.false_alarms = if is_alarm { 0 } else { self.false_alarms + 1 };
        self.machine.start_again();
        let now = Instant::now();
        self.dying.extend(killed.iter().map(|pid| (*pid, now)));
        killed
    }

    /// While there is plenty of room, there is one estimate per second.
    fn estimate_is_due(&self) -> bool {
        let is_early = self.room > PLENTY && self.estimates.last.elapsed() < ROOMY_PAUSE;
        self.estimates.is_due(self.cost_factor()) && (self.uses_up_memory() || !is_early)
    }

    /// Returns true if the sandbox may be using up the room that was left.
    fn uses_up_memory(&self) -> bool {
        self.room == 0 || self.machine.fallen() > (self.room / 2).max(NOISE)
    }

    /// Checks take at most a 25th of the time, but up to half of it while the sandbox uses up memory.
    fn cost_factor(&self) -> u32 {
        if self.uses_up_memory() {
            (2 << self.false_alarms.min(4)).min(25)
        } else {
            25
        }
    }

    /// Returns the processes that must be killed. `None` if only a measurement can tell, and it is not due.
    fn look(&mut self, sandbox: &PreparedSandbox) -> Option<Vec<u32>> {
        let began = cpu_time();
        let processes = self.processes();
        let objects = objects_size(sandbox);
        let outside = files_size(sandbox) + objects;
        let estimate = MemoryUse::estimate(&processes);
        let mapped = self.objects.find(&processes);
        self.estimates.ended(began);
        // The exact measurement reads all page tables, and is not needed if these alone are too much.
        let unshared = estimate.own() + outside;
        if unshared > self.limit {
            self.room = 0;
            return Some(free(estimate, unshared - self.limit, objects));
        }
        self.set_estimated(estimate.total() + outside);
        // Pages of shared memory that no process maps any more are in no count of the processes.
        let most_hidden = self.machine.shared.saturating_sub(outside);
        if self.estimated + most_hidden.min(mapped) < self.limit {
            return Some(Vec::new());
        }
        if !self.measurements.is_due(self.cost_factor()) {
            return None;
        }
        let began = cpu_time();
        let (exact, ever_mapped) = MemoryUse::measure(&processes, &mut self.objects);
        self.measurements.ended(began);
        let total = exact.total() + outside;
        self.overestimated = self.estimated.saturating_sub(total);
        self.room = self.limit.saturating_sub(total);
        if total > self.limit {
            return Some(free(exact, total - self.limit, objects));
        }
        let hidden = ever_mapped
            .shared()
            .min(most_hidden)
            .saturating_sub(exact.shared());
        Some(match (total + hidden).saturating_sub(self.limit) {
            0 => Vec::new(),
            excess => free(ever_mapped, excess, objects),
        })
    }

    /// Reads the processes that were not killed yet.
    fn processes(&mut self) -> Vec<ProcessMemory> {
        let now = Instant::now();
        self.dying.retain(|(_, since)| now < *since + DYING);
        let mut pids = sandbox_processes();
        pids.retain(|pid| self.dying.iter().all(|(dying, _)| dying != pid));
        pids.into_iter().filter_map(ProcessMemory::read).collect()
    }

    /// Takes a new estimate. What has gone since the last one may have been counted more than once.
    fn set_estimated(&mut self, estimated: u64) {
        let gone = self.estimated.saturating_sub(estimated);
        self.overestimated = self.overestimated.saturating_sub(gone);
        self.estimated = estimated;
        self.room = (self.limit + self.overestimated).saturating_sub(estimated);
    }
}

/// When something that costs time was last done, and its CPU time.
struct Timing {
    last: Instant,
    cost: Duration,
}

impl Timing {
    fn new() -> Timing {
        Timing {
            last: Instant::now(),
            cost: Duration::ZERO,
        }
    }

    fn ended(&mut self, began: Duration) {
        self.last = Instant::now();
        self.cost = cpu_time().saturating_sub(began);
    }

    /// Returns true after this many times the cost.
    fn is_due(&self, times: u32) -> bool {
        self.last.elapsed() >= self.cost * times
    }
}

/// Returns the processes whose end frees this much. Removes the System V objects, of this size, if that does
/// not suffice, or if they are larger than every process: otherwise later commands would find hardly any
/// memory.
fn free(memory: MemoryUse, excess: u64, objects: u64) -> Vec<u32> {
    let are_largest = objects > memory.largest_size();
    let (killed, suffices) = memory.largest(excess);
    if are_largest || (objects > 0 && !suffices) {
        sysv::remove_all();
    }
    killed
}

/// Returns the memory of the sandbox's System V objects. Without its own namespaces, the filter denies them,
/// and those that exist are the machine's.
fn objects_size(sandbox: &PreparedSandbox) -> u64 {
    if sandbox.setup.own_namespaces {
        sysv::size()
    } else {
        0
    }
}

/// Returns the memory of the sandbox's files. Without its own namespaces, `/dev/shm` is the machine's.
fn files_size(sandbox: &PreparedSandbox) -> u64 {
    let used = |dir: &OwnedFd| file_system_space(dir.as_fd()).map_or(0, |space| space.used);
    let mut size = 0;
    if !sandbox.setup.on_disk {
        size += used(&sandbox.data);
    }
    if sandbox.setup.own_namespaces {
        size += File::open("/dev/shm").map_or(0, |dir| used(&dir.into()));
    }
    size
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
            Some(Ok(length)) => std::str::from_utf8(&buffer[..length]).unwrap_or_default(),
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

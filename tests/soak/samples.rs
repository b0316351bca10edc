//! Samples of the processes: memory, descriptors, threads and holders.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::run::Soak;
use crate::support::processes::{children_of, command_line, start_time};

/// The growth in memory that a process may have from the first half of the time to the end, in KiB.
const MAX_GROWTH: u64 = 16 * 1024;

/// Resources of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// In KiB.
    pub(crate) memory: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Usage {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let memory = status.lines().find_map(|line| {
            let value = line.strip_prefix("VmRSS:")?;
            value.trim().trim_end_matches(" kB").parse().ok()
        });
        let count =
            |dir: &str| fs::read_dir(format!("/proc/{pid}/{dir}")).map_or(0, Iterator::count);
        Usage {
            memory: memory.unwrap_or_default(),
            descriptors: count("fd"),
            threads: count("task"),
        }
    }

    /// Returns the least that a server uses in two seconds. It notices only after a call that its client has
    /// closed the connection.
    pub(crate) fn after_calls(pid: u32) -> Usage {
        let usages = (0..20).map(|_| {
            thread::sleep(Duration::from_millis(100));
            Usage::of(pid)
        });
        let least = usages.min_by_key(|usage| (usage.descriptors, usage.threads));
        least.expect("there are samples")
    }
}

/// The soaks in this process, and what it used before the first one.
static SOAKS: Mutex<(usize, Option<Usage>)> = Mutex::new((0, None));

/// The number of threads that the test harness may have in addition at the end.
const HARNESS_THREADS: usize = 10;

/// Records the start of a soak.
pub(crate) fn enter_process() {
    let mut soaks = SOAKS.lock().unwrap();
    soaks.0 += 1;
    soaks.1.get_or_insert_with(|| Usage::of(std::process::id()));
}

/// Records the end of a soak. Returns what this process has left open, if this was the last one.
pub(crate) fn leave_process() -> Option<String> {
    let mut soaks = SOAKS.lock().unwrap();
    soaks.0 -= 1;
    let before = soaks.1.filter(|_| soaks.0 == 0)?;
    let after = Usage::of(std::process::id());
    let has_more =
        after.descriptors > before.descriptors || after.threads > before.threads + HARNESS_THREADS;
    has_more.then(|| format!("this process: {before:?} before, {after:?} after"))
}

#[derive(Default)]
pub(crate) struct Samples(Mutex<State>);

#[derive(Default)]
struct State {
    /// The memory of the server that runs now, in KiB.
    server: (u32, Vec<u64>),
    /// The memory of this process, in KiB.
    own: Vec<u64>,
    /// Processes that a server has started, with their start time.
    children: BTreeSet<(u32, u64)>,
}

impl Samples {
    /// Takes samples until the end of the soak.
    pub(crate) fn take_all_along(&self, soak: &Soak<'_>) {
        while soak.sleep(Duration::from_millis(500)) {
            let server = soak.server.pid();
            let memory = Usage::of(server).memory;
            let mut state = self.0.lock().unwrap();
            if state.server.0 != server {
                state.server = (server, Vec::new());
            }
            state.server.1.push(memory);
            state.own.push(Usage::of(std::process::id()).memory);
            let holders = children_of(server)
                .filter(|pid| command_line(*pid).starts_with(b"noxrunner-sandbox"));
            let holders = holders.filter_map(|pid| Some((pid, start_time(pid)?)));
            state.children.extend(holders);
        }
    }

    /// Returns the processes of servers that still run.
    pub(crate) fn left(&self) -> Vec<u32> {
        let state = self.0.lock().unwrap();
        let runs = |(pid, started): &&(u32, u64)| {
            start_time(*pid) == Some(*started) && !command_line(*pid).is_empty()
        };
        state
            .children
            .iter()
            .filter(runs)
            .map(|(pid, _)| *pid)
            .collect()
    }

    /// Compares the memory of the second half with that of the first.
    pub(crate) fn check_memory(&self, soak: &Soak<'_>) {
        let state = self.0.lock().unwrap();
        for (name, samples) in [("server", &state.server.1), ("test", &state.own)] {
            let quarters: Vec<u64> = samples
                .chunks(samples.len().div_ceil(4).max(1))
                .map(|quarter| quarter.iter().max().copied().unwrap_or_default())
                .collect();
            for (at, memory) in quarters.iter().enumerate() {
                let what = format!("KiB of the {name}, quarter {}", at + 1);
                soak.ledger.add(&what, *memory);
            }
            let [first, .., last] = *quarters else {
                continue;
            };
            // The first requests fill caches.
            let before = quarters.get(1).copied().unwrap_or(first).max(first);
            if last > before + before / 4 + MAX_GROWTH {
                let text = format!("memory has grown: {quarters:?} KiB");
                soak.ledger.broken(name, &text);
            }
        }
    }
}

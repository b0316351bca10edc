//! What a sandbox may take of the machine.

use std::fs;

use super::quantity::{parse_bytes, parse_cpu};
use crate::error::Result;
use crate::spec::SandboxSpec;

const MIB: u64 = 1024 * 1024;

/// How many processes and threads a sandbox may have at a time.
pub(super) const PROCESSES: u64 = 512;

/// How many files a process may have open.
pub(super) const OPEN_FILES: u64 = 1024;

/// What a local sandbox may take, and how far it is held to that; see
/// [`LocalBackend::limits`](crate::LocalBackend::limits).
///
/// ```
/// use noxrunner::{LocalBackend, SandboxSpec};
///
/// let backend = LocalBackend::builder().build()?;
/// let limits = backend.limits(&SandboxSpec::new().memory("64Mi"))?;
/// assert!(limits.processes.amount.is_some() && limits.storage.amount.is_some());
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Thousandths of a CPU.
    pub cpu_millis: Limit,
    /// Bytes of memory of all processes together, files in memory included.
    pub memory: Limit,
    /// Bytes of all files in `/workspace` and `/tmp` together.
    pub storage: Limit,
    /// Processes and threads at a time.
    pub processes: Limit,
    /// Open files of a process.
    pub open_files: Limit,
}

/// One limit.
///
/// ```
/// use noxrunner::{LocalBackend, SandboxSpec};
///
/// let backend = LocalBackend::builder().build()?;
/// let limits = backend.limits(&SandboxSpec::new().memory("64Mi"))?;
/// assert_eq!(limits.memory.amount, Some(64 << 20));
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limit {
    /// None where there is none.
    pub amount: Option<u64>,
    /// How far it is enforced.
    pub enforced: Enforced,
}

/// How far a limit holds.
///
/// ```
/// use noxrunner::{Enforced, LocalBackend, SandboxSpec};
///
/// let backend = LocalBackend::builder().build()?;
/// let limits = backend.limits(&SandboxSpec::new().memory("64Mi"))?;
/// assert_ne!(limits.memory.enforced, Enforced::No);
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Enforced {
    /// By the kernel: it can't be passed.
    Exact,
    /// It can be passed for a moment or by a part, as its documentation says.
    Approximate,
    /// Not at all.
    No,
}

impl Limit {
    pub(super) const NONE: Limit = Limit {
        amount: None,
        enforced: Enforced::No,
    };

    pub(super) fn new(amount: u64, enforced: Enforced) -> Limit {
        Limit {
            amount: Some(amount),
            enforced,
        }
    }
}

/// The limits of a spec in numbers, with defaults that leave the machine usable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amounts {
    pub(super) cpu_millis: Option<u64>,
    pub(super) memory: u64,
    pub(super) storage: u64,
    /// More than should be held in memory.
    pub(super) on_disk: bool,
}

impl Amounts {
    pub(super) fn of(spec: &SandboxSpec) -> Result<Amounts> {
        const DEFAULT_MEMORY: u64 = 1024 * MIB;
        const DEFAULT_STORAGE: u64 = 512 * MIB;
        let cpu_millis = spec.get_cpu().map(parse_cpu).transpose()?;
        let memory = match spec.get_memory() {
            Some(text) => parse_bytes("memory limit", text)?,
            None => memory_of_machine("MemTotal:")
                .map_or(DEFAULT_MEMORY, |total| DEFAULT_MEMORY.min(total / 2)),
        };
        let free = memory_of_machine("MemAvailable:").unwrap_or(u64::MAX);
        let in_memory = (memory / 2).min(free / 8);
        let storage = match spec.get_storage() {
            Some(text) => parse_bytes("storage limit", text)?,
            None => DEFAULT_STORAGE.min(in_memory.max(MIB)),
        };
        Ok(Amounts {
            cpu_millis,
            memory,
            storage,
            on_disk: spec.get_storage().is_some() && storage > in_memory,
        })
    }
}

/// A line of /proc/meminfo, in bytes.
fn memory_of_machine(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

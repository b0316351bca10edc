//! The limits of a local sandbox.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::quantity::{
    DEFAULT_MEMORY, DEFAULT_STORAGE, MIN_MEMORY, MIN_STORAGE, parse_bytes, parse_cpu,
};
use crate::spec::SandboxSpec;

const MIB: u64 = 1024 * 1024;

/// Maximum number of processes and threads of a sandbox.
pub(super) const PROCESSES: u64 = 512;

/// Maximum number of open files of a process.
pub(super) const OPEN_FILES: u64 = 1024;

/// The limits of a local sandbox, from [`LocalBackend::limits`](crate::LocalBackend::limits).
///
/// As JSON: `cpuMillis`, `memory`, `storage`, `processes` and `openFiles`, each with `amount` and
/// `enforced`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    pub(super) cpu_millis: Limit,
    pub(super) memory: Limit,
    pub(super) storage: Limit,
    pub(super) processes: Limit,
    pub(super) open_files: Limit,
}

impl Limits {
    pub(super) const NONE: Limits = Limits {
        cpu_millis: Limit::NONE,
        memory: Limit::NONE,
        storage: Limit::NONE,
        processes: Limit::NONE,
        open_files: Limit::NONE,
    };

    /// Returns the limit of CPU time, in thousandths of a CPU.
    #[must_use]
    pub fn cpu_millis(&self) -> Limit {
        self.cpu_millis
    }

    /// Returns the limit of memory of all processes and in-memory files together, in bytes.
    #[must_use]
    pub fn memory(&self) -> Limit {
        self.memory
    }

    /// Returns the limit of all files in `/workspace` and `/tmp` together, in bytes.
    #[must_use]
    pub fn storage(&self) -> Limit {
        self.storage
    }

    /// Returns the maximum number of processes and threads at a time.
    #[must_use]
    pub fn processes(&self) -> Limit {
        self.processes
    }

    /// Returns the maximum number of open files per process.
    #[must_use]
    pub fn open_files(&self) -> Limit {
        self.open_files
    }
}

/// One limit of [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    amount: Option<u64>,
    enforced: Enforced,
}

impl Limit {
    pub(super) const NONE: Limit = Limit {
        amount: None,
        enforced: Enforced::No,
    };

    pub(super) fn new(amount: u64, is_exact: bool) -> Limit {
        let enforced = if is_exact {
            Enforced::Exact
        } else {
            Enforced::Approximate
        };
        Limit {
            amount: Some(amount),
            enforced,
        }
    }

    /// Returns the amount, or `None` if there is no limit.
    #[must_use]
    pub fn amount(&self) -> Option<u64> {
        self.amount
    }

    /// Returns how strictly the limit is enforced.
    #[must_use]
    pub fn enforced(&self) -> Enforced {
        self.enforced
    }
}

/// The enforcement of a [`Limit`].
///
/// `Display` and JSON show the name of the variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Enforced {
    /// The kernel enforces the limit. It cannot be exceeded.
    Exact,
    /// The limit can be exceeded for a moment or in part; see
    /// [`LocalBackend`](crate::LocalBackend#limits).
    Approximate,
    /// The limit is not enforced.
    No,
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Enforced::Exact => "exact",
            Enforced::Approximate => "approximate",
            Enforced::No => "not enforced",
        })
    }
}

/// The limits in the spec that created a sandbox. They stay when a later spec asks for others.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct RequestedLimits {
    cpu: Option<String>,
    memory: Option<String>,
    storage: Option<String>,
}

impl RequestedLimits {
    pub(super) fn new(spec: &SandboxSpec) -> RequestedLimits {
        let owned = |limit: Option<&str>| limit.map(str::to_owned);
        RequestedLimits {
            cpu: owned(spec.get_cpu()),
            memory: owned(spec.get_memory()),
            storage: owned(spec.get_storage()),
        }
    }

    /// Returns the names of the limits that a later spec asks for, but that stay different.
    pub(super) fn ignored(&self, spec: &SandboxSpec) -> Vec<String> {
        let limits = [
            ("cpu", &self.cpu, spec.get_cpu()),
            ("memory", &self.memory, spec.get_memory()),
            ("storage", &self.storage, spec.get_storage()),
        ];
        let is_ignored = |limit: &Option<String>, asked: Option<&str>| {
            asked.is_some() && limit.as_deref() != asked
        };
        let ignored = limits
            .into_iter()
            .filter(|(_, limit, asked)| is_ignored(limit, *asked));
        ignored.map(|(name, ..)| name.to_owned()).collect()
    }
}

/// The limits of a spec as numbers. The defaults leave the machine usable.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResolvedLimits {
    pub(super) cpu_millis: Option<u64>,
    pub(super) memory: u64,
    pub(super) storage: u64,
    /// The storage is too large to be held in memory.
    pub(super) on_disk: bool,
}

impl ResolvedLimits {
    pub(super) fn new(spec: &SandboxSpec) -> Result<ResolvedLimits> {
        let cpu_millis = spec.get_cpu().map(parse_cpu).transpose()?;
        let of_machine = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = match spec.get_memory() {
            Some(text) => parse_bytes("memory limit", text, MIN_MEMORY)?,
            None => meminfo_field(&of_machine, "MemTotal:")
                .map_or(DEFAULT_MEMORY, |total| DEFAULT_MEMORY.min(total / 2)),
        };
        let free = meminfo_field(&of_machine, "MemAvailable:").unwrap_or(u64::MAX);
        let in_memory = (memory / 2).min(free / 8);
        let storage = match spec.get_storage() {
            Some(text) => parse_bytes("storage limit", text, MIN_STORAGE)?,
            None => DEFAULT_STORAGE.min(in_memory.max(MIB)),
        };
        Ok(ResolvedLimits {
            cpu_millis,
            memory,
            storage,
            on_disk: spec.get_storage().is_some() && storage > in_memory,
        })
    }
}

/// Returns a field of `/proc/meminfo`, in bytes.
fn meminfo_field(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

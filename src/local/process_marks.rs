//! Environment variables that mark the processes of a sandbox or an exec, to find and kill them.

use std::fs;
use std::time::Duration;

use crate::os;
use crate::os::random::random_u64;

/// Marks all processes of a sandbox.
pub(super) const SANDBOX_MARK: &str = "NOXRUNNER_SANDBOX";

/// Marks all processes of one exec.
pub(super) const EXEC_MARK: &str = "NOXRUNNER_EXEC";

/// Returns a value for a mark that no other sandbox or exec has.
pub(super) fn random_token() -> String {
    format!("{:016x}{:016x}", random_u64(), random_u64())
}

/// Kills every process of this user with the mark in its environment. Repeats until none is left,
/// because a process may have forked since the last scan. Linux only.
pub(super) fn kill_marked(mark: &str, token: &str) {
    const MAX_SCANS: usize = 100;
    let variable = format!("{mark}={token}").into_bytes();
    for _ in 0..MAX_SCANS {
        let marked = marked_processes(&variable);
        if marked.is_empty() {
            return;
        }
        marked.into_iter().for_each(os::kill_process);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn marked_processes(variable: &[u8]) -> Vec<u32> {
    let processes = fs::read_dir("/proc").ok().into_iter().flatten();
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|process| {
            // The read fails for processes of other users and for those that have ended.
            let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
            environment
                .split(|b| *b == 0)
                .any(|found| found == variable)
        })
        .collect()
}

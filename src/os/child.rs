//! Child processes: their usage, and what only the first process of a container does.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use crate::output::Usage;

/// Returns the status of a child that has ended, and what it has used together with those of its own
/// children that it has waited for. Does not wait.
pub(crate) fn try_wait(child: &Child) -> io::Result<Option<(ExitStatus, Usage)>> {
    let id = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: rusage is plain data, and all zeros is a valid value of it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both are valid for writes.
    let wait = || unsafe { libc::wait4(id, &raw mut status, libc::WNOHANG, &raw mut usage) };
    if super::retry(wait)? == 0 {
        return Ok(None);
    }
    Ok(Some((ExitStatus::from_raw(status), usage_of(&usage))))
}

fn usage_of(usage: &libc::rusage) -> Usage {
    /// Linux counts in KiB, macOS in bytes.
    const UNIT: u64 = if cfg!(target_os = "macos") { 1 } else { 1024 };
    let time = |time: libc::timeval| {
        let micros = u64::try_from(time.tv_usec).unwrap_or(0);
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + Duration::from_micros(micros)
    };
    let peak = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    Usage::new(time(usage.ru_utime) + time(usage.ru_stime), peak * UNIT)
}

//! Child processes: their usage, and what only the first process of a container does.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use crate::output::Usage;

/// Returns the status of a child that has ended, and its usage together with that of its own
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

/// Signals that the first process of a container waits for: one of its children has ended, or it has to
/// end itself.
#[cfg(all(feature = "agent", target_os = "linux"))]
const AWAITED: [libc::c_int; 3] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT];

/// A signal that [`wait_for_signal`] has received.
#[cfg(all(feature = "agent", target_os = "linux"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    ChildEnded,
    Terminate,
}

/// Blocks the signals that [`wait_for_signal`] waits for, in this thread and in those that it starts. New
/// processes inherit that, unless [`unblock_signals`] prepares them.
#[cfg(all(feature = "agent", target_os = "linux"))]
pub(crate) fn block_awaited_signals() {
    let set = awaited();
    // SAFETY: the set is initialized, and the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Waits for a signal that [`block_awaited_signals`] has blocked. Returns `None` after the timeout.
#[cfg(all(feature = "agent", target_os = "linux"))]
pub(crate) fn wait_for_signal(timeout: Duration) -> Option<Signal> {
    let set = awaited();
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: both are initialized, and information about the signal is not asked for.
    let signal =
        unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const timeout) };
    match signal {
        libc::SIGCHLD => Some(Signal::ChildEnded),
        libc::SIGTERM | libc::SIGINT => Some(Signal::Terminate),
        _ => None,
    }
}

#[cfg(all(feature = "agent", target_os = "linux"))]
fn awaited() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, and sigemptyset initializes it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is valid for writes.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in AWAITED {
        // SAFETY: the set is initialized.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// Reaps the children of this thread that have ended. If it is the main thread of the first process of a
/// container, these are the orphans of the container. The children of other threads are left alone.
#[cfg(all(feature = "agent", target_os = "linux"))]
pub(crate) fn reap_orphans() {
    let options = libc::WNOHANG | libc::__WNOTHREAD | libc::__WALL;
    // SAFETY: the status is not asked for.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), options) } > 0 {}
}

/// Prevents other processes of this user from tracing this process and reading its memory.
#[cfg(all(feature = "agent", target_os = "linux"))]
pub(crate) fn forbid_tracing() -> io::Result<()> {
    // SAFETY: no memory is involved.
    super::check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Makes a new process start without blocked signals.
#[cfg(all(feature = "agent", target_os = "linux"))]
pub(crate) fn unblock_signals(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let unblock = || {
        let set = awaited();
        // SAFETY: the set is initialized, and the old one is not asked for. The call may be made between fork
        // and exec.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no locks.
    unsafe { command.pre_exec(unblock) };
}

/// Makes the kernel end the new process before others if memory runs out.
#[cfg(all(feature = "agent", target_os = "linux"))]
pub(crate) fn prefer_for_oom_kill(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let raise = || {
        // Only a process that can be traced owns its files in /proc.
        // SAFETY: the paths and the data are NUL-terminated or have the stated length. All calls may be
        // made between fork and exec.
        unsafe {
            libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            let file = libc::open(
                c"/proc/self/oom_score_adj".as_ptr(),
                libc::O_WRONLY | libc::O_CLOEXEC,
            );
            if file >= 0 {
                libc::write(file, c"1000".as_ptr().cast(), 4);
                libc::close(file);
            }
        }
        // A container may have no /proc.
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no locks.
    unsafe { command.pre_exec(raise) };
}

//! System calls for processes, signals and descriptors.
#![expect(unsafe_code, reason = "std does not offer these system calls")]

use std::ffi::{c_int, c_long, c_uint, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::time::Duration;

use super::c::{self, SIGCHLD, SIGCONT, SIGKILL, SIGSTOP, SIGTERM};
use super::c::{check, check_long, new_fd, number, set_process_option};

/// Timeout of a wait with nothing else to do.
pub(crate) const IDLE_WAIT: Duration = Duration::from_secs(3600);

/// Takes ownership of a descriptor that the library passed to this program.
pub(crate) fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: called once, at the start, for the socket that the library passes as stdin.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(crate) fn accept(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SOCK_CLOEXEC: c_int = 0o2_000_000;
    // SAFETY: the kernel does not write an address if the pointers are null.
    let fd = unsafe { c::accept4(socket.as_raw_fd(), null_mut(), null_mut(), SOCK_CLOEXEC) };
    new_fd(fd.into())
}

/// Waits until a descriptor is readable or closed, or the timeout passes. Returns which ones are.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<Vec<bool>> {
    const POLLIN: i16 = 1;
    let mut polled: Vec<c::PollFd> = fds
        .iter()
        .map(|fd| c::PollFd {
            fd: fd.as_raw_fd(),
            events: POLLIN,
            revents: 0,
        })
        .collect();
    // Rounded up, because otherwise the last millisecond would be a busy loop.
    let millis = timeout.as_micros().div_ceil(1000);
    let millis = c_int::try_from(millis).unwrap_or(c_int::MAX);
    // SAFETY: the list has the given length.
    let result = unsafe { c::poll(polled.as_mut_ptr(), polled.len() as c_ulong, millis) };
    match check(result) {
        Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
        Err(_) => Ok(vec![false; fds.len()]),
        Ok(_) => Ok(polled.iter().map(|p| p.revents != 0).collect()),
    }
}

/// Resets all signals to their defaults, and blocks SIGCHLD and SIGTERM. Returns a descriptor that
/// receives these two.
pub(crate) fn take_signals() -> io::Result<OwnedFd> {
    const SIG_SETMASK: c_int = 2;
    const SFD_CLOEXEC: c_int = 0o2_000_000;
    const SFD_NONBLOCK: c_int = 0o4000;
    let mut set: c::SigSet = [0; 16];
    // SAFETY: the set has room for the largest sigset_t. Default handlers involve no memory, and
    // the call fails for signals that cannot be set.
    let fd = unsafe {
        for number in 1..=64 {
            c::signal(number, 0);
        }
        c::sigemptyset(&raw mut set);
        c::sigaddset(&raw mut set, SIGCHLD);
        c::sigaddset(&raw mut set, SIGTERM);
        check(c::sigprocmask(SIG_SETMASK, &raw const set, null_mut()))?;
        c::signalfd(-1, &raw const set, SFD_CLOEXEC | SFD_NONBLOCK)
    };
    new_fd(fd.into())
}

/// Reads all signals from the descriptor of [`take_signals`]. Returns true if one of them was SIGTERM.
pub(crate) fn clear_signals(fd: BorrowedFd<'_>) -> bool {
    /// Size of `struct signalfd_siginfo`, which begins with the signal's number.
    const SIZE: usize = 128;
    let mut buffer = [0_u8; SIZE];
    let mut asked_to_end = false;
    // SAFETY: the buffer has the given length.
    while unsafe { c::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), SIZE) } == SIZE as isize {
        asked_to_end |= buffer[..4] == SIGTERM.to_ne_bytes();
    }
    asked_to_end
}

/// The exit status of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitStatus {
    Exited(i32),
    Signaled(i32),
}

/// Result of reaping a child.
pub(crate) enum Child {
    Ended(u32, WaitStatus),
    /// Children exist, and none of them has ended.
    Running,
    NoneLeft,
}

/// Reaps a child that has ended, if there is one.
pub(crate) fn take_child() -> Child {
    const WNOHANG: c_int = 1;
    let mut status = 0;
    // SAFETY: status has room for the result.
    match unsafe { c::waitpid(-1, &raw mut status, WNOHANG) } {
        -1 => Child::NoneLeft,
        0 => Child::Running,
        // An orphan has made this process its tracer. It stays stopped.
        _ if status & 0xff == 0x7f => take_child(),
        pid => {
            let status = match status & 0x7f {
                0 => WaitStatus::Exited((status >> 8) & 0xff),
                signal => WaitStatus::Signaled(signal),
            };
            Child::Ended(pid.unsigned_abs(), status)
        }
    }
}

/// Returns true if a child has neither ended nor been stopped.
pub(crate) fn is_child_running(child: u32) -> bool {
    const WNOHANG_WUNTRACED: c_int = 1 | 2;
    let mut status = 0;
    // SAFETY: status has room for the result.
    let changed = unsafe { c::waitpid(child as c_int, &raw mut status, WNOHANG_WUNTRACED) };
    changed == 0
}

pub(crate) fn kill_process(pid: u32) {
    signal(pid, SIGKILL);
}

/// Stops a process until it is killed or continued.
pub(crate) fn stop_process(pid: u32) {
    signal(pid, SIGSTOP);
}

pub(crate) fn continue_process(pid: u32) {
    signal(pid, SIGCONT);
}

/// Sends a signal to a single process. For kill(2), 0 means the own process group, and 1 is the init
/// process.
fn signal(pid: u32, signal: c_int) {
    if let Some(pid) = c_int::try_from(pid).ok().filter(|pid| *pid > 1) {
        // SAFETY: no memory is involved. The call fails if the process has ended.
        unsafe { c::kill(pid, signal) };
    }
}

/// Kills all processes that this one may signal, except itself. Only for the first process of a pid
/// namespace.
pub(crate) fn kill_all() {
    // SAFETY: no memory is involved.
    unsafe { c::kill(-1, SIGKILL) };
}

pub(crate) fn kill_by_fd(pidfd: BorrowedFd<'_>) {
    let fd = pidfd.as_raw_fd();
    // SAFETY: without a siginfo no memory is involved.
    unsafe { c::syscall(number::PIDFD_SEND_SIGNAL, fd, SIGKILL, 0_usize, 0_usize) };
}

/// Closes all descriptors from `first` on, which this process inherited by accident.
pub(crate) fn close_from(first: u32) {
    // SAFETY: called at the start, when this program owns none of these descriptors.
    unsafe { c::syscall(number::CLOSE_RANGE, first, c_uint::MAX, 0_usize) };
}

/// Ends this process without destructors.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: the call does not return.
    unsafe { c::_exit(code) }
}

/// Creates a pipe: its reading and its writing end.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    const O_CLOEXEC: c_int = 0o2_000_000;
    let mut fds = [-1; 2];
    // SAFETY: the array has room for both descriptors.
    check(unsafe { c::pipe2(fds.as_mut_ptr(), O_CLOEXEC) })?;
    let [reader, writer] = fds.map(|fd| c::new_fd(fd.into()));
    Ok((reader?, writer?))
}

/// Forks. Returns `None` in the child and its process id in the parent.
pub(crate) fn fork() -> io::Result<Option<u32>> {
    // SAFETY: this process has one thread, so the child may call any function.
    let pid = check(unsafe { c::fork() })?;
    Ok((pid != 0).then_some(pid.unsigned_abs()))
}

/// Forks into new namespaces. The child is a sibling of this process, and the first process of the
/// namespaces. Returns `None` in the child, and its outer process id and a pidfd in the parent.
pub(crate) fn fork_into_namespaces(host_network: bool) -> io::Result<Option<(u32, OwnedFd)>> {
    const CLONE_PIDFD: c_long = 0x1000;
    const CLONE_PARENT: c_long = 0x8000;
    // Mount, cgroup, UTS, IPC, user and pid namespaces.
    const CLONE_NEW: c_long = 0x3e02_0000;
    const CLONE_NEWNET: c_long = 0x4000_0000;
    let network = if host_network { 0 } else { CLONE_NEWNET };
    let flags = c_long::from(SIGCHLD) | CLONE_PIDFD | CLONE_PARENT | CLONE_NEW | network;
    let mut pidfd: c_int = -1;
    let address = &raw mut pidfd;
    // SAFETY: this process has one thread. Without CLONE_VM the child has its own copy of the
    // memory and the stack. The kernel writes the pidfd to the variable of the parent.
    let pid = check_long(unsafe {
        c::syscall(number::CLONE, flags, 0_usize, address, 0_usize, 0_usize)
    })?;
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some((pid.unsigned_abs() as u32, new_fd(pidfd.into())?)))
}

/// Makes this process the parent of descendants whose parents end.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    const PR_SET_CHILD_SUBREAPER: c_int = 36;
    set_process_option(PR_SET_CHILD_SUBREAPER, 1)
}

/// Opens a pidfd of this process.
pub(crate) fn own_pidfd() -> io::Result<OwnedFd> {
    // SAFETY: all arguments are numbers.
    new_fd(unsafe { c::syscall(number::PIDFD_OPEN, std::process::id(), 0_usize) })
}

pub(crate) fn new_session() {
    // SAFETY: no memory is involved. The call fails if this process leads a session already.
    unsafe { c::syscall(number::SETSID) };
}

pub(crate) fn change_dir(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { c::fchdir(fd.as_raw_fd()) }).map(drop)
}

pub(crate) fn set_umask(mask: u32) {
    // SAFETY: the call never fails, and no memory is involved.
    unsafe { c::umask(mask) };
}

/// Returns the value, or the present hard limit of the resource if that is lower.
pub(crate) fn allowed_limit(resource: u32, value: u64) -> io::Result<u64> {
    let mut present = [0_u64; 2];
    // SAFETY: the array has room for the soft and the hard limit.
    check_long(unsafe {
        c::syscall(
            number::PRLIMIT64,
            0_usize,
            resource,
            0_usize,
            &raw mut present,
        )
    })?;
    Ok(value.min(present[1]))
}

/// Limits a resource of this process and its children, as far as the present hard limit allows.
pub(crate) fn limit_resource(resource: u32, value: u64) -> io::Result<()> {
    let limits = [allowed_limit(resource, value)?; 2];
    // SAFETY: the array contains the soft and the hard limit.
    check_long(unsafe {
        c::syscall(
            number::PRLIMIT64,
            0_usize,
            resource,
            &raw const limits,
            0_usize,
        )
    })
    .map(drop)
}

/// Returns the CPU time of this process.
pub(crate) fn cpu_time() -> Duration {
    const CLOCK_PROCESS_CPUTIME_ID: c_int = 2;
    let mut time = [0; 2];
    // SAFETY: the array has room for the seconds and the nanoseconds of a 64-bit system.
    unsafe { c::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let [seconds, nanos] = time.map(i64::unsigned_abs);
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}

const IPC_RMID: c_int = 0;

/// Removes System V shared memory. Fails silently if it does not exist.
pub(crate) fn remove_segment(id: i32) {
    // SAFETY: the removal takes no buffer.
    unsafe { c::shmctl(id, IPC_RMID, std::ptr::null_mut()) };
}

/// Removes a System V message queue. Fails silently if it does not exist.
pub(crate) fn remove_message_queue(id: i32) {
    // SAFETY: the removal takes no buffer.
    unsafe { c::msgctl(id, IPC_RMID, std::ptr::null_mut()) };
}

/// Removes a set of System V semaphores. Fails silently if it does not exist.
pub(crate) fn remove_semaphores(id: i32) {
    // SAFETY: the removal takes no buffer.
    unsafe { c::semctl(id, 0, IPC_RMID) };
}

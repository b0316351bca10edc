//! The system calls of the holder for messages and processes, as safe functions. All `unsafe` of the
//! holder is here and in `confine`.
#![expect(
    unsafe_code,
    reason = "the only door to the system calls that std does not offer"
)]

use std::ffi::{c_int, c_long, c_uint, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::time::Duration;

use crate::c::{self, MAX_FDS, number};

pub(crate) const EPERM: i32 = 1;
pub(crate) const ENOENT: i32 = 2;
pub(crate) const EACCES: i32 = 13;
pub(crate) const ENOTDIR: i32 = 20;
pub(crate) const EOPNOTSUPP: i32 = 95;

pub(crate) const SIGKILL: i32 = 9;
const SIGCHLD: c_int = 17;
const SIGTERM: c_int = 15;
const SIGSTOP: c_int = 19;

pub(crate) fn check(result: c_int) -> io::Result<c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

pub(crate) fn check_long(result: c_long) -> io::Result<c_long> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// A descriptor that whoever started this program has put there.
pub(crate) fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: called once, at the start, for the descriptor that the library gives as stdin.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    const MSG_NOSIGNAL: c_int = 0x4000;
    let mut part = c::IoVec {
        base: message.as_ptr().cast_mut().cast(),
        length: message.len(),
    };
    let mut control = c::Control {
        length: 16 + size_of::<c_int>(),
        level: 1,
        kind: 1,
        fds: [fd.map_or(-1, |fd| fd.as_raw_fd()); MAX_FDS],
    };
    let header = c::MsgHdr {
        name: null_mut(),
        name_length: 0,
        parts: &raw mut part,
        part_count: 1,
        control: match fd {
            Some(_) => (&raw mut control).cast(),
            None => null_mut(),
        },
        control_length: if fd.is_some() { 24 } else { 0 },
        flags: 0,
    };
    // SAFETY: all that the header points to lives through the call, with the lengths that it says;
    // sending only reads the message.
    let sent = unsafe { c::sendmsg(socket.as_raw_fd(), &raw const header, MSG_NOSIGNAL) };
    match sent {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// One message with its descriptors. None if there is none yet; an empty one at the end.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    wait: bool,
) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    const MSG_DONTWAIT: c_int = 0x40;
    const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;
    let mut part = c::IoVec {
        base: buffer.as_mut_ptr().cast(),
        length: buffer.len(),
    };
    let mut control = c::Control {
        length: 0,
        level: 0,
        kind: 0,
        fds: [-1; MAX_FDS],
    };
    let mut header = c::MsgHdr {
        name: null_mut(),
        name_length: 0,
        parts: &raw mut part,
        part_count: 1,
        control: (&raw mut control).cast(),
        control_length: size_of::<c::Control>(),
        flags: 0,
    };
    let flags = MSG_CMSG_CLOEXEC | if wait { 0 } else { MSG_DONTWAIT };
    // SAFETY: as in send; the kernel writes no more than the lengths allow.
    let got = unsafe { c::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    if got == -1 {
        let e = io::Error::last_os_error();
        return match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(e),
        };
    }
    let count = match header.control_length {
        0 => 0,
        _ => control.length.saturating_sub(16) / size_of::<c_int>(),
    };
    let fds = control.fds.iter().take(count).filter(|fd| **fd >= 0);
    // SAFETY: the kernel just made these descriptors, nobody else owns them.
    let fds = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect();
    Ok(Some((got.unsigned_abs(), fds)))
}

pub(crate) fn accept(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SOCK_CLOEXEC: c_int = 0o2_000_000;
    // SAFETY: no address is asked for.
    let fd =
        check(unsafe { c::accept4(socket.as_raw_fd(), null_mut(), null_mut(), SOCK_CLOEXEC) })?;
    // SAFETY: the kernel just made this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until something can be read or has ended, or the time is over; says of each whether.
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
    // Rounded up, or the last millisecond would be a busy loop.
    let millis = timeout.as_micros().div_ceil(1000);
    let millis = c_int::try_from(millis).unwrap_or(c_int::MAX);
    // SAFETY: the list is as long as it is said to be.
    let result = unsafe { c::poll(polled.as_mut_ptr(), polled.len() as c_ulong, millis) };
    match check(result) {
        Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
        Err(_) => Ok(vec![false; fds.len()]),
        Ok(_) => Ok(polled.iter().map(|p| p.revents != 0).collect()),
    }
}

/// Every signal as a new program has it; and a descriptor that tells of ended children and of the
/// wish that this process should end, whose signals are held back from here on.
pub(crate) fn take_signals() -> io::Result<OwnedFd> {
    const SIG_SETMASK: c_int = 2;
    const SFD_CLOEXEC: c_int = 0o2_000_000;
    const SFD_NONBLOCK: c_int = 0o4000;
    let mut set: c::SigSet = [0; 16];
    // SAFETY: the set has room for the largest sigset_t; setting a default handler touches no
    // memory, and those that can't be set are left alone.
    let fd = unsafe {
        for number in 1..=64 {
            c::signal(number, 0);
        }
        c::sigemptyset(&raw mut set);
        c::sigaddset(&raw mut set, SIGCHLD);
        c::sigaddset(&raw mut set, SIGTERM);
        check(c::sigprocmask(SIG_SETMASK, &raw const set, null_mut()))?;
        check(c::signalfd(-1, &raw const set, SFD_CLOEXEC | SFD_NONBLOCK))?
    };
    // SAFETY: the kernel just made this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes the news from the descriptor of [`take_signals`]; which child it was is asked elsewhere.
/// Says whether this process should end.
pub(crate) fn clear_signals(fd: BorrowedFd<'_>) -> bool {
    /// The size of what tells of one signal. Its number comes first.
    const ONE: usize = 128;
    let mut buffer = [0_u8; ONE];
    let mut asked_to_end = false;
    // SAFETY: the buffer is as long as it is said to be.
    while unsafe { c::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), ONE) } == ONE as isize {
        asked_to_end |= buffer[..4] == SIGTERM.to_ne_bytes();
    }
    asked_to_end
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Exited(i32),
    Signaled(i32),
}

pub(crate) enum Child {
    Ended(u32, Ended),
    /// There are some, and none has ended.
    Running,
    NoneLeft,
}

/// Takes one ended child, if there is one.
pub(crate) fn take_child() -> Child {
    const WNOHANG: c_int = 1;
    let mut status = 0;
    // SAFETY: status has room for the answer.
    match unsafe { c::waitpid(-1, &raw mut status, WNOHANG) } {
        -1 => Child::NoneLeft,
        0 => Child::Running,
        pid => {
            let ended = match status & 0x7f {
                0 => Ended::Exited((status >> 8) & 0xff),
                signal => Ended::Signaled(signal),
            };
            Child::Ended(pid.unsigned_abs(), ended)
        }
    }
}

/// Whether a child has neither ended nor been stopped.
pub(crate) fn runs(child: u32) -> bool {
    const WNOHANG_WUNTRACED: c_int = 1 | 2;
    let mut status = 0;
    // SAFETY: status has room for the answer.
    let changed = unsafe { c::waitpid(child as c_int, &raw mut status, WNOHANG_WUNTRACED) };
    changed == 0
}

pub(crate) fn kill_process(pid: u32) {
    signal(pid, SIGKILL);
}

/// It does nothing more until it is killed.
pub(crate) fn stop_process(pid: u32) {
    signal(pid, SIGSTOP);
}

/// 0 and 1 have other meanings to kill(2), and are nobody's to ask for here.
fn signal(pid: u32, signal: c_int) {
    if let Some(pid) = c_int::try_from(pid).ok().filter(|pid| *pid > 1) {
        // SAFETY: no memory is involved. That it is gone already is no failure.
        unsafe { c::kill(pid, signal) };
    }
}

/// Kills all that this process may signal, but itself. Only for a pid namespace of our own.
pub(crate) fn kill_all() {
    // SAFETY: no memory is involved.
    unsafe { c::kill(-1, SIGKILL) };
}

pub(crate) fn kill_by_fd(pidfd: BorrowedFd<'_>) {
    // SAFETY: without a siginfo no memory is involved.
    unsafe {
        c::syscall(
            number::PIDFD_SEND_SIGNAL,
            pidfd.as_raw_fd(),
            SIGKILL,
            0_usize,
            0_usize,
        )
    };
}

/// Closes what this process was given and nobody meant it to have.
pub(crate) fn close_from(first: u32) {
    // SAFETY: called at the start, when nothing here owns a descriptor from this one on.
    unsafe { c::syscall(number::CLOSE_RANGE, first, c_uint::MAX, 0_usize) };
}

/// Ends this process at once.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: does not return; nothing of this process is used any more.
    unsafe { c::_exit(code) }
}

/// In the child: None. The holder has one thread, so the child may do what it likes.
pub(crate) fn fork() -> io::Result<Option<u32>> {
    // SAFETY: this process has one thread.
    let pid = check(unsafe { c::fork() })?;
    Ok((pid != 0).then_some(pid.unsigned_abs()))
}

/// Makes a copy of this process which is the first one of new namespaces, and not its child but its
/// sibling. There: None. Here: its number out here and a pidfd of it.
pub(crate) fn fork_into_namespaces() -> io::Result<Option<(u32, OwnedFd)>> {
    const CLONE_PIDFD: c_long = 0x1000;
    const CLONE_PARENT: c_long = 0x8000;
    // Mount, cgroup, uts, ipc, user, pid, net.
    const CLONE_NEW: c_long = 0x7e02_0000;
    let flags = c_long::from(SIGCHLD) | CLONE_PIDFD | CLONE_PARENT | CLONE_NEW;
    let mut pidfd: c_int = -1;
    // SAFETY: this process has one thread, and without CLONE_VM the child has its own copy of its
    // memory, stack included. The kernel writes the pidfd where the parent's fd variable is.
    let pid = check_long(unsafe {
        c::syscall(
            number::CLONE,
            flags,
            0_usize,
            &raw mut pidfd,
            0_usize,
            0_usize,
        )
    })?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel just made this descriptor, nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Some((pid.unsigned_abs() as u32, pidfd)))
}

/// Takes in the descendants whose parents end.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    const PR_SET_CHILD_SUBREAPER: c_int = 36;
    // SAFETY: numbers only.
    let done = unsafe {
        c::prctl(
            PR_SET_CHILD_SUBREAPER,
            1 as c_ulong,
            0_usize,
            0_usize,
            0_usize,
        )
    };
    check(done).map(drop)
}

/// Stands for this process.
pub(crate) fn own_pidfd() -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = check_long(unsafe { c::syscall(number::PIDFD_OPEN, std::process::id(), 0_usize) })?;
    // SAFETY: the kernel just made this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

pub(crate) fn new_session() {
    // SAFETY: no memory is involved. Where it leads a session already, that is as good.
    unsafe { c::syscall(number::SETSID) };
}

pub(crate) fn change_dir(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { c::fchdir(fd.as_raw_fd()) }).map(drop)
}

pub(crate) fn set_umask(mask: u32) {
    // SAFETY: never fails, no memory is involved.
    unsafe { c::umask(mask) };
}

//! Declarations of the C library and the kernel. The holder cannot use the crate `libc`.

use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

pub(crate) const EPERM: i32 = 1;
pub(crate) const ENOENT: i32 = 2;
pub(crate) const EACCES: i32 = 13;
pub(crate) const ENOTDIR: i32 = 20;
pub(crate) const ETXTBSY: i32 = 26;
pub(crate) const EOPNOTSUPP: i32 = 95;

pub(crate) const SIGKILL: c_int = 9;
pub(crate) const SIGTERM: c_int = 15;
pub(crate) const SIGCHLD: c_int = 17;
pub(crate) const SIGCONT: c_int = 18;
pub(crate) const SIGSTOP: c_int = 19;

pub(crate) const RLIMIT_NPROC: u32 = 6;

/// Converts the result of a call that returns -1 and sets `errno` on failure.
pub(crate) fn check(result: c_int) -> io::Result<c_int> {
    check_long(result.into()).map(|_| result)
}

/// The same for calls that return a long.
pub(crate) fn check_long(result: c_long) -> io::Result<c_long> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Takes ownership of a descriptor that a call has just returned.
pub(crate) fn new_fd(result: c_long) -> io::Result<OwnedFd> {
    let fd = check_long(result)? as RawFd;
    // SAFETY: the kernel has just created this descriptor, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Calls prctl with a number.
pub(crate) fn set_process_option(option: c_int, value: c_ulong) -> io::Result<()> {
    // SAFETY: all arguments are numbers, so no memory is involved.
    check(unsafe { prctl(option, value, 0_usize, 0_usize, 0_usize) }).map(drop)
}

#[repr(C)]
pub(crate) struct PollFd {
    pub(crate) fd: c_int,
    pub(crate) events: i16,
    pub(crate) revents: i16,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
    pub(crate) userns: u64,
}

#[repr(C)]
pub(crate) struct FilterProgram {
    pub(crate) count: u16,
    pub(crate) instructions: *const c_void,
}

#[repr(C)]
pub(crate) struct LandlockRules {
    pub(crate) files: u64,
    pub(crate) network: u64,
    pub(crate) scoped: u64,
}

#[repr(C, packed)]
pub(crate) struct LandlockPath {
    pub(crate) allowed: u64,
    pub(crate) parent: c_int,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct StatFs {
    pub(crate) kind: c_long,
    pub(crate) block_size: c_long,
    pub(crate) blocks: u64,
    pub(crate) free: u64,
    pub(crate) rest: [u64; 11],
}

#[repr(C)]
pub(crate) struct IfReq {
    pub(crate) name: [u8; 16],
    pub(crate) flags: i16,
    pub(crate) rest: [u8; 22],
}

/// Large enough for the `sigset_t` of any C library.
pub(crate) type SigSet = [u64; 16];

unsafe extern "C" {
    pub(crate) fn syscall(number: c_long, ...) -> c_long;
    pub(crate) fn clone(
        run: extern "C" fn(*mut c_void) -> c_int,
        stack: *mut c_void,
        flags: c_int,
        argument: *mut c_void,
        ...
    ) -> c_int;
    pub(crate) fn clock_gettime(clock: c_int, time: *mut [c_long; 2]) -> c_int;
    pub(crate) fn fork() -> c_int;
    pub(crate) fn pipe2(fds: *mut c_int, flags: c_int) -> c_int;
    pub(crate) fn _exit(code: c_int) -> !;
    pub(crate) fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    pub(crate) fn kill(pid: c_int, signal: c_int) -> c_int;
    pub(crate) fn poll(fds: *mut PollFd, count: c_ulong, millis: c_int) -> c_int;
    pub(crate) fn read(fd: c_int, buffer: *mut c_void, length: usize) -> isize;
    pub(crate) fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_char,
    ) -> c_int;
    pub(crate) fn mknod(path: *const c_char, mode: c_uint, device: c_ulong) -> c_int;
    pub(crate) fn unshare(flags: c_int) -> c_int;
    pub(crate) fn umount2(target: *const c_char, flags: c_int) -> c_int;
    pub(crate) fn prctl(option: c_int, ...) -> c_int;
    pub(crate) fn chdir(path: *const c_char) -> c_int;
    pub(crate) fn fchdir(fd: c_int) -> c_int;
    pub(crate) fn umask(mask: c_uint) -> c_uint;
    pub(crate) fn sched_setaffinity(pid: c_int, size: usize, mask: *const u8) -> c_int;
    pub(crate) fn sethostname(name: *const c_char, length: usize) -> c_int;
    pub(crate) fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int;
    pub(crate) fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    pub(crate) fn accept4(
        fd: c_int,
        address: *mut c_void,
        length: *mut c_uint,
        flags: c_int,
    ) -> c_int;
    pub(crate) fn sigemptyset(set: *mut SigSet) -> c_int;
    pub(crate) fn sigaddset(set: *mut SigSet, signal: c_int) -> c_int;
    pub(crate) fn sigprocmask(how: c_int, set: *const SigSet, old: *mut SigSet) -> c_int;
    pub(crate) fn signalfd(fd: c_int, set: *const SigSet, flags: c_int) -> c_int;
    pub(crate) fn signal(signal: c_int, handler: usize) -> usize;
    pub(crate) fn fstatfs(fd: c_int, answer: *mut StatFs) -> c_int;
    pub(crate) fn shmctl(id: c_int, command: c_int, buffer: *mut c_void) -> c_int;
    pub(crate) fn msgctl(id: c_int, command: c_int, buffer: *mut c_void) -> c_int;
    pub(crate) fn semctl(id: c_int, number: c_int, command: c_int, ...) -> c_int;
    pub(crate) fn geteuid() -> c_uint;
    pub(crate) fn getegid() -> c_uint;
}

/// Numbers of system calls.
pub(crate) mod number {
    use super::c_long;

    /// Chooses a number. Architectures that are newer than x86_64 share theirs.
    const fn either(x86_64: c_long, newer: c_long) -> c_long {
        if cfg!(target_arch = "x86_64") {
            x86_64
        } else {
            newer
        }
    }

    pub(crate) const CAPSET: c_long = either(126, 91);
    pub(crate) const CHDIR: c_long = either(80, 49);
    pub(crate) const CLONE: c_long = either(56, 220);
    pub(crate) const CLOSE: c_long = either(3, 57);
    pub(crate) const DUP3: c_long = either(292, 24);
    pub(crate) const EXECVE: c_long = either(59, 221);
    pub(crate) const KEYCTL: c_long = either(250, 219);
    pub(crate) const NANOSLEEP: c_long = either(35, 101);
    pub(crate) const PIVOT_ROOT: c_long = either(155, 41);
    pub(crate) const PRCTL: c_long = either(157, 167);
    pub(crate) const PRLIMIT64: c_long = either(302, 261);
    pub(crate) const PTRACE: c_long = either(101, 117);
    pub(crate) const RT_SIGPROCMASK: c_long = either(14, 135);
    pub(crate) const SCHED_YIELD: c_long = either(24, 124);
    pub(crate) const SENDTO: c_long = either(44, 206);
    pub(crate) const SETGROUPS: c_long = either(116, 159);
    pub(crate) const SETRESGID: c_long = either(119, 149);
    pub(crate) const SETRESUID: c_long = either(117, 147);
    pub(crate) const SETSID: c_long = either(112, 157);
    pub(crate) const WAIT4: c_long = either(61, 260);

    // Calls added since Linux 5.1 have the same number on all architectures.
    pub(crate) const PIDFD_OPEN: c_long = 434;
    pub(crate) const PIDFD_SEND_SIGNAL: c_long = 424;
    pub(crate) const CLOSE_RANGE: c_long = 436;
    pub(crate) const MOUNT_SETATTR: c_long = 442;
    pub(crate) const LANDLOCK_CREATE_RULESET: c_long = 444;
    pub(crate) const LANDLOCK_ADD_RULE: c_long = 445;
    pub(crate) const LANDLOCK_RESTRICT_SELF: c_long = 446;
}

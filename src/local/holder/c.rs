//! What the holder needs of the C library and the kernel, declared here as it has no crates.

use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};

/// As many descriptors as one message carries.
pub(crate) const MAX_FDS: usize = 4;

#[repr(C)]
pub(crate) struct PollFd {
    pub(crate) fd: c_int,
    pub(crate) events: i16,
    pub(crate) revents: i16,
}

#[repr(C)]
pub(crate) struct IoVec {
    pub(crate) base: *mut c_void,
    pub(crate) length: usize,
}

/// As the kernel has it on 64-bit systems.
#[repr(C)]
pub(crate) struct MsgHdr {
    pub(crate) name: *mut c_void,
    pub(crate) name_length: c_uint,
    pub(crate) parts: *mut IoVec,
    pub(crate) part_count: usize,
    pub(crate) control: *mut c_void,
    pub(crate) control_length: usize,
    pub(crate) flags: c_int,
}

/// One control message with up to [`MAX_FDS`] descriptors.
#[repr(C, align(8))]
pub(crate) struct Control {
    pub(crate) length: usize,
    pub(crate) level: c_int,
    pub(crate) kind: c_int,
    pub(crate) fds: [c_int; MAX_FDS],
}

#[repr(C)]
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

/// Room for a `sigset_t` of any C library.
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
    pub(crate) fn fork() -> c_int;
    pub(crate) fn _exit(code: c_int) -> !;
    pub(crate) fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    pub(crate) fn kill(pid: c_int, signal: c_int) -> c_int;
    pub(crate) fn poll(fds: *mut PollFd, count: c_ulong, millis: c_int) -> c_int;
    pub(crate) fn sendmsg(fd: c_int, message: *const MsgHdr, flags: c_int) -> isize;
    pub(crate) fn recvmsg(fd: c_int, message: *mut MsgHdr, flags: c_int) -> isize;
    pub(crate) fn read(fd: c_int, buffer: *mut c_void, length: usize) -> isize;
    pub(crate) fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_char,
    ) -> c_int;
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
    pub(crate) fn geteuid() -> c_uint;
    pub(crate) fn getegid() -> c_uint;
}

/// The numbers of system calls.
pub(crate) mod number {
    use super::c_long;

    #[cfg(target_arch = "x86_64")]
    mod own {
        use super::c_long;

        pub(crate) const CAPSET: c_long = 126;
        pub(crate) const CHDIR: c_long = 80;
        pub(crate) const CLONE: c_long = 56;
        pub(crate) const DUP3: c_long = 292;
        pub(crate) const EXECVE: c_long = 59;
        pub(crate) const KEYCTL: c_long = 250;
        pub(crate) const PIVOT_ROOT: c_long = 155;
        pub(crate) const PRCTL: c_long = 157;
        pub(crate) const PRLIMIT64: c_long = 302;
        pub(crate) const RT_SIGPROCMASK: c_long = 14;
        pub(crate) const SENDTO: c_long = 44;
        pub(crate) const SETGROUPS: c_long = 116;
        pub(crate) const SETRESGID: c_long = 119;
        pub(crate) const SETRESUID: c_long = 117;
        pub(crate) const SETSID: c_long = 112;
        pub(crate) const WAIT4: c_long = 61;
    }
    /// Those that came after x86_64 share theirs.
    #[cfg(not(target_arch = "x86_64"))]
    mod own {
        use super::c_long;

        pub(crate) const CAPSET: c_long = 91;
        pub(crate) const CHDIR: c_long = 49;
        pub(crate) const CLONE: c_long = 220;
        pub(crate) const DUP3: c_long = 24;
        pub(crate) const EXECVE: c_long = 221;
        pub(crate) const KEYCTL: c_long = 219;
        pub(crate) const PIVOT_ROOT: c_long = 41;
        pub(crate) const PRCTL: c_long = 167;
        pub(crate) const PRLIMIT64: c_long = 261;
        pub(crate) const RT_SIGPROCMASK: c_long = 135;
        pub(crate) const SENDTO: c_long = 206;
        pub(crate) const SETGROUPS: c_long = 159;
        pub(crate) const SETRESGID: c_long = 149;
        pub(crate) const SETRESUID: c_long = 147;
        pub(crate) const SETSID: c_long = 157;
        pub(crate) const WAIT4: c_long = 260;
    }
    pub(crate) use own::*;

    // Since Linux 5.1 a new call has one number everywhere.
    pub(crate) const PIDFD_OPEN: c_long = 434;
    pub(crate) const PIDFD_SEND_SIGNAL: c_long = 424;
    pub(crate) const CLOSE_RANGE: c_long = 436;
    pub(crate) const MOUNT_SETATTR: c_long = 442;
    pub(crate) const LANDLOCK_CREATE_RULESET: c_long = 444;
    pub(crate) const LANDLOCK_ADD_RULE: c_long = 445;
    pub(crate) const LANDLOCK_RESTRICT_SELF: c_long = 446;
}

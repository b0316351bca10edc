//! System calls that isolate a process: user, mounts, capabilities, seccomp, Landlock.
#![expect(unsafe_code, reason = "std does not offer these system calls")]

use std::ffi::{CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::null;

use super::c::{self, check, check_long, new_fd, number, set_process_option};

fn c_text(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Switches to another user and group without supplementary groups. The process keeps access to its
/// own `/proc` files.
pub(crate) fn become_id(id: u32) -> io::Result<()> {
    const PR_SET_DUMPABLE: c_int = 4;
    // Direct system calls. The functions of the C library would also change other threads, which this
    // process does not have.
    // SAFETY: the kernel does not read an empty list of groups, and the other arguments are numbers.
    unsafe {
        check_long(c::syscall(number::SETGROUPS, 0_usize, null::<u32>()))?;
        check_long(c::syscall(number::SETRESGID, id, id, id))?;
        check_long(c::syscall(number::SETRESUID, id, id, id))?;
        // Otherwise root owns the /proc files of this process, and it cannot write its id maps.
        set_process_option(PR_SET_DUMPABLE, 1)
    }
}

/// Returns the effective user and group id of this process.
pub(crate) fn own_ids() -> (u32, u32) {
    // SAFETY: the calls never fail, and no memory is involved.
    unsafe { (c::geteuid(), c::getegid()) }
}

/// Restricts this process and its children to these CPUs.
pub(crate) fn use_cpus(cpus: &[u32]) -> io::Result<()> {
    let mut mask = [0_u8; 1024];
    for cpu in cpus {
        if let Some(byte) = mask.get_mut(*cpu as usize / 8) {
            *byte |= 1 << (cpu % 8);
        }
    }
    // SAFETY: the mask has the given length.
    check(unsafe { c::sched_setaffinity(0, mask.len(), mask.as_ptr()) }).map(drop)
}

/// Opens a path with `O_PATH`, which gives no access to the content.
pub(crate) fn open_path(path: &str) -> io::Result<OwnedFd> {
    const O_PATH: c_int = 0o10_000_000;
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(O_PATH).open(path)?;
    Ok(file.into())
}

pub(crate) const MS_NOSUID: u64 = 2;
pub(crate) const MS_NODEV: u64 = 4;
pub(crate) const MS_NOEXEC: u64 = 8;
pub(crate) const MS_BIND: u64 = 4096;
pub(crate) const MS_REC: u64 = 16384;
pub(crate) const MS_PRIVATE: u64 = 1 << 18;

pub(crate) fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: u64,
    options: &str,
) -> io::Result<()> {
    let (source, target, kind) = (c_text(source)?, c_text(target)?, c_text(kind)?);
    let options = c_text(options)?;
    // SAFETY: all texts are NUL-terminated and outlive the call.
    let result = unsafe {
        c::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags as c_ulong,
            options.as_ptr(),
        )
    };
    check(result).map(drop)
}

/// Moves this process to a new mount namespace, where mounts do not affect the host. For root only.
pub(crate) fn own_mounts() -> io::Result<()> {
    const CLONE_NEWNS: c_int = 0x2_0000;
    // SAFETY: no memory is involved, and this process has one thread.
    check(unsafe { c::unshare(CLONE_NEWNS) })?;
    mount("", "/", "", MS_REC | MS_PRIVATE, "")
}

/// Creates the entry that hides the same name in the lower layer of an overlay.
pub(crate) fn make_whiteout(path: &str) -> io::Result<()> {
    const S_IFCHR: c_uint = 0o020_000;
    let path = c_text(path)?;
    // SAFETY: the path is NUL-terminated. Device 0 needs no privilege.
    check(unsafe { c::mknod(path.as_ptr(), S_IFCHR, 0) }).map(drop)
}

pub(crate) const ATTR_READ_ONLY: u64 = 1;
pub(crate) const ATTR_NOSUID: u64 = 2;
pub(crate) const ATTR_NODEV: u64 = 4;
pub(crate) const ATTR_NOEXEC: u64 = 8;

/// Adds attributes to the mount at a path, and with `recursive` to all mounts below it.
pub(crate) fn set_mount_attributes(path: &str, attributes: u64, recursive: bool) -> io::Result<()> {
    const AT_FDCWD: c_int = -100;
    const AT_RECURSIVE: c_int = 0x8000;
    let path = c_text(path)?;
    let attr = c::MountAttr {
        set: attributes,
        ..c::MountAttr::default()
    };
    let flags = if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is NUL-terminated, and attr has the given length.
    check_long(unsafe {
        c::syscall(
            number::MOUNT_SETATTR,
            AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<c::MountAttr>(),
        )
    })
    .map(drop)
}

/// Makes the current directory the root, and unmounts the old root.
pub(crate) fn pivot_to_current_dir() -> io::Result<()> {
    const MNT_DETACH: c_int = 2;
    let here = c".".as_ptr();
    let root = c"/".as_ptr();
    // SAFETY: both texts are constants.
    unsafe {
        check_long(c::syscall(number::PIVOT_ROOT, here, here))?;
        check(c::umount2(here, MNT_DETACH))?;
        check(c::chdir(root))?;
    }
    Ok(())
}

pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: the name has the given length.
    check(unsafe { c::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Enables the loopback interface.
pub(crate) fn loopback_up() -> io::Result<()> {
    const AF_INET: c_int = 2;
    const SOCK_DGRAM_CLOEXEC: c_int = 2 | 0o2_000_000;
    const SIOCSIFFLAGS: c_ulong = 0x8914;
    const IFF_UP_RUNNING: i16 = 0x41;
    let mut request = c::IfReq {
        name: [0; 16],
        flags: IFF_UP_RUNNING,
        rest: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: the request has the type that this ioctl reads.
    unsafe {
        let socket = new_fd(c::socket(AF_INET, SOCK_DGRAM_CLOEXEC, 0).into())?;
        let fd = socket.as_raw_fd();
        check(c::ioctl(fd, SIOCSIFFLAGS, &raw const request)).map(drop)
    }
}

/// Joins a new session keyring, which does not contain the user's keys.
pub(crate) fn new_keyring() {
    const JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: without a name no memory is involved. The call fails if the kernel has no keyrings.
    unsafe { c::syscall(number::KEYCTL, JOIN_SESSION_KEYRING, null::<c_char>()) };
}

/// Drops all capabilities permanently.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    const PR_CAPBSET_DROP: c_int = 24;
    const PR_SET_SECUREBITS: c_int = 28;
    const PR_CAP_AMBIENT: c_int = 47;
    const PR_CAP_AMBIENT_CLEAR_ALL: c_ulong = 4;
    // NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each with its lock.
    const SECUREBITS: c_ulong = 0x3 | 0xc | 0xc0;
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let none = [0_u32; 6];
    for capability in 0..64 {
        // The kernel does not know more capabilities, or the process has none.
        if set_process_option(PR_CAPBSET_DROP, capability).is_err() {
            break;
        }
    }
    // A process without capabilities cannot set them and has nothing to drop.
    let _ = set_process_option(PR_SET_SECUREBITS, SECUREBITS);
    let _ = set_process_option(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL);
    // SAFETY: header and data have the sizes of version 3.
    check_long(unsafe { c::syscall(number::CAPSET, header.as_ptr(), none.as_ptr()) }).map(drop)
}

/// Sets `no_new_privs`: setuid programs give no privileges to this process and its children.
pub(crate) fn no_new_privileges() -> io::Result<()> {
    const PR_SET_NO_NEW_PRIVS: c_int = 38;
    set_process_option(PR_SET_NO_NEW_PRIVS, 1)
}

/// Clears the dumpable flag: other processes of the same user cannot inspect or trace this process.
pub(crate) fn hide() -> io::Result<()> {
    const PR_SET_DUMPABLE: c_int = 4;
    set_process_option(PR_SET_DUMPABLE, 0)
}

/// Installs a seccomp filter for this process and its children.
pub(crate) fn filter_calls(filter: &[u8]) -> io::Result<()> {
    const PR_SET_SECCOMP: c_int = 22;
    const SECCOMP_MODE_FILTER: c_ulong = 2;
    // Copied, because the kernel requires alignment.
    let aligned: Vec<u64> = filter
        .chunks_exact(8)
        .filter_map(|chunk| Some(u64::from_ne_bytes(*chunk.first_chunk()?)))
        .collect();
    let program = c::FilterProgram {
        count: u16::try_from(aligned.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: aligned.as_ptr().cast(),
    };
    // SAFETY: the program has the given number of 8-byte instructions and outlives the call.
    check(unsafe { c::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &raw const program) }).map(drop)
}

/// Returns the kernel's version of Landlock, or 0 if it has none.
pub(crate) fn landlock_version() -> u32 {
    const VERSION: c_uint = 1;
    let none = null::<c_void>();
    // SAFETY: with this flag the kernel reads no memory.
    let version = unsafe { c::syscall(number::LANDLOCK_CREATE_RULESET, none, 0_usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// Denies abstract sockets and signals outside of the domain. Since version 6.
pub(crate) const LANDLOCK_SCOPES: u64 = 0b11;

/// Restricts signals to processes that this process starts from now on, if the kernel supports it.
pub(crate) fn keep_signals_inside() -> io::Result<()> {
    match landlock_version() {
        0..6 => Ok(()),
        version => landlock_enforce(landlock_ruleset(0, LANDLOCK_SCOPES, version)?.as_fd()),
    }
}

pub(crate) fn landlock_ruleset(files: u64, scoped: u64, version: u32) -> io::Result<OwnedFd> {
    let rules = c::LandlockRules {
        files,
        network: 0,
        scoped,
    };
    // Later versions have a longer struct.
    let size: usize = match version {
        0..=3 => 8,
        4 | 5 => 16,
        _ => 24,
    };
    let address = &raw const rules;
    // SAFETY: the struct is at least as long as the given size.
    new_fd(unsafe { c::syscall(number::LANDLOCK_CREATE_RULESET, address, size, 0_u32) })
}

pub(crate) fn landlock_allow(
    ruleset: BorrowedFd<'_>,
    path: BorrowedFd<'_>,
    allowed: u64,
) -> io::Result<()> {
    const PATH_BENEATH: c_int = 1;
    let rule = c::LandlockPath {
        allowed,
        parent: path.as_raw_fd(),
    };
    // SAFETY: the rule has the type of this kind of rule.
    check_long(unsafe {
        c::syscall(
            number::LANDLOCK_ADD_RULE,
            ruleset.as_raw_fd(),
            PATH_BENEATH,
            &raw const rule,
            0 as c_uint,
        )
    })
    .map(drop)
}

pub(crate) fn landlock_enforce(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all arguments are numbers.
    check_long(unsafe {
        c::syscall(
            number::LANDLOCK_RESTRICT_SELF,
            ruleset.as_raw_fd(),
            0 as c_uint,
        )
    })
    .map(drop)
}

/// Space of a file system, in bytes.
pub(crate) struct FileSystemSpace {
    pub(crate) used: u64,
    pub(crate) free: u64,
}

/// Returns the space of the file system of a descriptor.
pub(crate) fn file_system_space(fd: BorrowedFd<'_>) -> io::Result<FileSystemSpace> {
    let mut stat = c::StatFs::default();
    // SAFETY: the struct is at least as long as that of any 64-bit system.
    check(unsafe { c::fstatfs(fd.as_raw_fd(), &raw mut stat) })?;
    let block = u64::try_from(stat.block_size).unwrap_or(0);
    let used = stat.blocks.saturating_sub(stat.free);
    Ok(FileSystemSpace {
        used: used.saturating_mul(block),
        free: stat.free.saturating_mul(block),
    })
}

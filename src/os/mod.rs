//! System calls that std lacks, as safe functions.
#![expect(unsafe_code, reason = "system calls that std lacks")]

#[cfg(feature = "local")]
pub(crate) mod child;
pub(crate) mod chmod;
pub(crate) mod random;
pub(crate) mod remove_tree;
#[cfg(any(feature = "kubernetes", feature = "local"))]
pub(crate) mod state_home;
pub(crate) mod time;

use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libc::{c_char, c_int};

/// Converts a name for a system call, which would cut it at a NUL byte.
fn c_name(name: &[u8]) -> io::Result<CString> {
    CString::new(name)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the name contains a NUL byte"))
}

/// Calls with two names, which are NUL-terminated and live until the call returns.
fn with_names(
    first: &[u8],
    second: &[u8],
    call: impl FnOnce(*const c_char, *const c_char) -> c_int,
) -> io::Result<()> {
    let (first, second) = (c_name(first)?, c_name(second)?);
    check(call(first.as_ptr(), second.as_ptr())).map(drop)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Repeats a call that is interrupted by a signal.
fn retry(mut call: impl FnMut() -> c_int) -> io::Result<c_int> {
    loop {
        match check(call()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

pub(crate) fn openat(
    dir: BorrowedFd<'_>,
    name: &[u8],
    flags: c_int,
    mode: u32,
) -> io::Result<OwnedFd> {
    let name = c_name(name)?;
    // SAFETY: the name is NUL-terminated and outlives the call; mode is passed as the
    // variadic argument that O_CREAT reads.
    let fd = retry(|| unsafe {
        libc::openat(
            dir.as_raw_fd(),
            name.as_ptr(),
            flags | libc::O_CLOEXEC,
            mode as libc::c_uint,
        )
    })?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a directory by its path, without waiting if it is a FIFO.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_DIRECTORY | libc::O_NONBLOCK;
    let dir = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    Ok(dir.into())
}

/// Opens a directory, but not through a symbolic link.
pub(crate) fn open_dir_at(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    openat(
        dir,
        name,
        libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW,
        0,
    )
}

pub(crate) fn mkdirat(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    let name = c_name(name)?;
    // SAFETY: the name is NUL-terminated and outlives the call.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode as libc::mode_t) }).map(drop)
}

pub(crate) fn symlinkat(target: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    with_names(target, name, |target, name| {
        // SAFETY: both names are NUL-terminated and outlive the call.
        unsafe { libc::symlinkat(target, dir.as_raw_fd(), name) }
    })
}

/// Creates a hard link. A symbolic link at `old` is not followed.
pub(crate) fn linkat(
    old_dir: BorrowedFd<'_>,
    old: &[u8],
    new_dir: BorrowedFd<'_>,
    new: &[u8],
) -> io::Result<()> {
    with_names(old, new, |old, new| {
        // SAFETY: both names are NUL-terminated and outlive the call.
        unsafe { libc::linkat(old_dir.as_raw_fd(), old, new_dir.as_raw_fd(), new, 0) }
    })
}

pub(crate) fn renameat(
    old_dir: BorrowedFd<'_>,
    old: &[u8],
    new_dir: BorrowedFd<'_>,
    new: &[u8],
) -> io::Result<()> {
    with_names(old, new, |old, new| {
        // SAFETY: both names are NUL-terminated and outlive the call.
        unsafe { libc::renameat(old_dir.as_raw_fd(), old, new_dir.as_raw_fd(), new) }
    })
}

pub(crate) fn unlinkat(dir: BorrowedFd<'_>, name: &[u8], directory: bool) -> io::Result<()> {
    let name = c_name(name)?;
    let flags = if directory { libc::AT_REMOVEDIR } else { 0 };
    // SAFETY: the name is NUL-terminated and outlives the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

pub(crate) fn readlinkat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    let name = c_name(name)?;
    let mut target = vec![0_u8; 4096];
    // SAFETY: the buffer has the stated length.
    let length = unsafe {
        libc::readlinkat(
            dir.as_raw_fd(),
            name.as_ptr(),
            target.as_mut_ptr().cast(),
            target.len(),
        )
    };
    match usize::try_from(length) {
        Ok(length) => target.truncate(length),
        Err(_) => return Err(io::Error::last_os_error()),
    }
    Ok(target)
}

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileType {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    Device,
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileType::File => "file",
            FileType::Directory => "directory",
            FileType::Symlink => "symbolic link",
            FileType::Fifo => "FIFO",
            FileType::Socket => "socket",
            FileType::Device => "device",
        })
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) size: u64,
    /// Modification time in seconds since 1970, or 0 if it is earlier.
    pub(crate) mtime: u64,
    /// The file system.
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// Returns the metadata of a file, without following a symbolic link.
pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Stat> {
    let name = c_name(name)?;
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: stat has room for the answer, the name is NUL-terminated.
    read_stat(|stat| unsafe { libc::fstatat(dir.as_raw_fd(), name.as_ptr(), stat, flags) })
}

pub(crate) fn stat_fd(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    // SAFETY: stat has room for the answer.
    read_stat(|stat| unsafe { libc::fstat(fd.as_raw_fd(), stat) })
}

fn read_stat(call: impl FnOnce(*mut libc::stat) -> c_int) -> io::Result<Stat> {
    // SAFETY: stat is plain data, and all zeros is a valid value of it.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    check(call(&mut stat))?;
    let kind = match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => FileType::File,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::Fifo,
        libc::S_IFSOCK => FileType::Socket,
        _ => FileType::Device,
    };
    Ok(Stat {
        kind,
        mode: mode_bits(&stat),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime: u64::try_from(stat.st_mtime).unwrap_or(0),
        device: device(&stat),
        inode: stat.st_ino,
    })
}

/// Returns the device number, which is signed on macOS. It is only compared.
#[allow(clippy::unnecessary_cast, reason = "dev_t is another type on macOS")]
fn device(stat: &libc::stat) -> u64 {
    stat.st_dev as u64
}

/// Returns the permission bits.
#[allow(clippy::useless_conversion, reason = "mode_t is narrower on macOS")]
fn mode_bits(stat: &libc::stat) -> u32 {
    u32::from(stat.st_mode) & 0o7777
}

/// A part of a file, with the offset of its end. The end of the last part may be beyond the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Data(u64),
    /// Zeros that occupy no storage.
    Hole(u64),
}

impl Extent {
    pub(crate) fn end(self) -> u64 {
        match self {
            Extent::Data(end) | Extent::Hole(end) => end,
        }
    }
}

/// Returns the part of a file that starts at this offset. Everything is data on systems that do not report
/// holes. Moves the file's own offset.
#[cfg(not(target_os = "linux"))]
pub(crate) fn extent_at(_: BorrowedFd<'_>, _: u64) -> Extent {
    Extent::Data(u64::MAX)
}

#[cfg(target_os = "linux")]
pub(crate) fn extent_at(file: BorrowedFd<'_>, at: u64) -> Extent {
    let seek = |whence| {
        let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
        // SAFETY: no memory is involved.
        let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    match seek(libc::SEEK_DATA) {
        Ok(data) if data > at => Extent::Hole(data),
        Ok(_) => Extent::Data(seek(libc::SEEK_HOLE).map_or(u64::MAX, |hole| hole.max(at + 1))),
        // There is no more data.
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Extent::Hole(u64::MAX),
        Err(_) => Extent::Data(u64::MAX),
    }
}

/// Returns the names in a directory, without `.` and `..`, in no particular order.
pub(crate) fn read_dir(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    // A new open file, because the stream owns it and reading moves its offset.
    let fd = open_dir_at(dir, b".")?;
    // SAFETY: the descriptor is open; on success fdopendir owns it, so it is forgotten below.
    let stream = unsafe { libc::fdopendir(fd.as_raw_fd()) };
    if stream.is_null() {
        return Err(io::Error::last_os_error());
    }
    std::mem::forget(fd);
    let mut names = Vec::new();
    let result = loop {
        clear_errno();
        // SAFETY: the stream is open, and only this thread uses it.
        let entry = unsafe { libc::readdir(stream) };
        if entry.is_null() {
            break match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(0) => Ok(names),
                e => Err(e),
            };
        }
        // SAFETY: d_name of an entry is NUL-terminated, and valid until the next readdir. No
        // reference to the whole entry is made: the last one may be shorter than its type.
        let name = unsafe { CStr::from_ptr((&raw const (*entry).d_name).cast()) }.to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    };
    // SAFETY: the stream is open and not used again.
    unsafe { libc::closedir(stream) };
    result
}

/// Sets errno to 0. Only errno tells the end of readdir from an error.
fn clear_errno() {
    #[cfg(any(target_os = "android", target_os = "netbsd", target_os = "openbsd"))]
    use libc::__errno as errno;
    #[cfg(any(target_os = "linux", target_os = "emscripten"))]
    use libc::__errno_location as errno;
    #[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
    use libc::__error as errno;
    // SAFETY: the C library returns the address of this thread's own errno.
    unsafe { *errno() = 0 };
}

/// Sets the modification time of an open file or directory.
pub(crate) fn set_mtime(fd: BorrowedFd<'_>, seconds: u64) -> io::Result<()> {
    let time = |tv_sec, tv_nsec| libc::timespec { tv_sec, tv_nsec };
    let seconds = libc::time_t::try_from(seconds).unwrap_or(libc::time_t::MAX);
    let times = [time(0, libc::UTIME_OMIT), time(seconds, 0)];
    // SAFETY: times holds the two values that the call reads.
    check(unsafe { libc::futimens(fd.as_raw_fd(), times.as_ptr()) }).map(drop)
}

/// Locks an open file until it is closed. Returns false if it is already locked.
pub(crate) fn lock(fd: BorrowedFd<'_>) -> io::Result<bool> {
    try_lock(fd, libc::LOCK_EX)
}

/// Locks an open file until it is closed, together with others that do the same. Returns false if someone has
/// it locked alone.
#[cfg(feature = "docker")]
pub(crate) fn lock_shared(fd: BorrowedFd<'_>) -> io::Result<bool> {
    try_lock(fd, libc::LOCK_SH)
}

fn try_lock(fd: BorrowedFd<'_>, how: c_int) -> io::Result<bool> {
    // SAFETY: no memory is involved.
    match retry(|| unsafe { libc::flock(fd.as_raw_fd(), how | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

/// Creates a file that only this user can read, and that must not exist.
pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// Reads a file of the system, in which the names of programs and files can contain any bytes.
#[cfg(all(feature = "local", target_os = "linux"))]
pub(crate) fn read_lossy(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = std::fs::read(path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(any(feature = "docker", feature = "kubernetes", feature = "local"))]
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: never fails, no memory is involved.
    unsafe { libc::geteuid() }
}

/// Sends SIGKILL to a process group.
#[cfg(feature = "local")]
pub(crate) fn kill_group(group: u32) {
    signal(group, |id| -id);
}

#[cfg(feature = "local")]
pub(crate) fn kill_process(process: u32) {
    signal(process, |id| id);
}

#[cfg(feature = "local")]
fn signal(id: u32, target: fn(libc::pid_t) -> libc::pid_t) {
    // For kill(2), 0 means this process's group and -1 means every process.
    if let Some(id) = libc::pid_t::try_from(id).ok().filter(|id| *id > 1) {
        // SAFETY: no memory is involved. The process may have ended already.
        unsafe { libc::kill(target(id), libc::SIGKILL) };
    }
}

/// Returns a descriptor that becomes readable when the process ends. Fails with `ESRCH` if the
/// process does not exist, and with `ENOSYS` if the kernel has no pidfds.
#[cfg(feature = "local")]
pub(crate) fn pidfd_open(process: u32) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: no memory is involved; the kernel sets close-on-exec by itself.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process as libc::pid_t, 0) };
        let fd = check(fd as c_int)?;
        // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = process;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Waits until one of the descriptors is readable or closed, or the timeout passes. Returns which ones are.
pub(crate) fn poll_readable<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    timeout: Duration,
) -> io::Result<[bool; N]> {
    // poll(2) ignores negative descriptors.
    let mut polled = fds.map(|fd| libc::pollfd {
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    let started = Instant::now();
    loop {
        // Rounded up, because rounding down would make the last millisecond a busy loop.
        let left = timeout.saturating_sub(started.elapsed());
        let millis = left.as_micros().div_ceil(1000);
        let millis = c_int::try_from(millis).unwrap_or(c_int::MAX);
        // SAFETY: the array has the stated length.
        match check(unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, millis) }) {
            // A signal handler of the program ran. A poll is never restarted.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(polled.map(|p| p.revents != 0)),
        }
    }
}

#[cfg(feature = "local")]
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: c_int = 1;
    // SAFETY: the kernel reads an int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONBIO, &raw const on) }).map(drop)
}

/// The result of [`peek`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    Nothing,
    Bytes,
    /// The peer has closed the connection, or it is broken.
    End,
}

pub(crate) fn peek(socket: BorrowedFd<'_>) -> Waiting {
    let mut byte = [0_u8; 1];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the buffer has the stated length.
    let got = unsafe { libc::recv(socket.as_raw_fd(), byte.as_mut_ptr().cast(), 1, flags) };
    match got {
        1 => Waiting::Bytes,
        0 => Waiting::End,
        _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => Waiting::Nothing,
        _ => Waiting::End,
    }
}

/// Maximum length of the path of a Unix socket, in bytes. The system needs one more for a NUL.
pub(crate) const MAX_SOCKET_PATH: usize =
    size_of::<libc::sockaddr_un>() - std::mem::offset_of!(libc::sockaddr_un, sun_path) - 1;

/// Returns the number of bytes of a TCP connection that the peer's kernel has acknowledged, if the system
/// reports it. The SYN counts as one byte.
pub(crate) fn tcp_bytes_acked(socket: BorrowedFd<'_>) -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        // Offset of `tcpi_bytes_acked` in linux/tcp.h, which is stable since Linux 4.1.
        const AT: usize = 120;
        let mut info = [0_u8; AT + 8];
        let mut length = info.len() as libc::socklen_t;
        // SAFETY: info is as long as length says, and the kernel writes no more than that.
        check(unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        })
        .ok()?;
        let field = info.get(AT..length as usize)?.first_chunk::<8>()?;
        Some(u64::from_ne_bytes(*field))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = socket;
        None
    }
}

/// Opens a path below `root`, with `root` as `/`: neither `..` nor a symbolic link leads out of it. Returns
/// `None` if the kernel does not support it.
#[cfg(feature = "local")]
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &[u8]) -> Option<io::Result<OwnedFd>> {
    #[cfg(target_os = "linux")]
    {
        let path = match c_name(path) {
            Ok(path) => path,
            Err(e) => return Some(Err(e)),
        };
        // SAFETY: open_how is plain data, and all zeros is a valid value of it.
        let mut how: libc::open_how = unsafe { std::mem::zeroed() };
        how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        let open = || {
            // SAFETY: the path is NUL-terminated, how has the stated length.
            let fd = unsafe {
                libc::syscall(
                    libc::SYS_openat2,
                    root.as_raw_fd(),
                    path.as_ptr(),
                    &raw const how,
                    size_of::<libc::open_how>(),
                )
            };
            c_int::try_from(fd).unwrap_or(-1)
        };
        // EAGAIN: a concurrent rename raced with a `..` in the path.
        for _ in 0..100 {
            match check(open()) {
                // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
                Ok(fd) => return Some(Ok(unsafe { OwnedFd::from_raw_fd(fd) })),
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR) => {}
                    // EPERM: old seccomp filters return it for unknown calls.
                    Some(libc::ENOSYS | libc::EPERM) => return None,
                    _ => return Some(Err(e)),
                },
            }
        }
        Some(Err(io::Error::from_raw_os_error(libc::EAGAIN)))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (root, path);
        None
    }
}

/// Returns the seconds since 1970, or 0 for an earlier time.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    #[test]
    fn poll_continues_after_a_signal() {
        const TIME: Duration = Duration::from_millis(200);
        extern "C" fn handle(_: c_int) {}
        let handler = handle as extern "C" fn(c_int);
        // SAFETY: the handler does nothing, and the thread lives until the end of the scope.
        let this = unsafe {
            libc::signal(libc::SIGUSR1, handler as usize);
            libc::pthread_self()
        };
        let (silent, _writer) = std::io::pipe().unwrap();
        let (started, done) = (Instant::now(), AtomicBool::new(false));
        let send_signals = || {
            while !done.load(Ordering::SeqCst) {
                // SAFETY: as above.
                unsafe { libc::pthread_kill(this, libc::SIGUSR1) };
                thread::sleep(Duration::from_millis(5));
            }
        };
        let ready = thread::scope(|scope| {
            scope.spawn(send_signals);
            let ready = poll_readable([Some(silent.as_fd())], TIME);
            done.store(true, Ordering::SeqCst);
            ready
        });
        assert_eq!(ready.unwrap(), [false]);
        assert!(started.elapsed() >= TIME);
    }
}

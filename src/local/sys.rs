//! System calls of Linux that only the local backend needs, as safe functions.
#![expect(unsafe_code, reason = "std does not offer these system calls")]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::ptr::null_mut;

use libc::{c_int, c_uint, c_void};

fn check(result: c_int) -> io::Result<c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// Takes ownership of a descriptor that a call has just returned.
fn new_fd(result: c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just created this descriptor, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Creates a pipe: its reading and its writing end.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: the array has room for two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((new_fd(fds[0])?, new_fd(fds[1])?))
}

/// Creates a pair of connected sockets that preserve message boundaries.
pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    Ok((new_fd(fds[0])?, new_fd(fds[1])?))
}

fn socket(flags: c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | flags;
    // SAFETY: no memory is involved.
    new_fd(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })
}

fn socket_path(dir: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}/socket", dir.as_raw_fd())
}

/// Returns the address of the socket in a directory. It goes through the directory's descriptor,
/// because the path of a socket is limited to 107 bytes.
fn socket_address(dir: BorrowedFd<'_>) -> libc::sockaddr_un {
    // SAFETY: sockaddr_un is plain data, and all zeros is a valid value of it.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(socket_path(dir).bytes()) {
        *to = from as libc::c_char;
    }
    address
}

const ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_un>() as libc::socklen_t;

/// Creates a socket in a directory and listens on it.
pub(super) fn listen(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const BACKLOG: c_int = 128;
    let address = socket_address(dir);
    let socket = socket(0)?;
    let fd = socket.as_raw_fd();
    // SAFETY: the address is valid and has the given length.
    unsafe {
        check(libc::bind(fd, (&raw const address).cast(), ADDRESS_LENGTH))?;
        // Overrides the umask. No process can connect before the call of listen.
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(socket_path(dir), mode)?;
        check(libc::listen(fd, BACKLOG))?;
    }
    Ok(socket)
}

/// Connects to the socket in a directory. Fails with `WouldBlock` if the backlog is full.
pub(super) fn connect(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let address = socket_address(dir);
    let socket = socket(libc::SOCK_NONBLOCK)?;
    let (fd, address) = (socket.as_raw_fd(), (&raw const address).cast());
    // SAFETY: the address is valid and has the given length.
    check(unsafe { libc::connect(fd, address, ADDRESS_LENGTH) })?;
    Ok(socket)
}

/// Creates a file in memory with this content, and seals it against changes.
pub(super) fn sealed_file(name: &str, content: &[u8], is_program: bool) -> io::Result<OwnedFd> {
    let c_name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is NUL-terminated and outlives the call.
    let create = |flags: c_uint| new_fd(unsafe { libc::memfd_create(c_name.as_ptr(), flags) });
    let own_flag = if is_program {
        libc::MFD_EXEC
    } else {
        libc::MFD_NOEXEC_SEAL
    };
    let file = match create(flags | own_flag) {
        // Linux before 6.3 does not know these flags, and all such files are executable.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => create(flags)?,
        result => result?,
    };
    let mut file = std::fs::File::from(file);
    io::Write::write_all(&mut file, content)?;
    io::Seek::rewind(&mut file)?;
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: no memory is involved.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(file.into())
}

/// Sends a signal. Does nothing if the process has ended.
pub(super) fn kill(pidfd: BorrowedFd<'_>, signal: c_int) {
    let (fd, info) = (pidfd.as_raw_fd(), null_mut::<c_void>());
    // SAFETY: without a siginfo no memory is involved.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) };
}

/// Reaps a child that has ended. Does nothing if it was reaped already or is not a child.
pub(super) fn reap(pidfd: BorrowedFd<'_>) {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let id = pidfd.as_raw_fd() as libc::id_t;
    let options = libc::WEXITED | libc::WNOHANG;
    // SAFETY: info has room for the result.
    unsafe { libc::waitid(libc::P_PIDFD, id, info.as_mut_ptr(), options) };
}

/// Returns the CPUs that this thread may run on, or an empty list if they are unknown.
pub(super) fn usable_cpus() -> Vec<u32> {
    let mut mask = [0_u8; 1024];
    let address = mask.as_mut_ptr();
    // SAFETY: the mask has the given length.
    let length = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, mask.len(), address) };
    let length = usize::try_from(length).unwrap_or(0);
    let bits = (0_u32..).take(length * 8);
    bits.filter(|cpu| mask[*cpu as usize / 8] & (1 << (cpu % 8)) != 0)
        .collect()
}

/// Makes this thread access files as another user and group until it is dropped. For root only.
pub(super) struct FileUser {
    previous_gid: c_int,
    previous_uid: c_int,
    /// Not `Send`: the system calls affect one thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl FileUser {
    pub(super) fn new(id: u32) -> FileUser {
        // SAFETY: no memory is involved. The group is set first, while the thread may still change it.
        let (previous_gid, previous_uid) = unsafe { (libc::setfsgid(id), libc::setfsuid(id)) };
        FileUser {
            previous_gid,
            previous_uid,
            _not_send: std::marker::PhantomData,
        }
    }
}

impl Drop for FileUser {
    fn drop(&mut self) {
        // SAFETY: no memory is involved. The user is reset first, which restores the right to
        // change the group.
        unsafe {
            libc::setfsuid(self.previous_uid as c_uint);
            libc::setfsgid(self.previous_gid as c_uint);
        }
    }
}

/// Waits for the end of processes, identified by the numbers of their pidfds.
pub(super) struct ExitPoller(OwnedFd);

impl ExitPoller {
    pub(super) fn new() -> io::Result<ExitPoller> {
        // SAFETY: no memory is involved.
        new_fd(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(ExitPoller)
    }

    pub(super) fn add(&self, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLONESHOT) as u32,
            u64: pidfd.as_raw_fd() as u64,
        };
        let (poller, fd) = (self.0.as_raw_fd(), pidfd.as_raw_fd());
        // SAFETY: the event outlives the call, which only reads it.
        check(unsafe { libc::epoll_ctl(poller, libc::EPOLL_CTL_ADD, fd, &raw mut event) }).map(drop)
    }

    /// Waits until processes end, and returns their pidfds.
    pub(super) fn wait(&self) -> Vec<RawFd> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        let length = events.len() as c_int;
        // SAFETY: the array has the given length.
        let count =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), length, -1) };
        let count = usize::try_from(count).unwrap_or(0);
        let ended = events.iter().take(count);
        ended.map(|event| event.u64 as RawFd).collect()
    }
}

/// Blocks all signals on this thread, so that the program's handlers run on its own threads.
pub(super) fn block_signals() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initializes the set.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), null_mut());
    }
}

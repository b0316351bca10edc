//! The system calls that a sandbox is held by, as safe functions.
#![expect(
    unsafe_code,
    reason = "the only door to the system calls that std does not offer"
)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::ptr::null_mut;

use libc::{c_int, c_uint, c_void};

/// As many descriptors as one message carries.
const MAX_FDS: usize = 4;

fn check(result: c_int) -> io::Result<c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// A descriptor that the kernel has just made, or its error.
fn new_fd(result: c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel just made this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The reading and the writing end.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: fds has room for the two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((new_fd(fds[0])?, new_fd(fds[1])?))
}

/// Two ends of a connection that carries whole messages.
pub(super) fn connection() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: fds has room for the two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    Ok((new_fd(fds[0])?, new_fd(fds[1])?))
}

fn socket_path(dir: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}/socket", dir.as_raw_fd())
}

/// The name of a socket in a directory. Reached by the directory's descriptor, as a socket's path
/// can't be longer than 107 bytes.
fn socket_in(dir: BorrowedFd<'_>) -> libc::sockaddr_un {
    // SAFETY: sockaddr_un is plain data, and all zeros is a valid value of it.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(socket_path(dir).bytes()) {
        *to = from as libc::c_char;
    }
    address
}

const ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_un>() as libc::socklen_t;

/// Makes a socket in a directory and listens to it.
pub(super) fn listen(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const WAITING: c_int = 128;
    let address = socket_in(dir);
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the address is as long as it is said to be.
    unsafe {
        let socket = new_fd(libc::socket(libc::AF_UNIX, kind, 0))?;
        let fd = socket.as_raw_fd();
        check(libc::bind(fd, (&raw const address).cast(), ADDRESS_LENGTH))?;
        // Whatever the umask is. Nobody can connect before the next call.
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(socket_path(dir), mode)?;
        check(libc::listen(fd, WAITING))?;
        Ok(socket)
    }
}

/// Connects to that socket. Does not wait: where too many others do, that is an error.
pub(super) fn connect(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let address = socket_in(dir);
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the address is as long as it is said to be.
    unsafe {
        let socket = new_fd(libc::socket(libc::AF_UNIX, kind, 0))?;
        let fd = socket.as_raw_fd();
        check(libc::connect(
            fd,
            (&raw const address).cast(),
            ADDRESS_LENGTH,
        ))?;
        Ok(socket)
    }
}

/// A control message with descriptors, as the kernel lays it out on 64-bit systems.
#[repr(C, align(8))]
struct Control {
    length: usize,
    level: c_int,
    kind: c_int,
    fds: [c_int; MAX_FDS],
}

/// The length of a control message before its descriptors.
const CONTROL_HEAD: usize = 16;

fn message_header(part: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: msghdr is plain data, and all zeros is a valid value of it.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = part;
    header.msg_iovlen = 1;
    header
}

pub(super) fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut control = Control {
        length: CONTROL_HEAD + size_of_val(fds),
        level: libc::SOL_SOCKET,
        kind: libc::SCM_RIGHTS,
        fds: [-1; MAX_FDS],
    };
    if fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, fd) in control.fds.iter_mut().zip(fds) {
        *slot = fd.as_raw_fd();
    }
    let mut part = libc::iovec {
        iov_base: message.as_ptr().cast_mut().cast(),
        iov_len: message.len(),
    };
    let mut header = message_header(&mut part);
    if !fds.is_empty() {
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = control.length.next_multiple_of(8) as _;
    }
    loop {
        // SAFETY: all that the header points to lives through the call, with the lengths that it
        // says; sending only reads it.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
        match sent {
            -1 => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
            _ => return Ok(()),
        }
    }
}

/// One message, and the descriptor that came with it. Without waiting; an empty one is the end.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = Control {
        length: 0,
        level: 0,
        kind: 0,
        fds: [-1; MAX_FDS],
    };
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut header = message_header(&mut part);
    header.msg_control = (&raw mut control).cast();
    // Room for one: the kernel closes what others there may be.
    header.msg_controllen = (CONTROL_HEAD + size_of::<c_int>()) as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: as in send; the kernel writes no more than the lengths allow.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let has_fd = header.msg_controllen > 0 && control.kind == libc::SCM_RIGHTS;
    let fd = match has_fd.then_some(control.fds[0]) {
        Some(fd) => Some(new_fd(fd)?),
        None => None,
    };
    Ok((got, fd))
}

/// A file in memory, with this content and then sealed: nobody changes it any more.
pub(super) fn sealed_file(name: &str, content: &[u8], is_program: bool) -> io::Result<OwnedFd> {
    let c_name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is NUL-terminated and lives through the call.
    let create = |flags: c_uint| new_fd(unsafe { libc::memfd_create(c_name.as_ptr(), flags) });
    let own_flag = if is_program {
        libc::MFD_EXEC
    } else {
        libc::MFD_NOEXEC_SEAL
    };
    let file = match create(flags | own_flag) {
        // Before Linux 6.3 there was no such flag, and every file could be run.
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

/// That it is gone already is no failure.
pub(super) fn kill(pidfd: BorrowedFd<'_>, signal: c_int) {
    // SAFETY: without a siginfo no memory is involved.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            null_mut::<c_void>(),
            0,
        );
    }
}

/// Lets an ended child go. Where somebody else has, or it was never ours, there is nothing to do.
pub(super) fn reap(pidfd: BorrowedFd<'_>) {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: info has room for the answer.
    unsafe {
        libc::waitid(
            libc::P_PIDFD,
            pidfd.as_raw_fd() as libc::id_t,
            info.as_mut_ptr(),
            libc::WEXITED | libc::WNOHANG,
        );
    }
}

/// The CPUs that this thread may run on; none if the system does not say.
pub(super) fn usable_cpus() -> Vec<u32> {
    let mut mask = [0_u8; 1024];
    // SAFETY: the mask is as long as it is said to be.
    let length = unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            0,
            mask.len(),
            mask.as_mut_ptr(),
        )
    };
    let length = usize::try_from(length).unwrap_or(0);
    let bits = (0_u32..).take(length * 8);
    bits.filter(|cpu| mask[*cpu as usize / 8] & (1 << (cpu % 8)) != 0)
        .collect()
}

/// For as long as this is there, this thread makes files as another user and group, with their
/// rights. For root only.
pub(in crate::local) struct FileUser {
    before: (c_int, c_int),
    // The system call is about one thread.
    _stays: std::marker::PhantomData<*const ()>,
}

impl FileUser {
    pub(in crate::local) fn new(id: u32) -> FileUser {
        // SAFETY: no memory is involved; the group goes first, while the right to change it is there.
        let before = unsafe { (libc::setfsgid(id), libc::setfsuid(id)) };
        FileUser {
            before,
            _stays: std::marker::PhantomData,
        }
    }
}

impl Drop for FileUser {
    fn drop(&mut self) {
        let (group, user) = self.before;
        // SAFETY: no memory is involved; the user goes first, and brings the right back.
        unsafe {
            libc::setfsuid(user as c_uint);
            libc::setfsgid(group as c_uint);
        }
    }
}

/// Tells when processes end, by numbers that were given to them.
pub(super) struct Endings(OwnedFd);

impl Endings {
    pub(super) fn new() -> io::Result<Endings> {
        // SAFETY: no memory is involved.
        new_fd(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Endings)
    }

    pub(super) fn add(&self, pidfd: BorrowedFd<'_>, number: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLONESHOT) as u32,
            u64: number,
        };
        // SAFETY: event lives through the call, which only reads it.
        check(unsafe {
            libc::epoll_ctl(
                self.0.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                pidfd.as_raw_fd(),
                &raw mut event,
            )
        })
        .map(drop)
    }

    /// Waits for the next ones.
    pub(super) fn wait(&self) -> Vec<u64> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        // SAFETY: events is as long as it is said to be.
        let count = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as c_int,
                -1,
            )
        };
        let count = usize::try_from(count).unwrap_or(0);
        events.iter().take(count).map(|event| event.u64).collect()
    }
}

/// Keeps the signals of the program away from this thread, which is none of its own.
pub(super) fn block_signals() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: all has room for the set, which sigfillset fills in.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), null_mut());
    }
}

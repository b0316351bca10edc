//! Messages with file descriptors over Unix sockets. Compiled into the holder, which has no crates,
//! and into the library.
#![expect(unsafe_code, reason = "std cannot send file descriptors")]

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;

/// Maximum number of descriptors in a message.
const MAX_FDS: usize = 5;

const SOL_SOCKET: c_int = 1;
const SCM_RIGHTS: c_int = 1;
const MSG_NOSIGNAL: c_int = 0x4000;
const MSG_DONTWAIT: c_int = 0x40;
const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;
const MSG_CTRUNC: c_int = 8;

/// Error of a process with too many open descriptors.
pub(crate) const EMFILE: c_int = 24;

/// `struct iovec`.
#[repr(C)]
struct IoVec {
    base: *mut c_void,
    length: usize,
}

/// `struct msghdr`, as the kernel defines it on 64-bit systems.
#[repr(C)]
struct MessageHeader {
    name: *mut c_void,
    name_length: c_uint,
    parts: *mut IoVec,
    part_count: usize,
    control: *mut c_void,
    control_length: usize,
    flags: c_int,
}

/// `struct cmsghdr` with up to [`MAX_FDS`] descriptors.
#[repr(C, align(8))]
struct ControlMessage {
    length: usize,
    level: c_int,
    kind: c_int,
    fds: [c_int; MAX_FDS],
}

/// Length of a control message without its descriptors.
const CONTROL_HEAD: usize = 16;

unsafe extern "C" {
    fn sendmsg(socket: c_int, message: *const MessageHeader, flags: c_int) -> isize;
    fn recvmsg(socket: c_int, message: *mut MessageHeader, flags: c_int) -> isize;
}

fn header(part: &mut IoVec, control: &mut ControlMessage, control_length: usize) -> MessageHeader {
    MessageHeader {
        name: null_mut(),
        name_length: 0,
        parts: part,
        part_count: 1,
        control: if control_length == 0 {
            null_mut()
        } else {
            (&raw mut *control).cast()
        },
        control_length,
        flags: 0,
    }
}

/// Sends one message.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = ControlMessage {
        length: CONTROL_HEAD + fds.len() * size_of::<c_int>(),
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
        fds: [-1; MAX_FDS],
    };
    for (slot, fd) in control.fds.iter_mut().zip(fds) {
        *slot = fd.as_raw_fd();
    }
    let control_length = if fds.is_empty() {
        0
    } else {
        control.length.next_multiple_of(8)
    };
    let mut part = IoVec {
        base: message.as_ptr().cast_mut().cast(),
        length: message.len(),
    };
    let header = header(&mut part, &mut control, control_length);
    loop {
        // SAFETY: the header points to values that outlive the call, with their lengths. The call only
        // reads them.
        let sent = unsafe { sendmsg(socket.as_raw_fd(), &raw const header, MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives one message and its descriptors. Fails with `WouldBlock` if there is no message, and with
/// `EMFILE` if this process has too many open descriptors. An empty message marks the end of the connection.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = ControlMessage {
        length: 0,
        level: 0,
        kind: 0,
        fds: [-1; MAX_FDS],
    };
    let mut part = IoVec {
        base: buffer.as_mut_ptr().cast(),
        length: buffer.len(),
    };
    let mut header = header(&mut part, &mut control, size_of::<ControlMessage>());
    let flags = MSG_CMSG_CLOEXEC | MSG_DONTWAIT;
    // SAFETY: the header points to values that outlive the call. The kernel writes no more than their
    // lengths allow.
    let got = unsafe { recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let count = if header.control_length > 0 && control.kind == SCM_RIGHTS {
        control.length.saturating_sub(CONTROL_HEAD) / size_of::<c_int>()
    } else {
        0
    };
    let fds = control.fds.iter().take(count).filter(|fd| **fd >= 0);
    // SAFETY: the kernel has just created these descriptors, so they have no other owner.
    let fds = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect();
    if header.flags & MSG_CTRUNC != 0 {
        return Err(io::Error::from_raw_os_error(EMFILE));
    }
    Ok((got, fds))
}

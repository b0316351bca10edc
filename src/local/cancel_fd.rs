//! A descriptor that becomes readable when a command is cancelled, for `poll`.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::cancel::{Cancel, CancelGuard};

pub(super) struct CancelFd {
    socket: UnixStream,
    _guard: CancelGuard,
}

impl CancelFd {
    /// Registers with the command's [`Cancel`]. Returns `None` if it has none.
    pub(super) fn new(cancel: Option<&Cancel>) -> io::Result<Option<CancelFd>> {
        let Some(cancel) = cancel else {
            return Ok(None);
        };
        let (socket, writer) = UnixStream::pair()?;
        // The write fails if the command has ended and its socket is closed.
        let guard = cancel.on_cancel(move || drop((&writer).write(&[0])));
        Ok(Some(CancelFd {
            socket,
            _guard: guard,
        }))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

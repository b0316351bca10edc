//! What a command says, kept up to a cap.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::os;

/// How much of each stream is kept, in bytes.
const STREAM_CAP: usize = 1024 * 1024;

/// Stdout and stderr of a command, read as they come.
pub(super) struct Streams {
    pub(super) out: Stream,
    pub(super) err: Stream,
    buffer: Vec<u8>,
}

impl Streams {
    /// Of the reading ends of two pipes.
    pub(super) fn new(out: OwnedFd, err: OwnedFd) -> io::Result<Streams> {
        Ok(Streams {
            out: Stream::new(out)?,
            err: Stream::new(err)?,
            buffer: vec![0; 64 * 1024],
        })
    }

    /// Takes what has come, as a poll of the descriptors says.
    pub(super) fn read(&mut self, out: bool, err: bool) {
        if out {
            self.out.read_some(&mut self.buffer);
        }
        if err {
            self.err.read_some(&mut self.buffer);
        }
    }

    /// Takes what is in the pipes, without waiting for more.
    pub(super) fn drain(&mut self) {
        // A background process may write as fast as this reads: a pipe holds 1 MiB at most.
        for _ in 0..(2 * STREAM_CAP / self.buffer.len()) {
            let more = [
                self.out.read_some(&mut self.buffer),
                self.err.read_some(&mut self.buffer),
            ];
            if more == [false, false] {
                return;
            }
        }
    }

    pub(super) fn truncated(&self) -> bool {
        self.out.truncated || self.err.truncated
    }
}

/// One stream of the command, read to its end and kept up to the cap.
pub(super) struct Stream {
    pipe: Option<File>,
    pub(super) kept: Vec<u8>,
    truncated: bool,
}

impl Stream {
    fn new(pipe: OwnedFd) -> io::Result<Stream> {
        os::set_nonblocking(pipe.as_fd())?;
        Ok(Stream {
            pipe: Some(pipe.into()),
            kept: Vec::new(),
            truncated: false,
        })
    }

    /// None after its end.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Reads once. False if there is nothing more for now.
    fn read_some(&mut self, buffer: &mut [u8]) -> bool {
        let Some(pipe) = &mut self.pipe else {
            return false;
        };
        match pipe.read(buffer) {
            Ok(0) => self.pipe = None,
            Ok(got) => {
                let kept = got.min(STREAM_CAP - self.kept.len());
                self.kept.extend_from_slice(&buffer[..kept]);
                self.truncated |= kept < got;
                return true;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return true,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.pipe = None,
        }
        false
    }
}

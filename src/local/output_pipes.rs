//! The output pipes of a command, read without blocking and kept up to a cap.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::os;
use crate::output::{Output, whole_characters};

/// Maximum length of a stream that is kept, in bytes.
const STREAM_CAP: usize = 1024 * 1024;

/// The reading ends of a command's stdout and stderr.
pub(super) struct OutputPipes {
    pub(super) stdout: CappedPipe,
    pub(super) stderr: CappedPipe,
    /// A line about the command, at the end of its stderr.
    notice: Option<&'static str>,
    buffer: Vec<u8>,
}

impl OutputPipes {
    pub(super) fn new(stdout: OwnedFd, stderr: OwnedFd) -> io::Result<OutputPipes> {
        Ok(OutputPipes {
            stdout: CappedPipe::new(stdout)?,
            stderr: CappedPipe::new(stderr)?,
            notice: None,
            buffer: vec![0; 64 * 1024],
        })
    }

    /// Reads once from each pipe that a poll reported as readable.
    pub(super) fn read(&mut self, stdout: bool, stderr: bool) {
        if stdout {
            self.stdout.read_some(&mut self.buffer);
        }
        if stderr {
            self.stderr.read_some(&mut self.buffer);
        }
    }

    /// Adds a line about the command at the end of its stderr.
    pub(super) fn add_notice(&mut self, notice: &'static str) {
        self.notice = Some(notice);
    }

    /// Reads the data that is already in the pipes, without waiting for more.
    fn drain(&mut self) {
        // A background process can write as fast as this loop reads, so the loop is bounded by the
        // capacity of a pipe, which is 1 MiB at most.
        for _ in 0..(2 * STREAM_CAP / self.buffer.len()) {
            let more = [
                self.stdout.read_some(&mut self.buffer),
                self.stderr.read_some(&mut self.buffer),
            ];
            if more == [false, false] {
                return;
            }
        }
    }

    /// Reads the rest of the output and returns the result of a command that has ended.
    pub(super) fn into_output(mut self, code: i32, started: Instant, timed_out: bool) -> Output {
        self.drain();
        if let Some(notice) = self.notice {
            self.stderr.kept.extend_from_slice(notice.as_bytes());
        }
        let truncated = self.stdout.truncated || self.stderr.truncated;
        let duration = started.elapsed();
        Output::new(
            code,
            self.stdout.into_kept(),
            self.stderr.into_kept(),
            duration,
        )
        .with_timed_out(timed_out)
        .with_truncated(truncated)
    }
}

/// A pipe that is read to its end and kept up to the cap.
pub(super) struct CappedPipe {
    pipe: Option<File>,
    kept: Vec<u8>,
    truncated: bool,
}

impl CappedPipe {
    fn new(pipe: OwnedFd) -> io::Result<CappedPipe> {
        os::set_nonblocking(pipe.as_fd())?;
        Ok(CappedPipe {
            pipe: Some(pipe.into()),
            kept: Vec::new(),
            truncated: false,
        })
    }

    /// Returns the descriptor, or `None` after the end of the stream.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Returns what was kept. Text is not cut inside a character.
    fn into_kept(mut self) -> Vec<u8> {
        if self.truncated {
            let length = whole_characters(&self.kept).len();
            self.kept.truncate(length);
        }
        self.kept
    }

    /// Reads once. Returns false if no more data is available now.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters() {
        let kept = |bytes: &[u8], truncated| {
            let pipe = CappedPipe {
                pipe: None,
                kept: bytes.to_vec(),
                truncated,
            };
            pipe.into_kept()
        };
        assert_eq!(kept("aé".as_bytes(), true), "aé".as_bytes());
        assert_eq!(kept(b"a\xc3", true), b"a");
        assert_eq!(kept(b"a\xf0\x9f\x98", true), b"a");
        assert_eq!(kept(b"a\xff\xc3", true), b"a\xff");
        assert_eq!(kept(b"a\xff", true), b"a\xff");
        assert_eq!(kept(b"a\xc3", false), b"a\xc3");
    }
}

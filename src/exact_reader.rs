//! A reader of exactly as many bytes as announced.

use std::io::{self, Read};

/// Reads exactly `left` bytes from `inner`. If `inner` ends before that, `short` creates the error from
/// the number of missing bytes.
pub(crate) struct ExactReader<R, S> {
    pub(crate) inner: R,
    pub(crate) left: u64,
    pub(crate) short: S,
}

impl<R: Read, S: FnMut(u64) -> io::Error> Read for ExactReader<R, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let length = buf.len().min(left);
        if length == 0 {
            return Ok(0);
        }
        match self.inner.read(&mut buf[..length])? {
            0 => Err((self.short)(self.left)),
            count => {
                self.left -= count as u64;
                Ok(count)
            }
        }
    }
}

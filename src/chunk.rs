//! Pieces of a command's output, passed on while the command runs.

use std::borrow::Cow;

/// An output stream of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// The standard output.
    Stdout,
    /// The standard error.
    Stderr,
}

/// A piece of a command's output, from [`Sandbox::exec_live`](crate::Sandbox::exec_live).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a> {
    stream: Stream,
    bytes: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// Creates a chunk, for a [`Backend`](crate::Backend) of your own.
    ///
    /// ```
    /// use noxrunner::{Chunk, Stream};
    ///
    /// let chunk = Chunk::new(Stream::Stderr, b"warning\n");
    /// assert_eq!((chunk.stream(), &*chunk.text()), (Stream::Stderr, "warning\n"));
    /// ```
    #[must_use]
    pub fn new(stream: Stream, bytes: &'a [u8]) -> Chunk<'a> {
        Chunk { stream, bytes }
    }

    /// Returns the stream that the command wrote to.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Returns the bytes. There is at least one.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the bytes as text. Bytes that are not UTF-8 become U+FFFD. A character is never split
    /// between two chunks of [`exec_live`](crate::Sandbox::exec_live).
    #[must_use]
    pub fn text(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.bytes)
    }
}

/// Removes the start of a character from the end of a stream that was cut.
pub(crate) fn whole_characters(stream: &[u8]) -> &[u8] {
    for length in 1..=stream.len().min(3) {
        let (start, end) = stream.split_at(stream.len() - length);
        let is_start = |e: std::str::Utf8Error| e.valid_up_to() == 0 && e.error_len().is_none();
        if std::str::from_utf8(end).is_err_and(is_start) {
            return start;
        }
    }
    stream
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_start_of_a_character_is_removed() {
        for (stream, kept) in [
            ("aé".as_bytes(), 3),
            (b"", 0),
            (b"a\xc3", 1),
            (b"a\xf0\x9f", 1),
            (b"a\xf0\x9f\x98", 1),
            (b"\xf0\xe2\x82", 1),
            (b"a\xff\xc3", 2),
            (b"a\xff", 2),
            (b"a\x82", 2),
            (b"\xed\xa0", 2),
        ] {
            assert_eq!(whole_characters(stream).len(), kept, "{stream:?}");
        }
    }
}

//! The start of a stream of any length.

use crate::chunk::whole_characters;

/// Maximum length of an output stream that `exec` keeps, in bytes.
pub(crate) const STREAM_CAP: usize = 1024 * 1024;

/// Keeps a stream up to [`STREAM_CAP`].
#[derive(Default)]
pub(crate) struct CappedStream {
    kept: Vec<u8>,
    truncated: bool,
}

impl CappedStream {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let room = STREAM_CAP - self.kept.len();
        self.truncated |= bytes.len() > room;
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    pub(crate) fn truncated(&self) -> bool {
        self.truncated
    }

    /// Returns what was kept. Text is not cut inside a character.
    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        if self.truncated {
            let length = whole_characters(&self.kept).len();
            self.kept.truncate(length);
        }
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_cut_between_characters() {
        let kept = |start: &[u8], rest: &[u8]| {
            let mut stream = CappedStream::default();
            stream.push(&vec![b'x'; STREAM_CAP - start.len()]);
            stream.push(&[start, rest].concat());
            (stream.truncated(), stream.into_bytes().len())
        };
        assert_eq!(kept("aé".as_bytes(), b""), (false, STREAM_CAP));
        assert_eq!(kept(b"a\xc3", b""), (false, STREAM_CAP));
        assert_eq!(kept(b"a\xc3", b"\xa9"), (true, STREAM_CAP - 1));
        assert_eq!(kept(b"a\xff", b"b"), (true, STREAM_CAP));
    }
}

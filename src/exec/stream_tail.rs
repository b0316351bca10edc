//! The end of a stream of any length.

/// Maximum length of the end that is kept, in bytes.
const MAX_TAIL: usize = 64 * 1024;

/// Keeps the end of a stream. Memory does not grow with the stream.
#[derive(Default)]
pub(super) struct StreamTail {
    /// Up to twice as long as the end, so that few pushes move bytes.
    bytes: Vec<u8>,
    truncated: bool,
}

impl StreamTail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let end = &bytes[bytes.len().saturating_sub(MAX_TAIL)..];
        self.truncated |= self.bytes.len() + bytes.len() > MAX_TAIL;
        if self.bytes.len() + end.len() > 2 * MAX_TAIL {
            let keep = MAX_TAIL - end.len();
            self.bytes.drain(..self.bytes.len() - keep);
        }
        self.bytes.extend_from_slice(end);
    }

    /// Returns true if the stream is longer than what is kept.
    pub(super) fn truncated(&self) -> bool {
        self.truncated
    }

    /// Returns the end of the stream. It does not begin inside a character.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        if self.truncated {
            let mut start = self.bytes.len().saturating_sub(MAX_TAIL);
            let is_continuation = |byte: &&u8| **byte & 0xc0 == 0x80;
            start += self.bytes[start..]
                .iter()
                .take(3)
                .take_while(is_continuation)
                .count();
            self.bytes.drain(..start);
        }
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_is_kept_for_pieces_of_any_length() {
        let all: Vec<u8> = (0..500_000_u32).map(|n| (n % 127) as u8).collect();
        for length in [1, 1000, MAX_TAIL - 1, MAX_TAIL, MAX_TAIL + 1, 300_000] {
            let mut tail = StreamTail::default();
            for (n, piece) in all.chunks(length).enumerate() {
                tail.push(piece);
                assert_eq!(
                    tail.truncated(),
                    ((n + 1) * length).min(all.len()) > MAX_TAIL
                );
                assert!(tail.bytes.len() <= 2 * MAX_TAIL);
            }
            assert!(tail.into_bytes() == all[all.len() - MAX_TAIL..], "{length}");
        }
    }

    #[test]
    fn short_streams_are_kept_whole() {
        let mut tail = StreamTail::default();
        tail.push(b"\x82a");
        assert!(!tail.truncated());
        assert_eq!(tail.into_bytes(), b"\x82a");
    }

    #[test]
    fn end_begins_with_a_character() {
        let mut tail = StreamTail::default();
        tail.push("€".repeat(MAX_TAIL).as_bytes());
        let bytes = tail.into_bytes();
        assert!(bytes.len() > MAX_TAIL - 3 && std::str::from_utf8(&bytes).is_ok());
    }
}

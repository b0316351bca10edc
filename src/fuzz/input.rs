//! Taking values from the input of a target.

use std::io::{self, Read};

/// The rest of an input. Missing bytes are zeros.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub(crate) fn u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.fill_with(|| self.byte());
        u64::from_le_bytes(bytes)
    }

    /// Returns the next bytes, or fewer at the end.
    pub(crate) fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// Returns bytes after a byte with their number.
    pub(crate) fn short_bytes(&mut self) -> &'a [u8] {
        let length = self.byte().into();
        self.bytes(length)
    }
}

/// A reader that returns few bytes at a time.
pub(super) struct Dribble<'a> {
    rest: &'a [u8],
    step: usize,
}

impl<'a> Dribble<'a> {
    /// `seed` decides about the sizes of the pieces.
    pub(super) fn new(bytes: &'a [u8], seed: u8) -> Dribble<'a> {
        Dribble {
            rest: bytes,
            step: seed.into(),
        }
    }
}

impl Read for Dribble<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // Between 1 and 31 bytes, without a fixed period.
        self.step = (self.step * 7 + 3) % 31;
        let count = buf.len().min(self.step + 1);
        (&mut self.rest).take(count as u64).read(buf)
    }
}

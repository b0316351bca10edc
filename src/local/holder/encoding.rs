//! Encoding of messages as bytes. Compiled into the library and the holder.

/// Encodes a message: integers in little-endian order, bytes and lists after their length.
#[derive(Default)]
pub(crate) struct MessageWriter(Vec<u8>);

impl MessageWriter {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn option(&mut self, value: Option<u64>) {
        self.bool(value.is_some());
        self.u64(value.unwrap_or(0));
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut MessageWriter, &T)) {
        self.u64(items.len() as u64);
        items.iter().for_each(|item| each(self, item));
    }
}

/// Decodes a message. Its methods return `None` if the message is truncated.
pub(crate) struct MessageReader<'a>(&'a [u8]);

impl<'a> MessageReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> MessageReader<'a> {
        MessageReader(bytes)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn bool(&mut self) -> Option<bool> {
        self.take(1).map(|byte| byte == [1])
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.take(4)?.first_chunk()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.take(8)?.first_chunk()?))
    }

    pub(crate) fn option(&mut self) -> Option<Option<u64>> {
        let is_some = self.bool()?;
        let value = self.u64()?;
        Some(is_some.then_some(value))
    }

    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u64()?).ok()?;
        self.take(length)
    }

    pub(crate) fn string(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    pub(crate) fn list<T>(
        &mut self,
        mut each: impl FnMut(&mut MessageReader<'a>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let count = self.u64()?;
        // Without preallocation, because the count is not checked against the length of the message.
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(each(self)?);
        }
        Some(items)
    }
}

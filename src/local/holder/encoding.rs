//! Encoding of messages as bytes. Compiled into the library and the holder.

/// A part of a message: integers in little-endian order, texts and lists after their length.
pub(crate) trait Encoding: Sized {
    fn write(&self, out: &mut Vec<u8>);

    /// Reads a value from the start of the input. Returns `None` if the message is truncated.
    fn read(input: &mut &[u8]) -> Option<Self>;

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        Self::read(&mut bytes)
    }
}

macro_rules! encode_integers {
    ($($integer:ty),*) => {$(
        impl Encoding for $integer {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn read(input: &mut &[u8]) -> Option<$integer> {
                let (bytes, rest) = input.split_first_chunk()?;
                *input = rest;
                Some(<$integer>::from_le_bytes(*bytes))
            }
        }
    )*};
}

encode_integers!(u8, u32, i32, u64);

/// Encodes a struct as its fields.
macro_rules! encode_struct {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl Encoding for $name {
            fn write(&self, out: &mut Vec<u8>) {
                $(self.$field.write(out);)*
            }

            fn read(input: &mut &[u8]) -> Option<$name> {
                Some($name { $($field: Encoding::read(input)?),* })
            }
        }
    };
}
pub(crate) use encode_struct;

/// Encodes an enum as the number of its variant, followed by the fields.
macro_rules! encode_enum {
    ($name:ident { $($tag:literal => $variant:ident $(($($field:ident),*))?),* $(,)? }) => {
        impl Encoding for $name {
            fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $($name::$variant $(($($field),*))? => {
                        u32::write(&$tag, out);
                        $($($field.write(out);)*)?
                    })*
                }
            }

            fn read(input: &mut &[u8]) -> Option<$name> {
                match u32::read(input)? {
                    $($tag => {
                        $($(let $field = Encoding::read(input)?;)*)?
                        Some($name::$variant $(($($field),*))?)
                    })*
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use encode_enum;

impl Encoding for bool {
    fn write(&self, out: &mut Vec<u8>) {
        u8::from(*self).write(out);
    }

    fn read(input: &mut &[u8]) -> Option<bool> {
        u8::read(input).map(|byte| byte == 1)
    }
}

impl Encoding for String {
    fn write(&self, out: &mut Vec<u8>) {
        (self.len() as u64).write(out);
        out.extend_from_slice(self.as_bytes());
    }

    fn read(input: &mut &[u8]) -> Option<String> {
        let length = usize::try_from(u64::read(input)?).ok()?;
        let (bytes, rest) = input.split_at_checked(length)?;
        *input = rest;
        String::from_utf8(bytes.to_vec()).ok()
    }
}

impl<T: Encoding> Encoding for Option<T> {
    fn write(&self, out: &mut Vec<u8>) {
        self.is_some().write(out);
        self.iter().for_each(|value| value.write(out));
    }

    fn read(input: &mut &[u8]) -> Option<Option<T>> {
        if bool::read(input)? {
            T::read(input).map(Some)
        } else {
            Some(None)
        }
    }
}

impl<T: Encoding> Encoding for Vec<T> {
    fn write(&self, out: &mut Vec<u8>) {
        (self.len() as u64).write(out);
        self.iter().for_each(|item| item.write(out));
    }

    fn read(input: &mut &[u8]) -> Option<Vec<T>> {
        let count = u64::read(input)?;
        // Collecting options does not preallocate. The count is not checked against the length of the
        // message.
        (0..count).map(|_| T::read(input)).collect()
    }
}

impl<A: Encoding, B: Encoding> Encoding for (A, B) {
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
        self.1.write(out);
    }

    fn read(input: &mut &[u8]) -> Option<(A, B)> {
        Some((A::read(input)?, B::read(input)?))
    }
}

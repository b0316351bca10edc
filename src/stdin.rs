//! Standard input of a command.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use crate::archive::Contents;
use crate::error::{Error, Result};

/// The standard input of a command: bytes, a file, or everything that a reader yields.
#[derive(Clone)]
pub struct Stdin(Input);

#[derive(Clone)]
enum Input {
    Bytes(Arc<[u8]>),
    /// `None` after the reader has been consumed.
    Reader(Arc<Mutex<Option<Box<dyn Read + Send>>>>),
}

impl Stdin {
    /// Uses everything that a reader yields. A reader can be consumed only once: a clone of the
    /// command cannot be run again.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::{Command, Stdin};
    /// use std::io::Read;
    ///
    /// let megabyte = Stdin::reader(std::io::repeat(b'x').take(1_000_000));
    /// let out = sandbox.run(Command::from(["wc", "-c"]).stdin(megabyte))?;
    /// assert_eq!(out.stdout().trim(), "1000000");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn reader(reader: impl Read + Send + 'static) -> Stdin {
        Stdin(Input::Reader(Arc::new(Mutex::new(Some(Box::new(reader))))))
    }

    pub(crate) fn contents(&self) -> Result<Contents<'_>> {
        match &self.0 {
            Input::Bytes(bytes) => Ok((&**bytes).into()),
            Input::Reader(reader) => {
                let taken = reader.lock().unwrap_or_else(PoisonError::into_inner).take();
                let reader = taken.ok_or_else(|| {
                    Error::invalid("an earlier run has already consumed the reader given as stdin")
                })?;
                Ok(Contents::reader(reader))
            }
        }
    }
}

impl From<Vec<u8>> for Stdin {
    fn from(bytes: Vec<u8>) -> Stdin {
        Stdin(Input::Bytes(bytes.into()))
    }
}

/// Uses bytes or text.
impl<T: AsRef<[u8]> + ?Sized> From<&T> for Stdin {
    fn from(bytes: &T) -> Stdin {
        Stdin(Input::Bytes(bytes.as_ref().into()))
    }
}

impl From<String> for Stdin {
    fn from(text: String) -> Stdin {
        Stdin::from(text.into_bytes())
    }
}

/// Reads the file from its current position.
impl From<File> for Stdin {
    fn from(file: File) -> Stdin {
        Stdin::reader(file)
    }
}

impl fmt::Debug for Stdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Input::Bytes(bytes) => write!(f, "Stdin({} bytes)", bytes.len()),
            Input::Reader(_) => f.write_str("Stdin(reader)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_is_consumed_once() {
        let stdin = Stdin::reader(&b"x"[..]);
        assert!(stdin.contents().is_ok());
        let text = Stdin::from("3\n1\n2\n");
        assert_eq!(
            format!("{text:?}, {stdin:?}"),
            "Stdin(6 bytes), Stdin(reader)"
        );
        let error = stdin.clone().contents().unwrap_err();
        assert!(error.to_string().contains("earlier run"), "{error}");
    }
}

//! Standard input of a command.

use std::fmt;
use std::fs::File;
use std::io::{Cursor, Read};
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
    Reader(Arc<Mutex<Option<StdinReader>>>),
}

pub(crate) type StdinReader = Box<dyn Read + Send>;

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

    /// Returns a reader of the input, for a [`Backend`](crate::Backend) that
    /// [streams it](crate::Backend::streams_stdin).
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if an earlier run has consumed the reader.
    ///
    /// # Example
    ///
    /// ```
    /// use std::io::Read;
    ///
    /// let stdin = noxrunner::Stdin::from("3\n1\n");
    /// let mut text = String::new();
    /// stdin.open()?.read_to_string(&mut text)?;
    /// assert_eq!(text, "3\n1\n");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(&self) -> Result<Box<dyn Read + Send>> {
        match &self.0 {
            Input::Bytes(bytes) => Ok(Box::new(Cursor::new(Arc::clone(bytes)))),
            Input::Reader(reader) => take(reader),
        }
    }

    pub(crate) fn contents(&self) -> Result<Contents<'_>> {
        match &self.0 {
            Input::Bytes(bytes) => Ok((&**bytes).into()),
            Input::Reader(reader) => Ok(Contents::reader(take(reader)?)),
        }
    }
}

fn take(reader: &Mutex<Option<StdinReader>>) -> Result<StdinReader> {
    let taken = reader.lock().unwrap_or_else(PoisonError::into_inner).take();
    taken.ok_or_else(|| {
        Error::invalid("an earlier run has already consumed the reader given as stdin")
    })
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

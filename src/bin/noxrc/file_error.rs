//! Errors of local files.

use std::io;
use std::path::Path;

use noxrunner::{Error, ErrorKind};

/// Creates the error of a failed operation on a local file.
pub(crate) fn file_error(operation: &str, path: &Path, e: io::Error) -> Error {
    let message = format!("{operation} {}", path.display());
    Error::new(ErrorKind::Io, message).with_source(e)
}

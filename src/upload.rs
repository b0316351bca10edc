//! Archives on their way to a backend.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// An archive on its way to a [`Backend`](crate::Backend): a reader that may know its length, and that
/// may be able to start again.
///
/// ```
/// use noxrunner::Upload;
/// use std::io::Read;
///
/// let mut upload = Upload::from_bytes(b"an archive");
/// assert_eq!(upload.content_length(), Some(10));
/// let mut first = Vec::new();
/// upload.read_to_end(&mut first)?;
/// assert!(upload.rewind()?, "bytes can be read again");
/// # Ok::<_, std::io::Error>(())
/// ```
pub struct Upload<'a> {
    origin: UploadSource<'a>,
    length: Option<u64>,
}

enum UploadSource<'a> {
    Bytes(io::Cursor<&'a [u8]>),
    File(&'a File),
    Reader(&'a mut (dyn Read + Send)),
}

impl<'a> Upload<'a> {
    /// Creates an upload of bytes in memory.
    #[must_use]
    pub fn from_bytes(bytes: &'a [u8]) -> Upload<'a> {
        Upload {
            origin: UploadSource::Bytes(io::Cursor::new(bytes)),
            length: Some(bytes.len() as u64),
        }
    }

    /// Creates an upload of a whole file.
    ///
    /// # Errors
    ///
    /// If the length of the file cannot be determined, or the file cannot be rewound.
    pub fn from_file(mut file: &'a File) -> io::Result<Upload<'a>> {
        file.seek(SeekFrom::Start(0))?;
        let length = file.metadata()?.len();
        Ok(Upload {
            origin: UploadSource::File(file),
            length: Some(length),
        })
    }

    /// Creates an upload of a reader, which can be sent only once, and its length if known.
    #[must_use]
    pub fn from_reader(reader: &'a mut (dyn Read + Send), length: Option<u64>) -> Upload<'a> {
        Upload {
            origin: UploadSource::Reader(reader),
            length,
        }
    }

    /// Returns the total number of bytes, if known.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.length
    }

    /// Returns whether [`rewind`](Upload::rewind) is possible.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        !matches!(self.origin, UploadSource::Reader(_))
    }

    /// Starts again from the first byte, or returns `false` if that is not possible.
    ///
    /// # Errors
    ///
    /// If the file cannot be rewound.
    pub fn rewind(&mut self) -> io::Result<bool> {
        match &mut self.origin {
            UploadSource::Bytes(bytes) => bytes.set_position(0),
            UploadSource::File(file) => drop(file.seek(SeekFrom::Start(0))?),
            UploadSource::Reader(_) => return Ok(false),
        }
        Ok(true)
    }
}

impl Read for Upload<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.origin {
            UploadSource::Bytes(bytes) => bytes.read(buf),
            UploadSource::File(file) => file.read(buf),
            UploadSource::Reader(reader) => reader.read(buf),
        }
    }
}

impl fmt::Debug for Upload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("content_length", &self.length)
            .field("replayable", &self.is_replayable())
            .finish()
    }
}

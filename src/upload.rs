//! The archive of an upload, as a backend gets it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// An archive on its way to a backend: a reader that knows its length, if that is known, and
/// whether it can be read again from the start.
///
/// ```
/// use noxrunner::Upload;
/// use std::io::Read;
///
/// let mut upload = Upload::from_bytes(b"an archive");
/// assert_eq!(upload.content_length(), Some(10));
/// let mut once = Vec::new();
/// upload.read_to_end(&mut once)?;
/// assert!(upload.rewind()?, "bytes can be read again");
/// # Ok::<_, std::io::Error>(())
/// ```
pub struct Upload<'a> {
    source: Source<'a>,
    length: Option<u64>,
}

enum Source<'a> {
    Bytes { all: &'a [u8], rest: &'a [u8] },
    File(&'a File),
    Reader(&'a mut (dyn Read + Send)),
}

impl<'a> Upload<'a> {
    /// All of it is in memory.
    ///
    /// ```
    /// use noxrunner::Upload;
    ///
    /// assert_eq!(Upload::from_bytes(b"an archive").content_length(), Some(10));
    /// ```
    #[must_use]
    pub fn from_bytes(bytes: &'a [u8]) -> Upload<'a> {
        Upload {
            source: Source::Bytes {
                all: bytes,
                rest: bytes,
            },
            length: Some(bytes.len() as u64),
        }
    }

    /// A whole file, from its start.
    ///
    /// # Errors
    ///
    /// Where the file's length can't be read or it can't be rewound.
    ///
    /// # Example
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("archive");
    /// std::fs::write(&path, "twelve bytes")?;
    /// let file = std::fs::File::open(&path)?;
    /// assert_eq!(noxrunner::Upload::from_file(&file)?.content_length(), Some(12));
    /// # Ok::<_, std::io::Error>(())
    /// ```
    pub fn from_file(mut file: &'a File) -> io::Result<Upload<'a>> {
        file.seek(SeekFrom::Start(0))?;
        let length = file.metadata()?.len();
        Ok(Upload {
            source: Source::File(file),
            length: Some(length),
        })
    }

    /// A reader that can be read once, and its length, if known.
    ///
    /// ```
    /// use noxrunner::Upload;
    ///
    /// let mut archive = &b"an archive"[..];
    /// let upload = Upload::from_reader(&mut archive, None);
    /// assert_eq!((upload.content_length(), upload.is_replayable()), (None, false));
    /// ```
    #[must_use]
    pub fn from_reader(reader: &'a mut (dyn Read + Send), length: Option<u64>) -> Upload<'a> {
        Upload {
            source: Source::Reader(reader),
            length,
        }
    }

    /// The number of bytes from the start, if known.
    ///
    /// ```
    /// use noxrunner::Upload;
    ///
    /// let mut archive = &b"an archive"[..];
    /// assert_eq!(Upload::from_reader(&mut archive, Some(10)).content_length(), Some(10));
    /// ```
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.length
    }

    /// Whether [`rewind`](Upload::rewind) can work.
    ///
    /// ```
    /// use noxrunner::Upload;
    ///
    /// assert!(Upload::from_bytes(b"an archive").is_replayable());
    /// ```
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        !matches!(self.source, Source::Reader(_))
    }

    /// Starts again from the first byte. False where that is not possible.
    ///
    /// # Errors
    ///
    /// Where the file can't be rewound.
    ///
    /// # Example
    ///
    /// ```
    /// let mut once = std::io::empty();
    /// assert!(!noxrunner::Upload::from_reader(&mut once, None).rewind()?);
    /// # Ok::<_, std::io::Error>(())
    /// ```
    pub fn rewind(&mut self) -> io::Result<bool> {
        match &mut self.source {
            Source::Bytes { all, rest } => *rest = all,
            Source::File(file) => drop(file.seek(SeekFrom::Start(0))?),
            Source::Reader(_) => return Ok(false),
        }
        Ok(true)
    }
}

impl Read for Upload<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.source {
            Source::Bytes { rest, .. } => rest.read(buf),
            Source::File(file) => file.read(buf),
            Source::Reader(reader) => reader.read(buf),
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

//! Archives on their way to a backend.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use crate::progress::{ContentMap, UploadProgress};

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
    /// Number of bytes that have been read since the start.
    position: u64,
    map: Option<&'a ContentMap>,
    observer: Option<&'a mut Observer<'a>>,
}

/// Is called with the progress after every read.
type Observer<'a> = dyn FnMut(UploadProgress) + Send + 'a;

trait ReadSeek: Read + Seek + Send {}

impl<R: Read + Seek + Send> ReadSeek for R {}

enum UploadSource<'a> {
    Bytes(io::Cursor<&'a [u8]>),
    File(&'a File),
    /// A reader, and the position of the archive in it.
    Seekable(&'a mut dyn ReadSeek, u64),
    Reader(&'a mut (dyn Read + Send)),
}

impl<'a> UploadSource<'a> {
    /// Shortens the lifetime. Each trait object needs a coercion of its own.
    fn shorten<'b>(self) -> UploadSource<'b>
    where
        'a: 'b,
    {
        match self {
            UploadSource::Bytes(bytes) => UploadSource::Bytes(bytes),
            UploadSource::File(file) => UploadSource::File(file),
            UploadSource::Seekable(reader, start) => UploadSource::Seekable(reader, start),
            UploadSource::Reader(reader) => UploadSource::Reader(reader),
        }
    }
}

impl<'a> Upload<'a> {
    fn new(origin: UploadSource<'a>, length: Option<u64>) -> Upload<'a> {
        Upload {
            origin,
            length,
            position: 0,
            map: None,
            observer: None,
        }
    }

    /// Creates an upload of bytes in memory.
    #[must_use]
    pub fn from_bytes(bytes: &'a [u8]) -> Upload<'a> {
        let origin = UploadSource::Bytes(io::Cursor::new(bytes));
        Upload::new(origin, Some(bytes.len() as u64))
    }

    /// Creates an upload of a whole file.
    ///
    /// # Errors
    ///
    /// If the length of the file cannot be determined, or the file cannot be rewound.
    pub fn from_file(mut file: &'a File) -> io::Result<Upload<'a>> {
        file.seek(SeekFrom::Start(0))?;
        let length = file.metadata()?.len();
        Ok(Upload::new(UploadSource::File(file), Some(length)))
    }

    /// Creates an upload of what follows the current position of a reader. It can start again.
    ///
    /// ```
    /// use noxrunner::Upload;
    /// use std::io::{Cursor, Read};
    ///
    /// let mut reader = Cursor::new("header archive");
    /// reader.set_position(7);
    /// let mut upload = Upload::from_seekable(&mut reader)?;
    /// assert_eq!(upload.content_length(), Some(7));
    /// for _ in 0..2 {
    ///     let mut archive = String::new();
    ///     upload.read_to_string(&mut archive)?;
    ///     assert_eq!(archive, "archive");
    ///     assert!(upload.rewind()?);
    /// }
    /// # Ok::<_, std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the reader cannot seek.
    pub fn from_seekable(reader: &'a mut (impl Read + Seek + Send)) -> io::Result<Upload<'a>> {
        let start = reader.stream_position()?;
        let end = reader.seek(SeekFrom::End(0))?;
        reader.seek(SeekFrom::Start(start))?;
        let length = end.saturating_sub(start);
        Ok(Upload::new(
            UploadSource::Seekable(reader, start),
            Some(length),
        ))
    }

    /// Creates an upload of a reader, which can be sent only once, and its length if known.
    #[must_use]
    pub fn from_reader(reader: &'a mut (dyn Read + Send), length: Option<u64>) -> Upload<'a> {
        Upload::new(UploadSource::Reader(reader), length)
    }

    /// Sets the map from bytes of the archive to bytes of the files in it.
    pub(crate) fn with_map(mut self, map: Option<&'a ContentMap>) -> Upload<'a> {
        self.map = map;
        self
    }

    /// Reports the progress after every read, for a backend that forwards uploads to another one. The
    /// upload can still start again if it could before. An earlier observer is replaced.
    ///
    /// ```
    /// use noxrunner::Upload;
    /// use std::io::Read;
    ///
    /// let mut sent = 0;
    /// let mut report = |progress: noxrunner::UploadProgress| sent = progress.sent();
    /// let mut upload = Upload::from_bytes(b"an archive").on_progress(&mut report);
    /// upload.read_exact(&mut [0; 4])?;
    /// assert_eq!(sent, 4);
    /// # Ok::<_, std::io::Error>(())
    /// ```
    #[must_use]
    pub fn on_progress<'b>(
        self,
        observer: &'b mut (dyn FnMut(UploadProgress) + Send + 'b),
    ) -> Upload<'b>
    where
        'a: 'b,
    {
        Upload {
            origin: self.origin.shorten(),
            length: self.length,
            position: self.position,
            map: self.map,
            observer: Some(observer),
        }
    }

    /// Lends the upload, so that it can start again afterwards.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn reborrow(&mut self) -> Upload<'_> {
        let origin = match &mut self.origin {
            UploadSource::Bytes(bytes) => UploadSource::Bytes(bytes.clone()),
            UploadSource::File(file) => UploadSource::File(file),
            UploadSource::Seekable(reader, start) => UploadSource::Seekable(*reader, *start),
            UploadSource::Reader(reader) => UploadSource::Reader(*reader),
        };
        let observer: Option<&mut Observer<'_>> = match &mut self.observer {
            Some(observer) => Some(&mut **observer),
            None => None,
        };
        Upload {
            origin,
            length: self.length,
            position: self.position,
            map: self.map,
            observer,
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
    /// If the file or the reader cannot be rewound.
    pub fn rewind(&mut self) -> io::Result<bool> {
        match &mut self.origin {
            UploadSource::Bytes(bytes) => bytes.set_position(0),
            UploadSource::File(file) => drop(file.seek(SeekFrom::Start(0))?),
            UploadSource::Seekable(reader, start) => drop(reader.seek(SeekFrom::Start(*start))?),
            UploadSource::Reader(_) => return Ok(false),
        }
        self.position = 0;
        Ok(true)
    }

    fn progress(&self) -> UploadProgress {
        match self.map {
            Some(map) => map.progress(self.position),
            None => UploadProgress {
                sent: self.position,
                total: self.length,
            },
        }
    }
}

impl Read for Upload<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.origin {
            UploadSource::Bytes(bytes) => bytes.read(buf),
            UploadSource::File(file) => file.read(buf),
            UploadSource::Seekable(reader, _) => reader.read(buf),
            UploadSource::Reader(reader) => reader.read(buf),
        }?;
        self.position += count as u64;
        let progress = self.progress();
        if let Some(observer) = &mut self.observer {
            observer(progress);
        }
        Ok(count)
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

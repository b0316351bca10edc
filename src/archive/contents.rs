//! Contents of uploads, and packing them.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::encode::{Encoder, PackedArchive, Spooled};
use super::entry::{add_file, start_file};
use super::pack::{TreePacker, Unreadable};
use super::pack_rules::Pack;
use super::sized_file::{SizedFile, WrongSize};
use crate::error::{Error, Result};
use crate::os;

/// Default mode of a file.
const DEFAULT_MODE: u32 = 0o644;

/// The contents of a file in the sandbox, and its mode.
///
/// Made from bytes, text, a reader, or a path on this machine.
///
/// ```
/// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// use noxrunner::Contents;
/// use std::io::Read;
///
/// sandbox.write("x", Contents::reader(std::io::repeat(b'x').take(1000)))?;
/// assert_eq!(sandbox.read("x")?.len(), 1000);
///
/// let local = dir.path().join("data.csv");
/// std::fs::write(&local, "1,2\n")?;
/// sandbox.write("data.csv", Contents::path(&local))?;
/// assert_eq!(sandbox.read("data.csv")?, b"1,2\n");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct Contents<'a> {
    origin: Origin<'a>,
    mode: Option<u32>,
}

enum Origin<'a> {
    Bytes(Cow<'a, [u8]>),
    Reader(Box<dyn Read + 'a>),
    Path(PathBuf),
    Dir(PathBuf, Pack),
}

impl<'a> Contents<'a> {
    /// Uses everything that a reader yields. The archive needs the length in advance, so the bytes are
    /// kept in a temporary file until they are sent.
    pub fn reader(reader: impl Read + 'a) -> Contents<'a> {
        Origin::Reader(Box::new(reader)).into()
    }

    /// Uses a file on this machine, or a directory with everything below it. A file whose metadata has a
    /// wrong size, as in `/proc`, is sent as it is read. Bytes that are appended to a file while it is
    /// read are not sent; it is an error if it shrinks.
    pub fn path(path: impl Into<PathBuf>) -> Contents<'a> {
        Origin::Path(path.into()).into()
    }

    /// Uses a directory on this machine, with what these rules choose of it.
    pub fn dir(path: impl Into<PathBuf>, pack: Pack) -> Contents<'a> {
        Origin::Dir(path.into(), pack).into()
    }

    /// Sets the permissions of the file. Defaults to those of the local file, or to `0o644`.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Contents<'a> {
        self.mode = Some(mode);
        self
    }
}

impl<'a> From<Origin<'a>> for Contents<'a> {
    fn from(origin: Origin<'a>) -> Self {
        Contents { origin, mode: None }
    }
}

/// Uses bytes or text.
impl<'a, T: AsRef<[u8]> + ?Sized> From<&'a T> for Contents<'a> {
    fn from(bytes: &'a T) -> Self {
        Origin::Bytes(bytes.as_ref().into()).into()
    }
}

impl From<String> for Contents<'_> {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl From<Vec<u8>> for Contents<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Origin::Bytes(bytes.into()).into()
    }
}

impl fmt::Debug for Contents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = match &self.origin {
            Origin::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Origin::Reader(_) => "reader".to_owned(),
            Origin::Path(path) | Origin::Dir(path, _) => path.display().to_string(),
        };
        f.debug_struct("Contents")
            .field("origin", &origin)
            .field("mode", &self.mode)
            .finish()
    }
}

/// Archives contents under their names.
pub(crate) fn archive_contents(files: Vec<(Vec<u8>, Contents<'_>)>) -> Result<PackedArchive> {
    let size = |(name, contents)| Ok((name, SizedContents::new(contents)?));
    let sized = files.into_iter().map(size).collect::<Result<Vec<_>>>()?;
    let mut encoder = Encoder::new();
    for (name, contents) in sized {
        contents.write(&name, &mut encoder)?;
    }
    encoder.finish_upload()
}

/// Archives what is below a directory on this machine.
pub(crate) fn archive_dir(local: &Path, pack: &Pack) -> Result<PackedArchive> {
    let mut encoder = Encoder::new();
    list(local, pack)?.write_all(&mut encoder)?;
    encoder.finish_upload()
}

fn list(local: &Path, pack: &Pack) -> Result<TreePacker> {
    let dir = os::open_dir(local).map_err(|e| match e.kind() {
        io::ErrorKind::NotADirectory => {
            Error::invalid(format!("{} is not a directory", local.display()))
        }
        _ => Error::io(format_args!("cannot open {}", local.display()), e),
    })?;
    TreePacker::new(dir, local, Unreadable::Fail, pack.rules()?)
}

/// Contents whose length is known.
enum SizedContents<'a> {
    Bytes { bytes: Cow<'a, [u8]>, mode: u32 },
    File { path: PathBuf, mode: Option<u32> },
    Spooled { content: Spooled, mode: u32 },
    Tree(Box<TreePacker>),
}

impl<'a> SizedContents<'a> {
    fn new(contents: Contents<'a>) -> Result<SizedContents<'a>> {
        let mode = contents.mode.unwrap_or(DEFAULT_MODE);
        Ok(match contents.origin {
            Origin::Bytes(bytes) => SizedContents::Bytes { bytes, mode },
            Origin::Reader(reader) => SizedContents::Spooled {
                content: Spooled::from_reader(reader)?,
                mode,
            },
            Origin::Path(path) => SizedContents::local(path, contents.mode)?,
            Origin::Dir(path, pack) => SizedContents::Tree(Box::new(list(&path, &pack)?)),
        })
    }

    fn local(path: PathBuf, mode: Option<u32>) -> Result<SizedContents<'a>> {
        let metadata = std::fs::metadata(&path)
            .map_err(|e| Error::io(format_args!("cannot read {}", path.display()), e))?;
        if metadata.is_dir() {
            return Ok(SizedContents::Tree(Box::new(list(&path, &Pack::new())?)));
        }
        // Opening a FIFO would block until it has a writer.
        if !metadata.is_file() {
            let shown = path.display();
            return Err(Error::invalid(format!(
                "{shown} is neither a file nor a directory"
            )));
        }
        Ok(SizedContents::File { path, mode })
    }

    fn write(self, name: &[u8], encoder: &mut Encoder) -> Result<()> {
        let now = os::unix_seconds(SystemTime::now());
        let written = match self {
            SizedContents::Tree(tree) => return tree.write_below(name, encoder),
            SizedContents::File { path, mode } => {
                return File::open(&path)
                    .and_then(|file| write_file(name, file, mode, encoder))
                    .map_err(|e| archive_failed(&path, e));
            }
            SizedContents::Bytes { bytes, mode } => {
                add_file(encoder, name, mode, now, bytes.len() as u64, &mut &*bytes)
            }
            SizedContents::Spooled { content, mode } => {
                let mut content = content.upload()?;
                let size = content.content_length().unwrap_or(0);
                add_file(encoder, name, mode, now, size, &mut content)
            }
        };
        written.map_err(|e| archive_failed(Path::new(OsStr::from_bytes(name)), e))
    }
}

fn write_file(name: &[u8], file: File, mode: Option<u32>, encoder: &mut Encoder) -> io::Result<()> {
    let mut file = SizedFile::new(file, WrongSize::Spool)?;
    let mode = mode.unwrap_or(file.mode);
    start_file(encoder, name, mode, file.mtime, file.size)?;
    while file.write_piece(encoder)? {}
    encoder.pad()
}

fn archive_failed(path: &Path, e: io::Error) -> Error {
    Error::from_io(e)
        .unwrap_or_else(|e| Error::io(format_args!("cannot archive {}", path.display()), e))
}

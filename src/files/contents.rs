//! What is uploaded, and how it gets into an archive.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::archive::{Encoder, Specials, Spooled, Tree, add_file};
use crate::error::{Error, Result};
use crate::os;

/// How many bytes of given contents are looked at to choose between fast compression and none.
const SAMPLE_SIZE: usize = 256 * 1024;

/// What a file in the sandbox is to hold, and its mode.
///
/// ```
/// use noxrunner::Contents;
///
/// let script = Contents::from("#!/bin/sh\necho hi\n").mode(0o755);
/// let data = Contents::reader(std::io::repeat(b'x').take(1 << 20));
/// # use std::io::Read; let _ = (script, data);
/// ```
pub struct Contents<'a> {
    source: Source<'a>,
    mode: Option<u32>,
}

enum Source<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
    Reader(Box<dyn Read + 'a>),
    Path(PathBuf),
}

impl<'a> Contents<'a> {
    /// All that a reader gives. It is kept in a temporary file until it is sent.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Contents;
    /// use std::io::Read;
    ///
    /// sandbox.write("x", Contents::reader(std::io::repeat(b'x').take(1000)))?;
    /// assert_eq!(sandbox.read("x")?.len(), 1000);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn reader(reader: impl Read + 'a) -> Contents<'a> {
        Source::Reader(Box::new(reader)).into()
    }

    /// A file of this machine, with its mode, or a directory with all below it.
    ///
    /// ```
    /// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Contents;
    ///
    /// let local = dir.path().join("data.csv");
    /// std::fs::write(&local, "1,2\n")?;
    /// sandbox.write("data.csv", Contents::path(&local))?;
    /// assert_eq!(sandbox.read("data.csv")?, b"1,2\n");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn path(path: impl Into<PathBuf>) -> Contents<'a> {
        Source::Path(path.into()).into()
    }

    /// The file's permissions. Defaults to `0o644`, or to those of the local file.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Contents;
    ///
    /// sandbox.write("run", Contents::from("#!/bin/sh\necho hi\n").mode(0o755))?;
    /// assert_eq!(sandbox.exec(["./run"])?.stdout(), "hi\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Contents<'a> {
        self.mode = Some(mode);
        self
    }
}

impl<'a> From<Source<'a>> for Contents<'a> {
    fn from(source: Source<'a>) -> Self {
        Contents { source, mode: None }
    }
}

impl<'a> From<&'a [u8]> for Contents<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Source::Borrowed(bytes).into()
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Contents<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Source::Borrowed(bytes).into()
    }
}

impl<'a> From<&'a str> for Contents<'a> {
    fn from(text: &'a str) -> Self {
        Source::Borrowed(text.as_bytes()).into()
    }
}

impl<'a> From<&'a String> for Contents<'a> {
    fn from(text: &'a String) -> Self {
        Source::Borrowed(text.as_bytes()).into()
    }
}

impl<'a> From<&'a Vec<u8>> for Contents<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Source::Borrowed(bytes).into()
    }
}

impl From<String> for Contents<'_> {
    fn from(text: String) -> Self {
        Source::Owned(text.into_bytes()).into()
    }
}

impl From<Vec<u8>> for Contents<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Source::Owned(bytes).into()
    }
}

impl fmt::Debug for Contents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.source {
            Source::Borrowed(bytes) => format!("{} bytes", bytes.len()),
            Source::Owned(bytes) => format!("{} bytes", bytes.len()),
            Source::Reader(_) => "a reader".to_owned(),
            Source::Path(path) => format!("{}", path.display()),
        };
        f.debug_struct("Contents")
            .field("source", &kind)
            .field("mode", &self.mode)
            .finish()
    }
}

/// Named contents, to be uploaded together.
///
/// ```
/// use noxrunner::{Contents, Files};
///
/// let files = Files::new()
///     .add("src/main.py", "print(42)\n")
///     .add("run.sh", Contents::from("python3 src/main.py").mode(0o755))
///     .add("data", Contents::path("./testdata"));
/// let same = Files::from([("a.txt", "one"), ("b.txt", "two")]);
/// # let _ = (files, same);
/// ```
#[derive(Debug, Default)]
pub struct Files<'a>(pub(super) Vec<(PathBuf, Contents<'a>)>);

impl<'a> Files<'a> {
    /// None yet.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Files;
    ///
    /// sandbox.upload(Files::new().add("a.txt", "one"), "/workspace")?;
    /// assert_eq!(sandbox.read("a.txt")?, b"one");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn new() -> Files<'a> {
        Files::default()
    }

    /// Adds one, under a name relative to where the set is uploaded. The directories of the name
    /// are made.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::{Contents, Files};
    ///
    /// let files = Files::new().add("a.txt", "one").add("bin/b", Contents::from(vec![0, 1]).mode(0o755));
    /// sandbox.upload(files, "/workspace")?;
    /// assert_eq!(sandbox.read("bin/b")?, [0, 1]);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn add(mut self, name: impl Into<PathBuf>, contents: impl Into<Contents<'a>>) -> Files<'a> {
        self.0.push((name.into(), contents.into()));
        self
    }
}

impl<'a, P: Into<PathBuf>, C: Into<Contents<'a>>> FromIterator<(P, C)> for Files<'a> {
    fn from_iter<I: IntoIterator<Item = (P, C)>>(files: I) -> Self {
        Files(
            files
                .into_iter()
                .map(|(name, contents)| (name.into(), contents.into()))
                .collect(),
        )
    }
}

impl<'a, P: Into<PathBuf>, C: Into<Contents<'a>>, const N: usize> From<[(P, C); N]> for Files<'a> {
    fn from(files: [(P, C); N]) -> Self {
        files.into_iter().collect()
    }
}

pub(super) fn list(local: &Path) -> Result<Tree> {
    let dir = os::open_dir(local).map_err(|e| match e.kind() {
        io::ErrorKind::NotADirectory => {
            Error::invalid(format!("{} is not a directory", local.display())).with_source(e)
        }
        _ => Error::io(format_args!("cannot open {}", local.display()), e),
    })?;
    Tree::list(dir, local, Specials::Refuse)
}

/// Contents whose length is known.
pub(super) enum Ready<'a> {
    Bytes {
        bytes: std::borrow::Cow<'a, [u8]>,
        mode: u32,
    },
    File {
        path: PathBuf,
        mode: Option<u32>,
    },
    Spooled {
        archive: Spooled,
        mode: u32,
    },
    Tree(Tree),
}

impl<'a> Ready<'a> {
    pub(super) fn new(contents: Contents<'a>) -> Result<Ready<'a>> {
        const MODE: u32 = 0o644;
        let mode = contents.mode.unwrap_or(MODE);
        Ok(match contents.source {
            Source::Borrowed(bytes) => Ready::Bytes {
                bytes: bytes.into(),
                mode,
            },
            Source::Owned(bytes) => Ready::Bytes {
                bytes: bytes.into(),
                mode,
            },
            Source::Reader(reader) => Ready::Spooled {
                archive: Spooled::from_reader(reader)?,
                mode,
            },
            Source::Path(path) => Ready::local(path, contents.mode)?,
        })
    }

    fn local(path: PathBuf, mode: Option<u32>) -> Result<Ready<'a>> {
        // A FIFO must not hold up the call until somebody writes to it.
        let found = std::fs::metadata(&path)
            .map_err(|e| Error::io(format_args!("cannot read {}", path.display()), e))?;
        match (found.is_dir(), found.is_file()) {
            (true, _) => list(&path).map(Ready::Tree),
            (_, true) => Ok(Ready::File { path, mode }),
            _ => Err(Error::invalid(format!(
                "{} is neither a file nor a directory",
                path.display()
            ))),
        }
    }

    /// Adds a piece of the start to the sample, as long as that is small.
    pub(super) fn sample(&mut self, sample: &mut Vec<u8>) {
        let room = SAMPLE_SIZE.saturating_sub(sample.len());
        match self {
            Ready::Bytes { bytes, .. } => sample.extend_from_slice(&bytes[..bytes.len().min(room)]),
            Ready::File { path, .. } => {
                // What can't be read is reported when its turn comes.
                let piece = File::open(path).map(|file| file.take(room as u64));
                let _ = piece.map(|mut piece| piece.read_to_end(sample));
            }
            Ready::Spooled { archive, .. } => {
                let piece = archive.upload().map(|upload| upload.take(room as u64));
                let _ = piece.map(|mut piece| piece.read_to_end(sample));
            }
            Ready::Tree(tree) => sample.extend(tree.sample()),
        }
    }

    pub(super) fn write(self, name: &[u8], encoder: &mut Encoder) -> Result<()> {
        let now = os::unix_seconds(SystemTime::now());
        let shown = || Path::new(OsStr::from_bytes(name)).display().to_string();
        match self {
            Ready::Bytes { bytes, mode } => {
                add_file(encoder, name, mode, now, bytes.len() as u64, &mut &*bytes)
                    .map_err(|e| archive_failed(&shown(), e))
            }
            Ready::File { path, mode } => File::open(&path)
                .and_then(|mut file| {
                    let found = os::stat_fd(file.as_fd())?;
                    let mode = mode.unwrap_or(found.mode);
                    add_file(encoder, name, mode, found.mtime, found.size, &mut file)
                })
                .map_err(|e| archive_failed(&path.display().to_string(), e)),
            Ready::Spooled { archive, mode } => {
                let mut content = archive.upload()?;
                let size = content.content_length().unwrap_or(0);
                add_file(encoder, name, mode, now, size, &mut content)
                    .map_err(|e| archive_failed(&shown(), e))
            }
            Ready::Tree(tree) => tree.below(name).write(encoder),
        }
    }
}

fn archive_failed(shown: &str, e: io::Error) -> Error {
    Error::from_io(e).unwrap_or_else(|e| Error::io(format_args!("cannot archive {shown}"), e))
}

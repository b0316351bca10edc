//! Reading single files.

use std::io::{self, Read, Write};
use std::path::Path;

use crate::archive::{Entries, Extract, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::os::random::temporary_name;
use crate::sandbox::{Sandbox, missing_call};
use crate::sandbox_path::SandboxPath;
use crate::script::{Script, remove_temporary};

use super::local_target::LocalTarget;

/// Largest file that [`Sandbox::read`] loads into memory: 1 GiB. Use [`Sandbox::read_to`] for larger
/// ones.
pub const MAX_READ: u64 = 1 << 30;

/// Copies the file `$1` into a new directory `$2`.
const COPY: Script = Script {
    feature: "read",
    source: r#"
command -v cp >/dev/null || { echo cp >&2; exit 43; }
[ -e "$1" ] || exit 44
[ ! -d "$1" ] || exit 45
mkdir "$2" && cp -- "$1" "$2/f"
"#,
    failures: &[
        (44, ErrorKind::NotFound, "no such file: {}"),
        (
            45,
            ErrorKind::InvalidInput,
            "{} is a directory: use download_dir",
        ),
    ],
};

impl Sandbox {
    /// Reads a file of at most [`MAX_READ`] bytes. Symbolic links are followed.
    ///
    /// Sends one download. Some backends can only archive directories. There the file is copied to a
    /// temporary directory first, with two more execs, which needs `sh` and `cp` in the sandbox.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if the file or the sandbox does not exist;
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a directory, a larger file, or a path with `..`;
    /// [`Archive`](ErrorKind::Archive) if the response is damaged; otherwise the same as for
    /// [`Client::create`](crate::Client::create).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.run(["sh", "-c", r"printf 'a\0b' > out.bin"])?;
    /// assert_eq!(sandbox.read("out.bin")?, b"a\0b");
    /// assert!(sandbox.read("missing").unwrap_err().is_not_found());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let message = "the file is larger than 1073741824 bytes: use read_to";
        let mut file = CappedVec::new(MAX_READ, message);
        self.read_to(path, &mut file)?;
        Ok(file.bytes)
    }

    /// Reads a text file of at most [`MAX_READ`] bytes; see [`read`](Sandbox::read).
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the file is not UTF-8; otherwise the same as for
    /// [`read`](Sandbox::read).
    pub fn read_to_string(&self, path: impl AsRef<Path>) -> Result<String> {
        let bytes = self.read(&path)?;
        String::from_utf8(bytes).map_err(|e| {
            let path = path.as_ref().display();
            let message = format!("{path} is not UTF-8: use read");
            Error::invalid(message).with_source(e)
        })
    }

    /// Copies a file of any size to a writer, and returns its size in bytes; see
    /// [`read`](Sandbox::read). After an error the written bytes are incomplete.
    ///
    /// # Errors
    ///
    /// [`Io`](ErrorKind::Io) if the writer fails; otherwise the same as for [`read`](Sandbox::read).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.write("data", vec![7; 100_000])?;
    /// assert_eq!(sandbox.read_to("data", std::io::sink())?, 100_000);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn read_to(&self, path: impl AsRef<Path>, mut writer: impl Write) -> Result<u64> {
        self.context("read from", || {
            let path = SandboxPath::file(path)?;
            if path.as_text().is_err() {
                return self.read_from_parent(&path, &mut writer);
            }
            match self.fetch(&path, &mut writer) {
                Ok(Fetched::File(size)) => Ok(size),
                Ok(Fetched::Directory) => Err(Error::invalid(format!(
                    "{} is a directory: use download_dir",
                    path.display()
                ))),
                Ok(Fetched::Nothing) => self.read_copy(&path, &mut writer),
                // A server may give any error for a path that is not a directory.
                Err(e) if e.status().is_some() && may_refuse_files(e.kind()) => {
                    self.read_copy(&path, &mut writer)
                }
                Err(e) => Err(e),
            }
        })
    }

    /// Downloads a file to a path on this machine, and returns its size in bytes; see
    /// [`read`](Sandbox::read). An existing file is replaced, but only once the download is complete. A
    /// FIFO or a device, such as `/dev/stdout`, is written to directly.
    ///
    /// # Errors
    ///
    /// [`Io`](ErrorKind::Io) if the local file cannot be written; otherwise the same as for
    /// [`read`](Sandbox::read).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let local = dir.path().join("data.csv");
    /// sandbox.write("data.csv", "1,2\n")?;
    /// sandbox.download_file("data.csv", &local)?;
    /// assert_eq!(std::fs::read(local)?, b"1,2\n");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn download_file(&self, path: impl AsRef<Path>, local: impl AsRef<Path>) -> Result<u64> {
        let local = local.as_ref();
        self.context("download from", || {
            LocalTarget::write(local, |file| self.read_to(path, file))
        })
    }

    /// Downloads a path as if it were a file. The archive of a file has one entry with its name; that
    /// of a directory has an entry for itself, or others. A directory without an entry for itself
    /// that holds a single file of the directory's own name cannot be told from a file.
    fn fetch(&self, path: &SandboxPath, writer: &mut dyn Write) -> Result<Fetched> {
        let archive = self
            .backend()
            .download(self.session_id(), path.as_text()?)?;
        let mut fetched = Fetched::Nothing;
        // Some backends answer a file with an empty stream.
        Entries::for_each_if_any(archive, Extract::any_size().limits(), |entry, content| {
            if entry.kind == Kind::Unreadable {
                return Ok(());
            }
            let name = trim_name(&entry.name);
            let is_path = matches!(name, b"" | b".") || name == path.file_name();
            fetched = match (&entry.kind, &fetched) {
                (Kind::File, Fetched::Nothing) if is_path => Fetched::File(copy(content, writer)?),
                // The backend has archived a symbolic link instead of its target.
                (Kind::Symlink(_), Fetched::Nothing) if is_path => Fetched::Nothing,
                _ => Fetched::Directory,
            };
            Ok(())
        })?;
        Ok(fetched)
    }

    /// Reads a file whose path is not UTF-8 from the archive of a parent directory.
    fn read_from_parent(&self, path: &SandboxPath, writer: &mut dyn Write) -> Result<u64> {
        let (src, name) = path.split();
        self.find(&src, &name, writer)?.ok_or_else(|| {
            let message = format!("no such file: {}", path.display());
            Error::new(ErrorKind::NotFound, message)
        })
    }

    /// Copies a file from the archive of a directory, and returns its size if it exists.
    fn find(&self, src: &str, name: &[u8], writer: &mut dyn Write) -> Result<Option<u64>> {
        let archive = self.backend().download(self.session_id(), src)?;
        let mut size = None;
        Entries::for_each(archive, Extract::any_size().limits(), |entry, content| {
            if entry.kind == Kind::File && trim_name(&entry.name) == name {
                size = Some(copy(content, writer)?);
            }
            Ok(())
        })?;
        Ok(size)
    }

    /// Copies the copy of a file, which exists.
    fn find_copy(&self, dir: &str, writer: &mut dyn Write) -> Result<Option<u64>> {
        match self.find(dir, b"f", writer) {
            Err(e) if e.is_not_found() => Err(missing_call("downloads", e)),
            found => found,
        }
    }

    /// Reads a copy of the file in a temporary directory.
    fn read_copy(&self, path: &SandboxPath, writer: &mut dyn Write) -> Result<u64> {
        let dir = temporary_name();
        let (workdir, argument) = path.relative()?;
        let command = COPY.command(&[&argument, &dir]).workdir(workdir);
        let found = COPY
            .run(self, &command, &path.display())
            .and_then(|_| self.find_copy(&format!("{workdir}/{dir}"), writer));
        match &found {
            // Neither code creates the directory.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {}
            _ => remove_temporary(self, &dir, workdir),
        }
        found?.ok_or_else(|| {
            let message = "the archive of a directory lacks the file in it";
            Error::new(ErrorKind::Protocol, message)
        })
    }
}

/// Returns true for the kinds of error that a server may give for the download of a file.
fn may_refuse_files(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NotFound | ErrorKind::Status | ErrorKind::InvalidInput
    )
}

/// The content of the archive of a path.
enum Fetched {
    File(u64),
    Directory,
    Nothing,
}

/// Removes a leading `./` and a trailing slash.
fn trim_name(name: &[u8]) -> &[u8] {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    name.strip_suffix(b"/").unwrap_or(name)
}

/// Copies the content of an entry. Unlike [`io::copy`], this tells read errors from write errors.
pub(super) fn copy(content: &mut dyn Read, writer: &mut dyn Write) -> Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut size = 0;
    loop {
        let count = match content.read(&mut buffer) {
            Ok(0) => return Ok(size),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                return Err(Error::from_io(e).unwrap_or_else(|e| {
                    Error::archive("archive is damaged or truncated").with_source(e)
                }));
            }
        };
        writer.write_all(&buffer[..count]).map_err(|e| {
            Error::from_io(e).unwrap_or_else(|e| Error::io("cannot write the file's contents", e))
        })?;
        size += count as u64;
    }
}

/// A vector with a limit on its length.
pub(super) struct CappedVec {
    pub(super) bytes: Vec<u8>,
    limit: u64,
    /// The error if more is written.
    message: &'static str,
}

impl CappedVec {
    pub(super) fn new(limit: u64, message: &'static str) -> CappedVec {
        CappedVec {
            bytes: Vec::new(),
            limit,
            message,
        }
    }
}

impl Write for CappedVec {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limit {
            return Err(Error::invalid(self.message).into_io());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

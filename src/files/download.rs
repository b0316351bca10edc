//! `GET …/files/download`: directories out of a sandbox.

use std::io::{Cursor, Read};
use std::path::Path;

use crate::archive::{Entries, Extract, Extraction};
use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::Sandbox;
use crate::sandbox_path::{OWN_DIR, SandboxPath};
use crate::script::Script;

use super::local_target::LocalTarget;
use super::read::copy;

/// Maximum length of an archive without entries, in bytes: that of tar's records.
const MAX_EMPTY: u64 = 10_240;

/// Checks that `$1` is a directory.
const IS_DIRECTORY: Script = Script {
    feature: "download",
    source: r#"
[ -e "$1" ] || exit 44
[ -d "$1" ] || exit 45
"#,
    failures: &[
        (44, ErrorKind::NotFound, "no such file or directory: {}"),
        (
            45,
            ErrorKind::InvalidInput,
            "{} is a file, and this server sends only directories: use `read` or `download_file`",
        ),
    ],
};

/// Returns true for a whole archive without entries, also if it lacks the end marker.
fn has_no_entries(archive: &[u8]) -> bool {
    let limits = Extract::any_size().limits();
    // The first entry ends the search.
    Entries::for_each_if_any(archive, limits, |_, _| Err(Error::archive("an entry"))).is_ok()
}

impl Sandbox {
    /// Downloads everything below a directory into a local directory, under the rules of the default
    /// [`Extract`].
    ///
    /// If the local directory does not exist, it appears once the download is complete, or not at all.
    /// If it exists, nothing in it changes before the whole archive has arrived. The directory
    /// `.noxrunner` of jobs is left out. Sends one download, which may be repeated.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) if the directory or the sandbox does not exist;
    /// [`Archive`](crate::ErrorKind::Archive) if the archive is damaged or violates a rule of
    /// [`Extract`]; [`Io`](crate::ErrorKind::Io) if it cannot be written; otherwise the same as for
    /// [`Client::create`](crate::Client::create).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// # let out = dir.path().join("out");
    /// sandbox.run(["sh", "-c", "mkdir -p out/empty; echo hi > out/a.txt"])?;
    /// let extraction = sandbox.download_dir("out", &out)?;
    /// assert_eq!(extraction.bytes(), 3);
    /// assert_eq!(std::fs::read(out.join("a.txt"))?, b"hi\n");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "download_workspace")]
    pub fn download_dir(
        &self,
        src: impl AsRef<Path>,
        local: impl AsRef<Path>,
    ) -> Result<Extraction> {
        self.download_dir_with(src, local, &Extract::new())
    }

    /// Downloads a directory with limits of your own, or with a report of refused entries instead of
    /// an error.
    ///
    /// # Errors
    ///
    /// The same as for [`download_dir`](Sandbox::download_dir).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// # let out = dir.path().join("out");
    /// use noxrunner::Extract;
    ///
    /// sandbox.run(["ln", "-s", "/etc/passwd", "leak"])?;
    /// let skip = Extract::new().skip_refused(true);
    /// let extraction = sandbox.download_dir_with("/workspace", &out, &skip)?;
    /// assert_eq!(extraction.refused()[0].name(), "leak");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn download_dir_with(
        &self,
        src: impl AsRef<Path>,
        local: impl AsRef<Path>,
        extract: &Extract,
    ) -> Result<Extraction> {
        self.context("download from", || {
            let src = SandboxPath::new("src", src)?;
            let archive = self.open_directory(&src)?;
            let left_out = src.is_workspace().then_some(OWN_DIR);
            let extract = extract.clone().leave_out(left_out);
            extract.unpack_to_path(archive, local.as_ref())
        })
    }

    /// Downloads everything below a directory as the archive that the backend sends: tar, compressed
    /// with gzip or not. Its contents are not checked. If reading it fails, the
    /// [`io::Error`](std::io::Error) contains an [`Error`](crate::Error).
    ///
    /// # Errors
    ///
    /// The same as for [`download_dir`](Sandbox::download_dir).
    #[doc(alias = "download_files")]
    pub fn download_archive(&self, src: impl AsRef<Path>) -> Result<Box<dyn Read + Send>> {
        self.context("download from", || {
            self.open_download(&SandboxPath::new("src", src)?)
        })
    }

    /// Downloads everything below a directory as the archive that the backend sends, to a file on this
    /// machine. Returns its size in bytes. An existing file is replaced, but only once the download is
    /// complete. A FIFO or a device, such as `/dev/stdout`, is written to directly.
    ///
    /// # Errors
    ///
    /// The same as for [`download_dir`](Sandbox::download_dir).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let local = dir.path().join("workspace.tar.gz");
    /// let size = sandbox.download_archive_to("/workspace", &local)?;
    /// assert_eq!(std::fs::metadata(local)?.len(), size);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn download_archive_to(
        &self,
        src: impl AsRef<Path>,
        local: impl AsRef<Path>,
    ) -> Result<u64> {
        self.context("download from", || {
            let src = SandboxPath::new("src", src)?;
            LocalTarget::write(local.as_ref(), |file| {
                copy(&mut self.open_directory(&src)?, file)
            })
        })
    }

    /// Opens the download of a directory. Some backends send an empty archive if the path is not a directory.
    /// That must not look like an empty directory.
    fn open_directory(&self, src: &SandboxPath) -> Result<impl Read> {
        let mut archive = self.open_download(src)?;
        let mut head = Vec::new();
        copy(&mut archive.by_ref().take(MAX_EMPTY + 1), &mut head)?;
        if head.len() as u64 <= MAX_EMPTY && has_no_entries(&head) {
            let (workdir, argument) = src.relative()?;
            let command = IS_DIRECTORY.command(&[&argument]).workdir(workdir);
            match IS_DIRECTORY.run(self, &command, &src.display()) {
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {
                    return Err(e);
                }
                Err(e) => log::warn!("cannot check that {} is a directory: {e:#}", src.display()),
                Ok(_) => {}
            }
        }
        Ok(Cursor::new(head).chain(archive))
    }

    fn open_download(&self, src: &SandboxPath) -> Result<Box<dyn Read + Send>> {
        self.backend().download(self.session_id(), src.as_text()?)
    }
}

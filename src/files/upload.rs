//! `POST …/files/upload`: files and directories into a sandbox.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

use super::named::Files;
use crate::archive::{Contents, Pack, PackedArchive, Spooled, archive_contents, archive_dir};
use crate::error::{Error, Result, one_line};
use crate::sandbox::Sandbox;
use crate::sandbox_path::SandboxPath;

impl Sandbox {
    /// Writes a file, and creates its parent directories. A relative path is resolved against
    /// `/workspace`. Sends one upload, which may be repeated.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a path with `..` or without a file name;
    /// [`Io`](crate::ErrorKind::Io) if the contents cannot be read; otherwise the same as for
    /// [`Client::create`](crate::Client::create), and [`NotFound`](crate::ErrorKind::NotFound) if the
    /// sandbox does not exist.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Contents;
    ///
    /// sandbox.write("bin/hi", Contents::from("#!/bin/sh\necho hi\n").mode(0o755))?;
    /// assert_eq!(sandbox.run(["./bin/hi"])?.stdout(), "hi\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn write<'a>(
        &self,
        path: impl AsRef<Path>,
        contents: impl Into<Contents<'a>>,
    ) -> Result<()> {
        self.context("write to", || {
            let (dest, name) = SandboxPath::file(path)?.split();
            let archive = archive_contents(vec![(name, contents.into())])?;
            self.send_archive(&archive, &dest)
        })
    }

    /// Uploads named contents to a directory, which is created. Sends one upload, which may be
    /// repeated.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a name that is absolute, empty, has a `..`
    /// component or occurs twice; otherwise the same as for [`write`](Sandbox::write).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.upload([("a.txt", "one "), ("b.txt", "two")], "/workspace/in")?;
    /// assert_eq!(sandbox.run(["cat", "in/a.txt", "in/b.txt"])?.stdout(), "one two");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "upload_files")]
    pub fn upload<'a>(&self, files: impl Into<Files<'a>>, dest: impl AsRef<Path>) -> Result<()> {
        self.context("upload to", || {
            let dest = SandboxPath::new("dest", dest)?;
            let files = files.into().0.into_iter();
            let named = files.map(|(name, contents)| Ok((archive_name(&name)?, contents)));
            let named: Vec<_> = named.collect::<Result<_>>()?;
            check_names(named.iter().map(|(name, _)| name.as_slice()))?;
            let archive = archive_contents(named)?;
            self.send_archive(&archive, dest.as_text()?)
        })
    }

    /// Uploads everything in a local directory to a directory, which is created: files with their
    /// modes and times, empty directories, and symbolic links as links. A file that grows during the
    /// upload is sent with the size that it had when it was opened. Sends one upload, which may be
    /// repeated.
    ///
    /// # Errors
    ///
    /// [`Io`](crate::ErrorKind::Io) for a file that cannot be read or that shrinks during the upload;
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a FIFO, a socket or a device; otherwise
    /// the same as for [`write`](Sandbox::write).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// # let project = dir.path().join("project");
    /// std::fs::create_dir_all(project.join("empty"))?;
    /// std::fs::write(project.join("main.sh"), "echo built")?;
    /// sandbox.upload_dir(&project, "/workspace")?;
    /// assert_eq!(sandbox.run(["sh", "main.sh"])?.stdout(), "built\n");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn upload_dir(&self, local: impl AsRef<Path>, dest: impl AsRef<Path>) -> Result<()> {
        self.upload_dir_with(local, dest, &Pack::new())
    }

    /// Uploads what these rules choose of a local directory; see [`Pack`] for an example.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a pattern that is not supported; otherwise the
    /// same as for [`upload_dir`](Sandbox::upload_dir).
    pub fn upload_dir_with(
        &self,
        local: impl AsRef<Path>,
        dest: impl AsRef<Path>,
        pack: &Pack,
    ) -> Result<()> {
        self.context("upload to", || {
            let dest = SandboxPath::new("dest", dest)?;
            self.send_archive(&archive_dir(local.as_ref(), pack)?, dest.as_text()?)
        })
    }

    /// Uploads a tar archive as it is, compressed with gzip or not. The backend unpacks it in a
    /// directory, which is created. The archive is kept in a temporary file until it is sent, so that
    /// its length is known.
    ///
    /// # Errors
    ///
    /// [`Io`](crate::ErrorKind::Io) if the archive cannot be read; otherwise the same as for
    /// [`write`](Sandbox::write).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// # let copy = client.create("copy", noxrunner::SandboxSpec::new())?;
    /// sandbox.write("a.txt", "one")?;
    /// copy.upload_archive(sandbox.download_archive("/workspace")?, "/workspace")?;
    /// assert_eq!(copy.read("a.txt")?, b"one");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn upload_archive(&self, archive: impl Read, dest: impl AsRef<Path>) -> Result<()> {
        self.context("upload to", || {
            let dest = SandboxPath::new("dest", dest)?;
            self.send_archive(&Spooled::from_reader(archive)?.into(), dest.as_text()?)
        })
    }

    fn send_archive(&self, archive: &PackedArchive, dest: &str) -> Result<()> {
        self.send_upload(dest, archive.upload()?)
    }
}

/// Refuses names of which only one could be stored.
fn check_names<'a>(names: impl Iterator<Item = &'a [u8]>) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            let name = one_line(&String::from_utf8_lossy(name));
            return Err(Error::invalid(format!("two files are named {name:?}")));
        }
    }
    Ok(())
}

/// Returns the name of an entry in an upload: relative, and below the destination.
fn archive_name(name: &Path) -> Result<Vec<u8>> {
    let shown = one_line(&name.to_string_lossy());
    if name.is_absolute() {
        return Err(Error::invalid(format!(
            "name {shown:?} is absolute, and must be relative to dest"
        )));
    }
    let path = SandboxPath::new("name", name)?;
    let below = path.below_workspace().map(<[u8]>::to_vec);
    below.ok_or_else(|| Error::invalid(format!("name {shown:?} does not name a file")))
}

//! `POST …/files/upload` and `GET …/files/download`: files and directories in and out.

mod contents;
mod list;
mod path;

use std::io::{self, Read, Write};
use std::path::Path;

pub use self::contents::{Contents, Files};
use self::contents::{Ready, list as list_local};
pub use self::list::{Entry, EntryKind};
use self::path::{SandboxPath, archive_name};
use crate::archive::{Encoder, Entries, Extract, Extraction, Kind, Spooled};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::{Command, absolute, check_path};
use crate::os::random::temporary_name;
use crate::sandbox::Sandbox;

/// The largest file that [`Sandbox::read`] takes into memory, in bytes: 1 GiB. For larger ones
/// there is [`Sandbox::read_to`].
///
/// ```
/// assert_eq!(noxrunner::MAX_READ, 1_073_741_824);
/// ```
pub const MAX_READ: u64 = 1 << 30;

impl Sandbox {
    /// Writes one file, making the directories above it. A relative path is below `/workspace`.
    /// Sends one upload; safe to repeat.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a path with `..` or without a file name,
    /// [`Io`](ErrorKind::Io) where the contents can't be read, and what the backend answers.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Contents;
    ///
    /// sandbox.write("bin/hi", Contents::from("#!/bin/sh\necho hi\n").mode(0o755))?;
    /// assert_eq!(sandbox.exec(["./bin/hi"])?.stdout(), "hi\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn write<'a>(
        &self,
        path: impl AsRef<Path>,
        contents: impl Into<Contents<'a>>,
    ) -> Result<()> {
        self.named("write to", || {
            let path = SandboxPath::new(path.as_ref())?;
            let (dest, name) = path.dest_and_name()?;
            self.send(vec![(name, contents.into())], &dest)
        })
    }

    /// Uploads named contents below `dest`, which is made. Sends one upload; safe to repeat.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a name that is absolute, empty or has `..`,
    /// [`Io`](ErrorKind::Io) where contents can't be read, and what the backend answers.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.upload([("a.txt", "one "), ("b.txt", "two")], "/workspace/in")?;
    /// assert_eq!(sandbox.exec(["cat", "in/a.txt", "in/b.txt"])?.stdout(), "one two");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "upload_files")]
    pub fn upload<'a>(&self, files: impl Into<Files<'a>>, dest: &str) -> Result<()> {
        self.named("upload to", || {
            check_path("dest", dest)?;
            let files = files.into().0.into_iter();
            let named = files.map(|(name, contents)| Ok((archive_name(&name)?, contents)));
            self.send(named.collect::<Result<_>>()?, &absolute(dest))
        })
    }

    /// Uploads what is in a local directory to below `dest`, which is made: files with their modes
    /// and times, empty directories, symbolic links as links. A file that grows meanwhile is sent
    /// as long as it was when it was opened. Sends one upload; safe to repeat.
    ///
    /// # Errors
    ///
    /// [`Io`](ErrorKind::Io) for what can't be read or shrinks meanwhile,
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a FIFO, a socket or a device, and what the
    /// backend answers.
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
    /// assert_eq!(sandbox.exec(["sh", "main.sh"])?.stdout(), "built\n");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn upload_dir(&self, local: impl AsRef<Path>, dest: &str) -> Result<()> {
        self.named("upload to", || {
            check_path("dest", dest)?;
            let mut tree = list_local(local.as_ref())?;
            let mut encoder = Encoder::new(&tree.sample());
            tree.write(&mut encoder)?;
            self.send_archive(&encoder.finish()?, &absolute(dest))
        })
    }

    /// Uploads a tar archive, gzip-compressed or plain, as it is; the backend unpacks it below
    /// `dest`. It is kept in a temporary file until it is sent, so that its length is known.
    ///
    /// # Errors
    ///
    /// [`Io`](ErrorKind::Io) where it can't be read, and what the backend answers.
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
    pub fn upload_archive(&self, archive: impl Read, dest: &str) -> Result<()> {
        self.named("upload to", || {
            check_path("dest", dest)?;
            self.send_archive(&Spooled::from_reader(archive)?, &absolute(dest))
        })
    }

    /// Reads one file, following links, at most [`MAX_READ`] bytes. Asks for the path itself; where
    /// the backend has archives of directories only, a copy is staged in the sandbox, which needs
    /// `sh` and `cp` there.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if there is no such file,
    /// [`InvalidInput`](ErrorKind::InvalidInput) if it is a directory, and what the backend answers.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.exec(["sh", "-c", r"printf 'a\0b' > out.bin"])?;
    /// assert_eq!(sandbox.read("out.bin")?, b"a\0b");
    /// assert!(sandbox.read("missing").unwrap_err().is_not_found());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let mut bytes = Capped(Vec::new());
        self.read_to(path, &mut bytes)?;
        Ok(bytes.0)
    }

    /// Reads one file of any size into a writer, as [`read`](Sandbox::read) does. Returns the
    /// number of bytes. After an error, what has been written is not the file.
    ///
    /// # Errors
    ///
    /// As [`read`](Sandbox::read), and [`Io`](ErrorKind::Io) where the writer fails.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.write("data", vec![7; 100_000])?;
    /// let mut file = std::fs::File::create(dir.path().join("data"))?;
    /// assert_eq!(sandbox.read_to("data", &mut file)?, 100_000);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_to(&self, path: impl AsRef<Path>, writer: &mut dyn Write) -> Result<u64> {
        self.named("read from", || {
            let path = SandboxPath::new(path.as_ref())?;
            let Some(text) = path.text() else {
                return self.read_from_ancestor(&path, writer);
            };
            match self.fetch(text, path.last(), writer) {
                Ok(Fetched::File(size)) => Ok(size),
                Ok(Fetched::Directory) => Err(path.is_a_directory()),
                Ok(Fetched::Nothing) => self.read_staged(&path, writer),
                // A server may answer anything for a path that is not a directory; what is no
                // server knows what it says.
                Err(e)
                    if e.status().is_some()
                        && matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Status) =>
                {
                    self.read_staged(&path, writer)
                }
                Err(e) => Err(e),
            }
        })
    }

    /// Whether a path exists in the sandbox; a link counts by what it leads to. Runs `test -e`.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](ErrorKind::Unsupported) where the sandbox has no `test`, and what
    /// [`exec`](Sandbox::exec) answers.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.write("a/b.txt", "x")?;
    /// assert!(sandbox.exists("a/b.txt")? && sandbox.exists("a")?);
    /// assert!(!sandbox.exists("b.txt")?);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        self.named("look into", || {
            let path = SandboxPath::new(path.as_ref())?;
            let (workdir, argument) = path.argument()?;
            let out = self.exec(Command::from(["test", "-e", &argument]).workdir(workdir))?;
            match out.exit_code() {
                0 => Ok(true),
                1 => Ok(false),
                127 => Err(Error::new(
                    ErrorKind::Unsupported,
                    "the sandbox has no program `test`",
                )),
                _ => out.check().map(|_| false),
            }
        })
    }

    /// Downloads what is below `src` into a local directory, with the default [`Extract`]. Where
    /// the directory did not exist it appears as a whole or not at all; where it did, nothing in
    /// it is touched before everything has arrived. Sends one download; safe to repeat.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound), [`Archive`](ErrorKind::Archive) for an archive that is
    /// damaged or breaks a rule of [`Extract`], [`Io`](ErrorKind::Io) where it can't be written.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// # let out = dir.path().join("out");
    /// sandbox.exec(["sh", "-c", "mkdir -p out/empty; echo hi > out/a.txt"])?;
    /// let done = sandbox.download_dir("/workspace/out", &out)?;
    /// assert_eq!((done.bytes, std::fs::read(out.join("a.txt"))?), (3, b"hi\n".to_vec()));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "download_workspace")]
    pub fn download_dir(&self, src: &str, local: impl AsRef<Path>) -> Result<Extraction> {
        self.download_dir_with(src, local, &Extract::new())
    }

    /// Downloads a directory with other limits than the default ones, or reporting what was
    /// refused instead of failing.
    ///
    /// # Errors
    ///
    /// As [`download_dir`](Sandbox::download_dir).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// # let out = dir.path().join("out");
    /// use noxrunner::Extract;
    ///
    /// sandbox.exec(["ln", "-s", "/etc/passwd", "leak"])?;
    /// let done = sandbox.download_dir_with("/workspace", &out, &Extract::new().skip_refused(true))?;
    /// assert_eq!(done.refused[0].name, "leak");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn download_dir_with(
        &self,
        src: &str,
        local: impl AsRef<Path>,
        extract: &Extract,
    ) -> Result<Extraction> {
        self.named("download from", || {
            extract.unpack_to_path(self.open_download(src)?, local.as_ref())
        })
    }

    /// Downloads what is below `src` as the archive that the backend sends: tar, gzip-compressed
    /// or plain. Nothing is checked. Where reading it fails, the [`io::Error`] holds an [`Error`].
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound), and what the backend answers.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// # use std::io::Read;
    /// let mut archive = Vec::new();
    /// sandbox.download_archive("/workspace")?.read_to_end(&mut archive)?;
    /// assert_eq!(archive[..2], [0x1f, 0x8b]);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "download_files")]
    pub fn download_archive(&self, src: &str) -> Result<Box<dyn Read + Send>> {
        self.named("download from", || self.open_download(src))
    }

    fn open_download(&self, src: &str) -> Result<Box<dyn Read + Send>> {
        check_path("src", src)?;
        self.backend().download(self.session_id(), &absolute(src))
    }

    pub(crate) fn send(&self, files: Vec<(Vec<u8>, Contents<'_>)>, dest: &str) -> Result<()> {
        let mut ready = Vec::with_capacity(files.len());
        for (name, contents) in files {
            ready.push((name, Ready::new(contents)?));
        }
        let mut sample = Vec::new();
        for (_, contents) in &mut ready {
            contents.sample(&mut sample);
        }
        let mut encoder = Encoder::new(&sample);
        for (name, contents) in ready {
            contents.write(&name, &mut encoder)?;
        }
        self.send_archive(&encoder.finish()?, dest)
    }

    fn send_archive(&self, archive: &Spooled, dest: &str) -> Result<()> {
        self.backend()
            .upload(self.session_id(), dest, archive.upload()?)
    }

    /// Asks for a path in the hope that it is a file. The archive of a file is one entry of its name;
    /// that of a directory has an entry for itself, or others. (One that has neither, since it holds
    /// a single file of the directory's own name, can't be told from a file.)
    fn fetch(&self, src: &str, name: &[u8], writer: &mut dyn Write) -> Result<Fetched> {
        let archive = self.backend().download(self.session_id(), src)?;
        let mut found = Fetched::Nothing;
        Entries::for_each(archive, Extract::any_size().limits(), |entry, content| {
            let own = matches!(trimmed(&entry.name), b"" | b".") || trimmed(&entry.name) == name;
            found = match (&entry.kind, &found) {
                (Kind::File, Fetched::Nothing) if own => Fetched::File(copy(content, writer)?),
                // The path is a link, and the archive holds the link.
                (Kind::Symlink(_), Fetched::Nothing) if own => Fetched::Nothing,
                _ => Fetched::Directory,
            };
            Ok(())
        })?;
        Ok(found)
    }

    /// A name that is not UTF-8 can't be asked for: finds it in the archive of a directory above.
    fn read_from_ancestor(&self, path: &SandboxPath, writer: &mut dyn Write) -> Result<u64> {
        let (src, name) = path.dest_and_name()?;
        self.find(&src, &name, writer)?
            .ok_or_else(|| path.not_found())
    }

    /// The size of a file in a directory, once it is written; none if it is not there.
    fn find(&self, src: &str, name: &[u8], writer: &mut dyn Write) -> Result<Option<u64>> {
        let archive = self.backend().download(self.session_id(), src)?;
        let mut found = None;
        Entries::for_each(archive, Extract::any_size().limits(), |entry, content| {
            if entry.kind == Kind::File && trimmed(&entry.name) == name {
                found = Some(copy(content, writer)?);
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn read_staged(&self, path: &SandboxPath, writer: &mut dyn Write) -> Result<u64> {
        const COPY: &str =
            r#"[ -e "$1" ] || exit 44; [ ! -d "$1" ] || exit 45; mkdir "$2" && cp -- "$1" "$2/f""#;
        let stage = temporary_name();
        let (workdir, argument) = path.argument()?;
        let copy = ["sh", "-c", COPY, "sh", &argument, &stage];
        let run = |args: &[&str]| {
            let command = Command::from(args).workdir(workdir);
            self.backend().exec(self.session_id(), &command)
        };
        let fetched = match run(&copy) {
            Ok(out) => match out.exit_code() {
                0 => self.find(&format!("{workdir}/{stage}"), b"f", writer),
                44 => return Err(path.not_found()),
                45 => return Err(path.is_a_directory()),
                127 => Err(Error::new(
                    ErrorKind::Unsupported,
                    "the backend sends directories only, and the sandbox has no sh or cp to stage a file",
                )),
                _ => out.check().map(|_| None),
            },
            Err(e) => Err(e),
        };
        // Also after an error: the copy may be there.
        self.remove_staged(&stage, workdir);
        fetched?.ok_or_else(|| {
            let text = "the archive of a directory with one file does not hold it";
            Error::new(ErrorKind::Protocol, text)
        })
    }
}

/// What the archive of one path turned out to be.
enum Fetched {
    File(u64),
    Directory,
    Nothing,
}

/// `./a/` as `a`.
fn trimmed(name: &[u8]) -> &[u8] {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    name.strip_suffix(b"/").unwrap_or(name)
}

fn copy(content: &mut dyn Read, writer: &mut dyn Write) -> Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut size = 0;
    loop {
        let got = match content.read(&mut buffer) {
            Ok(0) => return Ok(size),
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                return Err(Error::from_io(e).unwrap_or_else(|e| {
                    Error::archive("damaged or cut off inside the file").with_source(e)
                }));
            }
        };
        writer.write_all(&buffer[..got]).map_err(|e| {
            Error::from_io(e).unwrap_or_else(|e| Error::io("cannot write what was read", e))
        })?;
        size += got as u64;
    }
}

struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.0.len() + bytes.len()) as u64 > MAX_READ {
            let text = format!("the file is larger than {MAX_READ} bytes: use read_to");
            return Err(Error::invalid(text).into_io());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! Sandboxes on this machine.

mod runner;
mod store;

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use self::store::{Place, Store};
use super::{Backend, Upload};
use crate::archive::{Encoder, Extract, Links, Specials, Spooled, Tree, add_file, add_root};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::exec::{Command, Output};
use crate::sandboxes::{SandboxInfo, SandboxSpec, SessionId};
use crate::sys;

/// How far a local sandbox is kept apart from the machine it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Not at all: commands are plain processes of this user, with a directory and a clean
    /// environment of their own. For code that you would run yourself, or where the whole
    /// machine is the sandbox.
    None,
}

/// Sandboxes on this machine, without a server.
///
/// In this version there is one tier, [`Isolation::None`], and it must be asked for: **it protects
/// from nothing**. A sandbox is a directory in the user's state directory, there for all processes
/// of this user until its TTL is over or it is deleted.
///
/// - A command gets `PATH`, `LANG`, `LC_ALL`, `LC_CTYPE` and `TZ` of this process, `HOME`,
///   `TMPDIR` and `NOX_WORKSPACE` in the sandbox, two variables that mark its processes, and its own;
///   nothing else. Its stdin is empty.
/// - `/workspace` and `/tmp` in `workdir`, `dest` and `src` are directories of the sandbox.
///   Arguments are not changed: use relative paths there, or `$NOX_WORKSPACE` in a shell.
/// - Each stream is kept up to 1 MiB. A command that runs out of time is ended with its process
///   group (on Linux, with all that it started), and answers 124.
/// - A background process lives on after its command, until the sandbox ends (known on Linux by
///   its environment).
/// - If this process is killed while a command runs, its time limit is not kept: it ends with the
///   sandbox.
/// - The image and the limits of the spec are ignored, and [`SandboxInfo::ignored`] says so.
/// - An expired sandbox is no longer there for any call; what it leaves on disk is removed by the
///   next creation of any sandbox.
///
/// ```
/// use noxrunner::{Client, Isolation, LocalBackend, SandboxSpec};
///
/// # let dir = tempfile::tempdir().unwrap();
/// let backend = LocalBackend::builder()
///     .isolation(Isolation::None)
/// #   .state_dir(dir.path())
///     .build()?;
/// let sandbox = Client::with_backend(backend).create("demo", SandboxSpec::new())?;
/// assert_eq!(sandbox.exec(["echo", "hi"])?.stdout(), "hi\n");
/// # Ok::<_, noxrunner::Error>(())
/// ```
pub struct LocalBackend {
    store: Store,
    isolation: Isolation,
}

/// Settings of a [`LocalBackend`].
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct LocalBackendBuilder {
    isolation: Option<Isolation>,
    state_dir: Option<PathBuf>,
}

impl LocalBackend {
    /// The settings of a local backend.
    pub fn builder() -> LocalBackendBuilder {
        LocalBackendBuilder::default()
    }

    /// The tier that commands run in.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }
}

impl LocalBackendBuilder {
    /// The tier that commands run in. It has no default: nobody gets a weaker one than was asked for.
    pub fn isolation(mut self, isolation: Isolation) -> LocalBackendBuilder {
        self.isolation = Some(isolation);
        self
    }

    /// Where sandboxes are kept: a directory of this user's own that others can't write to. It is
    /// made if need be, and all below it is made with mode 0700.
    /// Defaults to `noxrunner` in `$XDG_STATE_HOME`, or in `~/.local/state`.
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> LocalBackendBuilder {
        self.state_dir = Some(dir.into());
        self
    }

    /// The backend.
    ///
    /// # Errors
    ///
    /// [`Isolation`](ErrorKind::Isolation) if no tier was chosen; [`Io`](ErrorKind::Io) if the
    /// state directory can't be made, belongs to another user or is open to others.
    ///
    /// # Example
    ///
    /// ```
    /// use noxrunner::{ErrorKind, LocalBackend};
    ///
    /// let error = LocalBackend::builder().build().unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Isolation);
    /// ```
    pub fn build(self) -> Result<LocalBackend> {
        let Some(isolation) = self.isolation else {
            return Err(Error::new(
                ErrorKind::Isolation,
                "no isolation tier was chosen: isolation(Isolation::None) runs commands as plain processes of this user",
            ));
        };
        let dir = match self.state_dir {
            Some(dir) => dir,
            None => default_state_dir()?,
        };
        Ok(LocalBackend {
            store: Store::open(&dir)?,
            isolation,
        })
    }
}

fn default_state_dir() -> Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    state.map(|dir| dir.join("noxrunner")).ok_or_else(|| {
        Error::new(ErrorKind::Io, "neither XDG_STATE_HOME nor HOME is an absolute path: choose a directory with state_dir()")
    })
}

impl Backend for LocalBackend {
    fn health(&self) -> Result<()> {
        self.store.check()
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        spec.check()?;
        let (name, expires) = self.store.create(id, spec.time_to_live())?;
        let asked = [
            ("image", spec.image_name()),
            ("cpu", spec.cpu_limit()),
            ("memory", spec.memory_limit()),
            ("storage", spec.storage_limit()),
        ];
        let ignored = asked
            .iter()
            .filter(|(_, value)| value.is_some())
            .map(|(name, _)| (*name).to_owned());
        Ok(SandboxInfo::expiring(format!("local-{name}"), expires).with_ignored(ignored.collect()))
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        self.store.touch(id)
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        command.check()?;
        let place = self.store.find(id)?;
        let workdir = command.working_directory();
        let found = place.resolve(&workdir).and_then(|dir| match dir.is_dir() {
            true => Ok(dir),
            false => Err(io::ErrorKind::NotADirectory.into()),
        });
        let found = found.map_err(|e| path_failed("workdir", &workdir, e))?;
        runner::run(command, &found.path, &place)
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        let place = self.store.find(id)?;
        let target = place
            .make_dir(dest)
            .map_err(|e| path_failed("dest", dest, e))?;
        let stages = place.stages()?;
        Extract::any_size().unpack_to_dir(archive, target.as_fd(), stages.as_fd(), Links::Any)?;
        Ok(())
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        let place = self.store.find(id)?;
        let failed = |e| path_failed("src", src, e);
        let found = place.resolve(src).map_err(failed)?;
        let archive = if found.is_dir() {
            let dir = sys::open_dir_at(found.fd.as_fd(), b".").map_err(failed)?;
            let mut tree = Tree::list(dir, Path::new(src), Specials::Keep)?;
            let mut encoder = Encoder::new(&tree.sample());
            add_root(&mut encoder).map_err(failed)?;
            tree.write(&mut encoder)?;
            encoder.finish()?
        } else {
            let mut file = found.open_file().map_err(failed)?;
            one_file(&mut file, src).map_err(failed)?
        };
        archive.into_reader()
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        self.store.delete(id)
    }
}

/// The archive of a path that is a file: one entry, and none for a directory.
fn one_file(file: &mut File, src: &str) -> io::Result<Spooled> {
    let stat = sys::stat_fd(file.as_fd())?;
    let name = Path::new(src).file_name().unwrap_or(OsStr::new("file"));
    let mut sample = Vec::new();
    file.try_clone()?
        .take(256 * 1024)
        .read_to_end(&mut sample)?;
    io::Seek::rewind(file)?;
    let mut encoder = Encoder::new(&sample);
    add_file(
        &mut encoder,
        name.as_bytes(),
        stat.mode,
        stat.mtime,
        stat.size,
        file,
    )?;
    encoder.finish().map_err(Error::into_io)
}

fn path_failed(what: &str, path: &str, e: io::Error) -> Error {
    let shown = one_line(path);
    Error::from_io(e).unwrap_or_else(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::new(
            ErrorKind::NotFound,
            format!("{what} {shown:?} does not exist"),
        )
        .with_source(e),
        io::ErrorKind::NotADirectory => {
            Error::invalid(format!("{what} {shown:?} is not a directory")).with_source(e)
        }
        _ => Error::io(format_args!("{what} {shown:?}"), e),
    })
}

impl fmt::Debug for LocalBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBackend")
            .field("isolation", &self.isolation)
            .finish_non_exhaustive()
    }
}

/// Refuses a path that is not in one of the sandbox's own directories.
fn own_path(path: &str) -> io::Result<()> {
    let first = path.split('/').find(|part| !matches!(*part, "" | "."));
    match first {
        Some("workspace" | "tmp") => Ok(()),
        _ => {
            let text = format!(
                "path {:?} is not in the sandbox: without isolation, /workspace and /tmp are its own",
                one_line(path)
            );
            Err(Error::invalid(text).into_io())
        }
    }
}

impl Place {
    fn make_dir(&self, path: &str) -> io::Result<std::os::fd::OwnedFd> {
        match self.resolve(path) {
            Ok(found) if found.is_dir() => sys::open_dir_at(found.fd.as_fd(), b"."),
            Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.make_missing(path),
            Err(e) => Err(e),
        }
    }

    /// Makes what is missing of a path below the part of it that is there.
    fn make_missing(&self, path: &str) -> io::Result<std::os::fd::OwnedFd> {
        let parts: Vec<&str> = path
            .split('/')
            .filter(|part| !matches!(*part, "" | "."))
            .collect();
        let there = (1..parts.len()).rev().find_map(|count| {
            let found = self.resolve(&parts[..count].join("/")).ok()?;
            Some((count, sys::open_dir_at(found.fd.as_fd(), b".")))
        });
        let (count, dir) = there.unwrap_or_else(|| (0, self.root()));
        let mut dir = dir?;
        for part in &parts[count..] {
            if *part == ".." {
                let text = "a \"..\" after a directory that does not exist yet";
                return Err(Error::invalid(text).into_io());
            }
            match sys::mkdirat(dir.as_fd(), part.as_bytes(), 0o777) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => dir = sys::open_dir_at(dir.as_fd(), part.as_bytes())?,
            }
        }
        Ok(dir)
    }
}

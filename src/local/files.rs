//! Moves files into and out of a sandbox, always from a descriptor of its root and never by a path
//! of this machine.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[cfg(target_os = "linux")]
use super::confined::FileUser;
use crate::archive::{Encoder, Extract, Links, SpecialFiles, Spooled, Tree, add_file, add_root};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::os::{self, FileType};
use crate::upload::Upload;

/// The files of one sandbox.
pub(super) struct Files {
    /// The directory that is `/` for the paths.
    pub(super) root: OwnedFd,
    /// Where uploads are unpacked first.
    pub(super) stages: OwnedFd,
    /// Where the root is, for systems that can't keep a path in a directory by themselves. None
    /// where the path says nothing.
    pub(super) root_path: Option<PathBuf>,
    /// As whom to write, where it is not the user of this process.
    pub(super) user: Option<u32>,
}

/// Something in a sandbox, for sure.
pub(super) struct Found {
    /// Names it without giving access to its content.
    pub(super) fd: OwnedFd,
    /// Where it is on this machine.
    pub(super) path: PathBuf,
}

impl Found {
    pub(super) fn is_dir(&self) -> bool {
        os::stat_fd(self.fd.as_fd()).is_ok_and(|stat| stat.kind == FileType::Directory)
    }

    /// Opens a file for reading, without waiting for the other end of a FIFO.
    fn open_file(&self) -> io::Result<File> {
        let kind = os::stat_fd(self.fd.as_fd())?.kind;
        if kind != FileType::File {
            return Err(io::Error::other("neither a file nor a directory"));
        }
        let mut options = OpenOptions::new();
        let options = options.read(true);
        if cfg!(target_os = "linux") {
            // The very file that was found, whatever its name means by now.
            let itself = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
            return options.custom_flags(libc::O_NONBLOCK).open(itself);
        }
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        options.custom_flags(flags).open(&self.path)
    }
}

impl Files {
    /// Finds a path of the sandbox. No `..` and no link leads out of it.
    pub(super) fn resolve(&self, path: &str) -> io::Result<Found> {
        own_path(path)?;
        match os::open_in_root(self.root.as_fd(), path.as_bytes()) {
            Some(Ok(fd)) => {
                let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
                Ok(Found { fd, path })
            }
            Some(Err(e)) => Err(e),
            // Older kernels and other systems: nothing here keeps a race out, nor does the tier
            // that works there.
            None => {
                let Some(root) = &self.root_path else {
                    return Err(io::ErrorKind::Unsupported.into());
                };
                let root = root.canonicalize()?;
                let path = root.join(path.trim_start_matches('/')).canonicalize()?;
                if !path.starts_with(&root) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
                let mut options = OpenOptions::new();
                let file = options.read(true).custom_flags(flags).open(&path)?;
                Ok(Found {
                    fd: file.into(),
                    path,
                })
            }
        }
    }

    pub(super) fn upload(&self, dest: &str, archive: Upload<'_>) -> Result<()> {
        let _user = self.user.map(FileUser::new);
        let target = self.make_dir(dest);
        let target = target.map_err(|e| path_failed("dest", dest, e))?;
        Extract::any_size().unpack_to_dir(
            archive,
            target.as_fd(),
            self.stages.as_fd(),
            Links::Any,
        )?;
        Ok(())
    }

    pub(super) fn download(&self, src: &str) -> Result<Box<dyn Read + Send>> {
        let failed = |e| path_failed("src", src, e);
        let found = self.resolve(src).map_err(failed)?;
        let archive = if found.is_dir() {
            let dir = os::open_dir_at(found.fd.as_fd(), b".").map_err(failed)?;
            let mut tree = Tree::list(dir, Path::new(src), SpecialFiles::Keep)?;
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

    fn make_dir(&self, path: &str) -> io::Result<OwnedFd> {
        match self.resolve(path) {
            Ok(found) if found.is_dir() => os::open_dir_at(found.fd.as_fd(), b"."),
            Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.make_missing(path),
            Err(e) => Err(e),
        }
    }

    /// Makes what is missing of a path below the part of it that is there.
    fn make_missing(&self, path: &str) -> io::Result<OwnedFd> {
        let parts: Vec<&str> = path
            .split('/')
            .filter(|part| !matches!(*part, "" | "."))
            .collect();
        let there = (1..parts.len()).rev().find_map(|count| {
            let found = self.resolve(&parts[..count].join("/")).ok()?;
            Some((count, os::open_dir_at(found.fd.as_fd(), b".")))
        });
        let (count, dir) = there.unwrap_or_else(|| (0, self.root.try_clone()));
        let mut dir = dir?;
        for part in &parts[count..] {
            if *part == ".." {
                let text = "a \"..\" after a directory that does not exist yet";
                return Err(Error::invalid(text).into_io());
            }
            match os::mkdirat(dir.as_fd(), part.as_bytes(), 0o777) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => dir = os::open_dir_at(dir.as_fd(), part.as_bytes())?,
            }
        }
        Ok(dir)
    }
}

/// The archive of a path that is a file: one entry, and none for a directory.
fn one_file(file: &mut File, src: &str) -> io::Result<Spooled> {
    let stat = os::stat_fd(file.as_fd())?;
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

pub(super) fn path_failed(what: &str, path: &str, e: io::Error) -> Error {
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

/// Refuses a path that is not in one of the sandbox's own directories.
fn own_path(path: &str) -> io::Result<()> {
    let first = path.split('/').find(|part| !matches!(*part, "" | "."));
    match first {
        Some("workspace" | "tmp") => Ok(()),
        _ => {
            let text = format!(
                "path {:?} is not among the sandbox's own files, which are in /workspace and /tmp",
                one_line(path)
            );
            Err(Error::invalid(text).into_io())
        }
    }
}

//! Uploads to and downloads from a sandbox. All paths are resolved below a descriptor of its root,
//! never as paths of the host.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::errors::path_error;
#[cfg(target_os = "linux")]
use super::sys::FileUser;
use crate::archive::{ArchiveStream, Check, Extract, Links, PackRules, TreePacker, Unreadable};
use crate::error::{Error, Result, one_line};
use crate::os::{self, FileType};
use crate::upload::Upload;

/// The files of a sandbox.
pub(super) struct SandboxFiles {
    /// The directory that is `/` for the paths.
    pub(super) root: OwnedFd,
    /// Uploads are unpacked here before they are moved to their destination, on the same file system.
    /// `None` unpacks them in a hidden subdirectory of the destination.
    pub(super) stages: Option<OwnedFd>,
    /// The root has directories that do not belong to the sandbox, and links must not lead there.
    pub(super) root_is_shared: bool,
    /// The host's path of the root, for systems that cannot resolve a path below a descriptor. `None`
    /// if the root has no path on the host.
    pub(super) root_path: Option<PathBuf>,
    /// The user id that owns the files, if it is not this process's.
    pub(super) user: Option<u32>,
    /// The space that is left for an upload, in bytes. `None` if the kernel limits it.
    pub(super) room: Option<u64>,
}

/// A file or directory that is certainly in the sandbox.
pub(super) struct ResolvedPath {
    /// An `O_PATH` descriptor: it names the file without access to its content.
    pub(super) fd: OwnedFd,
    /// The path on the host.
    pub(super) path: PathBuf,
}

impl ResolvedPath {
    pub(super) fn is_dir(&self) -> bool {
        os::stat_fd(self.fd.as_fd()).is_ok_and(|stat| stat.kind == FileType::Directory)
    }

    /// Opens a regular file for reading.
    fn open_file(&self) -> io::Result<File> {
        let kind = os::stat_fd(self.fd.as_fd())?.kind;
        if kind != FileType::File {
            return Err(io::Error::other("neither a file nor a directory"));
        }
        let mut options = OpenOptions::new();
        let options = options.read(true);
        if cfg!(target_os = "linux") {
            // Opens the resolved file even if its name was replaced since.
            let itself = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
            return options.custom_flags(libc::O_NONBLOCK).open(itself);
        }
        // O_NONBLOCK: if the file was replaced by a FIFO, the open must not wait for a writer.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        options.custom_flags(flags).open(&self.path)
    }
}

impl SandboxFiles {
    /// Resolves a path of the sandbox. `..` and links cannot lead out of it.
    pub(super) fn resolve(&self, path: &str) -> io::Result<ResolvedPath> {
        check_sandbox_path(path)?;
        match os::open_in_root(self.root.as_fd(), path.as_bytes()) {
            Some(Ok(fd)) => {
                let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
                self.finish(ResolvedPath { fd, path })
            }
            Some(Err(e)) => Err(e),
            None => self.resolve_by_name(path),
        }
    }

    /// Resolves a path on systems without `openat2`. A command that replaces a directory by a link at
    /// the same time can win the race, but the only tier on these systems does not isolate anyway.
    fn resolve_by_name(&self, path: &str) -> io::Result<ResolvedPath> {
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
        self.finish(ResolvedPath {
            fd: file.into(),
            path,
        })
    }

    /// Checks where the links of a path have led.
    fn finish(&self, resolved: ResolvedPath) -> io::Result<ResolvedPath> {
        let own = ["/workspace", "/tmp"];
        if self.root_is_shared && !own.iter().any(|dir| resolved.path.starts_with(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(resolved)
    }

    /// Resolves the working directory of a command.
    pub(super) fn resolve_workdir(&self, workdir: &str) -> Result<ResolvedPath> {
        let resolved = self.resolve(workdir).and_then(|resolved| {
            if resolved.is_dir() {
                Ok(resolved)
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        });
        resolved.map_err(|e| path_error("workdir", workdir, e))
    }

    pub(super) fn upload(&self, dest: &str, archive: Upload<'_>) -> Result<()> {
        #[cfg(target_os = "linux")]
        let _user = self.user.map(FileUser::new);
        let target = self
            .open_or_create_dir(dest)
            .map_err(|e| path_error("dest", dest, e))?;
        let extract = Extract::any_size().with_room(self.room);
        let stages = self.stages.as_ref().unwrap_or(&target);
        extract.unpack_to_dir(archive, target.as_fd(), stages.as_fd(), Links::Any)?;
        Ok(())
    }

    /// Returns the archive of a path, which is created while it is read. `check` can end it.
    pub(super) fn download(&self, src: &str, check: Check) -> Result<ArchiveStream> {
        let failed = |e| path_error("src", src, e);
        let found = self.resolve(src).map_err(failed)?;
        let stream = if found.is_dir() {
            let dir = os::open_dir_at(found.fd.as_fd(), b".").map_err(failed)?;
            let tree = TreePacker::new(
                dir,
                Path::new(src),
                Unreadable::Report,
                PackRules::default(),
            )?;
            ArchiveStream::of_tree(tree, check)
        } else {
            let name = Path::new(src).file_name().unwrap_or(OsStr::new("file"));
            let file = found.open_file().map_err(failed)?;
            ArchiveStream::of_file(name.as_bytes(), file, check)
        };
        stream.map_err(failed)
    }

    fn open_or_create_dir(&self, path: &str) -> io::Result<OwnedFd> {
        match self.resolve(path) {
            Ok(found) if found.is_dir() => os::open_dir_at(found.fd.as_fd(), b"."),
            Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.create_missing(path),
            Err(e) => Err(e),
        }
    }

    /// Creates the missing directories of a path below its longest existing part.
    fn create_missing(&self, path: &str) -> io::Result<OwnedFd> {
        let parts: Vec<&str> = path
            .split('/')
            .filter(|part| !matches!(*part, "" | "."))
            .collect();
        let existing = (1..parts.len()).rev().find_map(|count| {
            let resolved = self.resolve(&parts[..count].join("/")).ok()?;
            Some((count, os::open_dir_at(resolved.fd.as_fd(), b".")))
        });
        let (count, dir) = existing.unwrap_or_else(|| (0, self.root.try_clone()));
        let mut dir = dir?;
        for part in &parts[count..] {
            if *part == ".." {
                let text = "path contains \"..\" below a directory that does not exist";
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

/// Checks that a path is in `/workspace` or `/tmp`.
fn check_sandbox_path(path: &str) -> io::Result<()> {
    let first = path.split('/').find(|part| !matches!(*part, "" | "."));
    if let Some("workspace" | "tmp") = first {
        return Ok(());
    }
    let text = format!(
        "path {:?} is outside of the sandbox's directories /workspace and /tmp",
        one_line(path)
    );
    Err(Error::invalid(text).into_io())
}

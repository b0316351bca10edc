//! Files on this machine that downloads are written to.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::os;
use crate::os::random::temporary_name;

/// Permissions of a new file before the umask applies.
const FILE_MODE: u32 = 0o666;

/// The target of a download.
pub(super) struct LocalTarget {
    file: File,
    /// The temporary file and its final path. `None` for a target that is written to directly.
    partial: Option<Partial>,
}

/// A file under a temporary name beside its final one. It is removed unless it is renamed.
struct Partial {
    path: PathBuf,
    target: PathBuf,
    is_renamed: bool,
}

impl LocalTarget {
    /// Calls `download` with the file, which gets its name once the call succeeds.
    pub(super) fn write<T>(
        local: &Path,
        download: impl FnOnce(&mut File) -> Result<T>,
    ) -> Result<T> {
        let failed = |e| Error::io(format_args!("cannot write {}", local.display()), e);
        let mut target = LocalTarget::open(local).map_err(failed)?;
        let done = download(&mut target.file)?;
        if let Some(partial) = &mut target.partial {
            partial.finish(&target.file).map_err(failed)?;
        }
        Ok(done)
    }

    fn open(local: &Path) -> io::Result<LocalTarget> {
        let target = follow_links(local)?;
        let is_file = |path: &Path| fs::symlink_metadata(path).map(|found| found.is_file());
        match is_file(&target) {
            Ok(true) if !is_descriptor(&target) => {}
            Ok(_) => {
                // Appends, because stdout may be redirected to a file with other output.
                let file = OpenOptions::new().append(true).open(local)?;
                let partial = None;
                return Ok(LocalTarget { file, partial });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let path = target.with_file_name(temporary_name());
        // Other users must not read it, nor replace it with a link.
        let file = os::create_private_file(&path)?;
        let partial = Some(Partial {
            path,
            target,
            is_renamed: false,
        });
        Ok(LocalTarget { file, partial })
    }
}

/// Follows symbolic links until a path that is none, or an open descriptor of a process.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    /// As many as the kernel follows.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        if is_descriptor(&path) {
            return Ok(path);
        }
        match fs::read_link(&path) {
            Ok(next) => path = path.parent().unwrap_or(Path::new("/")).join(next),
            // Not a link, or nothing at all.
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// Returns true for a path like `/proc/self/fd/1`, which leads to an open file. Its target may have
/// another name or none.
fn is_descriptor(path: &Path) -> bool {
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    parent.is_some_and(|parent| {
        ["/proc", "/dev/fd"]
            .iter()
            .any(|dir| parent.starts_with(dir))
            && parent.ends_with("fd")
    })
}

impl Partial {
    fn finish(&mut self, file: &File) -> io::Result<()> {
        let mode = match fs::metadata(&self.target) {
            Ok(replaced) => replaced.permissions().mode() & 0o777,
            Err(_) => FILE_MODE & umask_permits(&self.path)?,
        };
        file.set_permissions(Permissions::from_mode(mode))?;
        fs::rename(&self.path, &self.target)?;
        self.is_renamed = true;
        Ok(())
    }
}

/// Returns the permissions that the umask allows. It can be read without changing it only from the mode
/// of a new directory.
fn umask_permits(beside: &Path) -> io::Result<u32> {
    let path = beside.with_file_name(temporary_name());
    DirBuilder::new().mode(0o777).create(&path)?;
    let mode = fs::symlink_metadata(&path).map(|dir| dir.permissions().mode() & 0o777);
    fs::remove_dir(&path)?;
    mode
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

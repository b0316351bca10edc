//! Removing directory trees with any names, depth and permissions.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::chmod::chmod_dir_at;
use crate::os::{self, FileType};

/// Removes a file, or a directory with everything in it. Continues after errors, and returns the first
/// one.
///
/// Subdirectories are first moved up to the top directory, so that a tree of any depth needs two
/// descriptors and no recursion.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    if os::stat_at(parent, name)?.kind != FileType::Directory {
        return os::unlinkat(parent, name, false);
    }
    let top = open_any(parent, name)?;
    let mut first_error = None;
    let mut note = |result: io::Result<()>| {
        if let Err(e) = result {
            first_error.get_or_insert(e);
        }
    };
    let mut remover = Remover {
        top: top.as_fd(),
        todo: Vec::new(),
        moved: 0,
    };
    for child in os::read_dir(top.as_fd())? {
        match remove_file(top.as_fd(), &child) {
            Ok(true) => {}
            Ok(false) => remover.todo.push(child),
            Err(e) => note(Err(e)),
        }
    }
    while let Some(dir) = remover.todo.pop() {
        note(remover.remove_dir(&dir));
    }
    note(os::unlinkat(parent, name, true));
    first_error.map_or(Ok(()), Err)
}

struct Remover<'a> {
    top: BorrowedFd<'a>,
    /// Directories in `top` that are not removed yet.
    todo: Vec<Vec<u8>>,
    /// Number of directories that were moved to `top`.
    moved: u64,
}

impl Remover<'_> {
    /// Removes a directory in `top`, and moves its subdirectories to `top`.
    fn remove_dir(&mut self, name: &[u8]) -> io::Result<()> {
        let dir = match open_any(self.top, name) {
            // Another directory was moved to the same name while this one was empty.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            dir => dir?,
        };
        for child in os::read_dir(dir.as_fd())? {
            if !remove_file(dir.as_fd(), &child)? {
                self.move_up(dir.as_fd(), &child)?;
            }
        }
        os::unlinkat(self.top, name, true)
    }

    fn move_up(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        // Moving a directory needs write permission for it.
        match chmod_dir_at(dir, name, 0o700) {
            // A process has replaced it.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => {
                return remove_file(dir, name).map(drop);
            }
            result => result?,
        }
        loop {
            let new_name = format!(".noxrunner-removed-{}", self.moved).into_bytes();
            self.moved += 1;
            match os::renameat(dir, name, self.top, &new_name) {
                Ok(()) => {
                    self.todo.push(new_name);
                    return Ok(());
                }
                Err(e) if is_name_taken(&e) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn is_name_taken(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EEXIST | libc::ENOTEMPTY | libc::ENOTDIR)
    )
}

/// Opens a directory, after giving its owner all permissions.
fn open_any(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let stat = os::stat_at(parent, name)?;
    if stat.kind == FileType::Directory && stat.mode & 0o700 != 0o700 {
        chmod_dir_at(parent, name, 0o700)?;
    }
    os::open_dir_at(parent, name)
}

/// Removes anything but a directory, for which this returns false.
fn remove_file(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    match os::unlinkat(dir, name, false) {
        Ok(()) => Ok(true),
        // For a directory, Linux returns EISDIR and other systems EPERM.
        Err(e) => match os::stat_at(dir, name) {
            Ok(stat) if stat.kind == FileType::Directory => Ok(false),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(true),
            _ => Err(e),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn remove(dir: &std::path::Path, name: &str) -> io::Result<()> {
        remove_at(fs::File::open(dir).unwrap().as_fd(), name.as_bytes())
    }

    #[test]
    fn any_name_and_mode_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("t");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        for name in [
            b"a\nb".as_slice(),
            b"\xff\xfe",
            b"-rf",
            &[b'x'; 255],
            b" ",
            b"~",
            b".noxrunner-removed-0",
        ] {
            fs::write(tree.join("a/b").join(OsStr::from_bytes(name)), "x").unwrap();
        }
        fs::create_dir(tree.join(".noxrunner-removed-0")).unwrap();
        fs::write(dir.path().join("outside"), "kept").unwrap();
        symlink(dir.path().join("outside"), tree.join("link")).unwrap();
        symlink(dir.path(), tree.join("a/up")).unwrap();
        fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
        remove(dir.path(), "t").unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read(dir.path().join("outside")).unwrap(), b"kept");
    }

    #[test]
    fn any_depth_is_removed() {
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let top = fs::File::open(dir.path()).unwrap();
        os::mkdirat(top.as_fd(), b"t", 0o777).unwrap();
        let mut here = os::open_dir_at(top.as_fd(), b"t").unwrap();
        for _ in 0..100_000 {
            os::mkdirat(here.as_fd(), b"d", 0o777).unwrap();
            here = os::open_dir_at(here.as_fd(), b"d").unwrap();
        }
        remove_at(top.as_fd(), b"t").unwrap();
        assert!(os::read_dir(top.as_fd()).unwrap().is_empty());
    }

    #[test]
    fn a_file_is_removed_and_a_missing_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "x").unwrap();
        remove(dir.path(), "f").unwrap();
        assert_eq!(
            remove(dir.path(), "f").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}

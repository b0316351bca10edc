//! Walking directories below a root without following symbolic links.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::os;

/// Maximum number of parent directories that stay open: enough that a walk rarely starts again at the
/// root, and few enough for the limit of open files.
const MAX_OPEN: usize = 64;

/// A position in the directories below `root`. Paths are like `a/b/c`, without empty components, `.` or
/// `..`. The empty path is the root.
pub(super) struct Cursor {
    root: OwnedFd,
    path: Vec<u8>,
    /// The innermost open directories, each with the length of its path.
    open: Vec<(usize, OwnedFd)>,
    /// Number of directories created.
    pub(super) made: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Create,
    Fail,
}

impl Cursor {
    pub(super) fn new(root: OwnedFd) -> Cursor {
        Cursor {
            root,
            path: Vec::new(),
            open: Vec::new(),
            made: 0,
        }
    }

    /// Moves to a directory, starting at the innermost open parent.
    pub(super) fn enter(&mut self, path: &[u8], missing: Missing) -> io::Result<BorrowedFd<'_>> {
        let is_parent = |length: usize| {
            path.starts_with(&self.path[..length]) && matches!(path.get(length), None | Some(b'/'))
        };
        while self.open.last().is_some_and(|last| !is_parent(last.0)) {
            self.open.pop();
        }
        let mut here = self.open.last().map_or(0, |last| last.0);
        self.path.clear();
        self.path.extend_from_slice(path);
        while here < path.len() {
            let start = if here == 0 { 0 } else { here + 1 };
            let length = path[start..].iter().position(|b| *b == b'/');
            let end = length.map_or(path.len(), |length| start + length);
            let (dir, made) = step(self.here(), &path[start..end], missing)?;
            self.made += u64::from(made);
            if self.open.len() == MAX_OPEN {
                self.open.remove(0);
            }
            self.open.push((end, dir));
            here = end;
        }
        Ok(self.here())
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(&self.root, |last| &last.1).as_fd()
    }
}

fn step(from: BorrowedFd<'_>, name: &[u8], missing: Missing) -> io::Result<(OwnedFd, bool)> {
    match os::open_dir_at(from, name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && missing == Missing::Create => {
            match os::mkdirat(from, name, 0o777) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
                made => Ok((os::open_dir_at(from, name)?, made.is_ok())),
            }
        }
        result => Ok((result?, false)),
    }
}

/// Splits `a/b/c` into `a/b` and `c`.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match dir {
        b"" => name.to_vec(),
        _ => [dir, b"/", name].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn enter_reaches_every_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut cursor = Cursor::new(File::open(dir.path()).unwrap().into());
        let deep = vec!["d"; 200].join("/");
        for path in [
            "a/b", "a/bc", "a", "a/b/c", "", "ab", "a/b", &deep, "d", &deep,
        ] {
            let fd = cursor.enter(path.as_bytes(), Missing::Create).unwrap();
            let found = File::from(fd.try_clone_to_owned().unwrap())
                .metadata()
                .unwrap();
            let wanted = fs::metadata(dir.path().join(path)).unwrap();
            assert_eq!(found.ino(), wanted.ino(), "{path:.20}");
        }
        let error = cursor.enter(b"a/x/y", Missing::Fail).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let fd = cursor.enter(b"a", Missing::Fail).unwrap();
        assert_eq!(os::read_dir(fd).unwrap().len(), 2);
    }
}

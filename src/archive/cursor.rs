//! One directory at a time below a root, reached without ever following a link.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys;

/// Stands in a directory below `root`. Paths are `a/b/c` with no empty part, `.` or `..`; the
/// empty path is the root.
pub(super) struct Cursor {
    root: OwnedFd,
    path: Vec<u8>,
    /// None in the root.
    dir: Option<OwnedFd>,
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
            dir: None,
        }
    }

    /// Goes to a directory: from where it stands if that is on the way, else from the root.
    pub(super) fn enter(&mut self, path: &[u8], missing: Missing) -> io::Result<BorrowedFd<'_>> {
        if self.path != path {
            let below = path
                .strip_prefix(self.path.as_slice())
                .and_then(|p| p.strip_prefix(b"/"));
            let (mut here, rest) = match (self.dir.take(), below) {
                (Some(dir), Some(rest)) => (Some(dir), rest),
                _ => (None, path),
            };
            // If a step fails, the cursor stands in the root again.
            self.path.clear();
            for part in rest.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
                let from = here.as_ref().unwrap_or(&self.root).as_fd();
                here = Some(step(from, part, missing)?);
            }
            self.dir = here;
            self.path.extend_from_slice(path);
        }
        Ok(self.dir.as_ref().unwrap_or(&self.root).as_fd())
    }
}

fn step(from: BorrowedFd<'_>, name: &[u8], missing: Missing) -> io::Result<OwnedFd> {
    match sys::open_dir_at(from, name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && missing == Missing::Create => {
            match sys::mkdirat(from, name, 0o777) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
                _ => sys::open_dir_at(from, name),
            }
        }
        result => result,
    }
}

/// `a/b/c` as `a/b` and `c`.
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

//! Unpacking untrusted archives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::cursor::{Cursor, Missing, split};
use super::extraction::{Extraction, Refusal};
use super::read::{ArchiveEntry, Kind};
use crate::error::{Error, Result};
use crate::os::chmod::chmod_dir_at;
use crate::os::{self, FileType};

/// The symbolic links that an archive may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Links that stay below the target, because programs of this machine read it.
    Inside,
    /// All links, because the target is a sandbox whose programs can create any link.
    #[cfg_attr(
        not(any(feature = "local", test, fuzzing)),
        expect(dead_code, reason = "only local sandboxes accept them")
    )]
    Any,
}

/// The modes and times of directories. They are set last, because adding entries needs write permission
/// and changes the time.
#[derive(Default)]
pub(super) struct Directories {
    entries: BTreeMap<Vec<u8>, (u32, u64)>,
    /// Total length of the names.
    name_bytes: usize,
}

impl Directories {
    /// Sets modes and times, except for directories that `existed` before.
    pub(super) fn finish(self, root: BorrowedFd<'_>, existed: &BTreeSet<Vec<u8>>) -> Result<()> {
        let root = root.try_clone_to_owned().map_err(|e| failed(e, b"."))?;
        let mut cursor = Cursor::new(root);
        // The deepest first, because a directory may lose the permission to enter it.
        for (path, (mode, mtime)) in self.entries.into_iter().rev() {
            if existed.contains(&path) {
                continue;
            }
            let set = |dir: BorrowedFd<'_>| {
                let now = os::stat_fd(dir)?.mode;
                os::set_mtime(dir, mtime)?;
                match now & mode {
                    wanted if wanted != now => chmod_dir_at(dir, b".", wanted),
                    _ => Ok(()),
                }
            };
            cursor
                .enter(&path, Missing::Fail)
                .and_then(set)
                .map_err(|e| failed(e, &path))?;
        }
        Ok(())
    }
}

/// Reason for not writing an entry.
pub(super) enum Stop {
    Refused(&'static str),
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Failed(error)
    }
}

/// Writes the entries of an archive to a directory.
pub(super) struct Unpacker {
    cursor: Cursor,
    /// The permissions that the umask allows.
    umask: u32,
    links: Links,
    pub(super) directories: Directories,
    pub(super) done: Extraction,
    /// Total length of the names of refused entries.
    refused_bytes: usize,
    buffer: Vec<u8>,
}

impl Unpacker {
    pub(super) fn new(dir: OwnedFd, umask: u32, links: Links) -> Unpacker {
        Unpacker {
            cursor: Cursor::new(dir),
            umask,
            links,
            directories: Directories::default(),
            done: Extraction::default(),
            refused_bytes: 0,
            buffer: vec![0; 128 * 1024],
        }
    }

    pub(super) fn refuse(&mut self, name: &[u8], rule: &'static str) {
        let name = shown(name);
        self.refused_bytes += name.len();
        self.done.refused.push(Refusal { name, rule });
    }

    /// Enforces the limits on entries and memory. A long name can create a thousand directories, and its
    /// length is kept in memory.
    pub(super) fn check_size(&self, max_entries: u64) -> Result<()> {
        if self.done.entries + self.cursor.made > max_entries {
            let text = format!(
                "archive has more than {max_entries} entries and directories, the limit of max_entries()"
            );
            return Err(Error::archive(text));
        }
        if self.directories.name_bytes + self.refused_bytes > MAX_REMEMBERED {
            let text =
                format!("names of directories or refused entries exceed {MAX_REMEMBERED} bytes");
            return Err(Error::archive(text));
        }
        Ok(())
    }

    pub(super) fn entry(
        &mut self,
        entry: &ArchiveEntry,
        content: &mut dyn Read,
    ) -> Result<(), Stop> {
        if entry.kind == Kind::Unreadable {
            self.discard(&entry.name)?;
            return Err(Stop::Refused(UNREADABLE_RULE));
        }
        let path = safe_path(&entry.name)?;
        if path.is_empty() {
            // The root is the caller's directory.
            if entry.kind == Kind::Directory {
                return Ok(());
            }
            return Err(Stop::Refused("its name is empty"));
        }
        match &entry.kind {
            Kind::Directory => self.directory(path, entry),
            Kind::File => self.file(&path, entry, content),
            Kind::Symlink(target) => self.symlink(&path, target),
            Kind::Hardlink(target) => self.hardlink(&path, target),
            Kind::Fifo => Err(Stop::Refused("it is a FIFO")),
            Kind::Device => Err(Stop::Refused("it is a device")),
            Kind::Sparse => Err(Stop::Refused("it is a sparse file")),
            Kind::Unknown | Kind::Unreadable => Err(Stop::Refused("its type is unknown")),
        }?;
        self.done.entries += 1;
        Ok(())
    }

    /// Removes a file whose content could not be read completely.
    fn discard(&mut self, name: &[u8]) -> io::Result<()> {
        let Ok(path) = safe_path(name) else {
            return Ok(());
        };
        let (parent, name) = split(&path);
        if let Ok(dir) = self.cursor.enter(parent, Missing::Fail) {
            let stat = os::stat_at(dir, name).ok();
            if let Some(stat) = stat.filter(|stat| stat.kind == FileType::File) {
                os::unlinkat(dir, name, false)?;
                self.done.entries = self.done.entries.saturating_sub(1);
                self.done.bytes = self.done.bytes.saturating_sub(stat.size);
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: Vec<u8>, entry: &ArchiveEntry) -> Result<(), Stop> {
        let (parent, name) = split(&path);
        let dir = enter(&mut self.cursor, parent)?;
        match os::mkdirat(dir, name, entry.mode | 0o700) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                match os::stat_at(dir, name)?.kind {
                    // Created for one of its entries, or listed twice. The later mode applies.
                    FileType::Directory => {
                        chmod_dir_at(dir, name, (entry.mode | 0o700) & self.umask)?
                    }
                    FileType::Symlink => return Err(THROUGH_A_LINK),
                    _ => return Err(Stop::Refused("a file with the same name precedes it")),
                }
            }
            result => result?,
        }
        self.directories.name_bytes += path.len();
        self.directories
            .entries
            .insert(path, (entry.mode, entry.mtime));
        Ok(())
    }

    fn file(
        &mut self,
        path: &[u8],
        entry: &ArchiveEntry,
        content: &mut dyn Read,
    ) -> Result<(), Stop> {
        let (parent, name) = split(path);
        let dir = enter(&mut self.cursor, parent)?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let file = replacing(dir, name, || os::openat(dir, name, flags, entry.mode))?;
        let mut file = File::from(file);
        loop {
            let got = match content.read(&mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                got => got?,
            };
            if got == 0 {
                break;
            }
            file.write_all(&self.buffer[..got])?;
        }
        os::set_mtime(file.as_fd(), entry.mtime)?;
        self.done.bytes += entry.size;
        Ok(())
    }

    fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), Stop> {
        if self.links == Links::Inside && !stays_inside(path, target) {
            return Err(Stop::Refused("it is a link that leads out of the target"));
        }
        if target.is_empty() || target.contains(&0) {
            return Err(Stop::Refused(
                "it is a link to an empty name or one with a NUL byte",
            ));
        }
        let (parent, name) = split(path);
        let dir = enter(&mut self.cursor, parent)?;
        replacing(dir, name, || os::symlinkat(target, dir, name))
    }

    fn hardlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), Stop> {
        const NO_FILE: Stop =
            Stop::Refused("it is a hard link to something other than a preceding file");
        let target = safe_path(target)?;
        let (target_parent, target_name) = split(&target);
        let missing = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => NO_FILE,
            _ if matches!(e.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => NO_FILE,
            _ => Stop::Failed(e),
        };
        // The cursor has one current directory, but a hard link needs two.
        let from = self
            .cursor
            .enter(target_parent, Missing::Fail)
            .map_err(missing)?
            .try_clone_to_owned()?;
        let stat = os::stat_at(from.as_fd(), target_name).map_err(missing)?;
        if stat.kind != FileType::File {
            return Err(NO_FILE);
        }
        if target == path {
            return Ok(());
        }
        let (parent, name) = split(path);
        let dir = enter(&mut self.cursor, parent)?;
        replacing(dir, name, || {
            os::linkat(from.as_fd(), target_name, dir, name)
        })
    }
}

/// Rule of an entry that the sandbox could not archive.
pub(super) const UNREADABLE_RULE: &str = "unreadable in the sandbox";

const THROUGH_A_LINK: Stop = Stop::Refused("it would be written through a link");

/// Enters an entry's parent directory, which is created.
fn enter<'a>(cursor: &'a mut Cursor, parent: &[u8]) -> Result<BorrowedFd<'a>, Stop> {
    if let Err(e) = cursor.enter(parent, Missing::Create) {
        return Err(match e.raw_os_error() {
            Some(libc::ENOTDIR | libc::ELOOP) => why_no_directory(cursor, parent),
            _ => Stop::Failed(e),
        });
    }
    Ok(cursor.enter(parent, Missing::Fail)?)
}

/// Tells a symbolic link from a file in the place of a directory. Both give the same system error.
fn why_no_directory(cursor: &mut Cursor, path: &[u8]) -> Stop {
    let ends = (0..=path.len()).filter(|at| matches!(path.get(*at), None | Some(b'/')));
    for end in ends {
        let (parent, name) = split(&path[..end]);
        let kind = cursor
            .enter(parent, Missing::Fail)
            .and_then(|dir| os::stat_at(dir, name));
        match kind.map(|stat| stat.kind) {
            Ok(FileType::Directory) => {}
            Ok(FileType::Symlink) => return THROUGH_A_LINK,
            Ok(_) => break,
            Err(e) => return Stop::Failed(e),
        }
    }
    Stop::Refused("its parent is a file")
}

/// Creates an entry. As in any tar archive, it replaces an earlier one with the same name.
fn replacing<T>(
    dir: BorrowedFd<'_>,
    name: &[u8],
    make: impl Fn() -> io::Result<T>,
) -> Result<T, Stop> {
    match make() {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            if os::stat_at(dir, name)?.kind == FileType::Directory {
                return Err(Stop::Refused("a directory with the same name precedes it"));
            }
            os::unlinkat(dir, name, false)?;
            Ok(make()?)
        }
        result => Ok(result?),
    }
}

/// Maximum total length of the names that are kept in memory, in bytes.
const MAX_REMEMBERED: usize = 64 * 1024 * 1024;

/// Maximum length of a name, in bytes. This is the maximum length of a path, and limits the depth.
pub(super) const MAX_NAME: usize = 4096;

/// Normalizes `./a//b/` to `a/b`, and refuses names outside of the target.
fn safe_path(name: &[u8]) -> Result<Vec<u8>, Stop> {
    if name.first() == Some(&b'/') {
        return Err(Stop::Refused("its name is absolute"));
    }
    if name.contains(&0) {
        return Err(Stop::Refused("its name contains a NUL byte"));
    }
    if name.len() > MAX_NAME {
        return Err(Stop::Refused("its name is longer than 4096 bytes"));
    }
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Stop::Refused("its name has a \"..\" component")),
            part => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
            }
        }
    }
    Ok(path)
}

/// Returns true if a link cannot lead above the root, even through other links of the archive. `..` is
/// allowed only at the start of the target, where it leads through real directories.
fn stays_inside(path: &[u8], target: &[u8]) -> bool {
    let depth = path.iter().filter(|b| **b == b'/').count();
    let mut parts = target
        .split(|b| *b == b'/')
        .filter(|p| !matches!(*p, b"" | b"."));
    let ups = parts.by_ref().take_while(|p| *p == b"..").count();
    target.first() != Some(&b'/') && ups <= depth && parts.all(|p| p != b"..")
}

pub(super) fn failed(error: io::Error, name: &[u8]) -> Error {
    Error::from_io(error).unwrap_or_else(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::archive(format!(
            "archive is truncated inside entry {:?}",
            shown(name)
        ))
        .with_source(e),
        // From flate2, for damaged data. System errors have an error number.
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData if e.raw_os_error().is_none() => {
            let text = format!("archive is damaged inside entry {:?}", shown(name));
            Error::archive(text).with_source(e)
        }
        _ => Error::io(format_args!("cannot write {:?}", shown(name)), e),
    })
}

/// Returns a name from an archive for an error message.
pub(super) fn shown(name: &[u8]) -> String {
    crate::error::one_line(&String::from_utf8_lossy(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_of_the_target_are_refused() {
        let path = |name: &[u8]| safe_path(name).ok();
        assert_eq!(path(b"./a//b/"), Some(b"a/b".to_vec()));
        assert_eq!(path(b"x..y/...z"), Some(b"x..y/...z".to_vec()));
        assert_eq!(path(b"..\\x"), Some(b"..\\x".to_vec()));
        for name in [b"/a".as_slice(), b"..", b"a/../b", b"../a", b"a\0b"] {
            assert_eq!(path(name), None);
        }
        assert!(path(&[b'x'; MAX_NAME]).is_some());
        assert!(path(&[b'x'; MAX_NAME + 1]).is_none());
        assert!(path(&[b'x'; 2 * MAX_NAME]).is_none());
    }

    #[test]
    fn entries_and_remembered_names_are_limited() {
        let dir = tempfile::tempdir().unwrap();
        let opened = std::fs::File::open(dir.path()).unwrap();
        let mut unpacker = Unpacker::new(opened.into(), 0o777, Links::Inside);
        unpacker.done.entries = 3;
        assert!(unpacker.check_size(3).is_ok() && unpacker.check_size(2).is_err());
        unpacker.cursor.made = 2;
        assert!(unpacker.check_size(5).is_ok() && unpacker.check_size(4).is_err());
        unpacker.refused_bytes = MAX_REMEMBERED - 1;
        unpacker.directories.name_bytes = 1;
        assert!(unpacker.check_size(5).is_ok());
        unpacker.refused_bytes = MAX_REMEMBERED;
        let error = unpacker.check_size(5).unwrap_err().to_string();
        assert!(error.contains("67108864 bytes"), "{error}");
    }

    #[test]
    fn links_must_stay_below_the_target() {
        assert!(stays_inside(b"l", b"a/b"));
        assert!(stays_inside(b"d/e/l", b"../../a"));
        assert!(!stays_inside(b"l", b"../a"));
        assert!(!stays_inside(b"d/l", b"../../a"));
        assert!(!stays_inside(b"l", b"/etc/passwd"));
        // `d/b -> ..` is allowed, and would make `x -> d/b/..` lead above the root.
        assert!(!stays_inside(b"x", b"d/b/.."));
    }
}

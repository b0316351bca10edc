//! Unpacking archives into a directory beside other files.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::input::Input;
use super::printed::check_shown;
use super::tar_script::archive;
use crate::archive::{Extract, Extraction, Links};
use crate::error::Result;
use crate::os::open_dir;
use crate::os::random::temporary_name;
use crate::os::remove_tree::remove_at;

const MAX_ENTRIES: u64 = 32;
const MAX_BYTES: u64 = 128 * 1024;

/// Unpacks an archive. Nothing outside of the target changes, limits hold, and the target has nothing that
/// the documentation excludes. If unpacking fails, the target is as it was.
pub fn unpacking(data: &[u8]) {
    thread_local!(static ROOM: Room = Room::new());
    ROOM.with(|room| unpack_in(room, Input(data)));
}

fn unpack_in(room: &Room, mut input: Input<'_>) {
    let flags = input.byte();
    let (skips, target_exists) = (flags & 1 != 0, flags & 2 != 0);
    let is_upload = target_exists && flags & 4 != 0;
    let archive = archive(&mut input);
    let extract = Extract::new()
        .max_entries(MAX_ENTRIES)
        .max_bytes(MAX_BYTES)
        .skip_refused(skips);
    room.prepare(target_exists);
    let before = tree(&room.target());
    let done = if is_upload {
        unpack_as_upload(&extract, &archive, room)
    } else {
        extract.unpack_to_path(&*archive, &room.target())
    };
    room.check(&done, &before, target_exists, skips);
}

/// Unpacks as the local backend does, which accepts all links and has a directory for staging.
fn unpack_as_upload(extract: &Extract, archive: &[u8], room: &Room) -> Result<Extraction> {
    let open = |dir: &Path| open_dir(dir).expect("the directory is readable");
    let (target, stages) = (open(&room.target()), open(&room.dir));
    extract.unpack_to_dir(archive, target.as_fd(), stages.as_fd(), Links::Any)
}

/// A directory with the target and other files.
struct Room {
    dir: PathBuf,
    /// All but the target.
    outside: BTreeMap<PathBuf, State>,
}

/// The state of a file. The time of a directory is left out.
#[derive(Debug, PartialEq)]
struct State {
    inode: u64,
    mode: u32,
    links: u64,
    time: (i64, i64),
    content: Vec<u8>,
}

impl Room {
    fn new() -> Room {
        let dir = std::env::temp_dir().join(temporary_name());
        let made = || {
            fs::create_dir_all(dir.join("outside/dir"))?;
            fs::write(dir.join("outside/file"), "secret")?;
            fs::write(dir.join("outside/dir/script"), "#!/bin/sh\n")?;
            fs::set_permissions(
                dir.join("outside/dir/script"),
                Permissions::from_mode(0o750),
            )?;
            symlink("file", dir.join("outside/link"))?;
            fs::write(dir.join("beside"), "1")
        };
        made().expect("the temporary directory is writable");
        let outside = tree(&dir);
        Room { dir, outside }
    }

    fn target(&self) -> PathBuf {
        self.dir.join("target")
    }

    fn remove_target(&self) {
        let dir = open_dir(&self.dir).expect("the directory is readable");
        let removed = remove_at(dir.as_fd(), b"target");
        let is_gone = removed.or_else(|e| match e.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        });
        is_gone.expect("the target can be removed");
    }

    fn prepare(&self, exists: bool) {
        let target = self.target();
        self.remove_target();
        if !exists {
            return;
        }
        let made = || {
            fs::create_dir_all(target.join("d/e"))?;
            fs::write(target.join("a"), "old")?;
            fs::write(target.join("d/a"), "old")?;
            fs::hard_link(self.dir.join("outside/file"), target.join("h"))?;
            symlink("../outside", target.join("out"))?;
            symlink("../outside/file", target.join("f"))?;
            symlink("d", target.join("in"))
        };
        made().expect("the temporary directory is writable");
    }

    fn check(
        &self,
        done: &Result<Extraction>,
        before: &BTreeMap<PathBuf, State>,
        existed: bool,
        skips: bool,
    ) {
        let target = self.target();
        let mut after = tree(&target);
        match done {
            Err(e) => {
                check_shown(e);
                assert_eq!(after, *before, "a failure changed the target: {e:#}");
            }
            Ok(done) => {
                assert!(done.entries() <= MAX_ENTRIES && done.bytes() <= MAX_BYTES);
                let refused = done.refused().iter();
                let is_report = |rule| rule == "unreadable in the sandbox";
                assert!(skips || refused.clone().all(|refusal| is_report(refusal.rule())));
                assert!(target.is_dir());
            }
        }
        after.retain(|path, state| before.get(path) != Some(state));
        for path in after.keys() {
            check_new(path, &target, existed);
        }
        assert!(after.len() as u64 <= MAX_ENTRIES + before.len() as u64 + 1);
        // By their inodes, because hard links have the same content.
        let sizes = after
            .values()
            .map(|state| (state.inode, state.content.len()));
        let size: usize = sizes.collect::<BTreeMap<_, _>>().values().sum();
        assert!(size as u64 <= MAX_BYTES);

        self.remove_target();
        assert_eq!(tree(&self.dir), self.outside);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Checks what an archive has created.
fn check_new(path: &Path, target: &Path, existed: bool) {
    let metadata = fs::symlink_metadata(path).expect("it is still there");
    let kind = metadata.file_type();
    assert!(
        kind.is_file() || kind.is_dir() || kind.is_symlink(),
        "{path:?}"
    );
    assert_eq!(metadata.mode() & 0o7000, 0, "{path:?}");
    // A link of the caller may lead out, and links of the archive may lead through it.
    if kind.is_symlink() && !existed {
        let Ok(end) = fs::canonicalize(path) else {
            return;
        };
        let target = target.canonicalize().expect("the target exists");
        assert!(end.starts_with(target), "{path:?} leads to {end:?}");
    }
}

/// Lists a directory with everything below it.
fn tree(dir: &Path) -> BTreeMap<PathBuf, State> {
    let mut tree = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        let is_dir = metadata.is_dir();
        // The modes of an archive may allow nothing, except to root.
        let entries = is_dir.then(|| fs::read_dir(&path).into_iter().flatten());
        let entries = entries.into_iter().flatten();
        todo.extend(entries.map(|entry| entry.expect("the directory is unchanged").path()));
        let content = if metadata.is_file() {
            fs::read(&path).unwrap_or_default()
        } else {
            Vec::new()
        };
        let time = (metadata.mtime(), metadata.mtime_nsec());
        let state = State {
            inode: metadata.ino(),
            mode: metadata.mode(),
            links: if is_dir { 0 } else { metadata.nlink() },
            time: if is_dir { (0, 0) } else { time },
            content,
        };
        tree.insert(path, state);
    }
    tree
}

//! Uploads and downloads: what is sent, what is refused before, what is read back.

/// Exclusions from an upload, and symbolic links.
mod packing;
/// Reading one file of a sandbox.
mod reading;
/// Downloads that are packed while they are read.
mod streaming;
/// Files that downloads are written to.
mod targets;
/// Uploads.
mod uploading;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use flate2::read::MultiGzDecoder;
use noxrunner::{
    Backend, Client, Command, Contents, Error, ErrorKind, Files, Isolation, LocalBackend, Output,
    Result, Sandbox, SandboxInfo, SandboxSpec, SessionId, Upload,
};
use proptest::prelude::*;
use tar::EntryType;

use crate::support::long_tests_or_skip;

/// A temporary directory, in memory if possible, where many small files are much faster.
pub(super) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(super) fn new() -> Scratch {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Scratch(dir.unwrap())
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // TempDir cannot remove unsearchable directories and very deep trees.
        let run = |program: &str, args: &[&str]| {
            let _ = process::Command::new(program)
                .args(args)
                .arg(self.path())
                .stderr(process::Stdio::null())
                .status();
        };
        if fs::remove_dir_all(self.path()).is_err() {
            run("chmod", &["-R", "u+rwx"]);
            run("rm", &["-rf"]);
        }
    }
}

type Source = Box<dyn Fn() -> Box<dyn Read + Send> + Send + Sync>;

/// A backend that returns one archive and records uploads.
struct Stub {
    source: Source,
    uploads: Arc<Mutex<Vec<Vec<u8>>>>,
}

fn unsupported<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "not in this test"))
}

impl Backend for Stub {
    fn health(&self) -> Result<()> {
        unsupported()
    }

    fn create(&self, _: &SessionId, _: &SandboxSpec) -> Result<SandboxInfo> {
        unsupported()
    }

    fn touch(&self, _: &SessionId) -> Result<()> {
        unsupported()
    }

    fn exec(&self, _: &SessionId, _: &Command) -> Result<Output> {
        unsupported()
    }

    fn upload(&self, _: &SessionId, _: &str, mut archive: Upload<'_>) -> Result<()> {
        let mut bytes = Vec::new();
        archive.read_to_end(&mut bytes).unwrap();
        assert_eq!(archive.content_length(), Some(bytes.len() as u64));
        self.uploads.lock().unwrap().push(bytes);
        Ok(())
    }

    fn download(&self, _: &SessionId, _: &str) -> Result<Box<dyn Read + Send>> {
        Ok((self.source)())
    }

    fn delete(&self, _: &SessionId) -> Result<bool> {
        unsupported()
    }
}

/// A sandbox whose downloads come from `source`.
pub(super) fn sandbox_with_stream(
    source: impl Fn() -> Box<dyn Read + Send> + Send + Sync + 'static,
) -> Sandbox {
    let backend = Stub {
        source: Box::new(source),
        uploads: Arc::default(),
    };
    Client::with_backend(backend).sandbox("stub").unwrap()
}

/// A sandbox whose downloads are this archive.
pub(super) fn sandbox_with_download(archive: Vec<u8>) -> Sandbox {
    sandbox_with_stream(move || Box::new(std::io::Cursor::new(archive.clone())))
}

/// A sandbox that records uploads.
fn recording_sandbox() -> (Sandbox, Arc<Mutex<Vec<Vec<u8>>>>) {
    let uploads: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let backend = Stub {
        source: Box::new(|| Box::new(std::io::empty())),
        uploads: Arc::clone(&uploads),
    };
    let sandbox = Client::with_backend(backend).sandbox("stub").unwrap();
    (sandbox, uploads)
}

fn local_backend(dir: &Scratch) -> LocalBackend {
    LocalBackend::builder()
        .isolation(Isolation::None)
        .state_dir(dir.join("state"))
        .build()
        .unwrap()
}

/// A local sandbox, and a directory that is removed with it.
pub(super) fn local() -> (Sandbox, Scratch) {
    let dir = Scratch::new();
    let client = Client::with_backend(local_backend(&dir));
    (client.create("s", SandboxSpec::new()).unwrap(), dir)
}

#[track_caller]
pub(super) fn assert_error<T: Debug>(result: Result<T>, kind: ErrorKind, parts: &[&str]) {
    let error = result.unwrap_err();
    let text = format!("{error:#}");
    assert_eq!(error.kind(), kind, "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// Returns `None` if the call does not end in time. Its thread is abandoned.
pub(super) fn with_timeout<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || drop(sender.send(call())));
    receiver.recv_timeout(Duration::from_secs(300)).ok()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Directory(u32, i64),
    File(u32, i64, Vec<u8>),
    Symlink(Vec<u8>),
    Other,
}

/// Everything below a directory. Links are not followed.
pub(super) fn snapshot(top: &Path) -> BTreeMap<Vec<u8>, Node> {
    let mut found = BTreeMap::new();
    let mut todo = vec![top.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let mode = meta.mode() & 0o7777;
            let node = if meta.is_dir() {
                todo.push(path.clone());
                Node::Directory(mode, meta.mtime())
            } else if meta.is_file() {
                Node::File(mode, meta.mtime(), fs::read(&path).unwrap())
            } else if meta.is_symlink() {
                Node::Symlink(fs::read_link(&path).unwrap().into_os_string().into_vec())
            } else {
                Node::Other
            };
            let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes();
            found.insert(name.to_vec(), node);
        }
    }
    found
}

pub(super) fn os_str(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

pub(super) fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn set_mtime(path: impl AsRef<Path>, seconds: u64) {
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    File::open(path).unwrap().set_modified(time).unwrap();
}

fn mkfifo(path: &Path) {
    let made = process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

fn is_root(dir: &Scratch) -> bool {
    fs::metadata(dir.path()).unwrap().uid() == 0
}

/// Incompressible bytes.
pub(super) fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes()
    };
    let mut bytes: Vec<u8> = (0..size.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(size);
    bytes
}

#[derive(Debug, PartialEq, Eq)]
struct PackedEntry {
    name: Vec<u8>,
    kind: EntryType,
    mode: u32,
    content: Vec<u8>,
}

/// The entries of a recorded upload, as the tar crate reads them.
fn unpacked(archive: &[u8]) -> Vec<PackedEntry> {
    let mut tar = tar::Archive::new(MultiGzDecoder::new(archive));
    let entries = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        assert_eq!(entry.header().uid().unwrap(), 0, "owners are not sent");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        PackedEntry {
            name: entry.path_bytes().into_owned(),
            kind: entry.header().entry_type(),
            mode: entry.header().mode().unwrap(),
            content,
        }
    });
    entries.collect()
}

/// Uploads a directory, downloads it and compares both.
#[track_caller]
fn assert_survives(from: &Path) {
    let (sandbox, dir) = local();
    sandbox.upload_dir(from, "/workspace/t").unwrap();
    let back = dir.join("back");
    sandbox.download_dir("/workspace/t", &back).unwrap();
    let (before, after) = (snapshot(from), snapshot(&back));
    assert!(before.keys().eq(after.keys()), "{after:?}");
    for (name, node) in &before {
        assert_eq!(&after[name], node, "{:?}", os_str(name));
    }
}

#[test]
fn modes_times_links_and_empty_directories_survive() {
    let dir = Scratch::new();
    let top = dir.join("t");
    fs::create_dir_all(top.join("sub/empty")).unwrap();
    for mode in [0o644, 0o755, 0o600, 0o400, 0o500] {
        let path = top.join(format!("{mode:o}"));
        fs::write(&path, noise(1000)).unwrap();
        chmod(&path, mode);
        set_mtime(&path, 1_000_000_000 + u64::from(mode));
    }
    fs::write(top.join("zero"), "").unwrap();
    symlink("sub/empty", top.join("inside")).unwrap();
    symlink("../400", top.join("sub/up")).unwrap();
    symlink("no/such/file", top.join("dangling")).unwrap();
    symlink("x".repeat(300), top.join("long-target")).unwrap();
    set_mtime(top.join("sub/empty"), 86_400);
    chmod(top.join("sub/empty"), 0o700);
    assert_survives(&top);
}

#[test]
fn read_only_directory_survives() {
    let dir = Scratch::new();
    let closed = dir.join("t/a/closed");
    fs::create_dir_all(closed.join("below")).unwrap();
    fs::write(closed.join("file"), "x").unwrap();
    fs::write(closed.join("below/file"), "y").unwrap();
    chmod(closed.join("below"), 0o555);
    chmod(&closed, 0o555);
    set_mtime(&closed, 1_000_000_000);
    assert_survives(&dir.join("t"));
}

#[test]
fn names_survive() {
    let dir = Scratch::new();
    let top = dir.join("t");
    fs::create_dir(&top).unwrap();
    for name in [
        b"x".repeat(255).as_slice(),
        &[b'y'; 100],
        &[b'y'; 101],
        b"\xff\xfe",
        "grüße".as_bytes(),
        b"a\nb",
        b"-rf",
        b" a b ",
        b"a\\b",
        b"..x",
        b"x..y",
        b"...",
        b"*",
        b"\x01\x1b[31m",
    ] {
        fs::write(top.join(os_str(name)), name).unwrap();
    }
    assert_survives(&top);
}

#[test]
fn long_non_utf8_names_survive() {
    let dir = Scratch::new();
    let top = dir.join("t");
    fs::create_dir(&top).unwrap();
    let mut name = vec![b'\xff'; 254];
    name.push(b'\n');
    fs::write(top.join(os_str(&name)), "255 bytes").unwrap();
    name[0] = b'l';
    symlink(os_str(&[b'\xfe'; 200]), top.join(os_str(&name))).unwrap();
    assert_survives(&top);
}

#[test]
fn long_paths_survive() {
    let dir = Scratch::new();
    let top = dir.join("t");
    let long = top.join("d".repeat(90)).join("e".repeat(90));
    fs::create_dir_all(long.join(os_str(&[b'\xe4'; 90]))).unwrap();
    fs::write(long.join("f"), "181 bytes of directories").unwrap();
    fs::write(long.join(os_str(&[b'\xe4'; 90])).join("f"), "272").unwrap();
    symlink("f", long.join(os_str(&[b'\xe4'; 90])).join("l".repeat(200))).unwrap();
    assert_survives(&top);
}

#[test]
fn deep_tree_survives() {
    let dir = Scratch::new();
    let deepest = dir.join(format!("t/{}", "d/".repeat(1500)));
    fs::create_dir_all(&deepest).unwrap();
    fs::write(deepest.join("f"), "deep").unwrap();
    let (sandbox, out) = local();
    sandbox.upload_dir(dir.join("t"), "/workspace/t").unwrap();
    let done = sandbox
        .download_dir("/workspace/t", out.join("back"))
        .unwrap();
    assert!(done.entries() >= 1501);
    let file = out.join(format!("back/{}f", "d/".repeat(1500)));
    assert_eq!(fs::read(file).unwrap(), b"deep");
    sandbox.delete().unwrap();
}

#[test]
fn many_entries_survive_a_round_trip() {
    let directories = match long_tests_or_skip("100,000 archive entries instead of 10,000") {
        true => 100,
        false => 10,
    };
    let dir = Scratch::new();
    for sub in 0..directories {
        let sub = dir.join(format!("t/{sub}"));
        fs::create_dir_all(&sub).unwrap();
        for file in 0..999 {
            File::create(sub.join(file.to_string())).unwrap();
        }
    }
    let (sandbox, out) = local();
    sandbox.upload_dir(dir.join("t"), "/workspace/t").unwrap();
    let back = out.join("back");
    let done = sandbox.download_dir("/workspace/t", &back).unwrap();
    assert_eq!(done.entries(), directories * 1000);
    let last = back.join((directories - 1).to_string());
    assert_eq!(fs::read_dir(last).unwrap().count(), 999);
}

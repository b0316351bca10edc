//! Archives in and out: what goes in, what is refused before it is sent, what is read back.

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

/// A directory in memory where there is one: many small files are much faster there.
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
        // Closed directories and very deep trees are too much for TempDir.
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

/// Hands out one archive, and keeps what it gets.
struct Stub {
    source: Source,
    uploads: Arc<Mutex<Vec<Vec<u8>>>>,
}

fn no_call<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "not in this test"))
}

impl Backend for Stub {
    fn health(&self) -> Result<()> {
        no_call()
    }

    fn create(&self, _: &SessionId, _: &SandboxSpec) -> Result<SandboxInfo> {
        no_call()
    }

    fn touch(&self, _: &SessionId) -> Result<()> {
        no_call()
    }

    fn exec(&self, _: &SessionId, _: &Command) -> Result<Output> {
        no_call()
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
        no_call()
    }
}

/// A sandbox whose every download is what `source` makes.
pub(super) fn streaming(
    source: impl Fn() -> Box<dyn Read + Send> + Send + Sync + 'static,
) -> Sandbox {
    let backend = Stub {
        source: Box::new(source),
        uploads: Arc::default(),
    };
    Client::with_backend(backend).sandbox("stub").unwrap()
}

/// A sandbox whose every download is this archive.
pub(super) fn sending(archive: Vec<u8>) -> Sandbox {
    streaming(move || Box::new(std::io::Cursor::new(archive.clone())))
}

/// A sandbox that keeps the archives it is sent.
fn recording() -> (Sandbox, Arc<Mutex<Vec<Vec<u8>>>>) {
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

/// A local sandbox, and a directory that is gone with it.
pub(super) fn local() -> (Sandbox, Scratch) {
    let dir = Scratch::new();
    let client = Client::with_backend(local_backend(&dir));
    (client.create("s", SandboxSpec::new()).unwrap(), dir)
}

#[track_caller]
pub(super) fn fails<T: Debug>(result: Result<T>, kind: ErrorKind, parts: &[&str]) {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// None if it does not end in time; whoever waits there is left waiting.
pub(super) fn in_time<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || drop(sender.send(call())));
    receiver.recv_timeout(Duration::from_secs(5)).ok()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Directory(u32, i64),
    File(u32, i64, Vec<u8>),
    Symlink(Vec<u8>),
    Other,
}

/// All that is below a directory, without following a link.
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

pub(super) fn os(name: &[u8]) -> &OsStr {
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

/// Bytes that don't compress.
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
struct Packed {
    name: Vec<u8>,
    kind: EntryType,
    mode: u32,
    content: Vec<u8>,
}

/// What a recorded upload holds, as another implementation reads it.
fn packed(archive: &[u8]) -> Vec<Packed> {
    let mut tar = tar::Archive::new(MultiGzDecoder::new(archive));
    let entries = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        assert_eq!(entry.header().uid().unwrap(), 0, "owners stay here");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        Packed {
            name: entry.path_bytes().into_owned(),
            kind: entry.header().entry_type(),
            mode: entry.header().mode().unwrap(),
            content,
        }
    });
    entries.collect()
}

/// Uploads a directory, downloads it and compares all.
#[track_caller]
fn assert_survives(from: &Path) {
    let (sandbox, dir) = local();
    sandbox.upload_dir(from, "/workspace/t").unwrap();
    let back = dir.join("back");
    sandbox.download_dir("/workspace/t", &back).unwrap();
    let (before, after) = (snapshot(from), snapshot(&back));
    assert!(before.keys().eq(after.keys()), "{after:?}");
    for (name, node) in &before {
        assert_eq!(&after[name], node, "{:?}", os(name));
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
fn a_directory_without_write_permission_comes_back_full_and_closed() {
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
fn any_name_survives() {
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
        fs::write(top.join(os(name)), name).unwrap();
    }
    assert_survives(&top);
}

#[test]
fn long_names_that_are_not_utf8_survive() {
    let dir = Scratch::new();
    let top = dir.join("t");
    fs::create_dir(&top).unwrap();
    let mut name = vec![b'\xff'; 254];
    name.push(b'\n');
    fs::write(top.join(os(&name)), "255 bytes").unwrap();
    name[0] = b'l';
    symlink(os(&[b'\xfe'; 200]), top.join(os(&name))).unwrap();
    assert_survives(&top);
}

#[test]
fn long_paths_survive() {
    let dir = Scratch::new();
    let top = dir.join("t");
    let long = top.join("d".repeat(90)).join("e".repeat(90));
    fs::create_dir_all(long.join(os(&[b'\xe4'; 90]))).unwrap();
    fs::write(long.join("f"), "181 bytes of directories").unwrap();
    fs::write(long.join(os(&[b'\xe4'; 90])).join("f"), "272").unwrap();
    symlink("f", long.join(os(&[b'\xe4'; 90])).join("l".repeat(200))).unwrap();
    assert_survives(&top);
}

#[test]
fn a_tree_of_1500_levels_survives() {
    let dir = Scratch::new();
    let deepest = dir.join(format!("t/{}", "d/".repeat(1500)));
    fs::create_dir_all(&deepest).unwrap();
    fs::write(deepest.join("f"), "deep").unwrap();
    let (sandbox, out) = local();
    sandbox.upload_dir(dir.join("t"), "/workspace/t").unwrap();
    let done = sandbox
        .download_dir("/workspace/t", out.join("back"))
        .unwrap();
    assert!(done.entries >= 1501);
    let file = out.join(format!("back/{}f", "d/".repeat(1500)));
    assert_eq!(fs::read(file).unwrap(), b"deep");
    sandbox.delete().unwrap();
}

#[test]
fn twenty_thousand_entries_go_both_ways() {
    let dir = Scratch::new();
    for sub in 0..20 {
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
    // The archive of a directory may have an entry for the directory itself.
    assert!((20_000..=20_001).contains(&done.entries));
    assert_eq!(fs::read_dir(back.join("19")).unwrap().count(), 999);
}

#[test]
fn contents_come_from_bytes_text_readers_and_files() {
    let (sandbox, dir) = local();
    let local_file = dir.join("script");
    fs::write(&local_file, "local").unwrap();
    chmod(&local_file, 0o750);
    let text = String::from("string");
    let large = noise(3 << 20);
    sandbox.write("a/bytes", b"by\0tes").unwrap();
    sandbox.write("a/slice", &large[..]).unwrap();
    sandbox.write("/workspace/a/str", "str").unwrap();
    sandbox.write("a/string", &text).unwrap();
    sandbox.write("a/owned", text).unwrap();
    sandbox
        .write("a/reader", Contents::reader(&mut &large[..]))
        .unwrap();
    sandbox
        .write("a/path", Contents::path(&local_file))
        .unwrap();
    sandbox
        .write("a/moded", Contents::path(&local_file).mode(0o600))
        .unwrap();
    sandbox.write("a/empty", "").unwrap();
    for (name, content, mode) in [
        ("bytes", b"by\0tes".as_slice(), 0o644),
        ("slice", &large, 0o644),
        ("str", b"str", 0o644),
        ("string", b"string", 0o644),
        ("owned", b"string", 0o644),
        ("reader", &large, 0o644),
        ("path", b"local", 0o750),
        ("moded", b"local", 0o600),
        ("empty", b"", 0o644),
    ] {
        let read = sandbox.read(format!("a/{name}")).unwrap();
        assert!(read == content, "{name}");
        let out = sandbox.exec(["stat", "-c", "%a", &format!("a/{name}")]);
        assert_eq!(out.unwrap().stdout().trim(), format!("{mode:o}"), "{name}");
    }
}

#[test]
fn a_second_write_replaces_the_first() {
    let (sandbox, _dir) = local();
    sandbox.write("f", "a long first text").unwrap();
    sandbox
        .write("f", Contents::from("two").mode(0o755))
        .unwrap();
    assert_eq!(sandbox.read("f").unwrap(), b"two");
    assert!(sandbox.exec(["test", "-x", "f"]).unwrap().success());
}

#[test]
fn names_that_are_not_utf8_are_written_and_read() {
    let (sandbox, _dir) = local();
    for name in [b"d/n\xff.txt".as_slice(), b"\xfe/\xff/f", b"\xff"] {
        sandbox.write(os(name), name).unwrap();
    }
    assert_eq!(sandbox.read(os(b"d/n\xff.txt")).unwrap(), b"d/n\xff.txt");
    assert_eq!(sandbox.read(os(b"\xfe/\xff/f")).unwrap(), b"\xfe/\xff/f");
    assert_eq!(sandbox.read(os(b"\xff")).unwrap(), b"\xff");
    fails(
        sandbox.read(os(b"d/\xfa")),
        ErrorKind::NotFound,
        &["no file"],
    );
}

#[test]
fn bad_paths_and_names_are_refused_before_anything_is_sent() {
    let (sandbox, uploads) = recording();
    let refused = |path: &str, rule: &str| {
        let shown = path.replace('\0', " ");
        let parts = [shown.as_str(), rule];
        fails(sandbox.write(path, "x"), ErrorKind::InvalidInput, &parts);
        fails(sandbox.read(path), ErrorKind::InvalidInput, &parts);
    };
    refused("a/../b", "\"..\"");
    refused("../b", "\"..\"");
    refused("", "names no file");
    refused("/", "names no file");
    refused("a\0b", "NUL");
    for (name, rule) in [
        ("/etc/x", "is absolute"),
        ("a/../../b", "\"..\""),
        ("", "names no file"),
        (".", "names no file"),
        ("a\0b", "NUL"),
    ] {
        let shown = format!("{:?}", name.replace('\0', " "));
        let files = Files::new().add("good", "x").add(name, "y");
        fails(
            sandbox.upload(files, "/workspace"),
            ErrorKind::InvalidInput,
            &[&shown, rule],
        );
    }
    assert!(uploads.lock().unwrap().is_empty());
}

#[test]
fn a_set_of_files_is_one_archive() {
    let (sandbox, uploads) = recording();
    let files = Files::new()
        .add("src/./main.py", "print(42)")
        .add("x..y", Contents::from("two").mode(0o4755))
        .add(os(b"\xff"), Contents::reader(&b"three"[..]));
    sandbox.upload(files, "/workspace").unwrap();
    let uploads = uploads.lock().unwrap();
    assert_eq!(uploads.len(), 1);
    let file = |name: &[u8], mode, content: &[u8]| Packed {
        name: name.to_vec(),
        kind: EntryType::Regular,
        mode,
        content: content.to_vec(),
    };
    assert_eq!(
        packed(&uploads[0]),
        [
            file(b"src/main.py", 0o644, b"print(42)"),
            file(b"x..y", 0o755, b"two"),
            file(b"\xff", 0o644, b"three"),
        ]
    );
}

#[test]
fn a_local_directory_can_be_one_of_a_set() {
    let (sandbox, dir) = local();
    fs::create_dir_all(dir.join("data/sub/empty")).unwrap();
    fs::write(dir.join("data/sub/f"), "f").unwrap();
    symlink("f", dir.join("data/sub/l")).unwrap();
    fs::create_dir(dir.join("none")).unwrap();
    let files = Files::new()
        .add("in/data", Contents::path(dir.join("data")))
        .add("in/none", Contents::path(dir.join("none")))
        .add("in/a", "a");
    sandbox.upload(files, "/workspace").unwrap();
    assert_eq!(sandbox.read("in/data/sub/f").unwrap(), b"f");
    assert_eq!(sandbox.read("in/data/sub/l").unwrap(), b"f");
    assert!(sandbox.exists("in/data/sub/empty").unwrap());
    assert!(sandbox.exists("in/none").unwrap(), "it is empty, and it is");
}

#[test]
fn uploading_an_empty_directory_makes_the_destination() {
    let (sandbox, dir) = local();
    fs::create_dir(dir.join("none")).unwrap();
    sandbox
        .upload_dir(dir.join("none"), "/workspace/n")
        .unwrap();
    assert!(sandbox.exists("n").unwrap());
}

#[test]
fn what_is_not_there_or_not_a_directory_is_named() {
    let (sandbox, uploads) = recording();
    let dir = Scratch::new();
    fs::write(dir.join("file"), "x").unwrap();
    let upload = |name: &str| sandbox.upload_dir(dir.join(name), "/workspace");
    fails(upload("gone"), ErrorKind::Io, &["/gone", "no such file"]);
    let parts = ["/file", "is not a directory"];
    fails(upload("file"), ErrorKind::InvalidInput, &parts);
    let gone = Contents::path(dir.join("gone"));
    fails(sandbox.write("x", gone), ErrorKind::Io, &["/gone"]);
    assert!(uploads.lock().unwrap().is_empty());
}

#[test]
fn fifos_and_sockets_are_refused_by_name_without_waiting() {
    let (sandbox, _) = recording();
    let dir = Scratch::new();
    fs::create_dir_all(dir.join("fifo/d")).unwrap();
    fs::create_dir(dir.join("sock")).unwrap();
    mkfifo(&dir.join("fifo/d/pipe"));
    let _socket = UnixListener::bind(dir.join("sock/s")).unwrap();
    let upload = |name: &str| sandbox.upload_dir(dir.join(name), "/workspace");
    let parts = ["fifo/d/pipe", "is a FIFO"];
    fails(upload("fifo"), ErrorKind::InvalidInput, &parts);
    let parts = ["sock/s", "is a socket"];
    fails(upload("sock"), ErrorKind::InvalidInput, &parts);
    for name in ["fifo/d/pipe", "sock/s"] {
        let contents = Contents::path(dir.join(name));
        fails(
            sandbox.write("x", contents),
            ErrorKind::InvalidInput,
            &[name],
        );
    }
}

#[test]
fn a_fifo_in_place_of_the_directory_does_not_hold_up_the_call() {
    let (sandbox, _) = recording();
    let dir = Scratch::new();
    let fifo = dir.join("pipe");
    mkfifo(&fifo);
    let path = fifo.clone();
    let result = in_time(move || sandbox.upload_dir(path, "/workspace"));
    let result = result.expect("waits for the other end of the FIFO");
    let parts = ["pipe", "is not a directory"];
    fails(result, ErrorKind::InvalidInput, &parts);
}

#[test]
fn an_unreadable_file_is_named() {
    let (sandbox, uploads) = recording();
    let dir = Scratch::new();
    fs::create_dir(dir.join("t")).unwrap();
    fs::write(dir.join("t/secret"), "x").unwrap();
    chmod(dir.join("t/secret"), 0o000);
    let result = sandbox.upload_dir(dir.join("t"), "/workspace");
    if is_root(&dir) {
        eprintln!("skipped: root can read any file");
        result.unwrap();
        assert_eq!(packed(&uploads.lock().unwrap()[0])[0].content, b"x");
    } else {
        let parts = ["t/secret", "permission denied"];
        fails(result, ErrorKind::Io, &parts);
    }
}

#[test]
fn a_growing_file_is_sent_as_long_as_it_was() {
    const FIRST: usize = 4 << 20;
    let (sandbox, uploads) = recording();
    let dir = Scratch::new();
    fs::create_dir(dir.join("t")).unwrap();
    let path = dir.join("t/log");
    let pattern =
        |range: std::ops::Range<usize>| -> Vec<u8> { range.map(|i| (i / 7 % 251) as u8).collect() };
    fs::write(&path, pattern(0..FIRST)).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = File::options().append(true).open(&path).unwrap();
            let mut size = FIRST;
            while !stop.load(Ordering::SeqCst) && size < 16 * FIRST {
                file.write_all(&pattern(size..size + 10_000)).unwrap();
                size += 10_000;
            }
        });
        let result = sandbox.upload_dir(dir.join("t"), "/workspace");
        stop.store(true, Ordering::SeqCst);
        result.unwrap();
    });
    let sent = &packed(&uploads.lock().unwrap()[0])[0].content;
    assert!(sent.len() >= FIRST);
    assert!(*sent == pattern(0..sent.len()));
}

#[test]
fn a_shrinking_file_is_an_error_that_names_it() {
    let (sandbox, _) = recording();
    let dir = Scratch::new();
    fs::create_dir(dir.join("t")).unwrap();
    let path = dir.join("t/log");
    let file = File::create(&path).unwrap();
    let stop = AtomicBool::new(false);
    let shrank = thread::scope(|scope| {
        scope.spawn(|| {
            // Nobody knows when the size is looked at, so it shrinks again and again.
            while !stop.load(Ordering::SeqCst) {
                file.set_len(64 << 20).unwrap();
                thread::sleep(Duration::from_millis(30));
                file.set_len(1).unwrap();
                thread::sleep(Duration::from_millis(10));
            }
        });
        let mut tries = (0..40).map(|_| sandbox.upload_dir(dir.join("t"), "/workspace"));
        let shrank = tries.find(Result::is_err);
        stop.store(true, Ordering::SeqCst);
        shrank
    });
    fails(
        shrank.expect("no upload has met the moment"),
        ErrorKind::Io,
        &["t/log", "shrank"],
    );
}

#[test]
fn link_loops_stay_links_and_the_top_may_be_a_link() {
    let dir = Scratch::new();
    fs::create_dir_all(dir.join("t/d")).unwrap();
    symlink("b", dir.join("t/a")).unwrap();
    symlink("a", dir.join("t/b")).unwrap();
    symlink("..", dir.join("t/d/up")).unwrap();
    symlink("self", dir.join("t/self")).unwrap();
    symlink("t", dir.join("link")).unwrap();
    assert_survives(&dir.join("t"));
    assert_survives(&dir.join("link"));
}

#[test]
fn what_does_not_shrink_is_stored_and_text_is_compressed() {
    let size_of = |files: &[(&str, Vec<u8>)]| {
        let (sandbox, uploads) = recording();
        let dir = Scratch::new();
        for (name, content) in files {
            fs::write(dir.join(name), content).unwrap();
        }
        sandbox.upload_dir(dir.path(), "/workspace").unwrap();
        let set = files.iter().map(|(name, content)| (*name, content));
        sandbox
            .upload(set.collect::<Files<'_>>(), "/workspace")
            .unwrap();
        let uploads = uploads.lock().unwrap();
        for upload in uploads.iter() {
            let back: Vec<Vec<u8>> = packed(upload).into_iter().map(|e| e.content).collect();
            assert!(back.iter().eq(files.iter().map(|(_, content)| content)));
        }
        let sizes: Vec<usize> = uploads.iter().map(Vec::len).collect();
        (sizes[0], sizes[1])
    };
    let random = noise(3 << 20);
    let text = b"the quick brown fox jumps over the lazy dog\n".repeat(50_000);
    let within = |size: usize, content: usize| size > content && size < content / 100 * 101;

    let (tree, set) = size_of(&[("random", random.clone())]);
    assert!(within(tree, random.len()) && within(set, random.len()));
    let (tree, set) = size_of(&[("text", text.clone())]);
    assert!(tree < text.len() / 20 && set < text.len() / 20);
    let halves = random.chunks(random.len() / 2 + 1).map(<[u8]>::to_vec);
    let named: Vec<_> = ["a", "b"].into_iter().zip(halves).collect();
    let (tree, set) = size_of(&named);
    assert!(within(tree, random.len()) && within(set, random.len()));
    let (tree, set) = size_of(&[("a", text.clone()), ("b", text.clone())]);
    assert!(tree < text.len() / 10 && set < text.len() / 10);
}

fn tar_of(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let size = match kind {
            EntryType::Regular => content.len(),
            _ => 0,
        };
        header.set_size(size as u64);
        header.set_cksum();
        tar.append(&header, &content.as_bytes()[..size]).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_file_is_read_whatever_its_entry_is_called() {
    for name in ["f.txt", "./f.txt", "./", "."] {
        let sandbox = sending(tar_of(&[(EntryType::Regular, name, "hello")]));
        let read = sandbox.read("d/f.txt");
        // A regular entry whose name ends with a slash is a directory, by an old custom.
        if name == "./" {
            fails(read, ErrorKind::InvalidInput, &["is a directory"]);
        } else {
            assert_eq!(read.unwrap(), b"hello", "{name:?}");
        }
    }
    let nameless = sending(tar_of(&[(EntryType::Regular, "", "hello")]));
    assert_eq!(nameless.read("d/f.txt").unwrap(), b"hello");
}

#[test]
fn the_archive_of_a_directory_is_not_a_file() {
    let directory = (EntryType::Directory, "./", "");
    for entries in [
        [directory, (EntryType::Regular, "f", "x")].as_slice(),
        &[directory],
        &[(EntryType::Regular, "other", "x")],
        &[(EntryType::Regular, "a/f", "x")],
    ] {
        let sandbox = sending(tar_of(entries));
        let parts = ["/workspace/f", "is a directory", "download_dir"];
        fails(sandbox.read("f"), ErrorKind::InvalidInput, &parts);
    }
}

#[test]
fn a_broken_answer_is_never_a_file() {
    let whole = tar_of(&[(EntryType::Regular, "f", "hello")]);
    for archive in [&whole[..514], &whole[..1024], b"", b"<html></html>"] {
        let sandbox = sending(archive.to_vec());
        fails(sandbox.read("f"), ErrorKind::Archive, &["read from"]);
    }
}

#[test]
fn a_writer_that_fails_is_the_callers_trouble() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (sandbox, _dir) = local();
    sandbox.write("f", "x").unwrap();
    fails(
        sandbox.read_to("f", &mut Full),
        ErrorKind::Io,
        &["cannot write"],
    );
}

/// A backend that has archives of directories only, as one that runs `tar -C` has.
struct DirectoriesOnly {
    inner: LocalBackend,
    otherwise: fn() -> Error,
}

impl Backend for DirectoriesOnly {
    fn health(&self) -> Result<()> {
        self.inner.health()
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        self.inner.create(id, spec)
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        self.inner.touch(id)
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        self.inner.exec(id, command)
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        self.inner.upload(id, dest, archive)
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        let relative = format!(".{}", src.strip_prefix("/workspace").unwrap());
        let test = Command::new("test").arg("-d").arg(relative);
        match self.inner.exec(id, &test)?.success() {
            true => self.inner.download(id, src),
            false => Err((self.otherwise)()),
        }
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        self.inner.delete(id)
    }
}

#[test]
fn where_only_directories_can_be_had_a_copy_is_staged() {
    for otherwise in [
        || Error::new(ErrorKind::NotFound, "404"),
        || Error::new(ErrorKind::Status, "500"),
    ] {
        let dir = Scratch::new();
        let backend = DirectoriesOnly {
            inner: local_backend(&dir),
            otherwise,
        };
        let client = Client::with_backend(backend);
        let sandbox = client.create("s", SandboxSpec::new()).unwrap();
        let mut binary: Vec<u8> = (0..=255).collect();
        binary.extend(noise(100_000));
        sandbox.write("d/bin", &binary).unwrap();
        sandbox.write("-rf", "dash").unwrap();
        sandbox.exec(["ln", "-s", "d/bin", "link"]).unwrap();
        let before = sandbox.exec(["ls", "-A"]).unwrap();
        let read = |name: &str| sandbox.read(name);
        fails(read("gone"), ErrorKind::NotFound, &["/workspace/gone"]);
        fails(read("d"), ErrorKind::InvalidInput, &["is a directory"]);
        assert!(read("d/bin").unwrap() == binary);
        assert!(read("link").unwrap() == binary);
        assert_eq!(read("-rf").unwrap(), b"dash");
        let after = sandbox.exec(["ls", "-A"]).unwrap();
        assert_eq!(before.stdout(), after.stdout());
    }
}

#[test]
fn files_are_read_through_links_and_directories_are_not() {
    let (sandbox, _dir) = local();
    sandbox.write("d/f", "x").unwrap();
    sandbox.exec(["ln", "-s", "d/f", "link"]).unwrap();
    sandbox.exec(["ln", "-s", "d", "dirlink"]).unwrap();
    assert_eq!(sandbox.read("link").unwrap(), b"x");
    for name in ["d", "dirlink"] {
        fails(
            sandbox.read(name),
            ErrorKind::InvalidInput,
            &["is a directory"],
        );
    }
    fails(
        sandbox.read("gone"),
        ErrorKind::NotFound,
        &["/workspace/gone"],
    );
}

#[test]
fn a_link_exists_if_what_it_leads_to_does() {
    let (sandbox, _dir) = local();
    sandbox.write("d/-f", "x").unwrap();
    sandbox.exec(["ln", "-s", "gone", "dangling"]).unwrap();
    sandbox.exec(["ln", "-s", "d", "link"]).unwrap();
    for (name, expected) in [
        ("d/-f", true),
        ("d", true),
        ("link", true),
        ("link/-f", true),
        ("/workspace/d", true),
        ("dangling", false),
        ("gone", false),
        ("d/-f/x", false),
    ] {
        assert_eq!(sandbox.exists(name).unwrap(), expected, "{name}");
    }
}

type RandomNode = (Vec<u8>, u32, Option<Vec<u8>>);

fn random_node() -> impl Strategy<Value = RandomNode> {
    let byte = any::<u8>().prop_filter("in names", |b| !matches!(b, 0 | b'/'));
    let name = prop::collection::vec(byte, 1..60)
        .prop_filter("special", |name| !matches!(name.as_slice(), b"." | b".."));
    let mode = prop::sample::select(vec![0o400, 0o600, 0o644, 0o755, 0o500, 0o444]);
    let content = prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..2000));
    (name, mode, content)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_tree_survives(nodes in prop::collection::vec(random_node(), 0..20)) {
        let dir = Scratch::new();
        let top = dir.join("t");
        fs::create_dir(&top).unwrap();
        let mut parent = top.clone();
        for (name, mode, content) in nodes {
            let path = parent.join(os(&name));
            match content {
                _ if path.symlink_metadata().is_ok() => {}
                Some(content) => {
                    fs::write(&path, content).unwrap();
                    chmod(&path, mode);
                }
                // What comes next is in there, or at the top again.
                None if path.as_os_str().len() < 500 => {
                    fs::create_dir(&path).unwrap();
                    parent = if mode & 0o100 == 0 { top.clone() } else { path };
                }
                None => symlink(os(&name), &path).unwrap(),
            }
        }
        assert_survives(&top);
    }
}

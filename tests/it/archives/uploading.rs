//! Uploads.

use std::os::unix::fs::FileExt;

use super::*;

#[test]
fn contents_can_be_bytes_text_readers_or_files() {
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
fn second_write_replaces_the_first() {
    let (sandbox, _dir) = local();
    sandbox.write("f", "a long first text").unwrap();
    sandbox
        .write("f", Contents::from("two").mode(0o755))
        .unwrap();
    assert_eq!(sandbox.read("f").unwrap(), b"two");
    assert!(sandbox.exec(["test", "-x", "f"]).unwrap().success());
}

#[test]
fn non_utf8_names_are_written_and_read() {
    let (sandbox, _dir) = local();
    for name in [b"d/n\xff.txt".as_slice(), b"\xfe/\xff/f", b"\xff"] {
        sandbox.write(os_str(name), name).unwrap();
    }
    assert_eq!(
        sandbox.read(os_str(b"d/n\xff.txt")).unwrap(),
        b"d/n\xff.txt"
    );
    assert_eq!(
        sandbox.read(os_str(b"\xfe/\xff/f")).unwrap(),
        b"\xfe/\xff/f"
    );
    assert_eq!(sandbox.read(os_str(b"\xff")).unwrap(), b"\xff");
    assert_error(
        sandbox.read(os_str(b"d/\xfa")),
        ErrorKind::NotFound,
        &["no such file"],
    );
}

#[test]
fn invalid_paths_are_refused_before_sending() {
    let (sandbox, uploads) = recording_sandbox();
    let refused = |path: &str, rule: &str| {
        let shown = path.replace('\0', " ");
        let parts = [shown.as_str(), rule];
        assert_error(sandbox.write(path, "x"), ErrorKind::InvalidInput, &parts);
        assert_error(sandbox.read(path), ErrorKind::InvalidInput, &parts);
    };
    refused("a/../b", "\"..\"");
    refused("../b", "\"..\"");
    refused("", "is an empty path");
    refused("/", "does not name a file");
    refused("a\0b", "NUL");
    for (name, rule) in [
        ("/etc/x", "is absolute"),
        ("a/../../b", "\"..\""),
        ("", "is an empty path"),
        (".", "does not name a file"),
        ("a\0b", "NUL"),
    ] {
        let shown = format!("{:?}", name.replace('\0', " "));
        let files = Files::new().add("good", "x").add(name, "y");
        assert_error(
            sandbox.upload(files, "/workspace"),
            ErrorKind::InvalidInput,
            &[&shown, rule],
        );
    }
    assert!(uploads.lock().unwrap().is_empty());
}

#[test]
fn upload_of_several_files_is_one_archive() {
    let (sandbox, uploads) = recording_sandbox();
    let files = Files::new()
        .add("src/./main.py", "print(42)")
        .add("x..y", Contents::from("two").mode(0o4755))
        .add(os_str(b"\xff"), Contents::reader(&b"three"[..]));
    sandbox.upload(files, "/workspace").unwrap();
    let uploads = uploads.lock().unwrap();
    assert_eq!(uploads.len(), 1);
    let file = |name: &[u8], mode, content: &[u8]| PackedEntry {
        name: name.to_vec(),
        kind: EntryType::Regular,
        mode,
        content: content.to_vec(),
    };
    assert_eq!(
        unpacked(&uploads[0]),
        [
            file(b"src/main.py", 0o644, b"print(42)"),
            file(b"x..y", 0o755, b"two"),
            file(b"\xff", 0o644, b"three"),
        ]
    );
}

#[test]
fn upload_may_include_a_local_directory() {
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
fn empty_directory_upload_creates_the_destination() {
    let (sandbox, dir) = local();
    fs::create_dir(dir.join("none")).unwrap();
    sandbox
        .upload_dir(dir.join("none"), "/workspace/n")
        .unwrap();
    assert!(sandbox.exists("n").unwrap());
}

#[test]
fn missing_or_wrong_source_is_named() {
    let (sandbox, uploads) = recording_sandbox();
    let dir = Scratch::new();
    fs::write(dir.join("file"), "x").unwrap();
    let upload = |name: &str| sandbox.upload_dir(dir.join(name), "/workspace");
    assert_error(upload("gone"), ErrorKind::Io, &["/gone", "no such file"]);
    let parts = ["/file", "is not a directory"];
    assert_error(upload("file"), ErrorKind::InvalidInput, &parts);
    let gone = Contents::path(dir.join("gone"));
    assert_error(sandbox.write("x", gone), ErrorKind::Io, &["/gone"]);
    assert!(uploads.lock().unwrap().is_empty());
}

#[test]
fn fifos_and_sockets_are_refused_without_blocking() {
    let (sandbox, _) = recording_sandbox();
    let dir = Scratch::new();
    fs::create_dir_all(dir.join("fifo/d")).unwrap();
    fs::create_dir(dir.join("sock")).unwrap();
    mkfifo(&dir.join("fifo/d/pipe"));
    let _socket = UnixListener::bind(dir.join("sock/s")).unwrap();
    let upload = |name: &str| sandbox.upload_dir(dir.join(name), "/workspace");
    let parts = ["fifo/d/pipe", "is a FIFO"];
    assert_error(upload("fifo"), ErrorKind::InvalidInput, &parts);
    let parts = ["sock/s", "is a socket"];
    assert_error(upload("sock"), ErrorKind::InvalidInput, &parts);
    for name in ["fifo/d/pipe", "sock/s"] {
        let contents = Contents::path(dir.join(name));
        assert_error(
            sandbox.write("x", contents),
            ErrorKind::InvalidInput,
            &[name],
        );
    }
}

#[test]
fn fifo_as_source_directory_does_not_block() {
    let (sandbox, _) = recording_sandbox();
    let dir = Scratch::new();
    let fifo = dir.join("pipe");
    mkfifo(&fifo);
    let path = fifo.clone();
    let result = with_timeout(move || sandbox.upload_dir(path, "/workspace"));
    let result = result.expect("waits for the other end of the FIFO");
    let parts = ["pipe", "is not a directory"];
    assert_error(result, ErrorKind::InvalidInput, &parts);
}

#[test]
fn unreadable_file_is_named() {
    let (sandbox, uploads) = recording_sandbox();
    let dir = Scratch::new();
    fs::create_dir(dir.join("t")).unwrap();
    fs::write(dir.join("t/secret"), "x").unwrap();
    chmod(dir.join("t/secret"), 0o000);
    let result = sandbox.upload_dir(dir.join("t"), "/workspace");
    if is_root(&dir) {
        eprintln!("skipped: root can read any file");
        result.unwrap();
        assert_eq!(unpacked(&uploads.lock().unwrap()[0])[0].content, b"x");
    } else {
        let parts = ["t/secret", "permission denied"];
        assert_error(result, ErrorKind::Io, &parts);
    }
}

#[test]
fn growing_file_is_sent_as_a_prefix() {
    const FIRST: usize = 4 << 20;
    let (sandbox, uploads) = recording_sandbox();
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
    let sent = &unpacked(&uploads.lock().unwrap()[0])[0].content;
    assert!(sent.len() >= FIRST);
    assert!(*sent == pattern(0..sent.len()));
}

#[test]
fn files_with_a_wrong_size_are_sent_whole() {
    let (sandbox, uploads) = recording_sandbox();
    for path in [
        "/proc/version",
        "/proc/filesystems",
        "/proc/kallsyms",
        "/sys/kernel/uevent_seqnum",
    ] {
        let Ok(expected) = fs::read(path) else {
            continue;
        };
        let stat = fs::metadata(path).unwrap();
        assert_ne!(stat.len(), expected.len() as u64, "{path}");
        sandbox.write("f", Contents::path(path)).unwrap();
        sandbox
            .upload([("f", Contents::path(path))], "/workspace")
            .unwrap();
        for upload in uploads.lock().unwrap().drain(..) {
            let sent = &unpacked(&upload)[0].content;
            // Another process may change the number of the last event.
            assert!(
                sent.len().abs_diff(expected.len()) <= expected.len() / 10,
                "{path}"
            );
        }
    }
    let done = sandbox.upload_dir("/proc/sys/kernel/random", "/workspace");
    if done.is_ok() {
        let sent = unpacked(&uploads.lock().unwrap()[0]);
        let boot_id = sent.iter().find(|entry| entry.name == b"boot_id").unwrap();
        assert_eq!(boot_id.content.len(), 37);
    }
}

#[test]
fn shrinking_file_is_an_error() {
    let (sandbox, _) = recording_sandbox();
    let dir = Scratch::new();
    fs::create_dir(dir.join("t")).unwrap();
    let path = dir.join("t/log");
    let file = File::create(&path).unwrap();
    let content = noise(64 << 20);
    let stop = AtomicBool::new(false);
    let shrank = thread::scope(|scope| {
        scope.spawn(|| {
            // The time at which the size is read is unknown, so the file shrinks repeatedly.
            while !stop.load(Ordering::SeqCst) {
                // Written, because a hole takes no time to send.
                file.write_all_at(&content, 0).unwrap();
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
    assert_error(
        shrank.expect("no upload has met the moment"),
        ErrorKind::Io,
        &["t/log", "shrank"],
    );
}

#[test]
fn link_loops_are_kept_as_links() {
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
fn incompressible_data_is_stored() {
    let size_of = |files: &[(&str, Vec<u8>)]| {
        let (sandbox, uploads) = recording_sandbox();
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
            let back: Vec<Vec<u8>> = unpacked(upload).into_iter().map(|e| e.content).collect();
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

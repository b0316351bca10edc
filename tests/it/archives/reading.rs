//! Reading one file of a sandbox.

use super::*;

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
fn file_is_read_under_any_entry_name() {
    for name in ["f.txt", "./f.txt", "./", "."] {
        let sandbox = sandbox_with_download(tar_of(&[(EntryType::Regular, name, "hello")]));
        let read = sandbox.read("d/f.txt");
        // In old archives, a regular entry whose name ends with a slash is a directory.
        if name == "./" {
            assert_error(read, ErrorKind::InvalidInput, &["is a directory"]);
        } else {
            assert_eq!(read.unwrap(), b"hello", "{name:?}");
        }
    }
    let nameless = sandbox_with_download(tar_of(&[(EntryType::Regular, "", "hello")]));
    assert_eq!(nameless.read("d/f.txt").unwrap(), b"hello");
}

#[test]
fn directory_archive_is_not_read_as_a_file() {
    let directory = (EntryType::Directory, "./", "");
    for entries in [
        [directory, (EntryType::Regular, "f", "x")].as_slice(),
        &[directory],
        &[(EntryType::Regular, "other", "x")],
        &[(EntryType::Regular, "a/f", "x")],
    ] {
        let sandbox = sandbox_with_download(tar_of(entries));
        let parts = ["/workspace/f", "is a directory", "download_dir"];
        assert_error(sandbox.read("f"), ErrorKind::InvalidInput, &parts);
    }
}

#[test]
fn broken_response_is_never_a_file() {
    let whole = tar_of(&[(EntryType::Regular, "f", "hello")]);
    for archive in [&whole[..514], &whole[..1024], b"\x1f\x8b", b"<html></html>"] {
        let sandbox = sandbox_with_download(archive.to_vec());
        assert_error(sandbox.read("f"), ErrorKind::Archive, &["read from"]);
    }
}

#[test]
fn failing_writer_is_an_io_error() {
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
    assert_error(
        sandbox.read_to("f", &mut Full),
        ErrorKind::Io,
        &["cannot write"],
    );
}

/// A backend that only downloads directories, such as one that runs `tar -C`.
struct DirectoriesOnly {
    inner: LocalBackend,
    otherwise: fn() -> Result<Box<dyn Read + Send>>,
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
        let (workdir, relative) = src.split_at(src[1..].find('/').map_or(src.len(), |at| at + 1));
        let test = Command::new("test").arg("-d").arg(format!(".{relative}"));
        let test = test.workdir(workdir);
        match self.inner.exec(id, &test)?.success() {
            true => self.inner.download(id, src),
            false => (self.otherwise)(),
        }
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        self.inner.delete(id)
    }
}

/// The response of a backend that archives nothing, and does not notice.
fn empty_gzip() -> Result<Box<dyn Read + Send>> {
    let empty = flate2::read::GzEncoder::new(std::io::empty(), flate2::Compression::fast());
    Ok(Box::new(empty))
}

#[test]
fn file_is_read_from_directory_only_backend() {
    for otherwise in [
        || Err(Error::new(ErrorKind::NotFound, "404")),
        || Err(Error::new(ErrorKind::Status, "500")),
        empty_gzip,
    ] {
        let dir = Scratch::new();
        let backend = DirectoriesOnly {
            inner: local_backend(&dir),
            otherwise,
        };
        // Only a response of the server may have another meaning.
        let server = crate::support::v1_server::serve(backend);
        let client = Client::new(server.url()).unwrap();
        let sandbox = client.create("s", SandboxSpec::new()).unwrap();
        let mut binary: Vec<u8> = (0..=255).collect();
        binary.extend(noise(100_000));
        sandbox.write("d/bin", &binary).unwrap();
        sandbox.write("-rf", "dash").unwrap();
        sandbox.run(["ln", "-s", "d/bin", "link"]).unwrap();
        let before = sandbox.exec(["ls", "-A"]).unwrap();
        let read = |name: &str| sandbox.read(name);
        assert_error(read("gone"), ErrorKind::NotFound, &["/workspace/gone"]);
        assert_error(read("d"), ErrorKind::InvalidInput, &["is a directory"]);
        assert!(read("d/bin").unwrap() == binary);
        assert!(read("link").unwrap() == binary);
        assert_eq!(read("-rf").unwrap(), b"dash");
        sandbox.write("/tmp/t", "in tmp").unwrap();
        assert_eq!(read("/tmp/t").unwrap(), b"in tmp");
        let after = sandbox.exec(["ls", "-A"]).unwrap();
        assert_eq!(before.stdout(), after.stdout());
    }
}

#[test]
fn read_follows_links_to_files() {
    let (sandbox, _dir) = local();
    sandbox.write("d/f", "x").unwrap();
    sandbox.run(["ln", "-s", "d/f", "link"]).unwrap();
    sandbox.run(["ln", "-s", "d", "dirlink"]).unwrap();
    assert_eq!(sandbox.read("link").unwrap(), b"x");
    for name in ["d", "dirlink"] {
        assert_error(
            sandbox.read(name),
            ErrorKind::InvalidInput,
            &["is a directory"],
        );
    }
    assert_error(
        sandbox.read("gone"),
        ErrorKind::NotFound,
        &["/workspace/gone"],
    );
}

#[test]
fn link_exists_if_its_target_exists() {
    let (sandbox, _dir) = local();
    sandbox.write("d/-f", "x").unwrap();
    sandbox.run(["ln", "-s", "gone", "dangling"]).unwrap();
    sandbox.run(["ln", "-s", "d", "link"]).unwrap();
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
            let path = parent.join(os_str(&name));
            match content {
                _ if path.symlink_metadata().is_ok() => {}
                Some(content) => {
                    fs::write(&path, content).unwrap();
                    chmod(&path, mode);
                }
                // The next entry is in this directory or at the top again.
                None if path.as_os_str().len() < 500 => {
                    fs::create_dir(&path).unwrap();
                    parent = if mode & 0o100 == 0 { top.clone() } else { path };
                }
                None => symlink(os_str(&name), &path).unwrap(),
            }
        }
        assert_survives(&top);
    }
}

#[test]
fn tmp_belongs_to_the_sandbox() {
    let (sandbox, _dir) = local();
    let name = format!("/tmp/noxrunner-{}", std::process::id());
    sandbox.write(&name, "inside").unwrap();
    assert!(sandbox.exists(&name).unwrap() && !Path::new(&name).exists());
    assert_eq!(sandbox.read(&name).unwrap(), b"inside");
    // A file of this machine with a name of the sandbox is not the sandbox's.
    let outside = format!("{name}-outside");
    fs::write(&outside, "outside").unwrap();
    let (there, read) = (sandbox.exists(&outside), sandbox.read(&outside));
    fs::remove_file(&outside).unwrap();
    assert!(!there.unwrap());
    assert_error(read, ErrorKind::NotFound, &["does not exist"]);
    sandbox.run(["ln", "-s", "/etc/hostname", "l"]).unwrap();
    assert_error(sandbox.read("l"), ErrorKind::NotFound, &["does not exist"]);
}

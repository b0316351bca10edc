//! The target directory of an archive.

use super::*;

#[test]
fn missing_parents_of_the_target_are_created() {
    let fixture = Fixture::new();
    let target = fixture.dir.join("a/b/c");
    sandbox_with_download(some_archive().finish())
        .download_dir("/workspace", &target)
        .unwrap();
    assert_eq!(fs::read(target.join("d/f")).unwrap(), b"one");
    let names: Vec<_> = fs::read_dir(fixture.dir.join("a/b")).unwrap().collect();
    assert_eq!(names.len(), 1, "only the target");
}

#[test]
fn existing_target_keeps_other_files() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.target.join("d/own")).unwrap();
    fs::write(fixture.target.join("d/f"), "old").unwrap();
    fs::write(fixture.target.join("d/kept"), "kept").unwrap();
    symlink("../outside/secret", fixture.target.join("g")).unwrap();
    let before = fixture.target.metadata().unwrap().ino();
    fixture
        .unpack(some_archive().dir("new/sub/").finish())
        .unwrap();
    assert_eq!(fixture.read("d/f"), b"one");
    assert_eq!(fixture.read("d/kept"), b"kept");
    assert!(fixture.target.join("d/own").is_dir() && fixture.target.join("new/sub").is_dir());
    assert!(
        fixture
            .target
            .join("g")
            .symlink_metadata()
            .unwrap()
            .is_file()
    );
    assert_eq!(fixture.target.metadata().unwrap().ino(), before);
    // Again, into the target that now exists.
    fixture.unpack(some_archive().finish()).unwrap();
}

#[test]
fn conflict_is_found_before_anything_moves() {
    let check = |make: &dyn Fn(&Path), parts: &[&str]| {
        let fixture = Fixture::new();
        fs::create_dir(&fixture.target).unwrap();
        make(&fixture.target);
        let before = snapshot(&fixture.target);
        let archive = TarBuilder::new()
            .file("a", b"new")
            .file("d/f", b"new")
            .file("m", b"new")
            .file("z", b"new");
        assert_error(fixture.unpack(archive.finish()), ErrorKind::Archive, parts);
        // No directory except the target has a new modification time.
        assert_eq!(snapshot(&fixture.target), before);
    };
    let file = |path: PathBuf| fs::write(path, "old").unwrap();
    check(
        &|t| file(t.join("d")),
        &["\"d\"", "the target has a file there"],
    );
    let dir = |path: PathBuf| fs::create_dir_all(path).unwrap();
    check(
        &|t| dir(t.join("m/x")),
        &["\"m\"", "the target has a directory there"],
    );
    check(
        &|t| dir(t.join("d/f")),
        &["\"d/f\"", "the target has a directory there"],
    );
    let out = |path: PathBuf| symlink("../outside", path).unwrap();
    check(
        &|t| out(t.join("d")),
        &[
            "\"d\"",
            "the target has a symbolic link there",
            "links are not followed",
        ],
    );
}

#[test]
fn error_leaves_existing_target_unchanged() {
    let fixture = Fixture::new();
    fs::create_dir(&fixture.target).unwrap();
    fs::write(fixture.target.join("g"), "old").unwrap();
    let before = snapshot(&fixture.target);
    let mut archive = gzip(&some_archive().finish());
    archive.pop();
    assert_error(fixture.unpack(archive), ErrorKind::Archive, &["truncated"]);
    let archive = some_archive().file("../x", b"x").finish();
    assert_error(fixture.unpack(archive), ErrorKind::Archive, &["../x"]);
    assert_eq!(snapshot(&fixture.target), before);
}

#[test]
fn file_as_target_is_an_error() {
    let fixture = Fixture::new();
    fs::write(&fixture.target, "mine").unwrap();
    let result = fixture.unpack(some_archive().finish());
    assert_error(result, ErrorKind::Io, &["target", "not a directory"]);
    assert_eq!(fs::read(&fixture.target).unwrap(), b"mine");
    let below =
        sandbox_with_download(some_archive().finish()).download_dir("/w", fixture.target.join("x"));
    assert_error(below, ErrorKind::Io, &["target/x"]);
}

#[test]
fn fifo_as_target_does_not_block() {
    let dir = Scratch::new();
    let fifo = dir.join("pipe");
    let made = process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let result = with_timeout(move || {
        sandbox_with_download(some_archive().finish()).download_dir("/w", fifo)
    });
    let result = result.expect("waits for the other end of the FIFO");
    assert_error(result, ErrorKind::Io, &["pipe", "not a directory"]);
}

#[test]
fn directories_get_modes_and_times_last() {
    let fixture = Fixture::new();
    let closed = header(EntryType::Directory, "d", 0, 0o555);
    let archive = TarBuilder::new()
        .entry(&closed, b"")
        .file("d/f", b"x")
        .file("d/g/h", b"y");
    fixture.unpack(archive.finish()).unwrap();
    assert_eq!(fixture.mode("d"), 0o555);
    assert_eq!(
        fixture.target.join("d").metadata().unwrap().mtime(),
        1_000_000_000
    );
    assert_eq!(
        fixture.target.join("d/f").metadata().unwrap().mtime(),
        1_000_000_000
    );
    chmod(fixture.target.join("d"), 0o755);
}

/// A file system of 1 MiB, unmounted when dropped.
struct SmallDisk(Scratch);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let dir = Scratch::new();
        let mounted = process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(out) if out.status.success() => Some(SmallDisk(dir)),
            _ => None,
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

#[test]
fn full_disk_is_an_error_and_leaves_no_partial_file() {
    let Some(disk) = SmallDisk::mount() else {
        let required = std::env::var("NOXRUNNER_REQUIRE_SANDBOX").is_ok_and(|v| v == "1");
        assert!(!required, "cannot mount a tmpfs");
        eprintln!("skipped: cannot mount a tmpfs");
        return;
    };
    let archive = TarBuilder::new()
        .file("small", b"x")
        .file("large", &noise(2 << 20))
        .finish();
    let parts = ["large", "no space"];
    let fresh = sandbox_with_download(archive.clone()).download_dir("/w", disk.0.join("new"));
    assert_error(fresh, ErrorKind::Io, &parts);
    assert!(snapshot(disk.0.path()).is_empty());
    let merged = sandbox_with_download(archive).download_dir("/w", disk.0.path());
    assert_error(merged, ErrorKind::Io, &parts);
    assert!(snapshot(disk.0.path()).is_empty());
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Copy(prop::sample::Index, prop::sample::Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (index(), any::<u8>()).prop_map(|(at, byte)| Mutation::Flip(at, byte)),
        1 => index().prop_map(Mutation::Cut),
        2 => (index(), index()).prop_map(|(from, to)| Mutation::Copy(from, to)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutations: &[Mutation]) {
    for mutation in mutations {
        match mutation {
            _ if bytes.len() < 1024 => {}
            Mutation::Flip(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Mutation::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Mutation::Copy(from, to) => {
                let block = |at: &prop::sample::Index| at.index(bytes.len() / 512) * 512;
                let (from, to) = (block(from), block(to));
                bytes.copy_within(from..from + 512, to);
            }
        }
    }
}

/// Corrects the checksums, so that the mutated fields are read.
fn fix_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn mutated_archives_never_panic_or_escape(
        mutations in prop::collection::vec(mutation(), 1..12),
        in_headers in any::<bool>(),
        packed in any::<bool>(),
        skip in any::<bool>(),
    ) {
        let long = "n".repeat(300);
        let mut tar = some_archive()
            .hardlink("h", "g")
            .symlink("d/up", "../g")
            .pax("path", &long.as_bytes()[..200])
            .file("short", b"pax")
            .entry(&header(EntryType::GNULongName, "long", 300, 0o644), long.as_bytes())
            .entry(&sparse(512), &[1; 512])
            .special(EntryType::Fifo, "fifo")
            .finish();
        let mut archive = if in_headers || !packed {
            mutate(&mut tar, &mutations);
            fix_checksums(&mut tar);
            tar
        } else {
            let mut archive = gzip(&[tar, noise(4096)].concat());
            mutate(&mut archive, &mutations);
            archive
        };
        if in_headers && packed {
            archive = gzip(&archive);
        }
        let extract = Extract::new().skip_refused(skip).max_bytes(1 << 20);
        // Only what must not be created is checked.
        let fixture = Fixture::new();
        if let Err(error) = fixture.unpack_with(archive, &extract) {
            // A name can be too long for the file system.
            prop_assert!(matches!(error.kind(), ErrorKind::Archive | ErrorKind::Io), "{error}");
        }
        prop_assert_eq!(fs::read(fixture.dir.join(os_str(b"outside/secret"))).unwrap(), b"untouched");
    }
}

#[test]
fn implied_directories_count_as_entries() {
    let name = |n: usize| format!("{n}/{}f", "d/".repeat(40));
    let mut raw = TarBuilder::new();
    for n in 0..30 {
        raw = raw.file(&name(n), b"x");
    }
    let fixture = Fixture::new();
    let done = fixture.unpack_with(raw.finish(), &Extract::new().max_entries(1000));
    assert_error(done, ErrorKind::Archive, &["1000 entries", "max_entries"]);
}

#[test]
fn refused_download_leaves_no_parent_directories() {
    let fixture = Fixture::new();
    let target = fixture.target.join("a/b/out");
    let raw = TarBuilder::new().file("../x", b"x");
    let done = sandbox_with_download(raw.finish()).download_dir("/workspace", &target);
    assert_error(done, ErrorKind::Archive, &["../x"]);
    assert!(!fixture.target.exists());
}

#[test]
fn read_only_directory_can_be_filled_again() {
    let fixture = Fixture::new();
    let closed = header(EntryType::Directory, "closed", 0, 0o555);
    let archive = TarBuilder::new()
        .entry(&closed, b"")
        .file("closed/f", b"x")
        .finish();
    for _ in 0..2 {
        fixture.unpack(archive.clone()).unwrap();
        assert_eq!(fixture.mode("closed"), 0o555);
    }
}

#[test]
fn existing_directories_keep_their_modes() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.target.join("private")).unwrap();
    chmod(fixture.target.join("private"), 0o2700);
    let raw = TarBuilder::new().dir("private").file("private/f", b"x");
    fixture.unpack(raw.finish()).unwrap();
    assert_eq!(fixture.mode("private"), 0o2700);
    assert_eq!(fixture.read("private/f"), b"x");
}

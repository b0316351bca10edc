//! The target directory of an archive.

use super::*;

#[test]
fn missing_parents_of_the_target_are_created() {
    let place = Place::new();
    let target = place.dir.join("a/b/c");
    sending(some_archive().done())
        .download_dir("/workspace", &target)
        .unwrap();
    assert_eq!(fs::read(target.join("d/f")).unwrap(), b"one");
    let names: Vec<_> = fs::read_dir(place.dir.join("a/b")).unwrap().collect();
    assert_eq!(names.len(), 1, "only the target");
}

#[test]
fn existing_target_keeps_other_files() {
    let place = Place::new();
    fs::create_dir_all(place.target.join("d/own")).unwrap();
    fs::write(place.target.join("d/f"), "old").unwrap();
    fs::write(place.target.join("d/kept"), "kept").unwrap();
    symlink("../outside/secret", place.target.join("g")).unwrap();
    let before = place.target.metadata().unwrap().ino();
    place.unpack(some_archive().dir("new/sub/").done()).unwrap();
    assert_eq!(place.read("d/f"), b"one");
    assert_eq!(place.read("d/kept"), b"kept");
    assert!(place.target.join("d/own").is_dir() && place.target.join("new/sub").is_dir());
    assert!(place.target.join("g").symlink_metadata().unwrap().is_file());
    assert_eq!(place.target.metadata().unwrap().ino(), before);
    // Again, into the target that now exists.
    place.unpack(some_archive().done()).unwrap();
}

#[test]
fn conflict_is_found_before_anything_moves() {
    let check = |make: &dyn Fn(&Path), parts: &[&str]| {
        let place = Place::new();
        fs::create_dir(&place.target).unwrap();
        make(&place.target);
        let before = snapshot(&place.target);
        let archive = Raw::new()
            .file("a", b"new")
            .file("d/f", b"new")
            .file("m", b"new")
            .file("z", b"new");
        fails(place.unpack(archive.done()), ErrorKind::Archive, parts);
        // No directory except the target has a new modification time.
        assert_eq!(snapshot(&place.target), before);
    };
    let file = |path: PathBuf| fs::write(path, "old").unwrap();
    check(&|t| file(t.join("d")), &["\"d\"", "a file stands"]);
    let dir = |path: PathBuf| fs::create_dir_all(path).unwrap();
    check(&|t| dir(t.join("m/x")), &["\"m\"", "a directory stands"]);
    check(&|t| dir(t.join("d/f")), &["\"d/f\"", "a directory stands"]);
    let out = |path: PathBuf| symlink("../outside", path).unwrap();
    check(
        &|t| out(t.join("d")),
        &["\"d\"", "a link stands", "nothing is written through"],
    );
}

#[test]
fn error_leaves_existing_target_unchanged() {
    let place = Place::new();
    fs::create_dir(&place.target).unwrap();
    fs::write(place.target.join("g"), "old").unwrap();
    let before = snapshot(&place.target);
    let mut archive = gzip(&some_archive().done());
    archive.pop();
    fails(place.unpack(archive), ErrorKind::Archive, &["cut off"]);
    let archive = some_archive().file("../x", b"x").done();
    fails(place.unpack(archive), ErrorKind::Archive, &["../x"]);
    assert_eq!(snapshot(&place.target), before);
}

#[test]
fn file_as_target_is_an_error() {
    let place = Place::new();
    fs::write(&place.target, "mine").unwrap();
    let result = place.unpack(some_archive().done());
    fails(result, ErrorKind::Io, &["target", "not a directory"]);
    assert_eq!(fs::read(&place.target).unwrap(), b"mine");
    let below = sending(some_archive().done()).download_dir("/w", place.target.join("x"));
    fails(below, ErrorKind::Io, &["target/x"]);
}

#[test]
fn fifo_as_target_does_not_block() {
    let dir = Scratch::new();
    let fifo = dir.join("pipe");
    let made = process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let result = in_time(move || sending(some_archive().done()).download_dir("/w", fifo));
    let result = result.expect("waits for the other end of the FIFO");
    fails(result, ErrorKind::Io, &["pipe", "not a directory"]);
}

#[test]
fn directories_get_modes_and_times_last() {
    let place = Place::new();
    let closed = header(EntryType::Directory, "d", 0, 0o555);
    let archive = Raw::new()
        .entry(&closed, b"")
        .file("d/f", b"x")
        .file("d/g/h", b"y");
    place.unpack(archive.done()).unwrap();
    assert_eq!(place.mode("d"), 0o555);
    assert_eq!(
        place.target.join("d").metadata().unwrap().mtime(),
        1_000_000_000
    );
    assert_eq!(
        place.target.join("d/f").metadata().unwrap().mtime(),
        1_000_000_000
    );
    chmod(place.target.join("d"), 0o755);
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
        assert!(!required, "a tmpfs can't be mounted");
        eprintln!("skipped: a tmpfs can't be mounted");
        return;
    };
    let archive = Raw::new()
        .file("small", b"x")
        .file("large", &noise(2 << 20))
        .done();
    let parts = ["large", "no space"];
    let fresh = sending(archive.clone()).download_dir("/w", disk.0.join("new"));
    fails(fresh, ErrorKind::Io, &parts);
    assert!(snapshot(disk.0.path()).is_empty());
    let merged = sending(archive).download_dir("/w", disk.0.path());
    fails(merged, ErrorKind::Io, &parts);
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
fn mend(tar: &mut [u8]) {
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
            .done();
        let mut archive = if in_headers || !packed {
            mutate(&mut tar, &mutations);
            mend(&mut tar);
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
        let place = Place::new();
        if let Err(error) = place.unpack_with(archive, &extract) {
            // A name can be too long for the file system.
            prop_assert!(matches!(error.kind(), ErrorKind::Archive | ErrorKind::Io), "{error}");
        }
        prop_assert_eq!(fs::read(place.dir.join(os(b"outside/secret"))).unwrap(), b"untouched");
    }
}

#[test]
fn implied_directories_count_as_entries() {
    let name = |n: usize| format!("{n}/{}f", "d/".repeat(40));
    let mut raw = Raw::new();
    for n in 0..30 {
        raw = raw.file(&name(n), b"x");
    }
    let place = Place::new();
    let done = place.unpack_with(raw.done(), &Extract::new().max_entries(1000));
    fails(done, ErrorKind::Archive, &["1000 entries", "max_entries"]);
}

#[test]
fn refused_download_leaves_no_parent_directories() {
    let place = Place::new();
    let target = place.target.join("a/b/out");
    let raw = Raw::new().file("../x", b"x");
    let done = sending(raw.done()).download_dir("/workspace", &target);
    fails(done, ErrorKind::Archive, &["../x"]);
    assert!(!place.target.exists());
}

#[test]
fn read_only_directory_can_be_filled_again() {
    let place = Place::new();
    let closed = header(EntryType::Directory, "closed", 0, 0o555);
    let archive = Raw::new().entry(&closed, b"").file("closed/f", b"x").done();
    for _ in 0..2 {
        place.unpack(archive.clone()).unwrap();
        assert_eq!(place.mode("closed"), 0o555);
    }
}

#[test]
fn existing_directories_keep_their_modes() {
    let place = Place::new();
    fs::create_dir_all(place.target.join("private")).unwrap();
    chmod(place.target.join("private"), 0o2700);
    let raw = Raw::new().dir("private").file("private/f", b"x");
    place.unpack(raw.done()).unwrap();
    assert_eq!(place.mode("private"), 0o2700);
    assert_eq!(place.read("private/f"), b"x");
}

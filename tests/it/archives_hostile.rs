//! Truncated, damaged and hostile archives, and their target directories.

/// Limits, and reports of refused and unreadable entries.
mod reports;
/// The target directory of an archive.
mod targets;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use noxrunner::{ErrorKind, Extract, Extraction, Result};
use proptest::prelude::*;
use tar::{EntryType, Header};

use super::archives::{
    Scratch, assert_error, chmod, noise, os_str, sandbox_with_download, sandbox_with_stream,
    snapshot, with_timeout,
};

/// An archive built by hand, because a library would refuse to write most of these.
#[derive(Default)]
struct TarBuilder(Vec<u8>);

impl TarBuilder {
    fn new() -> TarBuilder {
        TarBuilder::default()
    }

    fn entry(mut self, header: &Header, content: &[u8]) -> TarBuilder {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &[u8]) -> TarBuilder {
        let header = header(EntryType::Regular, name, content.len() as u64, 0o644);
        self.entry(&header, content)
    }

    fn dir(self, name: &str) -> TarBuilder {
        self.entry(&header(EntryType::Directory, name, 0, 0o755), b"")
    }

    fn special(self, kind: EntryType, name: &str) -> TarBuilder {
        self.entry(&header(kind, name, 0, 0o644), b"")
    }

    fn link(self, kind: EntryType, name: &str, target: &str) -> TarBuilder {
        let mut header = header(kind, name, 0, 0o777);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.entry(&header, b"")
    }

    fn symlink(self, name: &str, target: &str) -> TarBuilder {
        self.link(EntryType::Symlink, name, target)
    }

    fn hardlink(self, name: &str, target: &str) -> TarBuilder {
        self.link(EntryType::Link, name, target)
    }

    /// A PAX record about the next entry.
    fn pax(self, key: &str, value: &[u8]) -> TarBuilder {
        self.record(EntryType::XHeader, key, value)
    }

    /// A PAX record about all following entries.
    fn pax_global(self, key: &str, value: &[u8]) -> TarBuilder {
        self.record(EntryType::XGlobalHeader, key, value)
    }

    fn record(self, kind: EntryType, key: &str, value: &[u8]) -> TarBuilder {
        let rest = key.len() + value.len() + 3;
        let length = (rest..).find(|n| n.to_string().len() + rest == *n).unwrap();
        let record = [
            format!("{length} {key}=").as_bytes(),
            value,
            b"\n".as_slice(),
        ]
        .concat();
        let header = header(kind, "pax", record.len() as u64, 0o644);
        self.entry(&header, &record)
    }

    fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn header(kind: EntryType, name: &str, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(1_000_000_000);
    header.set_cksum();
    header
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A target with neighbours that must stay unchanged.
struct Fixture {
    dir: Scratch,
    target: PathBuf,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = Scratch::new();
        fs::create_dir(dir.join("outside")).unwrap();
        fs::write(dir.join("outside/secret"), "untouched").unwrap();
        fs::write(dir.join("file"), "untouched").unwrap();
        let target = dir.join("target");
        Fixture { dir, target }
    }

    /// Unpacks an archive and asserts that only the target changed.
    #[track_caller]
    fn unpack_with(&self, archive: Vec<u8>, extract: &Extract) -> Result<Extraction> {
        let others = || {
            let mut all = snapshot(self.dir.path());
            all.retain(|name, _| !name.starts_with(b"target"));
            all
        };
        let before = others();
        let existed = self.target.symlink_metadata().is_ok();
        let result =
            sandbox_with_download(archive).download_dir_with("/workspace", &self.target, extract);
        assert_eq!(others(), before);
        if result.is_err() && !existed {
            assert!(
                self.target.symlink_metadata().is_err(),
                "the target was left"
            );
        }
        if existed && self.target.is_dir() {
            let left = |name: &Vec<u8>| name.starts_with(b".noxrunner-");
            assert!(
                !snapshot(&self.target).keys().any(left),
                "a staging directory was left"
            );
        }
        result
    }

    #[track_caller]
    fn unpack(&self, archive: Vec<u8>) -> Result<Extraction> {
        self.unpack_with(archive, &Extract::new())
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.target.join(name)).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        let found = self.target.join(name).symlink_metadata().unwrap();
        found.mode() & 0o7777
    }
}

/// Asserts that the archive is refused by default, naming the entry and the rule. With `skip_refused`, only
/// the entry is left out.
#[track_caller]
fn assert_refused(archive: TarBuilder, name: &str, rule: &str) {
    let archive = archive.file("good", b"kept").finish();
    let shown = format!("entry {name:?} is refused");
    assert_error(
        Fixture::new().unpack(archive.clone()),
        ErrorKind::Archive,
        &[&shown, rule],
    );
    let fixture = Fixture::new();
    let done = fixture
        .unpack_with(gzip(&archive), &Extract::new().skip_refused(true))
        .unwrap();
    assert_eq!(done.refused().len(), 1, "{done:?}");
    assert_eq!(done.refused()[0].name(), name);
    assert!(done.refused()[0].rule().contains(rule), "{done:?}");
    assert_eq!(fixture.read("good"), b"kept");
}

fn some_archive() -> TarBuilder {
    TarBuilder::new()
        .dir("d/")
        .file("d/f", b"one")
        .file("g", &[b'x'; 3000])
        .symlink("l", "d/f")
}

#[test]
fn gzip_plain_and_multi_member_archives_unpack() {
    let plain = some_archive().finish();
    let members = [gzip(&plain[..1000]), gzip(&plain[1000..])].concat();
    let padded = [&plain[..], &[0; 10 * 1024]].concat();
    let archives = [
        plain.clone(),
        gzip(&plain),
        members,
        padded.clone(),
        gzip(&padded),
    ];
    for archive in archives {
        let fixture = Fixture::new();
        let done = fixture.unpack(archive).unwrap();
        assert_eq!((done.entries(), done.bytes()), (4, 3003));
        assert_eq!(fixture.read("l"), b"one");
        assert_eq!(fixture.read("g"), [b'x'; 3000]);
    }
}

#[test]
fn padding_after_the_end_is_ignored() {
    // `tar --blocking-factor=8192` pads the last record to 4 MiB.
    let padded = [some_archive().finish(), vec![0; 4 << 20]].concat();
    assert_eq!(Fixture::new().unpack(padded).unwrap().entries(), 4);
}

#[test]
fn non_archive_is_an_error_and_leaves_nothing() {
    let html = format!("<html><body>{}</body></html>", "Bad gateway ".repeat(100));
    for (bytes, text) in [
        (Vec::new(), "empty"),
        (b"x".to_vec(), ""),
        (b"<html>Bad gateway</html>".to_vec(), ""),
        (html.into_bytes(), "not a tar or tar.gz archive"),
        (noise(5000), "not a tar or tar.gz archive"),
        (gzip(&noise(5000)), "not a tar or tar.gz archive"),
        (gzip(b""), "truncated"),
        (b"\x1f\x8b".to_vec(), ""),
        (b"\x1f\x8bnonsense and more of it".to_vec(), ""),
    ] {
        assert_error(Fixture::new().unpack(bytes), ErrorKind::Archive, &[text]);
    }
}

#[test]
fn truncated_archive_is_an_error() {
    let plain = some_archive().finish();
    // Headers at 0, 512, 1536 and 5120; the end marker at 5632.
    for (at, text) in [
        (512, "truncated (no end marker after 1 entries"),
        (1024, "truncated inside entry \"d/f\""),
        (1026, "truncated inside entry \"d/f\""),
        (1536, "truncated (no end marker after 2 entries)"),
        (1700, ""),
        (3000, "truncated inside entry \"g\""),
        (5120, "truncated (no end marker after 3 entries)"),
        (5632, "truncated (no end marker after 4 entries)"),
    ] {
        let cut = plain[..at].to_vec();
        assert_error(
            Fixture::new().unpack(gzip(&cut)),
            ErrorKind::Archive,
            &[text],
        );
        assert_error(Fixture::new().unpack(cut), ErrorKind::Archive, &[text]);
    }
    let packed = gzip(&TarBuilder::new().file("f", &noise(20_000)).finish());
    for at in (3..packed.len()).step_by(499).chain([packed.len() - 1]) {
        let cut = packed[..at].to_vec();
        assert_error(
            Fixture::new().unpack(cut),
            ErrorKind::Archive,
            &["truncated"],
        );
    }
}

#[test]
fn wrong_checksum_is_an_error_and_leaves_nothing() {
    let whole = gzip(&some_archive().finish());
    for from_end in [8, 4, 1] {
        let mut damaged = whole.clone();
        let at = damaged.len() - from_end;
        damaged[at] ^= 1;
        assert_error(
            Fixture::new().unpack(damaged),
            ErrorKind::Archive,
            &["damaged"],
        );
    }
    let mut tar = some_archive().finish();
    tar[1536 + 100] ^= 1;
    assert_error(
        Fixture::new().unpack(tar),
        ErrorKind::Archive,
        &["checksum"],
    );
}

#[test]
fn names_outside_the_target_are_refused() {
    let file = |name: &str| TarBuilder::new().file(name, b"x");
    assert_refused(file("/etc/x"), "/etc/x", "absolute");
    assert_refused(file("../x"), "../x", "\"..\" component");
    assert_refused(file("a/../../x"), "a/../../x", "\"..\" component");
    assert_refused(file("a/.."), "a/..", "\"..\" component");
    assert_refused(TarBuilder::new().dir("../d/"), "../d/", "\"..\" component");
    assert_refused(
        TarBuilder::new().symlink("../l", "x"),
        "../l",
        "\"..\" component",
    );
    assert_refused(file("."), ".", "name is empty");
    let nul = TarBuilder::new()
        .pax("path", b"a\0b")
        .file("harmless", b"x");
    assert_refused(nul, "a b", "NUL");
    let pax = TarBuilder::new()
        .pax("path", b"/etc/x")
        .file("harmless", b"x");
    assert_refused(pax, "/etc/x", "absolute");
}

#[test]
fn dots_within_names_are_allowed() {
    let fixture = Fixture::new();
    let archive = TarBuilder::new()
        .dir("./")
        .file("./x..y", b"1")
        .file("...", b"2")
        .file("a//./b", b"3")
        .file("..\\w", b"4");
    fixture.unpack(archive.finish()).unwrap();
    let (one, two) = (fixture.read("x..y"), fixture.read("..."));
    let (three, four) = (fixture.read("a/b"), fixture.read("..\\w"));
    assert_eq!([one, two, three, four].concat(), b"1234");
}

#[test]
fn long_name_may_contain_a_newline() {
    let fixture = Fixture::new();
    let archive = TarBuilder::new()
        .pax("path", b"first\nsecond")
        .file("short", b"x");
    fixture.unpack(archive.finish()).unwrap();
    assert_eq!(fixture.read("first\nsecond"), b"x");
}

#[test]
fn files_are_not_written_through_links() {
    let through = "would be written through a link";
    let link = || TarBuilder::new().dir("d/").symlink("link", "d");
    assert_refused(link().file("link/f", b"x"), "link/f", through);
    assert_refused(link().dir("link/"), "link/", through);
    assert_refused(link().dir("link/sub/"), "link/sub/", through);
    assert_refused(link().symlink("link/l", "x"), "link/l", through);
    assert_refused(link().file("link/a/b/c", b"x"), "link/a/b/c", through);
    let first = TarBuilder::new().file("f", b"x");
    let stands = "its parent is a file";
    assert_refused(first.file("f/g", b"x"), "f/g", stands);
}

#[test]
fn file_replaces_an_earlier_link() {
    let fixture = Fixture::new();
    let archive = TarBuilder::new()
        .file("f", b"first")
        .symlink("link", "f")
        .file("link", b"second");
    fixture.unpack(archive.finish()).unwrap();
    assert_eq!(
        (fixture.read("f"), fixture.read("link")),
        (b"first".into(), b"second".into())
    );
}

#[test]
fn links_outside_the_target_are_refused() {
    let out = "leads out of the target";
    for target in [
        "/etc/passwd",
        "..",
        "../outside",
        "x/../..",
        "./../x",
        "d/b/..",
    ] {
        assert_refused(TarBuilder::new().symlink("link", target), "link", out);
    }
    assert_refused(
        TarBuilder::new().symlink("a/b/link", "../../../x"),
        "a/b/link",
        out,
    );
    // Each link stays inside by itself, but together they lead outside.
    let chain = TarBuilder::new()
        .symlink("d/b", "..")
        .symlink("x", "d/b/..");
    assert_refused(chain, "x", out);
    let chain = TarBuilder::new()
        .symlink("d/e/b", "../..")
        .symlink("d/x", "e/b/../outside");
    assert_refused(chain, "d/x", out);
    let pax = TarBuilder::new()
        .pax("linkpath", b"../../outside")
        .symlink("l", "x");
    assert_refused(pax, "l", out);
    let nul = TarBuilder::new().pax("linkpath", b"a\0b").symlink("l", "x");
    assert_refused(nul, "l", "NUL byte");
}

#[test]
fn links_inside_the_target_are_kept() {
    let fixture = Fixture::new();
    let archive = TarBuilder::new()
        .symlink("a/up", "../b")
        .symlink("dangling", "no/where")
        .symlink("self", "self")
        .symlink("dot", ".");
    assert_eq!(fixture.unpack(archive.finish()).unwrap().entries(), 4);
    assert_eq!(
        fs::read_link(fixture.target.join("a/up")).unwrap(),
        Path::new("../b")
    );
}

#[test]
fn hard_link_needs_an_earlier_file() {
    let rule = "a hard link to something other than a preceding file";
    let hard = |target: &str| TarBuilder::new().hardlink("h", target);
    assert_refused(hard("missing"), "h", rule);
    assert_refused(hard("no/such/dir"), "h", rule);
    assert_refused(hard("../file"), "h", "\"..\" component");
    assert_refused(hard("/etc/passwd"), "h", "absolute");
    assert_refused(TarBuilder::new().dir("d/").hardlink("h", "d"), "h", rule);
    assert_refused(
        TarBuilder::new().symlink("l", "x").hardlink("h", "l"),
        "h",
        rule,
    );
    let fixture = Fixture::new();
    let archive = TarBuilder::new().file("d/f", b"x").hardlink("e/h", "d/f");
    fixture.unpack(archive.finish()).unwrap();
    assert_eq!(fixture.read("e/h"), b"x");
}

#[test]
fn hard_link_through_link_or_file_is_refused() {
    let rule = "hard link";
    let through = TarBuilder::new().file("d/f", b"x").symlink("l", "d");
    assert_refused(through.hardlink("h", "l/f"), "h", rule);
    let below = TarBuilder::new().file("f", b"x").hardlink("h", "f/g");
    assert_refused(below, "h", rule);
}

#[test]
fn special_entries_are_refused() {
    let special = |kind| TarBuilder::new().special(kind, "dev");
    assert_refused(special(EntryType::Char), "dev", "it is a device");
    assert_refused(special(EntryType::Block), "dev", "it is a device");
    assert_refused(special(EntryType::Fifo), "dev", "it is a FIFO");
    assert_refused(special(EntryType::new(b'M')), "dev", "type is unknown");
    assert_refused(
        TarBuilder::new().entry(&sparse(512), &[1; 512]),
        "s",
        "sparse",
    );
    for key in ["GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size"] {
        let archive = TarBuilder::new().pax(key, b"1").file("s", &[b'x'; 700]);
        assert_refused(archive, "s", "it is a sparse file");
    }
}

fn sparse(size: u64) -> Header {
    let mut header = header(EntryType::GNUSparse, "s", size, 0o644);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    gnu.sparse[0].set_offset(0);
    gnu.sparse[0].set_length(size);
    header.set_cksum();
    header
}

#[test]
fn large_refused_entries_can_be_skipped() {
    let content = vec![b'x'; 3 << 20];
    assert_refused(
        TarBuilder::new().entry(&sparse(content.len() as u64), &content),
        "s",
        "sparse",
    );
    let unknown = header(EntryType::new(b'M'), "m", content.len() as u64, 0o644);
    assert_refused(
        TarBuilder::new().entry(&unknown, &content),
        "m",
        "type is unknown",
    );
    let kept = TarBuilder::new().file("../x", &content);
    assert_refused(kept, "../x", "\"..\" component");
}

#[test]
fn special_mode_bits_are_dropped() {
    let fixture = Fixture::new();
    let file = header(EntryType::Regular, "f", 0, 0o6755);
    let dir = header(EntryType::Directory, "d", 0, 0o1755);
    fixture
        .unpack(
            TarBuilder::new()
                .entry(&file, b"")
                .entry(&dir, b"")
                .finish(),
        )
        .unwrap();
    assert_eq!((fixture.mode("f"), fixture.mode("d")), (0o755, 0o755));
    let owner = fixture.target.join("f").metadata().unwrap().uid();
    assert_eq!(owner, fixture.dir.path().metadata().unwrap().uid());
}

#[test]
fn later_entry_of_the_same_name_wins() {
    let fixture = Fixture::new();
    let closed = header(EntryType::Directory, "d", 0, 0o700);
    let archive = TarBuilder::new()
        .file("f", b"a longer first one")
        .file("f", b"second")
        .entry(&closed, b"")
        .dir("d/");
    fixture.unpack(archive.finish()).unwrap();
    assert_eq!(fixture.read("f"), b"second");
    assert_eq!(fixture.mode("d"), 0o755);
}

#[test]
fn file_and_directory_of_the_same_name_are_refused() {
    let file_first = TarBuilder::new().file("x", b"f").dir("x/");
    assert_refused(file_first, "x/", "a file with the same name");
    let dir_first = TarBuilder::new().dir("x/").file("x", b"f");
    assert_refused(dir_first, "x", "a directory with the same name");
}

/// A header must not make the reader allocate what it promises.
#[test]
fn endless_headers_are_refused() {
    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
    ] {
        let start = TarBuilder::new()
            .entry(&header(kind, "long", 1 << 30, 0o644), b"")
            .into_bytes();
        let given = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&given);
        let sandbox = sandbox_with_stream(move || {
            let zeros = io::repeat(0).take(1 << 30);
            let inner = io::Cursor::new(start.clone()).chain(zeros);
            let given = Arc::clone(&counted);
            Box::new(Counted { inner, given })
        });
        let dir = Scratch::new();
        let result = sandbox.download_dir("/workspace", dir.join("target"));
        assert_error(
            result,
            ErrorKind::Archive,
            &["extended headers of an entry exceed"],
        );
        assert!(given.load(Ordering::SeqCst) < 4 << 20);
    }
}

struct Counted<R> {
    inner: R,
    given: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.given.fetch_add(got as u64, Ordering::SeqCst);
        Ok(got)
    }
}

//! Limits, and reports of refused and unreadable entries.

use super::*;

#[test]
fn refused_entries_do_not_slow_down_later_ones() {
    const REFUSED: usize = 100 * 1024;
    let block = |archive: TarBuilder| -> Vec<u8> { archive.into_bytes() };
    let refused = block(TarBuilder::new().dir("../x"));
    let harmless = block(TarBuilder::new().hardlink("f", "f"));
    let archive = [
        block(TarBuilder::new().file("f", b"x")),
        refused.repeat(REFUSED),
        harmless.repeat(REFUSED),
        vec![0; 1024],
    ]
    .concat();
    let dir = Scratch::new();
    let target = dir.join("out");
    let done = with_timeout(move || {
        let extract = Extract::new().skip_refused(true);
        sandbox_with_download(archive).download_dir_with("/", target, &extract)
    });
    let done = done.expect("too slow").unwrap();
    assert_eq!(done.refused().len(), REFUSED);
    assert_eq!(done.entries(), REFUSED as u64 + 1);
}

#[test]
fn reports_of_unreadable_entries_are_limited() {
    let mut archive = TarBuilder::new();
    for _ in 0..1001 {
        archive = archive.pax_global("NOXRUNNER.unreadable", b"x");
    }
    let dir = Scratch::new();
    let archive = sandbox_with_download(archive.file("f", b"x").finish());
    let extract = Extract::new().max_entries(1000);
    let done = archive.download_dir_with("/", dir.join("out"), &extract);
    assert_error(done, ErrorKind::Archive, &["1000 entries"]);
    let done = archive.download_dir("/", dir.join("out")).unwrap();
    assert_eq!((done.entries(), done.refused().len()), (1, 1001));
    // A report about a name outside of the target changes nothing there.
    let outside = TarBuilder::new().pax_global("NOXRUNNER.unreadable", b"../out/f");
    let done = sandbox_with_download(outside.finish()).download_dir("/", dir.join("two"));
    assert_eq!(done.unwrap().refused()[0].name(), "../out/f");
    assert!(dir.join("out/f").exists());
}

#[test]
fn reports_between_an_entry_and_its_headers_are_kept_and_limited() {
    const KEY: &str = "NOXRUNNER.unreadable";
    let archive = TarBuilder::new().pax("comment", b"x");
    let archive = archive.pax_global(KEY, b"a").pax_global(KEY, b"b");
    let dir = Scratch::new();
    let sandbox = sandbox_with_download(archive.file("f", b"x").finish());
    let done = sandbox.download_dir("/", dir.join("out")).unwrap();
    let names: Vec<_> = done.refused().iter().map(|entry| entry.name()).collect();
    assert_eq!(names, ["a", "b"]);

    let mut archive = TarBuilder::new().pax("comment", b"x");
    for _ in 0..11 {
        archive = archive.pax_global(KEY, &[b'x'; 100 * 1024]);
    }
    let sandbox = sandbox_with_download(archive.file("f", b"x").finish());
    let done = sandbox.download_dir("/", dir.join("two"));
    assert_error(done, ErrorKind::Archive, &["extended headers of an entry"]);
}

#[test]
fn limits_count_skipped_entries() {
    let archive = some_archive().finish();
    for skip in [false, true] {
        let extract = Extract::new().skip_refused(skip);
        let unpack = |extract: Extract| Fixture::new().unpack_with(gzip(&archive), &extract);
        unpack(extract.clone().max_entries(4)).unwrap();
        let few = unpack(extract.clone().max_entries(3));
        assert_error(few, ErrorKind::Archive, &["more than 3 entries"]);
        unpack(extract.clone().max_bytes(archive.len() as u64)).unwrap();
        let small = unpack(extract.clone().max_bytes(2000));
        assert_error(small, ErrorKind::Archive, &["more than 2000 bytes"]);
    }
}

#[test]
fn compression_bomb_is_refused_by_ratio() {
    const SIZE: usize = 300 << 20;
    let bomb = header(EntryType::Regular, "bomb", SIZE as u64, 0o644);
    // A sequence of gzip members is a valid archive and fast to build.
    let mut archive = gzip(bomb.as_bytes());
    let member = gzip(&vec![0; 10 << 20]);
    for _ in 0..SIZE / (10 << 20) {
        archive.extend_from_slice(&member);
    }
    archive.extend(gzip(&[0; 1024]));
    let result = Fixture::new().unpack_with(archive, &Extract::new().max_ratio(10));
    assert_error(result, ErrorKind::Archive, &["more than 10 times its size"]);
}

#[test]
fn huge_entry_size_is_a_truncated_archive() {
    for size in [1 << 40, (1 << 63) - 1, 1 << 63, u64::MAX] {
        let huge = header(EntryType::Regular, "huge", size, 0o644);
        let archive = TarBuilder::new().entry(&huge, b"little").finish();
        assert_error(Fixture::new().unpack(archive), ErrorKind::Archive, &[]);
    }
}

//! Checks of uploads and downloads.

use super::entries::{ArchiveEntry, EntryContent, entry, file};
use super::probe::Probe;
use super::verdict::{NotPassed, Verdict, all, expect};
use crate::http::{Endpoint, RawResponse};

/// Returns the directory of a check's files.
fn dest(name: &str) -> String {
    format!("/workspace/nx-{name}")
}

/// Finds an entry by its name.
fn find<'a>(entries: &'a [ArchiveEntry], name: &str) -> Option<&'a ArchiveEntry> {
    entries.iter().find(|entry| entry.name == name)
}

fn names(entries: &[ArchiveEntry]) -> String {
    let names: Vec<&str> = entries.iter().map(|entry| &*entry.name).collect();
    format!("{names:?}")
}

/// Passes if a download returns the uploaded entries. Modes may differ.
fn check_round_trip(probe: &Probe, name: &str, entries: &[ArchiveEntry]) -> Verdict {
    let back = probe.round_trip(&dest(name), entries)?;
    let is_same = |entry: &&ArchiveEntry| {
        find(&back, &entry.name).is_some_and(|b| b.content == entry.content)
    };
    match entries.iter().find(|entry| !is_same(entry)) {
        None => Ok(format!("{} entries are unchanged", entries.len())),
        Some(entry) => {
            let text = format!("{:?} has changed, of {}", entry.name, names(&back));
            Err(NotPassed::Failed(text))
        }
    }
}

pub(super) fn round_trip(probe: &Probe) -> Verdict {
    let bytes: Vec<u8> = (0..=255).collect();
    check_round_trip(
        probe,
        "round-trip",
        &[file("a/b.bin", bytes), file("c", "text\r\n")],
    )
}

pub(super) fn large(probe: &Probe) -> Verdict {
    let content = (0..2_000_003_u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8);
    check_round_trip(
        probe,
        "large",
        &[file("large", content.collect::<Vec<u8>>())],
    )
}

pub(super) fn odd_names(probe: &Probe) -> Verdict {
    let long = "n".repeat(180);
    let deep = format!("d{long}/{long}/x");
    let names = [
        "a  b",
        "-rf",
        "it's",
        "\"q\"",
        "$HOME",
        "ü-€-𝄞",
        &long,
        &deep,
    ];
    check_round_trip(probe, "names", &names.map(|name| file(name, "x")))
}

pub(super) fn empty(probe: &Probe) -> Verdict {
    check_round_trip(probe, "empty", &[file("empty", ""), file("other", "x")])
}

pub(super) fn empty_directories(probe: &Probe) -> Verdict {
    let empty = entry("d/empty", 0o755, EntryContent::Directory);
    check_round_trip(probe, "empty-directories", &[empty, file("other", "x")])
}

pub(super) fn links(probe: &Probe) -> Verdict {
    let link = entry("link", 0o777, EntryContent::Symlink("file".to_owned()));
    check_round_trip(probe, "links", &[file("file", "x"), link])
}

pub(super) fn modes(probe: &Probe) -> Verdict {
    let modes = [("run", 0o755), ("secret", 0o600), ("odd", 0o754)];
    let entries = modes.map(|(name, mode)| entry(name, mode, EntryContent::File(b"x".to_vec())));
    let back = probe.round_trip(&dest("modes"), &entries)?;
    all(modes.map(|(name, mode)| {
        let actual = find(&back, name).map_or(0, |entry| entry.mode & 0o777);
        expect(
            actual == mode,
            format!("{name}: {mode:o} became {actual:o}"),
        )
    }))
}

/// Fails if the server did not accept a request.
fn check_accepted(what: &str, answer: &RawResponse) -> Result<(), NotPassed> {
    expect(
        matches!(answer.status, 200..=299),
        format!("{what}: {}", answer.summary()),
    )
    .map(drop)
}

pub(super) fn upload_dest(probe: &Probe) -> Verdict {
    let id = probe.shared()?;
    let answer = probe.upload(id, &dest("dest/new/deep"), &[file("f", "x")])?;
    check_accepted("upload", &answer)?;
    let ran = probe.sh("cat nx-dest/new/deep/f")?;
    expect(ran.stdout == "x", ran.summary())
}

pub(super) fn upload_replaces(probe: &Probe) -> Verdict {
    let id = probe.shared()?;
    for content in ["a longer one", "two"] {
        let answer = probe.upload(id, &dest("replaces"), &[file("f", content)])?;
        check_accepted("upload", &answer)?;
    }
    let ran = probe.sh("cat nx-replaces/f")?;
    expect(ran.stdout == "two", ran.summary())
}

pub(super) fn upload_bad_archive(probe: &Probe) -> Verdict {
    // A gzip stream that ends within its first block.
    let cut = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xed, 0xcf];
    let bodies = [
        ("text", &b"this is not an archive"[..]),
        ("truncated gzip", &cut),
    ];
    all(bodies.map(|(what, body)| {
        let answer = probe.upload_bytes(probe.shared()?, &dest("bad"), body)?;
        expect(
            answer.status == 400,
            format!("{what}: {}", answer.summary()),
        )
    }))
}

pub(super) fn upload_stays_inside(probe: &Probe) -> Verdict {
    let entries = [file("../escaped", "x")];
    let answer = probe.upload(probe.shared()?, &dest("inside/in"), &entries)?;
    let look = "if [ -e nx-inside/escaped ]; then echo yes; else echo no; fi";
    let escaped = probe.set_up(probe.shared()?, look)?.stdout.trim() == "yes";
    expect(
        !escaped,
        format!("{}; written outside: {escaped}", answer.summary()),
    )
}

pub(super) fn upload_unknown(probe: &Probe) -> Verdict {
    let answer = probe.upload(&probe.unknown_id(), "/workspace", &[file("f", "x")])?;
    expect(answer.status == 404, answer.summary())
}

/// Creates a file to download with a command, and returns its directory.
fn create_files(probe: &Probe, name: &str) -> Result<String, NotPassed> {
    let make = format!("mkdir -p nx-{name}/sub && echo x >nx-{name}/sub/f");
    probe.set_up(probe.shared()?, &make)?;
    Ok(dest(name))
}

/// Downloads the archive of a new directory.
fn download_archive(probe: &Probe, name: &str) -> Result<RawResponse, NotPassed> {
    let src = create_files(probe, name)?;
    let answer = probe.send("GET", Endpoint::Download(probe.shared()?, &src), None)?;
    check_accepted("download", &answer)?;
    Ok(answer)
}

pub(super) fn download_relative(probe: &Probe) -> Verdict {
    let src = create_files(probe, "relative")?;
    let back = probe.download(&src)?;
    expect(find(&back, "sub/f").is_some(), names(&back))
}

pub(super) fn download_gzip(probe: &Probe) -> Verdict {
    let answer = download_archive(probe, "gzip")?;
    let start = answer.body.get(..2).unwrap_or_default();
    expect(
        start == [0x1f, 0x8b],
        format!("the archive starts with {start:02x?}"),
    )
}

pub(super) fn download_type(probe: &Probe) -> Verdict {
    let answer = download_archive(probe, "type")?;
    let content_type = answer.content_type.unwrap_or_default();
    expect(
        content_type.starts_with("application/x-tar"),
        format!("Content-Type: {content_type}"),
    )
}

pub(super) fn download_file(probe: &Probe) -> Verdict {
    let src = create_files(probe, "file")?;
    let back = probe.download(&format!("{src}/sub/f"))?;
    let content = EntryContent::File(b"x\n".to_vec());
    let is_file = back.len() == 1 && back[0].content == content;
    expect(is_file, names(&back))
}

pub(super) fn download_missing(probe: &Probe) -> Verdict {
    let endpoint = Endpoint::Download(probe.shared()?, "/workspace/nx-missing");
    let answer = probe.send("GET", endpoint, None)?;
    expect(answer.status == 404, answer.summary())
}

pub(super) fn download_unknown(probe: &Probe) -> Verdict {
    let id = probe.unknown_id();
    let answer = probe.send("GET", Endpoint::Download(&id, "/workspace"), None)?;
    expect(answer.status == 404, answer.summary())
}

//! Uploads and downloads.

use super::probe::{Entry, Miss, Probe, Verdict, What, all, file, want};
use crate::http::{Endpoint, RawResponse};

/// Where a check's files are.
fn dest(name: &str) -> String {
    format!("/workspace/nx-{name}")
}

/// What came back, by name.
fn found<'a>(entries: &'a [Entry], name: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.name == name)
}

fn names(entries: &[Entry]) -> String {
    let names: Vec<&str> = entries.iter().map(|entry| &*entry.name).collect();
    format!("{names:?}")
}

/// All that went there comes back as it was, but for modes.
fn comes_back(probe: &Probe, name: &str, entries: &[Entry]) -> Verdict {
    let back = probe.round_trip(&dest(name), entries)?;
    let same = |entry: &&Entry| found(&back, &entry.name).is_some_and(|b| b.what == entry.what);
    match entries.iter().find(|entry| !same(entry)) {
        None => Ok(format!("{} entries are as they were", entries.len())),
        Some(entry) => {
            let text = format!("{:?} is not as it was, of {}", entry.name, names(&back));
            Err(Miss::Failed(text))
        }
    }
}

fn of_kind(name: &str, mode: u32, what: What) -> Entry {
    let name = name.to_owned();
    Entry { name, mode, what }
}

pub(super) fn round_trip(probe: &Probe) -> Verdict {
    let bytes: Vec<u8> = (0..=255).collect();
    comes_back(
        probe,
        "round-trip",
        &[file("a/b.bin", bytes), file("c", "text\r\n")],
    )
}

pub(super) fn large(probe: &Probe) -> Verdict {
    let content = (0..2_000_003_u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8);
    comes_back(
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
    comes_back(probe, "names", &names.map(|name| file(name, "x")))
}

pub(super) fn empty(probe: &Probe) -> Verdict {
    comes_back(probe, "empty", &[file("empty", ""), file("other", "x")])
}

pub(super) fn empty_directories(probe: &Probe) -> Verdict {
    let empty = of_kind("d/empty", 0o755, What::Directory);
    comes_back(probe, "empty-directories", &[empty, file("other", "x")])
}

pub(super) fn links(probe: &Probe) -> Verdict {
    let link = of_kind("link", 0o777, What::Link("file".to_owned()));
    comes_back(probe, "links", &[file("file", "x"), link])
}

pub(super) fn modes(probe: &Probe) -> Verdict {
    let modes = [("run", 0o755), ("secret", 0o600), ("odd", 0o754)];
    let entries = modes.map(|(name, mode)| of_kind(name, mode, What::File(b"x".to_vec())));
    let back = probe.round_trip(&dest("modes"), &entries)?;
    all(modes.map(|(name, mode)| {
        let is = found(&back, name).map_or(0, |entry| entry.mode & 0o777);
        want(is == mode, format!("{name}: {mode:o} became {is:o}"))
    }))
}

fn accepted(what: &str, answer: &RawResponse) -> Result<(), Miss> {
    want(
        matches!(answer.status, 200..=299),
        format!("{what}: {}", answer.seen()),
    )
    .map(drop)
}

pub(super) fn upload_dest(probe: &Probe) -> Verdict {
    let id = probe.shared()?;
    let answer = probe.upload(id, &dest("dest/new/deep"), &[file("f", "x")])?;
    accepted("upload", &answer)?;
    let ran = probe.sh("cat nx-dest/new/deep/f")?;
    want(ran.stdout == "x", ran.seen())
}

pub(super) fn upload_replaces(probe: &Probe) -> Verdict {
    let id = probe.shared()?;
    for content in ["a longer one", "two"] {
        let answer = probe.upload(id, &dest("replaces"), &[file("f", content)])?;
        accepted("upload", &answer)?;
    }
    let ran = probe.sh("cat nx-replaces/f")?;
    want(ran.stdout == "two", ran.seen())
}

pub(super) fn upload_bad_archive(probe: &Probe) -> Verdict {
    // A gzip stream that ends in its first block.
    let cut = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xed, 0xcf];
    let bodies = [("text", &b"this is no archive"[..]), ("a cut one", &cut)];
    all(bodies.map(|(what, body)| {
        let answer = probe.upload_bytes(probe.shared()?, &dest("bad"), body)?;
        want(answer.status == 400, format!("{what}: {}", answer.seen()))
    }))
}

pub(super) fn upload_stays_inside(probe: &Probe) -> Verdict {
    let entries = [file("../escaped", "x")];
    let answer = probe.upload(probe.shared()?, &dest("inside/in"), &entries)?;
    let look = "if [ -e nx-inside/escaped ]; then echo yes; else echo no; fi";
    let escaped = probe.set_up(probe.shared()?, look)?.stdout.trim() == "yes";
    want(
        !escaped,
        format!("{}; written outside: {escaped}", answer.seen()),
    )
}

pub(super) fn upload_unknown(probe: &Probe) -> Verdict {
    let answer = probe.upload(&probe.nobody(), "/workspace", &[file("f", "x")])?;
    want(answer.status == 404, answer.seen())
}

/// Something to download; the sandbox's own commands make it.
fn prepared(probe: &Probe, name: &str) -> Result<String, Miss> {
    let make = format!("mkdir -p nx-{name}/sub && echo x >nx-{name}/sub/f");
    probe.set_up(probe.shared()?, &make)?;
    Ok(dest(name))
}

fn archive_of(probe: &Probe, name: &str) -> Result<RawResponse, Miss> {
    let src = prepared(probe, name)?;
    let answer = probe.ask("GET", Endpoint::Download(probe.shared()?, &src), None)?;
    accepted("download", &answer)?;
    Ok(answer)
}

pub(super) fn download_relative(probe: &Probe) -> Verdict {
    let src = prepared(probe, "relative")?;
    let back = probe.download(&src)?;
    want(found(&back, "sub/f").is_some(), names(&back))
}

pub(super) fn download_gzip(probe: &Probe) -> Verdict {
    let answer = archive_of(probe, "gzip")?;
    let start = answer.body.get(..2).unwrap_or_default();
    want(
        start == [0x1f, 0x8b],
        format!("it begins with {start:02x?}"),
    )
}

pub(super) fn download_type(probe: &Probe) -> Verdict {
    let answer = archive_of(probe, "type")?;
    let content_type = answer.content_type.unwrap_or_default();
    want(
        content_type.starts_with("application/x-tar"),
        format!("Content-Type: {content_type}"),
    )
}

pub(super) fn download_file(probe: &Probe) -> Verdict {
    let src = prepared(probe, "file")?;
    let back = probe.download(&format!("{src}/sub/f"))?;
    let content = What::File(b"x\n".to_vec());
    let right = back.len() == 1 && back[0].what == content;
    want(right, names(&back))
}

pub(super) fn download_missing(probe: &Probe) -> Verdict {
    let place = Endpoint::Download(probe.shared()?, "/workspace/nx-missing");
    let answer = probe.ask("GET", place, None)?;
    want(answer.status == 404, answer.seen())
}

pub(super) fn download_unknown(probe: &Probe) -> Verdict {
    let id = probe.nobody();
    let answer = probe.ask("GET", Endpoint::Download(&id, "/workspace"), None)?;
    want(answer.status == 404, answer.seen())
}

//! Unpacking many small files, against GNU tar: `cargo bench --bench extract`

mod common;

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use common::{median, ratio, rounds, text, time, verdict};
use flate2::Compression;
use flate2::write::GzEncoder;
use noxrunner::{Backend, Client, ErrorKind, Output, SandboxInfo, SandboxSpec, SessionId, Upload};

const FILES: usize = 20_000;
const ROUNDS: usize = 11;

/// A backend that returns one archive, so that only unpacking is measured.
struct Archive(Vec<u8>);

impl Backend for Archive {
    fn health(&self) -> noxrunner::Result<()> {
        Ok(())
    }
    fn create(&self, _: &SessionId, _: &SandboxSpec) -> noxrunner::Result<SandboxInfo> {
        Ok(SandboxInfo::new("archive", ""))
    }
    fn touch(&self, _: &SessionId) -> noxrunner::Result<()> {
        Ok(())
    }
    fn exec(&self, _: &SessionId, _: &noxrunner::Command) -> noxrunner::Result<Output> {
        Err(noxrunner::Error::new(
            ErrorKind::Unsupported,
            "an archive runs nothing",
        ))
    }
    fn upload(&self, _: &SessionId, _: &str, _: Upload<'_>) -> noxrunner::Result<()> {
        Ok(())
    }
    fn download(&self, _: &SessionId, _: &str) -> noxrunner::Result<Box<dyn std::io::Read + Send>> {
        Ok(Box::new(Cursor::new(self.0.clone())))
    }
    fn delete(&self, _: &SessionId) -> noxrunner::Result<bool> {
        Ok(true)
    }
}

fn archive() -> Vec<u8> {
    let content = text(4096);
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for n in 0..FILES {
        let size = 100 + n * 37 % 3000;
        let mut header = tar::Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        let name = format!("src/{:03}/file-{n}.txt", n / 100);
        tar.append_data(&mut header, name, &content[..size])
            .expect("added");
    }
    tar.into_inner()
        .and_then(GzEncoder::finish)
        .expect("finished")
}

fn main() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return println!("skipped: no memory-backed storage at /dev/shm");
    };
    let bytes = archive();
    let file = dir.path().join("archive.tar.gz");
    fs::write(&file, &bytes).expect("written");
    let sandbox = Client::with_backend(Archive(bytes))
        .sandbox("bench")
        .expect("a handle");
    let fresh = |name: &str| {
        let path = dir.path().join(name);
        if path.exists() {
            fs::remove_dir_all(&path).expect("removed");
        }
        path
    };
    let mut ours = || {
        let target = fresh("ours");
        time(|| {
            drop(
                sandbox
                    .download_dir("/workspace", &target)
                    .expect("unpacked"),
            )
        })
    };
    let mut gnu = || {
        let target = fresh("gnu");
        fs::create_dir(&target).expect("made");
        time(|| gnu_tar(&file, &target))
    };
    let seconds = rounds(ROUNDS, &mut [&mut ours, &mut gnu]);
    let over = ratio(&seconds[0], &seconds[1]);
    println!(
        "{FILES} small files: ours {:.3} s, GNU tar {:.3} s, ratio {over:.2} (at most 1.2): {}",
        median(seconds[0].clone()),
        median(seconds[1].clone()),
        verdict(over <= 1.2)
    );
}

fn gnu_tar(file: &Path, target: &Path) {
    let status = Command::new("tar")
        .arg("xzf")
        .arg(file)
        .arg("-C")
        .arg(target)
        .status();
    assert!(status.expect("GNU tar").success());
}

//! Large transfers: `cargo bench --bench transfer`

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{Python, Server, median, noise, ratio, rounds, text, time, verdict};
use flate2::Compression;
use flate2::write::GzEncoder;
use noxrunner::{Client, Contents, Files, Sandbox};

const GIB: u64 = 1 << 30;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    // This program starts itself to measure the memory of a process that does nothing else.
    if let Some(at) = args.iter().position(|arg| arg == "--child") {
        return child(&args[at + 1], &args[at + 2], Path::new(&args[at + 3]));
    }
    let dir = scratch();
    memory(dir.path());
    upload_speed(dir.path());
}

/// In memory if possible, so that the disk is not measured.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory")
}

fn sandbox(url: &str) -> Sandbox {
    Client::new(url)
        .expect("a client")
        .sandbox("bench")
        .expect("a handle")
}

fn write_repeated(path: &Path, piece: &[u8], size: u64) {
    let mut file = fs::File::create(path).expect("created");
    for _ in 0..size / piece.len() as u64 {
        file.write_all(piece).expect("written");
    }
}

fn child(what: &str, url: &str, path: &Path) {
    match what {
        "upload" => sandbox(url)
            .upload_dir(path, "/workspace")
            .expect("uploaded"),
        "download" => drop(
            sandbox(url)
                .download_dir("/workspace", path)
                .expect("downloaded"),
        ),
        _ => panic!("upload or download"),
    }
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .expect("a peak");
    println!("{}", peak.split_whitespace().nth(1).expect("a number"));
}

fn peak_of_child(what: &str, url: &str, path: &Path) -> f64 {
    let program = std::env::current_exe().expect("this program");
    let out = Command::new(program)
        .args(["--child", what, url])
        .arg(path)
        .output()
        .expect("started");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let kib: f64 = String::from_utf8_lossy(&out.stdout)
        .trim()
        .parse()
        .expect("a number");
    kib / 1024.0
}

fn memory(dir: &Path) {
    for (name, piece) in [("text-like", text(16 << 20)), ("random", noise(16 << 20))] {
        let from: PathBuf = dir.join(name);
        fs::create_dir(&from).expect("made");
        write_repeated(&from.join("data"), &piece, GIB);
        let server = Server::start(None);
        let up = peak_of_child("upload", &server.url, &from);
        fs::remove_dir_all(&from).expect("removed");

        let archive = Arc::new(archive_of(&piece));
        let length = archive.len() as u64;
        let server = Server::start(Some((archive, length)));
        let to = dir.join("out");
        let down = peak_of_child("download", &server.url, &to);
        assert_eq!(
            fs::metadata(to.join("data")).expect("downloaded").len(),
            GIB
        );
        fs::remove_dir_all(&to).expect("removed");
        println!(
            "1 GiB {name}: peak memory {up:.1} MiB up, {down:.1} MiB down (at most 32): {}",
            verdict(up <= 32.0 && down <= 32.0)
        );
    }
}

fn archive_of(piece: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(GIB);
    header.set_mode(0o644);
    let repeated = std::iter::repeat_n(piece, (GIB / piece.len() as u64) as usize);
    let mut content: Box<dyn std::io::Read> = Box::new(std::io::empty());
    for piece in repeated {
        content = Box::new(std::io::Read::chain(content, piece));
    }
    tar.append_data(&mut header, "data", content)
        .expect("added");
    tar.into_inner()
        .and_then(GzEncoder::finish)
        .expect("finished")
}

fn upload_speed(dir: &Path) {
    const SIZE: usize = 128 << 20;
    let server = Server::start(None);
    let Some(mut python) = Python::start(&server.url) else {
        return;
    };
    let sandbox = sandbox(&server.url);
    for (name, data) in [("random", noise(SIZE)), ("text-like", text(SIZE))] {
        let path = dir.join("data");
        fs::write(&path, &data).expect("written");
        python.ask(&format!("load {}", path.display()));
        let mut ours = || {
            time(|| {
                let files = Files::new().add("data", Contents::from(&data));
                sandbox.upload(files, "/workspace").expect("uploaded");
            })
        };
        let mut theirs = || python.ask("upload");
        let seconds = rounds(3, &mut [&mut ours, &mut theirs]);
        let faster = ratio(&seconds[1], &seconds[0]);
        println!(
            "upload of 128 MiB {name}: ours {:.2} s, Python {:.2} s, ratio {faster:.1} (at least 5): {}",
            median(seconds[0].clone()),
            median(seconds[1].clone()),
            verdict(faster >= 5.0)
        );
    }
}

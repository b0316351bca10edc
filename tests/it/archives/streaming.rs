//! Downloads that are packed while they are read: holes, depth, unreadable entries and their end.

use std::os::unix::fs::FileExt;

use super::*;
use crate::support::is_root;
use crate::support::processes::{copy_this_program, wait_for};

const MIB: u64 = 1 << 20;

/// Writes 64 KiB of noise at each sixteenth of a sparse file.
fn sparse_file(path: &Path, size: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let bytes = noise(64 * 1024);
    for part in 0..16 {
        file.write_all_at(&bytes, size / 16 * part).unwrap();
    }
}

/// The workspace of a sandbox without isolation.
fn workspace(dir: &Scratch) -> PathBuf {
    dir.join("state/sandboxes/s/root/workspace")
}

fn count_bytes(archive: &mut dyn Read) -> std::io::Result<u64> {
    std::io::copy(archive, &mut std::io::sink())
}

#[test]
fn holes_of_a_sparse_file_cost_little() {
    let (sandbox, dir) = local();
    sparse_file(&workspace(&dir).join("f"), 6 << 30);
    for src in ["/workspace", "f"] {
        let mut archive = sandbox.download_archive(src).unwrap();
        let size = count_bytes(&mut *archive).unwrap();
        assert!(size < 64 * MIB, "{size} bytes of {src}");
    }
}

#[test]
fn sparse_files_survive_a_round_trip() {
    let (sandbox, dir) = local();
    fs::create_dir(dir.join("t")).unwrap();
    sparse_file(&dir.join("t/noisy"), 40 * MIB + 1);
    File::create(dir.join("t/hole"))
        .unwrap()
        .set_len(3 * MIB)
        .unwrap();
    sandbox.upload_dir(dir.join("t"), "/workspace/t").unwrap();
    sparse_file(&workspace(&dir).join("t/noisy"), 40 * MIB + 1);
    sandbox
        .download_dir("/workspace/t", dir.join("back"))
        .unwrap();
    for name in ["noisy", "hole"] {
        let [before, after] = ["t", "back"].map(|top| fs::read(dir.join(top).join(name)).unwrap());
        assert!(before == after, "{name}");
    }
}

#[test]
fn download_ends_with_its_sandbox() {
    let (sandbox, dir) = local();
    sparse_file(&workspace(&dir).join("f"), 1 << 40);
    let mut archive = sandbox.download_archive("/workspace").unwrap();
    archive.read_exact(&mut [0; 100_000]).unwrap();
    sandbox.delete().unwrap();
    let ended = with_timeout(move || count_bytes(&mut *archive)).expect("it has not ended");
    assert!(format!("{:#}", ended.unwrap_err()).contains("deleted or has expired"));
}

#[test]
fn replaced_sandbox_ends_a_download() {
    let (sandbox, dir) = local();
    let client = Client::with_backend(local_backend(&dir));
    sparse_file(&workspace(&dir).join("f"), 1 << 40);
    let mut archive = sandbox.download_archive("f").unwrap();
    archive.read_exact(&mut [0; 100_000]).unwrap();
    sandbox.delete().unwrap();
    client.create("s", SandboxSpec::new()).unwrap();
    let ended = with_timeout(move || count_bytes(&mut *archive)).expect("it has not ended");
    assert!(ended.is_err());
}

/// Creates directories in each other, from the innermost to the outermost.
fn nested(top: &Path, depth: usize, name: &str) {
    fs::create_dir(top.join("inner")).unwrap();
    for _ in 0..depth {
        fs::create_dir(top.join("outer")).unwrap();
        fs::rename(top.join("inner"), top.join("outer").join(name)).unwrap();
        fs::rename(top.join("outer"), top.join("inner")).unwrap();
    }
}

#[test]
fn paths_that_are_too_long_do_not_cost_the_rest() {
    let (sandbox, dir) = local();
    nested(&workspace(&dir), 3000, &"d".repeat(255));
    sandbox.write("z", "after it").unwrap();
    let back = dir.join("back");
    let done = sandbox.download_dir("/workspace", &back).unwrap();
    assert_eq!(fs::read(back.join("z")).unwrap(), b"after it");
    // 6 + 15 * 256 bytes fit into 4096 bytes, a 16th directory does not.
    assert_eq!(done.entries(), 17);
    let refused = done.refused();
    assert_eq!(refused.len(), 1);
    assert!(refused[0].name().starts_with("inner/ddd"));
    assert_eq!(refused[0].rule(), "unreadable in the sandbox");
    // Uploads fail instead: the caller can shorten the names.
    let result = sandbox.upload_dir(workspace(&dir), "/workspace/copy");
    assert_error(result, ErrorKind::Io, &["file name too long"]);
    sandbox.delete().unwrap();
}

#[test]
fn unreadable_entries_are_reported() {
    const USER: u32 = 65_530;
    if !is_root() {
        return with_unreadable_entries();
    }
    let home = tempfile::tempdir_in("/tmp").unwrap();
    let program = home.path().join("program");
    copy_this_program(&program);
    std::os::unix::fs::chown(home.path(), Some(USER), Some(USER)).unwrap();
    chmod(&program, 0o755);
    let out = process::Command::new("setpriv")
        .args([format!("--reuid={USER}"), format!("--regid={USER}")])
        .arg("--clear-groups")
        .arg(&program)
        .args(["--exact", "archives::streaming::with_unreadable_entries"])
        .args(["--ignored", "--nocapture"])
        .env("TMPDIR", home.path())
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains("1 passed"), "{out:?}");
}

#[test]
#[ignore = "run by another test, as a plain user"]
fn with_unreadable_entries() {
    let (sandbox, dir) = local();
    let script = "mkdir -p p/closed; echo 1 > p/a; echo 2 > p/closed/x; echo 3 > p/z; chmod 000 p/a p/closed";
    sandbox.run(["sh", "-c", script]).unwrap();
    let _socket = UnixListener::bind(workspace(&dir).join("p/socket")).unwrap();
    let back = dir.join("back");
    let done = sandbox.download_dir("/workspace", &back).unwrap();
    assert_eq!(fs::read(back.join("p/z")).unwrap(), b"3\n");
    let refused: Vec<_> = done
        .refused()
        .iter()
        .map(|r| (r.name(), r.rule()))
        .collect();
    let rule = "unreadable in the sandbox";
    assert_eq!(
        refused,
        [("p/a", rule), ("p/closed", rule), ("p/socket", rule)]
    );
    // Other programs ignore the report.
    let mut archive = Vec::new();
    let mut stream = sandbox.download_archive("/workspace").unwrap();
    stream.read_to_end(&mut archive).unwrap();
    let names = unpacked(&archive).into_iter().map(|entry| entry.name);
    let names: Vec<_> = names.collect();
    assert!(names.contains(&b"p/z".to_vec()) && !names.contains(&b"p/a".to_vec()));
    assert!(sandbox.read("p/a").is_err());
    chmod(workspace(&dir).join("p/closed"), 0o700);
}

#[test]
fn file_that_shrinks_during_a_download_is_reported() {
    let (sandbox, dir) = local();
    let path = workspace(&dir).join("f");
    fs::write(&path, noise(4 << 20)).unwrap();
    sandbox.write("g", "whole").unwrap();
    let mut archive = sandbox.download_archive("/workspace").unwrap();
    let mut start = vec![0; 200_000];
    archive.read_exact(&mut start).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(10)
        .unwrap();
    archive.read_to_end(&mut start).unwrap();
    let receiver = sandbox_with_download(start);
    let done = receiver.download_dir("/", dir.join("back")).unwrap();
    assert_eq!((done.entries(), done.bytes()), (1, 5));
    assert_eq!(done.refused()[0].name(), "f");
    assert!(!dir.join("back/f").exists());
    // A single file is an error instead.
    fs::write(&path, noise(4 << 20)).unwrap();
    let mut archive = sandbox.download_archive("f").unwrap();
    archive.read_exact(&mut [0; 200_000]).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(10)
        .unwrap();
    assert!(count_bytes(&mut *archive).is_err());
}

#[test]
fn dropped_download_closes_its_files() {
    let (sandbox, dir) = local();
    sparse_file(&workspace(&dir).join("held"), 1 << 40);
    let is_open = || {
        let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let mut targets = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        let held = workspace(&dir).join("held");
        targets.any(|target| target == held)
    };
    let mut archive = sandbox.download_archive("held").unwrap();
    archive.read_exact(&mut [0; 1000]).unwrap();
    assert!(is_open());
    drop(archive);
    wait_for("the file is closed", || !is_open());
}

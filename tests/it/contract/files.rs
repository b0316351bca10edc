//! Files and directories.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use noxrunner::{
    Backend as _, Client, Command, Contents, ErrorKind, Isolation, LocalBackend, Output, Sandbox,
    SessionId,
};

use super::create;
use crate::support::exec_override::ExecOverride;
use crate::support::{ErrorText as _, local_backend};

pub(super) fn files(client: &Client) {
    let sandbox = create(client, "files");
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    sandbox.write("a/b/c.bin", &bytes).unwrap();
    assert_eq!(sandbox.read("a/b/c.bin").unwrap(), bytes);
    assert_eq!(sandbox.read("/workspace/a/b/c.bin").unwrap(), bytes);
    sandbox.write("a/b/c.bin", "").unwrap();
    assert_eq!(sandbox.read("a/b/c.bin").unwrap(), b"");
    sandbox
        .write("run", Contents::from("#!/bin/sh\necho ran").mode(0o755))
        .unwrap();
    assert_eq!(sandbox.exec(["./run"]).unwrap().stdout(), "ran\n");
    assert!(
        sandbox
            .read("a")
            .unwrap_err()
            .chain()
            .contains("is a directory")
    );
    assert!(sandbox.read("missing").unwrap_err().is_not_found());
    assert!(sandbox.exists("a/b").unwrap() && !sandbox.exists("a/x").unwrap());
    let twice = sandbox.upload([("a", "1"), ("./a", "2")], ".").unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::InvalidInput, "{twice}");
    // Directories that every sandbox has.
    assert!(
        ["/", ".", "/workspace"]
            .iter()
            .all(|dir| sandbox.exists(dir).unwrap())
    );
    sandbox
        .upload([("x", "1"), ("y/z", "2")], "/workspace/new/deep")
        .unwrap();
    assert_eq!(
        sandbox
            .exec(["cat", "new/deep/x", "new/deep/y/z"])
            .unwrap()
            .stdout(),
        "12"
    );
}

pub(super) fn directories(client: &Client) {
    let sandbox = create(client, "dirs");
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir_all(from.join("sub/empty")).unwrap();
    std::fs::write(from.join("sub/f"), "x").unwrap();
    std::os::unix::fs::symlink("f", from.join("sub/link")).unwrap();
    sandbox.upload_dir(&from, "/workspace/tree").unwrap();
    assert_eq!(
        sandbox.exec(["cat", "tree/sub/link"]).unwrap().stdout(),
        "x"
    );
    let done = sandbox.download_dir("/workspace/tree", &to).unwrap();
    assert_eq!((done.bytes(), done.refused().len()), (1, 0));
    assert_eq!(
        std::fs::read_link(to.join("sub/link")).unwrap(),
        std::path::Path::new("f")
    );
    assert!(to.join("sub/empty").is_dir());
    let error = sandbox
        .download_dir("/workspace/none", dir.path().join("none"))
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(!dir.path().join("none").exists());
}

/// No path and no link leads a download out of the sandbox.
fn assert_downloads_stay_inside(sandbox: &Sandbox) {
    let long = format!("/workspace/{}", "x/".repeat(2500));
    for src in [
        "/workspace/../../etc",
        "/workspace/etc",
        "/workspace/root/etc",
        "/workspace/up",
        "//etc",
        "/proc/1/root",
        "/proc/self/root",
        "/etc/passwd",
        "/workspace/etc/passwd",
        "",
        "a\0b",
        &long,
    ] {
        let error = match sandbox.download_archive(src) {
            // Some servers send an archive without entries for a path that is not a directory.
            Ok(archive) => {
                assert!(is_empty(archive), "{src} was downloaded");
                continue;
            }
            Err(error) => error,
        };
        assert!(
            matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::InvalidInput | ErrorKind::Status
            ),
            "{error}"
        );
    }
}

#[test]
fn list_of_too_many_entries_is_an_error() {
    let (backend, _dir) = local_backend(Isolation::None);
    let calls = AtomicUsize::new(0);
    let exec = move |backend: &LocalBackend, id: &SessionId, command: &Command| {
        let output = |text: &str| Output::new(0, text, "", Duration::ZERO);
        match calls.fetch_add(1, Ordering::SeqCst) {
            // Truncated, so that the list is written to a file.
            0 => Ok(output("-\n")),
            1 => {
                let file = command.get_args().last().unwrap();
                let fill = format!("head -c 70000000 /dev/zero > {file}");
                backend.exec(id, &Command::shell(fill))
            }
            _ => backend.exec(id, command),
        }
    };
    let client = Client::with_backend(ExecOverride { backend, exec });
    let sandbox = create(&client, "files");
    let error = sandbox.list(".").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:#}");
    assert!(error.chain().contains("too many entries"), "{error:#}");
}

fn is_empty(archive: impl Read) -> bool {
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(archive)
        .read_to_end(&mut tar)
        .unwrap();
    tar.iter().all(|byte| *byte == 0)
}

pub(super) fn paths(client: &Client) {
    let sandbox = create(client, "paths");
    sandbox
        .run([
            "sh",
            "-c",
            "ln -s /etc etc; ln -s / root; ln -s ../../../../../../../../etc up",
        ])
        .unwrap();
    assert_downloads_stay_inside(&sandbox);
    for dest in ["/etc/nx", "/", "", "a\0b"] {
        assert!(sandbox.upload([("nx", "x")], dest).is_err(), "{dest}");
    }
    // A link must not lead an upload out of the sandbox.
    let _ = sandbox.upload([("nx_canary", "x")], "/workspace/root/tmp");
    let _ = sandbox.upload([("nx_canary", "x")], "/workspace/etc");
    let _ = sandbox.write("etc/nx_canary", "x");
    assert!(!std::path::Path::new("/tmp/nx_canary").exists());
    assert!(!std::path::Path::new("/etc/nx_canary").exists());
    for name in ["../x", "/etc/x", "a/../../x", "", ".", "a\0b"] {
        assert_eq!(
            sandbox
                .upload([(name, "x")], "/workspace")
                .unwrap_err()
                .kind(),
            ErrorKind::InvalidInput,
            "{name}"
        );
    }
    // A workdir outside is refused or is a directory of the sandbox.
    let of_host = std::fs::read_to_string("/etc/passwd").unwrap();
    for workdir in ["/workspace/../etc", "/workspace/etc", "/etc", "/"] {
        let look = Command::shell("cat passwd etc/passwd 2>/dev/null").workdir(workdir);
        if let Ok(found) = sandbox.exec(look) {
            assert!(!found.stdout().contains(&of_host), "{workdir}");
        }
    }
}

//! Options that open sandboxes: read-only paths, the host's network, environment variables.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command as Process;
use std::time::Duration;

use noxrunner::{
    Client, Command, ErrorKind, Isolation, LocalBackend, LocalBackendBuilder, Sandbox,
};

use super::{create, shell};
use crate::support::is_root;

const TIERS: [Isolation; 2] = [Isolation::Namespaces, Isolation::Landlock];

/// A directory that sandboxes can show: outside of /tmp. Its parent is closed to other users.
fn shared_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let inner = dir.path().join("shared");
    fs::create_dir(&inner).unwrap();
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(inner.join("file"), "content").unwrap();
    fs::set_permissions(inner.join("file"), fs::Permissions::from_mode(0o644)).unwrap();
    dir
}

fn open(builder: LocalBackendBuilder, state: &Path) -> Client {
    fs::set_permissions(state, fs::Permissions::from_mode(0o711)).unwrap();
    Client::with_backend(builder.state_dir(state.join("state")).build().unwrap())
}

fn assert_shows(sandbox: &Sandbox, path: &Path) {
    let shown = path.display();
    assert_eq!(shell(sandbox, &format!("cat '{shown}/file'")), "content");
    let write = format!("cd '{shown}'; echo x > file; echo x > new; rm file");
    shell(sandbox, &write);
    let names = fs::read_dir(path).unwrap().count();
    assert_eq!((names, fs::read(path.join("file")).unwrap().len()), (1, 7));
}

#[test]
fn read_only_paths_are_visible() {
    let dir = shared_dir();
    let path = dir.path().join("shared");
    let link = dir.path().join("link");
    symlink(&path, &link).unwrap();
    let file = dir.path().join("single");
    fs::write(&file, "single").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let state = tempfile::tempdir().unwrap();
    let builder = LocalBackend::builder();
    let builder = builder.read_only(&path).read_only(&link).read_only(&file);
    let sandbox = create(&open(builder.read_only("/usr/bin"), state.path()), "shared");
    assert_shows(&sandbox, &path);
    assert_shows(&sandbox, &link);
    assert_eq!(
        shell(&sandbox, &format!("cat {}", file.display())),
        "single"
    );
    let beside = shell(&sandbox, &format!("ls {}", dir.path().display()));
    assert_eq!(beside, "link\nshared\nsingle\n");
}

#[test]
fn read_only_paths_are_visible_without_namespaces() {
    let dir = shared_dir();
    let path = dir.path().join("shared");
    let landlock = || LocalBackend::builder().isolation(Isolation::Landlock);
    if is_root() {
        let error = landlock().read_only(&path).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(format!("{error:#}").contains("not searchable"), "{error}");
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let beside = dir.path().join("beside");
    fs::write(&beside, "hidden").unwrap();
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o644)).unwrap();
    match landlock().read_only(&path).build() {
        // The target directory is in a closed home directory.
        Err(error) => println!("skipped: {error}"),
        Ok(_) => {
            let state = tempfile::tempdir().unwrap();
            let client = open(landlock().read_only(&path), state.path());
            let sandbox = create(&client, "shared");
            assert_shows(&sandbox, &path);
            let beside = shell(&sandbox, &format!("LC_ALL=C cat '{}'", beside.display()));
            assert!(beside.contains("Permission denied"), "{beside}");
        }
    }
}

#[test]
fn unusable_options_are_refused() {
    let build = |builder: LocalBackendBuilder| builder.build().unwrap_err();
    for isolation in TIERS {
        let builder = || LocalBackend::builder().isolation(isolation);
        for (builder, reason) in [
            (builder().read_only("relative"), "is not absolute"),
            (builder().read_only("/"), "would hide"),
            (builder().read_only("/tmp/x"), "would hide /tmp"),
            (
                builder().read_only("/no/such"),
                "cannot open the read-only path",
            ),
            (builder().env("A=B", "x"), "contains '='"),
            (builder().env("A", "x\0"), "NUL"),
        ] {
            let error = build(builder);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(format!("{error:#}").contains(reason), "{error:#}");
        }
    }
}

#[test]
fn network_of_the_host_is_used_by_choice() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"from the host");
        }
    });
    let connect = format!(
        "import socket\nprint(socket.create_connection(('localhost', {port}), 60).recv(99).decode())"
    );
    for isolation in TIERS {
        let state = tempfile::tempdir().unwrap();
        for network in [false, true] {
            let builder = LocalBackend::builder()
                .isolation(isolation)
                .network(network);
            let sandbox = create(&open(builder, state.path()), "network");
            let out = sandbox.exec(["python3", "-c", &connect]).unwrap();
            assert_eq!(out.success(), network, "{isolation}: {out:?}");
            assert_eq!(out.stdout() == "from the host\n", network);
            let dgram = "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)";
            assert!(!sandbox.exec(["python3", "-c", dgram]).unwrap().success());
        }
    }
}

#[test]
fn options_of_a_persistent_sandbox_are_kept() {
    let dir = shared_dir();
    let path = dir.path().join("shared");
    let state = tempfile::tempdir().unwrap();
    let persistent = || LocalBackend::builder().persistent(true);
    let builder = persistent()
        .read_only(&path)
        .env("NX_OWN", "kept")
        .env("NX_OTHER", "kept");
    create(&open(builder, state.path()), "kept");
    let other = open(persistent().env("NX_OWN", "new"), state.path());
    let sandbox = create(&other, "kept");
    let print = Command::shell("echo $NX_OWN $NX_OTHER").env("NX_OTHER", "command");
    assert_eq!(sandbox.run(print).unwrap().stdout(), "kept command\n");
    assert_shows(&sandbox, &path);
    let record = fs::metadata(state.path().join("state/persistent/kept/sandbox.json")).unwrap();
    assert_eq!(record.permissions().mode() & 0o777, 0o600);
    assert!(sandbox.delete().unwrap());
    let again = create(&other, "kept");
    assert_eq!(shell(&again, "echo $NX_OWN; ls /opt 2>/dev/null"), "new\n");
    assert!(again.delete().unwrap());
}

#[test]
fn environment_applies_without_isolation() {
    let state = tempfile::tempdir().unwrap();
    let builder = LocalBackend::builder().isolation(Isolation::None);
    let client = open(builder.env("NX_OWN", "kept"), state.path());
    assert_eq!(shell(&create(&client, "plain"), "echo $NX_OWN"), "kept\n");
}

/// As in the example of `LocalBackendBuilder::read_only`.
#[test]
fn crate_is_built_with_a_read_only_toolchain() {
    let sysroot = Process::new("rustc").args(["--print", "sysroot"]).output();
    let Some(sysroot) = sysroot.ok().filter(|out| out.status.success()) else {
        println!("skipped: no rustc");
        return;
    };
    let toolchain = String::from_utf8(sysroot.stdout).unwrap().trim().to_owned();
    let state = tempfile::tempdir().unwrap();
    let builder = LocalBackend::builder()
        .read_only(&toolchain)
        .env(
            "PATH",
            format!("{toolchain}/bin:/usr/local/bin:/usr/bin:/bin"),
        )
        .env("CARGO_HOME", "/tmp/cargo");
    let sandbox = create(&open(builder, state.path()), "cargo");
    sandbox
        .write(
            "Cargo.toml",
            "[package]\nname = \"x\"\nedition = \"2021\"\n",
        )
        .unwrap();
    sandbox
        .write("src/main.rs", "fn main() { println!(\"built\") }")
        .unwrap();
    let build = Command::shell("cargo run --offline --quiet").timeout(Duration::from_secs(300));
    assert_eq!(sandbox.run(build).unwrap().stdout(), "built\n");
}

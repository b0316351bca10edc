//! Sandboxes without namespaces: they keep the same promises by other means.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use noxrunner::{Client, Command, Enforced, ErrorKind, Isolation, LocalBackend, SandboxSpec};

use super::limits::{
    assert_files_can_be_removed, assert_memory_is_limited, assert_storage_is_limited,
};
use super::{create, shell, start_sleep};
use crate::support::processes::{copy_this_program, rerun, unique_sleep, wait_for, with_argument};
use crate::support::{is_root, local_backend};

fn builder() -> noxrunner::LocalBackendBuilder {
    LocalBackend::builder().isolation(Isolation::Landlock)
}

/// A client with a private state directory, which is removed with the returned value.
fn client() -> (Client, tempfile::TempDir) {
    let (backend, dir) = local_backend(Isolation::Landlock);
    (Client::with_backend(backend), dir)
}

/// A state directory that the users of sandboxes can pass through.
fn searchable_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    dir
}

/// Runs all tests of this file again as a user other than root.
#[test]
fn landlock_tests_pass_as_a_plain_user() {
    const NOBODY: u32 = 65_531;
    if !is_root() {
        println!("skipped: this is a plain user already");
        return;
    }
    // Other users must be able to reach it, so it is not in a private TMPDIR.
    let home = tempfile::tempdir_in("/tmp").unwrap();
    let program = home.path().join("program");
    copy_this_program(&program);
    std::os::unix::fs::chown(home.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
    let out = Process::new("setpriv")
        .args(user)
        .arg("--clear-groups")
        .arg(&program)
        .args(["sandbox::landlock::", "--test-threads=2"])
        .env("HOME", home.path())
        .env("TMPDIR", home.path())
        .env_remove("XDG_STATE_HOME")
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}{errors}");
}

#[test]
fn timeout_and_delete_end_the_right_processes() {
    let (client, _dir) = client();
    let sandbox = create(&client, "ends");
    let [earlier, sleep] = [331_001, 331_002].map(unique_sleep);
    start_sleep(&sandbox, &earlier);
    let line = format!("setsid sleep {sleep} & trap '' TERM; (sleep {sleep} &) ; sleep {sleep}");
    let out = sandbox.exec(Command::shell(line).timeout(Duration::from_secs(1)));
    let out = out.unwrap();
    assert!(out.timed_out() && out.exit_code() == 124, "{out:?}");
    assert!(with_argument(&sleep).is_empty());
    assert!(!with_argument(&earlier).is_empty());
    assert!(sandbox.delete().unwrap());
    assert!(with_argument(&earlier).is_empty());
    assert!(sandbox.touch().unwrap_err().is_not_found());
}

#[test]
fn fork_bomb_ends_with_its_timeout() {
    let (client, _dir) = client();
    let sandbox = create(&client, "bomb");
    let sleep = unique_sleep(332_001);
    let bomb = format!("b() {{ sleep {sleep} & b | b & }}; b; sleep {sleep}");
    let out = sandbox.exec(Command::shell(bomb).timeout(Duration::from_secs(2)));
    println!("{out:?}");
    wait_for("the bomb is over", || with_argument(&sleep).is_empty());
    match sandbox.exec(["echo", "next"]) {
        Ok(out) => assert_eq!(out.stdout(), "next\n"),
        // If the bomb leaves the holder no CPU time to end it, the whole sandbox is ended instead.
        Err(error) => {
            assert!(error.is_not_found(), "{error}");
            assert_eq!(shell(&create(&client, "bomb"), "echo next"), "next\n");
        }
    }
}

#[test]
fn command_that_signals_everything_ends_only_its_sandbox() {
    // Without the pipes of this test, which it would hold open if the test failed.
    let mut neighbour = Process::new("sleep")
        .arg("600")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (client, _dir) = client();
    let other = create(&client, "other");
    let [other_sleep, background, sleep] = [333_002, 333_003, 333_004].map(unique_sleep);
    start_sleep(&other, &other_sleep);
    for signal in ["KILL", "STOP"] {
        let sandbox = create(&client, "hostile");
        start_sleep(&sandbox, &background);
        let kill = format!("kill -{signal} -1; sleep {sleep}");
        match sandbox.exec(Command::shell(kill)) {
            Err(error) => assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}"),
            // The holder sometimes reports the end of the command before its own end.
            Ok(out) => assert_eq!(out.exit_code(), 137, "kill -{signal}: {out:?}"),
        }
        wait_for("its processes end", || {
            with_argument(&background).is_empty() && with_argument(&sleep).is_empty()
        });
        // The guardian closes the last socket a little later.
        wait_for("the sandbox is gone", || {
            let result = sandbox.exec(["true"]);
            result.is_err_and(|error| error.is_not_found())
        });
        assert!(neighbour.try_wait().unwrap().is_none());
    }
    // For root, each sandbox has its own user; for others, Landlock scopes the signals.
    assert_eq!(shell(&other, "echo there"), "there\n");
    assert!(!with_argument(&other_sleep).is_empty());
    neighbour.kill().unwrap();
    neighbour.wait().unwrap();
}

#[test]
fn sandbox_ends_with_its_process() {
    let sleep = unique_sleep(334_001);
    // The killed process leaves its state directory here.
    let dir = searchable_dir();
    let mut child = rerun(&[], "sandbox::landlock::create_and_wait")
        .env("NX_SLEEP", &sleep)
        .env("TMPDIR", dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the sandbox exists", || !with_argument(&sleep).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the sandbox ends", || with_argument(&sleep).is_empty());
}

#[test]
#[ignore = "run by another test, in a separate process"]
fn create_and_wait() {
    let (client, _dir) = client();
    let sandbox = create(&client, "waits");
    start_sleep(&sandbox, &std::env::var("NX_SLEEP").unwrap());
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn output_streams_can_be_opened_by_name() {
    let (client, _dir) = client();
    let line = "echo one > /dev/stdout; echo two | tee /dev/stderr";
    let out = create(&client, "streams")
        .run(Command::shell(line))
        .unwrap();
    assert_eq!((&*out.stdout(), &*out.stderr()), ("one\ntwo\n", "two\n"));
}

/// Landlock does not restrict chmod.
#[test]
fn changed_mode_of_the_state_directory_is_repaired() {
    let dir = searchable_dir();
    let open = || {
        builder()
            .persistent(true)
            .state_dir(dir.path().join("state"))
            .build()
    };
    let sandbox = create(&Client::with_backend(open().unwrap()), "opens");
    let state = dir.path().join("state").display().to_string();
    let paths = ["", "/persistent-landlock", "/lock"];
    for (path, mode) in paths.iter().flat_map(|path| [(path, "777"), (path, "000")]) {
        let chmod = ["chmod", mode, &format!("{state}{path}")];
        let out = sandbox.exec(chmod).unwrap();
        // Sandboxes of root run as another user.
        assert_eq!(out.success(), !is_root(), "{out:?}");
        let repaired = Client::with_backend(open().unwrap());
        let again = create(&repaired, "opens");
        assert_eq!(shell(&again, "echo hi"), "hi\n", "chmod {mode} {path}");
        let found = fs::metadata(format!("{state}{path}")).unwrap();
        assert_eq!(
            found.permissions().mode() & 0o622,
            0o600,
            "chmod {mode} {path}"
        );
    }
    assert!(sandbox.delete().unwrap());
}

#[test]
fn accesses_of_the_host_cannot_be_watched() {
    let (client, _dir) = client();
    let watch = "import ctypes,os\n\
        l = ctypes.CDLL(None)\n\
        print(l.inotify_init1(0), l.setxattr(b'f', b'user.x', b'x', 1, 0), l.syscall(469, -100, b'f', 0, 0, 0))";
    let out = create(&client, "watch").run(["python3", "-c", watch]);
    assert_eq!(out.unwrap().stdout(), "-1 -1 -1\n");
}

#[test]
fn expired_sandbox_leaves_no_files() {
    let dir = searchable_dir();
    let client = Client::with_backend(builder().state_dir(dir.path()).build().unwrap());
    let spec = SandboxSpec::new().ttl(Duration::from_secs(10));
    let sandbox = client.create("short", spec).unwrap();
    let disks = || fs::read_dir(dir.path().join("disks")).unwrap().count();
    assert_eq!(disks(), 1);
    let sleep = unique_sleep(335_001);
    start_sleep(&sandbox, &sleep);
    wait_for("the sandbox ends", || with_argument(&sleep).is_empty());
    wait_for("its files are removed", || disks() == 0);
    assert!(sandbox.touch().unwrap_err().is_not_found());
}

#[test]
fn persistent_sandbox_is_shared_within_its_tier() {
    let dir = searchable_dir();
    let open = |isolation| {
        let backend = LocalBackend::builder().isolation(isolation);
        let backend = backend.persistent(true).state_dir(dir.path());
        Client::with_backend(backend.build().unwrap())
    };
    let sandbox = create(&open(Isolation::Landlock), "kept");
    sandbox.write("f", "x").unwrap();
    let sleep = unique_sleep(336_001);
    start_sleep(&sandbox, &sleep);
    let again = open(Isolation::Landlock).sandbox("kept").unwrap();
    assert_eq!(shell(&again, "cat f; cat \"$NOX_WORKSPACE/f\""), "xx");
    // A backend that asks for namespaces does not get a sandbox without them.
    let stranger = open(Isolation::Namespaces).sandbox("kept").unwrap();
    assert!(stranger.touch().unwrap_err().is_not_found());
    assert!(again.delete().unwrap());
    assert!(with_argument(&sleep).is_empty());
}

#[test]
fn limits_are_enforced_and_reported() {
    let dir = searchable_dir();
    let backend = builder().state_dir(dir.path()).build().unwrap();
    let spec = || SandboxSpec::new().memory("256Mi").storage("40Mi");
    let limits = backend.limits(&spec()).unwrap();
    assert_eq!(limits.storage().enforced(), Enforced::Approximate);
    assert_eq!(backend.missing().unwrap(), [""; 0]);
    let client = Client::with_backend(backend);
    let sandbox = client.create("limits", spec()).unwrap();
    assert_memory_is_limited(&sandbox);
    assert_storage_is_limited(&sandbox);
    assert_files_can_be_removed(&sandbox, "");
}

#[test]
fn host_files_and_sockets_are_out_of_reach() {
    let (client, _dir) = client();
    let sandbox = create(&client, "reach");
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
    let pid = std::process::id();
    let outside = format!("/var/tmp/nx_landlock_{pid}");
    let tries = format!(
        "ls / {home} /etc /home /var/lib /sys /dev/shm; cat /etc/passwd; cat /proc/{pid}/environ; \
         echo x > {outside}; mkdir /tmp/nx_landlock_{pid}"
    );
    let out = sandbox.exec(Command::shell(tries)).unwrap();
    assert!(!out.success() && out.stdout().is_empty(), "{out:?}");
    assert!(!Path::new(&outside).exists());
    let sockets = "import socket\n\
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n\
        \x20 for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):\n\
        \x20   try: socket.socket(family, kind); print('got', family)\n\
        \x20   except OSError: pass\n\
        try: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); print('got a pair')\n\
        except OSError: pass\n\
        socket.socketpair()";
    let out = sandbox.exec(["python3", "-c", sockets]).unwrap();
    assert!(out.success() && out.stdout().is_empty(), "{out:?}");
}

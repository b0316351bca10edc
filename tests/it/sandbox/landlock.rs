//! Sandboxes without namespaces: what holds for the others holds for them, by other means.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use noxrunner::{Client, Command, Enforced, ErrorKind, Isolation, LocalBackend, SandboxSpec};

use super::{elsewhere, fresh, is_root, mark, processes_with, shell, wait_for};

fn builder() -> noxrunner::LocalBackendBuilder {
    LocalBackend::builder().isolation(Isolation::Landlock)
}

/// An argument of sleep that no other process of these tests uses, also where they run twice.
fn own(seconds: u32) -> String {
    format!("{seconds}.{}", std::process::id())
}

fn client() -> Client {
    Client::with_backend(builder().build().unwrap())
}

/// All of this once more, as somebody who is not root.
#[test]
fn a_plain_user_has_it_as_well() {
    const NOBODY: u32 = 65_531;
    if !is_root() {
        println!("skipped: this is a plain user already");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::os::unix::fs::chown(home.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
    let out = Process::new("setpriv")
        .args(user)
        .arg("--clear-groups")
        .arg(&program)
        .args(["sandbox::landlock::", "--test-threads=1"])
        .env("HOME", home.path())
        .env_remove("XDG_STATE_HOME")
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}");
}

#[test]
fn a_time_limit_and_a_deletion_end_what_they_should() {
    let client = client();
    let sandbox = fresh(&client, "ends");
    mark(&sandbox, &own(331_001));
    let sleep = own(331_002);
    let timed_out =
        format!("setsid sleep {sleep} & trap '' TERM; (sleep {sleep} &) ; sleep {sleep}");
    let out = sandbox.exec(Command::shell(timed_out).timeout(Duration::from_secs(1)));
    let out = out.unwrap();
    assert!(out.timed_out() && out.exit_code() == 124, "{out:?}");
    assert!(processes_with(&sleep).is_empty());
    assert!(!processes_with(&own(331_001)).is_empty());
    assert!(sandbox.delete().unwrap());
    assert!(processes_with(&own(331_001)).is_empty());
    assert!(sandbox.touch().unwrap_err().is_not_found());
}

#[test]
fn a_fork_bomb_ends_with_its_time() {
    let client = client();
    let sandbox = fresh(&client, "bomb");
    let sleep = own(332_001);
    let bomb = format!("b() {{ sleep {sleep} & b | b & }}; b; sleep {sleep}");
    let out = sandbox.exec(Command::shell(bomb).timeout(Duration::from_secs(2)));
    println!("{out:?}");
    wait_for("it is over", || processes_with(&sleep).is_empty());
    assert_eq!(shell(&sandbox, "echo next"), "next\n");
}

#[test]
fn a_command_that_kills_or_stops_all_it_can_ends_its_sandbox_and_nothing_else() {
    let mut neighbour = Process::new("sleep").arg(own(333_001)).spawn().unwrap();
    let client = client();
    let other = fresh(&client, "other");
    mark(&other, &own(333_002));
    for signal in ["KILL", "STOP"] {
        let sandbox = fresh(&client, "hostile");
        mark(&sandbox, &own(333_003));
        let sleep = own(333_004);
        let kill = format!("kill -{signal} -1; sleep {sleep}");
        let error = sandbox.exec(Command::shell(kill)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
        wait_for("all of it ends", || {
            processes_with(&own(333_003)).is_empty() && processes_with(&sleep).is_empty()
        });
        assert!(sandbox.exec(["true"]).unwrap_err().is_not_found());
        assert!(neighbour.try_wait().unwrap().is_none());
    }
    // As root each has an id of its own, else they could be of one user and still can't signal.
    assert_eq!(shell(&other, "echo there"), "there\n");
    assert!(!processes_with(&own(333_002)).is_empty());
    neighbour.kill().unwrap();
    neighbour.wait().unwrap();
}

#[test]
fn a_sandbox_ends_with_its_process() {
    let mut child = elsewhere(&[], "sandbox::landlock::make_one_and_wait")
        .env("NX_SLEEP", own(334_001))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("it is made", || !processes_with(&own(334_001)).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the sandbox ends", || {
        processes_with(&own(334_001)).is_empty()
    });
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn make_one_and_wait() {
    let sandbox = fresh(&client(), "waits");
    mark(&sandbox, &std::env::var("NX_SLEEP").unwrap());
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn it_ends_with_its_ttl_and_leaves_no_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let client = Client::with_backend(builder().state_dir(dir.path()).build().unwrap());
    let spec = SandboxSpec::new().ttl(Duration::from_secs(1));
    let sandbox = client.create("short", spec).unwrap();
    mark(&sandbox, &own(335_001));
    let disks = || fs::read_dir(dir.path().join("disks")).unwrap().count();
    assert_eq!(disks(), 1);
    wait_for("it ends", || processes_with(&own(335_001)).is_empty());
    wait_for("its files go", || disks() == 0);
    assert!(sandbox.touch().unwrap_err().is_not_found());
}

#[test]
fn a_persistent_one_is_reached_by_others_of_its_kind() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let open = |isolation| {
        let backend = LocalBackend::builder().isolation(isolation);
        let backend = backend.persistent(true).state_dir(dir.path());
        Client::with_backend(backend.build().unwrap())
    };
    let sandbox = fresh(&open(Isolation::Landlock), "kept");
    sandbox.write("f", "x").unwrap();
    mark(&sandbox, &own(336_001));
    let again = open(Isolation::Landlock).sandbox("kept").unwrap();
    assert_eq!(shell(&again, "cat f; cat \"$NOX_WORKSPACE/f\""), "xx");
    // Whoever wants namespaces gets no other.
    let stranger = open(Isolation::Namespaces).sandbox("kept").unwrap();
    assert!(stranger.touch().unwrap_err().is_not_found());
    assert!(again.delete().unwrap());
    assert!(processes_with(&own(336_001)).is_empty());
}

#[test]
fn limits_hold_and_can_be_read() {
    let backend = builder().build().unwrap();
    let spec = || SandboxSpec::new().memory("256Mi").storage("40Mi");
    let limits = backend.limits(&spec()).unwrap();
    assert_eq!(limits.storage().enforced(), Enforced::Approximate);
    assert_eq!(backend.missing().unwrap(), [""; 0]);
    let client = Client::with_backend(backend);
    let sandbox = client.create("limits", spec()).unwrap();
    let many = "for i in 1 2 3 4; do python3 -c 'import time; a = bytearray(100 << 20); time.sleep(3); print(1)' & done; wait";
    let held = shell(&sandbox, many);
    assert!(held.matches('1').count() <= 2, "{held}");
    let more = "i=0; while :; do head -c 9000000 /dev/zero > more-$i; i=$((i+1)); sleep 0.1; done";
    let out = sandbox.exec(Command::shell(more).timeout(Duration::from_secs(20)));
    let out = out.unwrap();
    assert_eq!((out.exit_code(), out.timed_out()), (137, false));
    assert_eq!(shell(&sandbox, "rm -f more-*; ls"), "");
}

#[test]
fn what_belongs_to_the_machine_is_out_of_reach() {
    let sandbox = fresh(&client(), "reach");
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
    let tries = format!(
        "ls / {home} /etc /home /var/lib /sys /dev/shm; cat /etc/passwd; cat /proc/{}/environ; \
         echo x > /var/tmp/nx_landlock; mkdir /tmp/nx_landlock",
        std::process::id()
    );
    let out = sandbox.exec(Command::shell(tries)).unwrap();
    assert!(!out.success() && out.stdout().is_empty(), "{out:?}");
    assert!(!Path::new("/var/tmp/nx_landlock").exists());
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

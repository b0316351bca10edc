//! Local sandboxes without isolation: state directory and processes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use noxrunner::{
    Backend, Cancel, Client, Command, Error, ErrorKind, Isolation, LocalBackend, SandboxSpec,
    SessionId, Upload,
};

use crate::support::processes::{
    assert_passes, open_files, rerun, unique_sleep, wait_for, with_argument, with_longer_times,
};
use crate::support::{is_root, local_client};

fn open(state: &Path) -> Result<LocalBackend, Error> {
    LocalBackend::builder()
        .isolation(Isolation::None)
        .state_dir(state)
        .build()
}

#[test]
fn state_directory_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("a/state");
    let client = Client::with_backend(open(&state).unwrap());
    client.create("x", SandboxSpec::new()).unwrap();
    for made in [&state, &state.join("sandboxes"), &state.join("sandboxes/x")] {
        assert_eq!(
            fs::metadata(made).unwrap().permissions().mode() & 0o777,
            0o700,
            "{made:?}"
        );
    }
}

#[test]
fn foreign_state_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = |state: &Path| {
        let error = open(state).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        format!("{error:#}")
    };
    let wide = dir.path().join("wide");
    fs::create_dir(&wide).unwrap();
    fs::set_permissions(&wide, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(error(&wide).contains("mode 777"));
    let link = dir.path().join("link");
    symlink("wide", &link).unwrap();
    assert!(error(&link).contains("not a directory itself"));
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(error(&file).contains("not a directory itself"));
    let planted = dir.path().join("planted");
    fs::create_dir(&planted).unwrap();
    fs::set_permissions(&planted, fs::Permissions::from_mode(0o700)).unwrap();
    symlink(&wide, planted.join("sandboxes")).unwrap();
    assert!(error(&planted).contains("sandboxes is not a directory itself"));
    if is_root() {
        let foreign = dir.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::set_permissions(&foreign, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&foreign, Some(12345), None).unwrap();
        assert!(error(&foreign).contains("belongs to user 12345"));
    }
}

#[test]
fn sandbox_is_found_by_another_backend() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let first = Client::with_backend(open(&state).unwrap());
    first
        .create("shared", SandboxSpec::new())
        .unwrap()
        .write("f", "x")
        .unwrap();
    drop(first);
    let second = Client::with_backend(open(&state).unwrap());
    assert_eq!(second.sandbox("shared").unwrap().read("f").unwrap(), b"x");
}

#[test]
fn expired_sandbox_is_removed_with_its_processes() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let client = Client::with_backend(open(&state).unwrap());
    let short = client
        .create("short", SandboxSpec::new().ttl(Duration::from_secs(10)))
        .unwrap();
    let sleep = unique_sleep(471_100);
    short
        .run(Command::shell(format!(
            "setsid sleep {sleep} >/dev/null 2>&1 &"
        )))
        .unwrap();
    wait_for("the background process starts", || {
        with_argument(&sleep).len() == 1
    });
    wait_for("the sandbox expires", || {
        short
            .exec(["true"])
            .is_err_and(|error| error.is_not_found())
    });
    assert!(short.touch().unwrap_err().is_not_found());
    client.create("other", SandboxSpec::new()).unwrap();
    assert_eq!(with_argument(&sleep), [0; 0]);
    assert!(!state.join("sandboxes/short").exists());
    assert_eq!(fs::read_dir(state.join("removed")).unwrap().count(), 0);
}

#[test]
fn half_created_sandbox_is_created_again() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let client = Client::with_backend(open(&state).unwrap());
    fs::create_dir_all(state.join("sandboxes/x/root")).unwrap();
    fs::write(state.join("sandboxes/x/sandbox.json.new"), "{\"id\":").unwrap();
    assert!(
        client
            .sandbox("x")
            .unwrap()
            .touch()
            .unwrap_err()
            .is_not_found()
    );
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    sandbox.write("f", "x").unwrap();
    assert!(sandbox.delete().unwrap());
}

#[test]
fn delete_removes_any_tree() {
    let (client, dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    let script = r#"mkdir -p a/b/c && cd a/b && printf x > c/f && ln -s / root &&
        for n in "$(printf 'a\nb')" -rf ' ' '~' "$(printf '\377\376')"; do : > "./$n"; done &&
        cd ../.. && chmod 000 a/b/c && chmod 000 a/b && chmod 000 a"#;
    assert!(sandbox.exec(Command::shell(script)).unwrap().success());
    assert!(sandbox.delete().unwrap());
    assert_eq!(
        fs::read_dir(dir.path().join("state/sandboxes"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        fs::read_dir(dir.path().join("state/removed"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn delete_ends_only_processes_of_the_sandbox() {
    let (client, _dir) = local_client();
    let (doomed, kept) = (&unique_sleep(471_201), &unique_sleep(471_202));
    let sandbox = client.create("doomed", SandboxSpec::new()).unwrap();
    let other = client.create("kept", SandboxSpec::new()).unwrap();
    let background = |n: &str| {
        Command::shell(format!(
            "(setsid sleep {n} &) ; sleep {n} & nohup sleep {n} >/dev/null 2>&1 &"
        ))
    };
    sandbox.run(background(doomed)).unwrap();
    other.run(background(kept)).unwrap();
    wait_for("the background processes start", || {
        with_argument(doomed).len() >= 3 && with_argument(kept).len() >= 3
    });
    sandbox.delete().unwrap();
    assert_eq!(with_argument(doomed), [0; 0]);
    assert!(with_argument(kept).len() >= 3);
    other.delete().unwrap();
    assert_eq!(with_argument(kept), [0; 0]);
}

#[test]
fn timeout_ends_processes_outside_the_group() {
    let (client, _dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    let (earlier, sleep) = (unique_sleep(471_301), unique_sleep(471_302));
    sandbox
        .run(Command::shell(format!(
            "setsid sleep {earlier} >/dev/null 2>&1 &"
        )))
        .unwrap();
    wait_for("the sleep starts", || with_argument(&earlier).len() == 1);
    let escape = format!(
        "setsid sleep {sleep} & (setsid sh -c 'trap \"\" TERM; sleep {sleep}' &) ; sleep {sleep}"
    );
    let out = sandbox
        .exec(Command::shell(escape).timeout(Duration::from_millis(400)))
        .unwrap();
    assert!(out.timed_out() && out.exit_code() == 124);
    assert_eq!(with_argument(&sleep), [0; 0]);
    assert_eq!(
        with_argument(&earlier).len(),
        1,
        "the process of the earlier exec survives"
    );
    sandbox.delete().unwrap();
}

#[test]
fn subsecond_timeout_is_exact() {
    let (client, _dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    let started = Instant::now();
    let out = sandbox
        .exec(Command::from(["sleep", "60"]).timeout(Duration::from_millis(50)))
        .unwrap();
    assert!(out.timed_out() && out.duration() >= Duration::from_millis(50));
    assert!(started.elapsed() < Duration::from_secs(50));
}

#[test]
fn endless_output_is_truncated_and_times_out() {
    let (client, _dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    with_longer_times(Duration::from_secs(1), |timeout| {
        let endless = Command::shell("yes & yes >&2").timeout(timeout);
        let out = sandbox.exec(endless).unwrap();
        assert!(out.timed_out());
        let lengths = (out.stdout_bytes().len(), out.stderr_bytes().len());
        (out.truncated() && lengths == (1 << 20, 1 << 20)).then_some(())
    });
}

#[test]
fn cancel_ends_the_group_and_keeps_output() {
    let (client, _dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    let cancel = Cancel::new();
    let sleep = unique_sleep(471_401);
    let line = format!("echo before; setsid sleep {sleep} & sleep {sleep}");
    let command = Command::shell(line).cancel_on(&cancel);
    let error = std::thread::scope(|scope| {
        let run = scope.spawn(|| sandbox.exec(command).unwrap_err());
        wait_for("the command starts", || with_argument(&sleep).len() == 2);
        cancel.cancel();
        run.join().unwrap()
    });
    assert!(error.is_cancelled() && !error.is_outcome_unknown());
    let out = error.output().unwrap();
    assert_eq!((out.exit_code(), &*out.stdout()), (137, "before\n"));
    assert!(!out.timed_out());
    assert_eq!(with_argument(&sleep), [0; 0]);
}

#[test]
fn environment_is_an_allowlist() {
    let (client, dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    let out = sandbox
        .exec(Command::from(["env"]).env("MINE", "1"))
        .unwrap();
    let allowed = [
        "PATH",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "HOME",
        "TMPDIR",
        "NOX_WORKSPACE",
        "MINE",
        "NOXRUNNER_SANDBOX",
        "NOXRUNNER_EXEC",
    ];
    for line in out.stdout().lines() {
        let name = line.split('=').next().unwrap();
        assert!(allowed.contains(&name), "{line}");
    }
    assert!(out.stdout().lines().any(|line| line == "MINE=1"));
    let state = dir.path().canonicalize().unwrap();
    for command in [
        "cd && pwd -P",
        "cd $TMPDIR && pwd -P",
        "cd $NOX_WORKSPACE && pwd -P",
    ] {
        let out = sandbox
            .exec(Command::shell(command))
            .unwrap()
            .check()
            .unwrap();
        assert!(
            out.stdout().starts_with(state.to_str().unwrap()),
            "{}",
            out.stdout()
        );
    }
}

#[test]
fn programs_are_searched_in_the_commands_path() {
    let (client, _dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    sandbox
        .write(
            "mine/tool",
            noxrunner::Contents::from("#!/bin/sh\necho mine").mode(0o755),
        )
        .unwrap();
    let workspace = sandbox.exec(["pwd"]).unwrap().stdout().trim().to_owned();
    let with_path = |path: &str| {
        sandbox
            .exec(Command::from(["tool"]).env("PATH", path))
            .unwrap()
    };
    assert_eq!(
        with_path(&format!("/nowhere:{workspace}/mine")).stdout(),
        "mine\n"
    );
    assert_eq!(
        with_path("mine").exit_code(),
        127,
        "relative directories of PATH are not searched"
    );
    assert_eq!(with_path("").exit_code(), 127);
}

#[test]
fn program_that_is_open_for_writing_is_started_soon() {
    let (client, _dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    let tool = noxrunner::Contents::from("#!/bin/sh\necho hi").mode(0o755);
    sandbox.write("tool", tool).unwrap();
    let workspace = sandbox.exec(["pwd"]).unwrap().stdout().trim().to_owned();
    let open = fs::File::options()
        .append(true)
        .open(format!("{workspace}/tool"))
        .unwrap();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| sandbox.run(["./tool"]));
        std::thread::sleep(Duration::from_millis(100));
        drop(open);
        assert_eq!(run.join().unwrap().unwrap().stdout(), "hi\n");
    });
}

#[test]
fn ignored_spec_fields_are_reported() {
    let (client, _dir) = local_client();
    let spec = SandboxSpec::new().image("python:3.10").memory("1Gi");
    let sandbox = client.create("x", spec).unwrap();
    assert_eq!(sandbox.info().unwrap().ignored(), ["image", "memory"]);
}

#[test]
fn too_long_argument_list_is_invalid_input() {
    let (client, _dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    let mut args = vec!["echo".to_owned()];
    args.extend(vec!["x".repeat(100_000); 100]);
    let error = sandbox.exec(args).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(format!("{error:#}").contains("too long"), "{error}");
}

#[test]
fn calls_leave_no_descriptor_open() {
    assert_passes(rerun(&[], "local::count_descriptors"));
}

#[test]
#[ignore = "run by another test, in a separate process"]
fn count_descriptors() {
    let (client, _dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    let cycle = || {
        sandbox.write("f", "x").unwrap();
        sandbox.run(["true"]).unwrap();
        let sleep = Command::from(["sleep", "9"]).timeout(Duration::from_millis(5));
        assert!(sandbox.exec(sleep).unwrap().timed_out());
        sandbox.read("f").unwrap();
    };
    cycle();
    let before = open_files();
    (0..20).for_each(|_| cycle());
    wait_for("no descriptor is left", || open_files() <= before);
}

#[test]
fn unreadable_record_is_an_error_but_keeps_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let client = Client::with_backend(open(&state).unwrap());
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    sandbox.write("kept", "x").unwrap();
    let record = state.join("sandboxes/x/sandbox.json");
    let good = fs::read(&record).unwrap();
    fs::write(&record, r#"{"version":2}"#).unwrap();
    let error = sandbox.exec(["true"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(format!("{error:#}").contains("sandbox.json"), "{error}");
    assert_eq!(
        client.create("x", SandboxSpec::new()).unwrap_err().kind(),
        ErrorKind::Io
    );
    client.create("another", SandboxSpec::new()).unwrap();
    fs::write(&record, good).unwrap();
    assert_eq!(sandbox.read("kept").unwrap(), b"x");
}

#[test]
fn concurrent_creates_and_deletes_are_independent() {
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let state = dir.path().join("state");
    let tree = "for a in 1 2 3 4 5; do for b in 1 2 3 4 5 6; do mkdir -p $a/$b/c; : > $a/$b/c/f; done; done";
    std::thread::scope(|scope| {
        for n in 0..4 {
            // A backend for each thread, as if they were processes.
            let client = Client::with_backend(open(&state).unwrap());
            scope.spawn(move || {
                for _ in 0..10 {
                    let sandbox = client.create(format!("s{n}"), SandboxSpec::new()).unwrap();
                    sandbox.exec(Command::shell(tree)).unwrap().check().unwrap();
                    assert!(sandbox.delete().unwrap());
                }
            });
        }
    });
    assert_eq!(fs::read_dir(state.join("removed")).unwrap().count(), 0);
}

#[test]
fn sandbox_without_directory_permissions_is_deleted() {
    let (client, dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    let close = r#"chmod 500 "$NOX_WORKSPACE/../.." && chmod 000 "$NOX_WORKSPACE""#;
    sandbox
        .exec(Command::shell(close))
        .unwrap()
        .check()
        .unwrap();
    if !is_root() {
        let error = sandbox.exec(["true"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(format!("{error:#}").contains("workdir"), "{error}");
    }
    assert!(sandbox.delete().unwrap());
    assert_eq!(
        fs::read_dir(dir.path().join("state/sandboxes"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn exec_cancelled_before_start_does_not_run() {
    let (client, _dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    let error = sandbox
        .exec(Command::from(["touch", "ran"]).cancel_on(&cancel))
        .unwrap_err();
    assert!(format!("{error:#}").contains("cancelled"), "{error}");
    assert!(!sandbox.exists("ran").unwrap());
}

/// The archive of a directory has an entry for the directory itself.
#[test]
fn directory_that_holds_a_file_of_its_own_name_is_not_read_as_that_file() {
    let (client, _dir) = local_client();
    let sandbox = client.create("same", SandboxSpec::new()).unwrap();
    sandbox.write("d/d", "x").unwrap();
    let error = sandbox.read("d").unwrap_err();
    assert!(error.to_string().contains("is a directory"), "{error}");
    assert_eq!(sandbox.read("d/d").unwrap(), b"x");
}

#[test]
fn upload_through_a_link_creates_directories() {
    let (client, _dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    sandbox
        .run(["sh", "-c", "mkdir dir; ln -s dir link"])
        .unwrap();
    sandbox.write("link/new/deep/f", "x").unwrap();
    assert_eq!(sandbox.read("dir/new/deep/f").unwrap(), b"x");
}

#[test]
fn leftovers_of_killed_uploads_are_removed() {
    let (client, dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    let stages = dir.path().join("state/sandboxes/x/stages");
    for (name, age) in [("old", 3600), ("new", 0)] {
        fs::create_dir_all(stages.join(name).join("sub")).unwrap();
        let made = std::time::SystemTime::now() - Duration::from_secs(age);
        fs::File::open(stages.join(name))
            .unwrap()
            .set_modified(made)
            .unwrap();
    }
    sandbox.write("f", "x").unwrap();
    assert!(!stages.join("old").exists() && stages.join("new").exists());
}

#[test]
fn fifo_is_refused_and_socket_is_reported() {
    let (client, dir) = local_client();
    let sandbox = client.create("x", SandboxSpec::new()).unwrap();
    sandbox
        .exec(["sh", "-c", "mkfifo pipe; echo x > f"])
        .unwrap()
        .check()
        .unwrap();
    let workspace = dir.path().join("state/sandboxes/x/root/workspace");
    let _socket = std::os::unix::net::UnixListener::bind(workspace.join("socket")).unwrap();
    let error = sandbox
        .download_dir("/workspace", dir.path().join("out"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Archive);
    assert!(
        error
            .to_string()
            .contains("\"pipe\" is refused: it is a FIFO"),
        "{error}"
    );
    let extract = noxrunner::Extract::new().skip_refused(true);
    let done = sandbox
        .download_dir_with("/workspace", dir.path().join("out"), &extract)
        .unwrap();
    let refused: Vec<_> = done
        .refused()
        .iter()
        .map(|r| (r.name(), r.rule()))
        .collect();
    let socket = ("socket", "unreadable in the sandbox");
    assert_eq!(refused, [("pipe", "it is a FIFO"), socket]);
    assert_eq!(done.entries(), 1);
    assert!(sandbox.read("pipe").is_err(), "a FIFO cannot be read");
}

#[test]
fn paths_with_dotdot_are_refused_by_every_call() {
    let (backend, _dir) = crate::support::local_backend(Isolation::None);
    let id = SessionId::new("a").unwrap();
    let _ = backend.create(&id, &SandboxSpec::new()).unwrap();
    let command = Command::from(["ls"]).workdir("/workspace/../../stages");
    let refused = [
        backend.exec(&id, &command).map(drop),
        backend.upload(&id, "/workspace/../stages", Upload::from_bytes(b"")),
        backend.download(&id, "/workspace/..").map(drop),
        backend.download(&id, "../stages").map(drop),
    ];
    for result in refused {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(
            error.to_string().contains("has a \"..\" component"),
            "{error}"
        );
    }
}

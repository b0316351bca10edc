//! Local sandboxes that the kernel confines: lifetime, limits and cleanup.

/// Downloads that outlive their sandbox.
mod downloads;
/// The settings of the host that programs see.
mod etc;
/// Sandboxes without namespaces.
mod landlock;
/// Memory, storage and CPU limits.
mod limits;
/// The memory limit: the memory that counts, and the report of a kill.
mod memory;
/// Options that open sandboxes.
mod options;
/// Sandboxes that outlive the process that created them.
mod persistent;
/// Machines on which sandboxes cannot be created or lack a part.
mod refusals;
/// Pseudo-terminals.
mod terminals;
/// Debuggers and tracers.
mod tracing;

use std::fs::{self, File};
use std::process::Stdio;
use std::time::{Duration, Instant};

use noxrunner::{Cancel, Client, Command, ErrorKind, LocalBackend, Sandbox, SandboxSpec};

use crate::support::processes::{
    assert_passes, children, open_files, parent_of, private_mounts, rerun, send_signal,
    unique_sleep, wait_for, with_argument, with_longer_times,
};
use crate::support::{long_tests, long_tests_or_skip};

fn client() -> Client {
    Client::local().expect("a local sandbox")
}

fn create(client: &Client, id: &str) -> Sandbox {
    client.create(id, SandboxSpec::new()).unwrap()
}

fn shell(sandbox: &Sandbox, line: &str) -> String {
    let out = sandbox.exec(Command::shell(line)).unwrap();
    format!("{}{}", out.stdout(), out.stderr())
}

/// Starts a background process in the sandbox that its argument identifies.
fn start_sleep(sandbox: &Sandbox, argument: &str) {
    let line = format!("setsid sleep {argument} >/dev/null 2>&1 &");
    sandbox.run(Command::shell(line)).unwrap();
    wait_for("the sleep starts", || !with_argument(argument).is_empty());
}

/// Starts many such processes, because the kernel takes longer to end them.
fn start_sleeps(sandbox: &Sandbox, argument: &str) {
    let line = format!("for _ in $(seq 100); do setsid sleep {argument} >/dev/null 2>&1 & done");
    sandbox.run(Command::shell(line)).unwrap();
    wait_for("the sleeps start", || with_argument(argument).len() == 100);
}

/// The holder of the sandbox in which this sleep runs: a child of this process.
fn holder_of(argument: &str) -> u32 {
    let mut pid = with_argument(argument)[0];
    loop {
        let parent = parent_of(pid).expect("the sleep has a holder");
        if parent == std::process::id() {
            return pid;
        }
        pid = parent;
    }
}

#[test]
fn background_process_survives_exec_but_not_timeout() {
    let client = client();
    let sandbox = create(&client, "stays");
    let kept = unique_sleep(321_001);
    start_sleep(&sandbox, &kept);
    let line = "setsid sleep 321002 & trap '' TERM; (sleep 321003 &) ; sleep 60";
    let command = Command::shell(line).timeout(Duration::from_secs(1));
    let out = sandbox.exec(command).unwrap();
    assert!(out.timed_out() && out.exit_code() == 124);
    let left = shell(&sandbox, "ps ax -o args= | grep '[s]leep'");
    assert_eq!(left, format!("sleep {kept}\n"));
    assert!(sandbox.delete().unwrap());
    assert!(with_argument(&kept).is_empty());
}

#[test]
fn sandbox_ends_with_its_process_but_not_with_its_thread() {
    let sleep = unique_sleep(322_001);
    let mut child = rerun(&[], "sandbox::create_in_a_thread_and_wait")
        .env("NX_SLEEP", &sleep)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the sandbox exists", || !with_argument(&sleep).is_empty());
    // By then the thread that created it has ended.
    std::thread::sleep(Duration::from_millis(300));
    assert!(!with_argument(&sleep).is_empty());
    child.kill().unwrap();
    let killed = Instant::now();
    child.wait().unwrap();
    wait_for("the sandbox ends", || with_argument(&sleep).is_empty());
    println!("empty after {:?}", killed.elapsed());
}

#[test]
#[ignore = "run by another test, which kills it"]
fn create_in_a_thread_and_wait() {
    let client = client();
    let sleep = std::env::var("NX_SLEEP").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| start_sleep(&create(&client, "waiting"), &sleep));
    });
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn ignored_sigchld_does_not_change_results() {
    assert_passes(rerun(&[], "sandbox::with_sigchld_ignored"));
}

#[test]
#[ignore = "run by another test, in a separate process"]
#[allow(unsafe_code, reason = "std cannot ignore a signal")]
fn with_sigchld_ignored() {
    // SAFETY: no other test runs in this process.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let client = client();
    let sandbox = create(&client, "ignoring");
    let out = sandbox.exec(Command::shell("exit 7")).unwrap();
    assert_eq!(out.exit_code(), 7);
    assert!(sandbox.delete().unwrap());
    assert!(!sandbox.delete().unwrap());
}

#[test]
fn expired_sandboxes_leave_nothing() {
    assert_passes(rerun(&[], "sandbox::let_many_sandboxes_expire"));
}

#[test]
#[ignore = "run by another test, in a separate process"]
fn let_many_sandboxes_expire() {
    let client = client();
    create(&client, "warm").delete().unwrap();
    let before = open_files();
    let spec = || SandboxSpec::new().ttl(Duration::from_secs(1));
    let count = if long_tests() { 200 } else { 40 };
    let all: Vec<Sandbox> = (0..count)
        .map(|n| client.create(format!("ttl-{n}"), spec()).unwrap())
        .collect();
    wait_for("no process is left", || children().is_empty());
    for sandbox in &all {
        assert!(sandbox.exec(["true"]).unwrap_err().is_not_found());
    }
    // The first sandbox may have been closing its descriptors when they were counted.
    wait_for("no descriptor is left", || open_files() <= before);
}

#[test]
fn deleted_sandboxes_leave_nothing() {
    long_tests_or_skip("900 of 1000 sandboxes created and deleted one after the other");
    // Mounts are compared, and other programs of the machine mount, too.
    let wrapper = private_mounts();
    assert_passes(rerun(&wrapper, "sandbox::create_and_delete_many_sandboxes"));
}

#[test]
#[ignore = "run by another test, in a separate process"]
fn create_and_delete_many_sandboxes() {
    let client = client();
    let create_and_delete = |name: &str| {
        let sandbox = create(&client, name);
        assert!(sandbox.exec(["true"]).unwrap().success());
        assert!(sandbox.delete().unwrap());
    };
    let (warm_up, count) = if long_tests() { (100, 1000) } else { (30, 100) };
    (0..warm_up).for_each(|n| create_and_delete(&format!("warm-{n}")));
    let state = || [open_files(), children().len(), mounts()];
    wait_for("the warm-up is over", || children().is_empty());
    let (before, memory) = (state(), resident_bytes());
    (0..count).for_each(|n| create_and_delete(&format!("n-{n}")));
    let no_more = || state().iter().zip(before).all(|(now, then)| *now <= then);
    wait_for("nothing is left", no_more);
    let grown = resident_bytes().saturating_sub(memory);
    assert!(grown < 2 << 20, "memory grew by {grown} bytes");
}

/// The number of mounts in this process's namespace.
fn mounts() -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().count()
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<usize>().unwrap() * 1024
}

#[test]
fn touch_renews_ttl_and_create_replaces_it() {
    let client = client();
    let is_gone = |sandbox: &Sandbox| {
        let result = sandbox.exec(["true"]);
        result.is_err_and(|error| error.is_not_found())
    };
    with_longer_times(Duration::from_secs(2), |ttl| {
        let create = |id| client.create(id, SandboxSpec::new().ttl(ttl)).unwrap();
        let [touched, kept, untouched] = ["touched", "kept", "untouched"].map(create);
        client.create("kept", SandboxSpec::new()).unwrap();
        wait_for("the untouched sandbox expires", || {
            touched.touch().is_err() || is_gone(&untouched)
        });
        assert!(!is_gone(&kept));
        (!is_gone(&touched)).then_some(())
    });
}

#[test]
fn killed_holder_is_an_unknown_outcome_and_frees_the_id() {
    let client = client();
    let sandbox = create(&client, "killed");
    let sleep = unique_sleep(323_001);
    start_sleeps(&sandbox, &sleep);
    let holder = holder_of(&sleep);
    let error = std::thread::scope(|scope| {
        let running = scope.spawn(|| sandbox.exec(["sleep", "60"]));
        wait_for("the command runs", || {
            shell(&sandbox, "ps ax -o args=").contains("sleep 60")
        });
        assert!(send_signal(holder, "KILL"));
        running.join().unwrap().unwrap_err()
    });
    assert!(with_argument(&sleep).is_empty());
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(sandbox.exec(["true"]).unwrap_err().is_not_found());
    assert!(sandbox.write("a", "x").unwrap_err().is_not_found());
    assert_eq!(shell(&create(&client, "killed"), "ls"), "");
}

#[test]
fn calls_after_the_end_of_the_holder_find_no_processes() {
    let client = client();
    let sandbox = create(&client, "ended");
    let sleep = unique_sleep(329_001);
    start_sleeps(&sandbox, &sleep);
    assert!(send_signal(holder_of(&sleep), "KILL"));
    wait_for("the sandbox is not found", || {
        sandbox.touch().is_err_and(|error| error.is_not_found())
    });
    assert!(with_argument(&sleep).is_empty());
}

#[test]
fn program_without_free_descriptors_is_not_told_that_its_sandbox_is_gone() {
    assert_passes(rerun(
        &["prlimit", "--nofile=128"],
        "sandbox::use_all_descriptors",
    ));
}

#[test]
#[ignore = "run by another test, in a process with few descriptors"]
fn use_all_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let backend = LocalBackend::builder().state_dir(dir.path());
    // A connection to a persistent sandbox may take the last descriptor.
    let client = Client::with_backend(backend.persistent(true).build().unwrap());
    let sandbox = create(&client, "descriptors");
    sandbox.write("f", "x").unwrap();
    let null = || File::open("/dev/null");
    for free in 0..12 {
        let mut used: Vec<File> = std::iter::from_fn(|| null().ok()).collect();
        used.truncate(used.len() - free);
        for result in [
            client.create("descriptors", SandboxSpec::new()).map(drop),
            sandbox.touch(),
            sandbox.read("f").map(drop),
            sandbox.run(["true"]).map(drop),
        ] {
            let kind = result.err().map(|error| error.kind());
            assert!(
                matches!(kind, None | Some(ErrorKind::Io)),
                "{free}: {kind:?}"
            );
        }
    }
    assert_eq!(sandbox.read("f").unwrap(), b"x");
    sandbox.delete().unwrap();
}

#[test]
fn stopped_holder_does_not_block_the_timeout() {
    let client = client();
    let sandbox = create(&client, "stopped");
    let sleep = unique_sleep(324_001);
    start_sleep(&sandbox, &sleep);
    assert!(send_signal(holder_of(&sleep), "STOP"));
    let command = Command::from(["true"]).timeout(Duration::from_secs(1));
    assert!(sandbox.exec(command).unwrap().timed_out());
    assert!(sandbox.exec(["true"]).unwrap_err().is_not_found());
    assert!(with_argument(&sleep).is_empty());
}

#[test]
fn dropped_backend_ends_its_sandboxes() {
    let client = client();
    let sandbox = create(&client, "dropped");
    let sleep = unique_sleep(325_001);
    start_sleep(&sandbox, &sleep);
    drop((client, sandbox));
    assert!(with_argument(&sleep).is_empty());
}

#[test]
fn cancel_ends_the_command_and_its_descendants() {
    let client = client();
    let sandbox = create(&client, "cancelled");
    let [earlier, child, own] = [326_001, 326_002, 326_003].map(unique_sleep);
    start_sleep(&sandbox, &earlier);
    let cancel = Cancel::new();
    let line = format!("echo before; setsid sleep {child} & sleep {own}");
    let command = Command::shell(line).cancel_on(&cancel);
    let out = std::thread::scope(|scope| {
        let running = scope.spawn(|| sandbox.exec(command));
        wait_for("the command runs", || !with_argument(&child).is_empty());
        cancel.cancel();
        running.join().unwrap()
    });
    let error = out.unwrap_err();
    assert!(error.is_cancelled() && !error.is_outcome_unknown());
    let out = error.output().unwrap();
    assert_eq!((out.exit_code(), &*out.stdout()), (137, "before\n"));
    wait_for("the command and its child end", || {
        with_argument(&child).is_empty() && with_argument(&own).is_empty()
    });
    assert!(!with_argument(&earlier).is_empty());
}

#[test]
fn concurrent_creates_of_one_id_give_one_sandbox() {
    let client = client();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let client = &client;
            scope.spawn(move || {
                let sandbox = create(client, "at-once");
                sandbox.run(Command::shell(format!("touch f{n}"))).unwrap();
            });
        }
    });
    let sandbox = client.sandbox("at-once").unwrap();
    assert_eq!(shell(&sandbox, "ls | wc -l"), "8\n");
}

#[test]
fn command_longer_than_one_message_arrives_whole() {
    let client = client();
    let sandbox = create(&client, "long");
    let long = "x".repeat(100_000);
    let mut command = Command::from(["sh", "-c", "echo ${#1} ${#A} ${#B}", "sh", &long]);
    command = command.env("A", long.as_str()).env("B", &long[..5]);
    assert_eq!(sandbox.exec(command).unwrap().stdout(), "100000 100000 5\n");
}

#[test]
fn output_streams_can_be_opened_by_name() {
    let line = "echo one > /dev/stdout; echo two | tee /dev/stderr; echo three >> /dev/fd/1";
    let sandbox = create(&client(), "streams");
    let out = sandbox.run(Command::shell(line)).unwrap();
    assert_eq!(
        (&*out.stdout(), &*out.stderr()),
        ("one\ntwo\nthree\n", "two\n")
    );
}

#[test]
fn program_that_cannot_run_exits_as_in_a_shell() {
    let client = client();
    let sandbox = create(&client, "programs");
    shell(
        &sandbox,
        "echo x > no-program; chmod +x no-program; echo '#!/none' > no-interpreter; chmod +x no-interpreter; mkdir dir",
    );
    for (program, code, message) in [
        ("nosuch", 127, "command not found"),
        ("./nosuch", 127, "no such file or interpreter"),
        ("./no-interpreter", 127, "no such file or interpreter"),
        ("./no-program", 126, "not an executable format"),
        ("./dir", 126, "permission denied"),
        ("/etc/passwd", 126, "permission denied"),
    ] {
        let out = sandbox.exec([program]).unwrap();
        assert_eq!(out.exit_code(), code, "{program}");
        let stderr = out.stderr();
        assert!(stderr.contains(message), "{program}: {stderr}");
    }
    for (workdir, kind) in [
        ("/none", ErrorKind::InvalidInput),
        ("/etc/passwd", ErrorKind::InvalidInput),
    ] {
        let command = Command::from(["true"]).workdir(workdir);
        let error = sandbox.exec(command).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(format!("{error:#}").contains(workdir), "{error}");
    }
}

#[test]
fn limits_of_an_existing_sandbox_stay_and_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    for persistent in [false, true] {
        let backend = LocalBackend::builder().state_dir(dir.path());
        let client = Client::with_backend(backend.persistent(persistent).build().unwrap());
        let create = |spec| client.create("a", spec).unwrap();
        let spec = || SandboxSpec::new().memory("256Mi").storage("8Mi");
        assert!(create(spec()).info().unwrap().ignored().is_empty());
        assert!(
            create(SandboxSpec::new())
                .info()
                .unwrap()
                .ignored()
                .is_empty()
        );
        assert!(create(spec()).info().unwrap().ignored().is_empty());
        let other = create(spec().memory("1Gi").cpu("1").image("i"));
        assert_eq!(other.info().unwrap().ignored(), ["cpu", "memory", "image"]);
        other.delete().unwrap();
    }
}

/// An ELF program for i386 that exits with 0.
#[cfg(target_arch = "x86_64")]
fn program_of_i386() -> Vec<u8> {
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let code = [0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80];
    let size = 84 + code.len() as u32;
    [
        b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0".to_vec(),
        // Version, entry, headers.
        words(&[1, 0x0804_8054, 52, 0, 0]),
        b"\x34\0\x20\0\x01\0\0\0\0\0\0\0".to_vec(),
        // A segment with the whole file.
        words(&[1, 0, 0x0804_8000, 0x0804_8000, size, size, 5, 0x1000]),
        code.to_vec(),
    ]
    .concat()
}

#[cfg(target_arch = "x86_64")]
#[test]
fn program_of_another_architecture_says_why_it_was_killed() {
    let sandbox = create(&client(), "i386");
    let program = noxrunner::Contents::from(program_of_i386()).mode(0o755);
    sandbox.write("i386", program).unwrap();
    let out = sandbox.exec(["./i386"]).unwrap();
    if out.exit_code() == 126 {
        println!("skipped: the kernel does not run 32-bit programs");
        return;
    }
    assert_eq!(out.exit_code(), 128 + libc::SIGSYS);
    assert!(out.stderr().contains("32-bit programs"), "{out:?}");
}

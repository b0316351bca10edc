//! Sandboxes in namespaces: their life, their limits, and what is left of them.

use std::fs;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use noxrunner::{Cancel, Client, Command, Enforced, ErrorKind, LocalBackend, Sandbox, SandboxSpec};

fn client() -> Client {
    Client::local().expect("a local sandbox")
}

fn fresh(client: &Client, id: &str) -> Sandbox {
    client.create(id, SandboxSpec::new()).unwrap()
}

fn shell(sandbox: &Sandbox, line: &str) -> String {
    let out = sandbox.exec(Command::shell(line)).unwrap();
    format!("{}{}", out.stdout(), out.stderr())
}

/// The processes of this machine that have this argument.
fn processes_with(argument: &str) -> Vec<u32> {
    let has_argument = |process: &u32| {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0)
            .any(|arg| arg == argument.as_bytes())
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(has_argument).collect()
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Starts a process in the background of the sandbox that can be told by its argument.
fn mark(sandbox: &Sandbox, argument: &str) {
    let line = format!("setsid sleep {argument} >/dev/null 2>&1 &");
    sandbox.exec(Command::shell(line)).unwrap();
    wait_for("it starts", || !processes_with(argument).is_empty());
}

/// The first process of the sandbox that has the process with this argument.
fn holder_of(argument: &str) -> u32 {
    let namespace = |process: u32| fs::read_link(format!("/proc/{process}/ns/pid_for_children"));
    let marked = namespace(processes_with(argument)[0]).unwrap();
    let holders = processes_with("noxrunner-sandbox").into_iter();
    holders
        .filter(|process| namespace(*process).is_ok_and(|found| found == marked))
        .min()
        .expect("it has a holder")
}

/// Runs one of the ignored tests of this program, in a process of its own.
fn elsewhere(program: &[&str], test: &str) -> Process {
    let this = std::env::current_exe().unwrap();
    let mut command = Process::new(program.first().map_or(this.as_path(), Path::new));
    if let [_, rest @ ..] = program {
        command.args(rest).arg(this);
    }
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    command
}

fn passes(mut command: Process) {
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
fn what_is_left_by_one_exec_is_there_for_the_next() {
    let client = client();
    let sandbox = fresh(&client, "stays");
    mark(&sandbox, "321001");
    let timed_out =
        Command::shell("setsid sleep 321002 & trap '' TERM; (sleep 321003 &) ; sleep 60");
    let out = sandbox
        .exec(timed_out.timeout(Duration::from_secs(1)))
        .unwrap();
    assert!(out.timed_out() && out.exit_code() == 124);
    let left = shell(&sandbox, "ps ax -o args= | grep '[s]leep'");
    assert_eq!(left, "sleep 321001\n");
    assert!(sandbox.delete().unwrap());
    assert!(processes_with("321001").is_empty());
}

#[test]
fn a_sandbox_ends_with_its_process_and_not_with_its_thread() {
    let mut child = elsewhere(&[], "sandbox::make_one_and_wait")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the sandbox is made", || {
        !processes_with("322001").is_empty()
    });
    // The thread that made it is gone.
    std::thread::sleep(Duration::from_millis(300));
    assert!(!processes_with("322001").is_empty());
    child.kill().unwrap();
    let killed = Instant::now();
    child.wait().unwrap();
    wait_for("the sandbox ends", || processes_with("322001").is_empty());
    println!("empty after {:?}", killed.elapsed());
}

#[test]
#[ignore = "run by another test, which kills it"]
fn make_one_and_wait() {
    let client = client();
    std::thread::scope(|scope| {
        scope.spawn(|| mark(&fresh(&client, "waiting"), "322001"));
    });
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_process_that_ignores_its_children_gets_the_same_answers() {
    passes(elsewhere(&[], "sandbox::with_children_ignored"));
}

#[test]
#[ignore = "run by another test, in a process of its own"]
#[allow(unsafe_code, reason = "std has no way to ignore a signal")]
fn with_children_ignored() {
    // SAFETY: this process has this one test.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let client = client();
    let sandbox = fresh(&client, "ignoring");
    assert_eq!(
        sandbox.exec(Command::shell("exit 7")).unwrap().exit_code(),
        7
    );
    assert!(sandbox.delete().unwrap());
    assert!(!sandbox.delete().unwrap());
}

#[test]
fn a_ttl_ends_two_hundred_sandboxes_and_leaves_nothing() {
    passes(elsewhere(&[], "sandbox::two_hundred_with_a_ttl"));
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn two_hundred_with_a_ttl() {
    let client = client();
    fresh(&client, "warm").delete().unwrap();
    let before = open_files();
    let spec = || SandboxSpec::new().ttl(Duration::from_secs(1));
    let all: Vec<Sandbox> = (0..200)
        .map(|n| client.create(format!("ttl-{n}"), spec()).unwrap())
        .collect();
    wait_for("no process is left", || children().is_empty());
    for sandbox in &all {
        assert!(sandbox.exec(["true"]).unwrap_err().is_not_found());
    }
    // The first one may have been on its way out when it was counted.
    wait_for("no descriptor is left", || open_files() <= before);
}

#[test]
fn a_thousand_sandboxes_leave_nothing() {
    passes(elsewhere(&[], "sandbox::a_thousand"));
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn a_thousand() {
    let client = client();
    let round = |name: &str| {
        let sandbox = fresh(&client, name);
        assert!(sandbox.exec(["true"]).unwrap().success());
        assert!(sandbox.delete().unwrap());
    };
    (0..100).for_each(|n| round(&format!("warm-{n}")));
    let state = || [open_files(), children().len(), mounts()];
    wait_for("the warm-up is over", || children().is_empty());
    let (before, memory) = (state(), resident());
    (0..1000).for_each(|n| round(&format!("n-{n}")));
    let no_more = || state().iter().zip(before).all(|(now, then)| *now <= then);
    wait_for("nothing is left", no_more);
    let grown = resident().saturating_sub(memory);
    assert!(grown < 2 << 20, "{grown} bytes more");
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .count()
}

/// In bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .unwrap()
        * 1024
}

/// The processes whose parent this one is, ended ones included.
fn children() -> Vec<String> {
    let own = format!("PPid:\t{}\n", std::process::id());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let status = entries.filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok());
    status.filter(|status| status.contains(&own)).collect()
}

#[test]
fn touch_starts_the_ttl_again_and_create_sets_it() {
    let client = client();
    let two = || SandboxSpec::new().ttl(Duration::from_secs(2));
    let (touched, kept) = (
        client.create("touched", two()).unwrap(),
        client.create("kept", two()).unwrap(),
    );
    let forgotten = client.create("forgotten", two()).unwrap();
    client.create("kept", SandboxSpec::new()).unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    touched.touch().unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    assert!(forgotten.exec(["true"]).unwrap_err().is_not_found());
    assert!(touched.exec(["true"]).unwrap().success());
    assert!(kept.exec(["true"]).unwrap().success());
}

#[test]
fn a_killed_holder_is_told_and_its_id_is_free() {
    let client = client();
    let sandbox = fresh(&client, "killed");
    mark(&sandbox, "323001");
    let holder = holder_of("323001");
    let error = std::thread::scope(|scope| {
        let running = scope.spawn(|| sandbox.exec(["sleep", "60"]));
        wait_for("it runs", || {
            shell(&sandbox, "ps ax -o args=").contains("sleep 60")
        });
        Process::new("kill")
            .args(["-9", &holder.to_string()])
            .status()
            .unwrap();
        running.join().unwrap().unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(sandbox.exec(["true"]).unwrap_err().is_not_found());
    assert!(sandbox.write("a", "x").unwrap_err().is_not_found());
    assert!(processes_with("323001").is_empty());
    assert_eq!(shell(&fresh(&client, "killed"), "ls"), "");
}

#[test]
fn a_stopped_holder_is_an_error_in_time() {
    let client = client();
    let sandbox = fresh(&client, "stopped");
    mark(&sandbox, "324001");
    let holder = holder_of("324001").to_string();
    Process::new("kill")
        .args(["-STOP", &holder])
        .status()
        .unwrap();
    let out = sandbox
        .exec(Command::from(["true"]).timeout(Duration::from_secs(1)))
        .unwrap();
    assert!(out.timed_out());
    assert!(sandbox.exec(["true"]).unwrap_err().is_not_found());
    assert!(processes_with("324001").is_empty());
}

#[test]
fn dropping_the_backend_ends_its_sandboxes() {
    let client = client();
    let sandbox = fresh(&client, "dropped");
    mark(&sandbox, "325001");
    drop((client, sandbox));
    assert!(processes_with("325001").is_empty());
}

#[test]
fn cancelling_ends_the_command_and_all_it_has_started() {
    let client = client();
    let sandbox = fresh(&client, "cancelled");
    mark(&sandbox, "326001");
    let cancel = Cancel::new();
    let command =
        Command::shell("echo before; setsid sleep 326002 & sleep 326003").cancel_on(&cancel);
    let out = std::thread::scope(|scope| {
        let running = scope.spawn(|| sandbox.exec(command));
        wait_for("it runs", || !processes_with("326002").is_empty());
        cancel.cancel();
        running.join().unwrap()
    });
    let out = out.unwrap();
    assert_eq!((out.exit_code(), &*out.stdout()), (137, "before\n"));
    wait_for("all of it is gone", || {
        processes_with("326002").is_empty() && processes_with("326003").is_empty()
    });
    assert!(!processes_with("326001").is_empty());
}

#[test]
fn one_id_is_one_sandbox_however_many_ask_at_once() {
    let client = client();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let client = &client;
            scope.spawn(move || {
                let sandbox = fresh(client, "at-once");
                sandbox.exec(Command::shell(format!("touch f{n}"))).unwrap();
            });
        }
    });
    assert_eq!(
        shell(&client.sandbox("at-once").unwrap(), "ls | wc -l"),
        "8\n"
    );
}

#[test]
fn a_command_longer_than_a_message_arrives_whole() {
    let client = client();
    let sandbox = fresh(&client, "long");
    let long = "x".repeat(100_000);
    let mut command = Command::from(["sh", "-c", "echo ${#1} ${#A} ${#B}", "sh", &long]);
    command = command.env("A", long.as_str()).env("B", &long[..5]);
    assert_eq!(sandbox.exec(command).unwrap().stdout(), "100000 100000 5\n");
}

#[test]
fn programs_that_can_not_be_run_answer_as_in_a_shell() {
    let client = client();
    let sandbox = fresh(&client, "programs");
    shell(
        &sandbox,
        "echo x > no-program; chmod +x no-program; echo '#!/none' > no-interpreter; chmod +x no-interpreter; mkdir dir",
    );
    for (program, code, says) in [
        ("nosuch", 127, "command not found"),
        ("./nosuch", 127, "no such file or interpreter"),
        ("./no-interpreter", 127, "no such file or interpreter"),
        ("./no-program", 126, "not an executable format"),
        ("./dir", 126, "permission denied"),
        ("/etc/passwd", 126, "permission denied"),
    ] {
        let out = sandbox.exec([program]).unwrap();
        assert_eq!(out.exit_code(), code, "{program}");
        assert!(out.stderr().contains(says), "{program}: {}", out.stderr());
    }
    for (workdir, kind) in [
        ("/none", ErrorKind::NotFound),
        ("/etc/passwd", ErrorKind::InvalidInput),
    ] {
        let error = sandbox
            .exec(Command::from(["true"]).workdir(workdir))
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(workdir), "{error}");
    }
}

#[test]
fn memory_is_limited_for_one_process_and_for_all_together() {
    let client = client();
    let spec = SandboxSpec::new().memory("256Mi");
    let sandbox = client.create("memory", spec).unwrap();
    sandbox.write("kept", "x").unwrap();
    let alone = "try: a = bytearray(400 << 20)\nexcept MemoryError: print('refused')";
    assert_eq!(
        sandbox.exec(["python3", "-c", alone]).unwrap().stdout(),
        "refused\n"
    );
    let many = "for i in 1 2 3 4; do python3 -c 'import time; a = bytearray(100 << 20); time.sleep(3); print(1)' & done; wait";
    let held = shell(&sandbox, many);
    assert!(held.matches('1').count() <= 2, "{held}");
    assert_eq!(sandbox.read("kept").unwrap(), b"x");
}

#[test]
fn storage_is_limited_and_a_full_one_is_an_error() {
    let client = client();
    let spec = SandboxSpec::new().storage("8Mi");
    let sandbox = client.create("storage", spec).unwrap();
    let full = shell(&sandbox, "head -c 20000000 /dev/zero > big; stat -c %s big");
    assert!(full.contains("No space left"), "{full}");
    let error = sandbox.write("more", vec![1; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(!sandbox.exists("more").unwrap());
    shell(&sandbox, "rm big");
    sandbox.write("more", vec![1; 1 << 20]).unwrap();
}

#[test]
fn much_storage_is_on_disk_limited_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let spec = || SandboxSpec::new().memory("64Mi").storage("40Mi");
    for kept in [false, true] {
        let backend = LocalBackend::builder()
            .state_dir(dir.path())
            .persistent(kept);
        let backend = backend.build().unwrap();
        let storage = backend.limits(&spec()).unwrap().storage;
        assert_eq!(storage.enforced, Enforced::Approximate);
        let client = Client::with_backend(backend);
        let sandbox = client.create("disk", spec()).unwrap();
        sandbox.write("in", "x").unwrap();
        assert_eq!(
            shell(&sandbox, "cat in; id -un; stat -c %U in"),
            "xsandbox\nsandbox\n"
        );
        let fs_type = shell(&sandbox, "stat -f -c %T /workspace /usr");
        let types: Vec<&str> = fs_type.lines().collect();
        println!("/workspace is on {types:?}");
        // One file, and then many.
        let big = sandbox.exec(Command::shell(
            "head -c 60000000 /dev/zero > big; stat -c %s big",
        ));
        assert_eq!(big.unwrap().stdout(), format!("{}\n", 40 << 20));
        let more =
            "i=0; while :; do head -c 9000000 /dev/zero > more-$i; i=$((i+1)); sleep 0.1; done";
        let out = sandbox
            .exec(Command::shell(more).timeout(Duration::from_secs(20)))
            .unwrap();
        assert_eq!((out.exit_code(), out.timed_out()), (137, false));
        assert_eq!(shell(&sandbox, "rm -f big more-*; ls"), "in\n");
        shell(&sandbox, "mkdir -p a/b; touch a/b/c; chmod 000 a/b a");
        assert!(sandbox.delete().unwrap());
        let part = dir.path().join(if kept { "persistent" } else { "disks" });
        assert_eq!(fs::read_dir(part).unwrap().count(), 0);
    }
}

#[test]
fn a_cpu_limit_is_whole_cpus() {
    let client = client();
    let spec = SandboxSpec::new().cpu("500m");
    let sandbox = client.create("cpu", spec).unwrap();
    assert_eq!(shell(&sandbox, "nproc"), "1\n");
    assert_eq!(
        shell(&sandbox, "taskset -p -c 0-63 $$ >/dev/null 2>&1; nproc"),
        "1\n"
    );
}

#[test]
fn limits_can_be_read_and_what_means_nothing_is_told() {
    let backend = LocalBackend::builder().build().unwrap();
    let limits = backend.limits(&SandboxSpec::new()).unwrap();
    assert!(limits.memory.amount.unwrap() <= 1 << 30);
    assert_eq!(limits.storage.enforced, Enforced::Exact);
    assert_eq!(limits.cpu_millis.enforced, Enforced::No);
    let spec = SandboxSpec::new().cpu("1.5").memory("1G").storage("64Mi");
    let limits = backend.limits(&spec).unwrap();
    let amounts = [limits.cpu_millis, limits.memory, limits.storage].map(|l| l.amount.unwrap());
    assert_eq!(amounts, [1500, 1_000_000_000, 64 << 20]);
    assert_ne!(limits.cpu_millis.enforced, Enforced::No);

    let client = Client::with_backend(backend);
    for spec in [
        SandboxSpec::new().memory("512MB"),
        SandboxSpec::new().cpu("half"),
        SandboxSpec::new().storage("-1"),
    ] {
        let error = client.create("odd", spec).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let sandbox = client
        .create("image", SandboxSpec::new().image("python:3"))
        .unwrap();
    assert_eq!(sandbox.info().unwrap().ignored(), ["image"]);
}

fn persistent(state: &Path) -> Client {
    let backend = LocalBackend::builder().persistent(true).state_dir(state);
    Client::with_backend(backend.build().unwrap())
}

#[test]
fn a_persistent_sandbox_outlives_its_process_and_is_reached_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut maker = elsewhere(&[], "sandbox::make_a_persistent_one");
    maker.env("NX_STATE", dir.path());
    passes(maker);
    assert_eq!(processes_with("327001").len(), 1);
    let client = persistent(dir.path());
    let sandbox = client.sandbox("outlives").unwrap();
    assert_eq!(sandbox.read("file").unwrap(), b"x");
    std::thread::scope(|scope| {
        for n in 0..8 {
            let mut user = elsewhere(&[], "sandbox::use_a_persistent_one");
            user.env("NX_STATE", dir.path())
                .env("NX_NUMBER", n.to_string());
            scope.spawn(|| passes(user));
        }
    });
    assert_eq!(shell(&sandbox, "cat n-* | sort | tr -d '\\n'"), "01234567");
    // From a backend that has not made it.
    assert!(
        persistent(dir.path())
            .sandbox("outlives")
            .unwrap()
            .delete()
            .unwrap()
    );
    assert!(processes_with("327001").is_empty());
    assert!(sandbox.exec(["true"]).unwrap_err().is_not_found());
    assert!(!sandbox.delete().unwrap());
    assert_eq!(
        fs::read_dir(dir.path().join("persistent")).unwrap().count(),
        0
    );
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn make_a_persistent_one() {
    let client = persistent(Path::new(&std::env::var_os("NX_STATE").unwrap()));
    let sandbox = fresh(&client, "outlives");
    sandbox.write("file", "x").unwrap();
    mark(&sandbox, "327001");
    drop((sandbox, client));
}

#[test]
#[ignore = "run by another test, in processes of their own"]
fn use_a_persistent_one() {
    let client = persistent(Path::new(&std::env::var_os("NX_STATE").unwrap()));
    let number = std::env::var("NX_NUMBER").unwrap();
    let sandbox = fresh(&client, "outlives");
    let line = format!("sleep 0.2; echo {number} > n-{number}");
    assert!(sandbox.exec(Command::shell(line)).unwrap().success());
    assert_eq!(
        sandbox.read(format!("n-{number}")).unwrap(),
        format!("{number}\n").as_bytes()
    );
}

#[test]
fn a_persistent_sandbox_ends_with_its_ttl_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let client = persistent(dir.path());
    let spec = SandboxSpec::new().ttl(Duration::from_secs(1));
    let sandbox = client.create("short", spec).unwrap();
    mark(&sandbox, "328001");
    wait_for("it ends", || processes_with("328001").is_empty());
    let left = || fs::read_dir(dir.path().join("persistent")).unwrap().count();
    wait_for("its directory goes", || left() == 0);
    assert!(sandbox.touch().unwrap_err().is_not_found());
    // What a process has left that was killed meanwhile, the next backend removes.
    fs::create_dir(dir.path().join("persistent/half-made")).unwrap();
    fs::write(
        dir.path().join("persistent/half-made/sandbox.json"),
        "{\"id\":",
    )
    .unwrap();
    drop(persistent(dir.path()));
    assert_eq!(left(), 0);
}

#[test]
fn where_proc_may_not_be_mounted_it_is_done_without() {
    let script = "mount -t tmpfs none /proc/fs && exec \"$@\"";
    let unshare = if is_root() { "-m" } else { "-Urm" };
    passes(elsewhere(
        &["unshare", unshare, "sh", "-c", script, "sh"],
        "sandbox::without_proc",
    ));
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
#[ignore = "run by another test, where /proc is partly hidden"]
fn without_proc() {
    let backend = LocalBackend::builder().build().unwrap();
    assert_eq!(backend.missing().unwrap(), ["proc"]);
    let sandbox = fresh(&Client::with_backend(backend), "without-proc");
    assert_eq!(shell(&sandbox, "ls /proc; echo hi"), "hi\n");
    let out = sandbox.exec(Command::shell("sleep 60 & sleep 60").timeout(Duration::from_secs(1)));
    assert!(out.unwrap().timed_out());
    assert_eq!(shell(&sandbox, "echo again"), "again\n");
}

/// As Docker's default profile answers, and as gVisor does.
#[test]
fn where_calls_are_refused_the_error_says_which_and_why() {
    for (answer, says) in [
        (libc::EPERM, "seccomp=unconfined"),
        (libc::ENOSYS, "does not know the call"),
    ] {
        let mut command = elsewhere(&[], "sandbox::refused");
        command
            .env("NX_ERRNO", answer.to_string())
            .env("NX_SAYS", says);
        passes(command);
    }
}

#[test]
#[ignore = "run by another test, which says what is expected"]
#[allow(unsafe_code, reason = "std has no system call filter")]
fn refused() {
    let variable = |name| std::env::var(name).unwrap();
    let errno: u32 = variable("NX_ERRNO").parse().unwrap();
    let op = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let any_bit = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    // clone with a flag for new namespaces.
    let program = [
        op(load, 0, 0, 0),
        op(equal, 0, 3, libc::SYS_clone as u32),
        op(load, 0, 0, 16),
        op(any_bit, 0, 1, 0x7e02_0000),
        op(answer, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        op(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the program is as long as it says, and lives through the call.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program), 0);
    }
    let error = Client::local().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Isolation, "{error}");
    for part in [
        "make the namespaces",
        &variable("NX_SAYS"),
        "Isolation::None",
    ] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

//! Sandboxes that the kernel confines: their life, and what is left of them.

/// Without namespaces.
mod landlock;
/// Memory, files, CPUs.
mod limits;
/// Those that outlive their process.
mod persistent;
/// Machines that do not let them be made, or not all of them.
mod refusals;

use std::fs;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use noxrunner::{Cancel, Client, Command, ErrorKind, Sandbox, SandboxSpec};

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
    sandbox.run(Command::shell(line)).unwrap();
    wait_for("it starts", || !processes_with(argument).is_empty());
}

/// The first process of the sandbox that has the process with this argument: a child of this one.
fn holder_of(argument: &str) -> u32 {
    let parent_of = |process: u32| -> u32 {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        line.unwrap().trim().parse().unwrap()
    };
    let mut process = processes_with(argument)[0];
    while parent_of(process) != std::process::id() {
        process = parent_of(process);
        assert_ne!(process, 0, "it has a holder");
    }
    process
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
                sandbox.run(Command::shell(format!("touch f{n}"))).unwrap();
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
        assert!(format!("{error:#}").contains(workdir), "{error}");
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

//! Jobs, on every kind of backend.

/// Jobs on backends whose execs fail or lose output.
mod faults;

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use noxrunner::{
    Cancel, Client, Command, ErrorKind, Isolation, Job, JobState, Language, Sandbox, SandboxSpec,
};

use crate::backends::{on_each_backend, own_dirs};
use crate::support::plain_server::PlainServer;
use crate::support::processes::{wait_for, with_longer_times};
use crate::support::{in_parallel, local_backend};

type Check = fn(&Sandbox);

const CHECKS: &[(&str, Check)] = &[
    ("output arrives while it is written", live_output),
    ("binary output is exact", binary_output),
    ("exit codes are exact", exit_codes),
    ("kill ends the process group", kill),
    ("a job is found by its id", found_again),
    ("jobs are listed", job_list),
    ("workdir, environment and stdin apply", command_settings),
    (
        "a background child does not delay the end",
        background_child,
    ),
    ("signals reach the job, and it can trap them", signals),
    ("unsupported commands are refused", refused),
    ("a timeout ends the process group", timeout),
    ("concurrent jobs", concurrent_jobs),
    ("a killed waiter is an unknown outcome", killed_waiter),
    ("endless output can be read so far", endless_output),
    ("output that is opened again loses nothing", reopened_output),
];

fn run_all(client: &Client) {
    std::thread::scope(|scope| {
        scope.spawn(|| job_renews_ttl(client));
        in_parallel(CHECKS.iter().enumerate(), 3, |(n, (name, check))| {
            println!("jobs: {name}");
            let spec = SandboxSpec::new().ttl(Duration::from_secs(300));
            let sandbox = client.create(format!("jobs-{n}"), spec).unwrap();
            check(&sandbox);
            assert!(sandbox.delete().unwrap());
        });
    });
}

on_each_backend!(run_all);

fn shell(sandbox: &Sandbox, line: &str) -> Job {
    sandbox.spawn(Command::shell(line)).unwrap()
}

fn stdout(job: &Job) -> Vec<u8> {
    let mut bytes = Vec::new();
    job.stdout().read_to_end(&mut bytes).unwrap();
    bytes
}

fn live_output(sandbox: &Sandbox) {
    let job = shell(
        sandbox,
        "echo one; echo err >&2; while [ ! -f go ]; do sleep 0.1; done; printf two",
    );
    let mut lines = BufReader::new(job.stdout());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "one\n", "read while the job runs");
    assert_eq!(job.try_wait().unwrap(), None);
    sandbox.write("go", "").unwrap();
    line.clear();
    lines.read_to_string(&mut line).unwrap();
    assert_eq!(line, "two");
    let mut err = job.stderr();
    assert_eq!(err.read_text().unwrap().as_deref(), Some("err\n"));
    assert_eq!(err.read_text().unwrap(), None);
    assert!(job.wait().unwrap().success());
}

fn binary_output(sandbox: &Sandbox) {
    // More than the cap on the output of one exec.
    assert_output_is_exact(sandbox, 2_200_004);
}

/// Follows a job whose two outputs have this length, which is not a multiple of a block.
fn assert_output_is_exact(sandbox: &Sandbox, length: u32) {
    let noise: Vec<u8> = (0..length / 4)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    sandbox.write("noise", &noise).unwrap();
    let job = shell(sandbox, "cat noise; cat noise >&2");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    assert!(job.copy_to(&mut out, &mut err).unwrap().success());
    assert!(out == noise && err == noise);
    assert!(stdout(&job) == noise);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    assert!(job.copy_so_far(&mut out, &mut err).unwrap().is_some());
    assert!(out == noise && err == noise);
}

fn exit_codes(sandbox: &Sandbox) {
    let code = |job: Job| job.wait().unwrap().exit_code();
    assert_eq!(code(shell(sandbox, "exit 7")), 7);
    assert_eq!(code(shell(sandbox, "kill -9 $$")), 137);
    let missing = sandbox.spawn(["no-such-program"]).unwrap();
    assert_eq!(code(missing.clone()), 127);
    let mut err = String::new();
    missing.stderr().read_to_string(&mut err).unwrap();
    assert!(err.contains("no-such-program"), "{err}");
    assert_eq!(stdout(&missing), b"");
}

fn kill(sandbox: &Sandbox) {
    let job = shell(
        sandbox,
        "sleep 1000 & child=$!; trap '' TERM INT HUP; echo $child >child; while :; do sleep 1; done",
    );
    wait_for("the child runs", || sandbox.exists("child").unwrap());
    assert_eq!(job.wait_timeout(Duration::from_millis(300)).unwrap(), None);
    // The job ignores SIGTERM.
    job.kill().unwrap();
    assert_eq!(job.wait().unwrap().exit_code(), 137);
    wait_for("the child ends", || {
        let gone = "read -r s </proc/$(cat child)/stat 2>/dev/null || exit 0; case $s in *') Z '*) exit 0;; esac; exit 1";
        sandbox.exec(Command::shell(gone)).unwrap().success()
    });
    job.kill().unwrap();
    assert_eq!(job.try_wait().unwrap().unwrap().exit_code(), 137);
}

fn signals(sandbox: &Sandbox) {
    let job = shell(
        sandbox,
        "trap 'echo got-int; exit 9' INT; kill -INT $$; echo not-trapped",
    );
    assert_eq!(stdout(&job), b"got-int\n");
    assert_eq!(job.wait().unwrap().exit_code(), 9);
    let waiting = |trap: &str| {
        let job = shell(
            sandbox,
            &format!("{trap}; echo >ready; while :; do sleep 0.1; done"),
        );
        wait_for("the job is ready", || sandbox.exists("ready").unwrap());
        sandbox.remove("ready").unwrap();
        job
    };
    let job = waiting("trap 'exit 5' TERM");
    job.kill().unwrap();
    assert_eq!(job.wait().unwrap().exit_code(), 5);
    let job = waiting("trap 'exit 6' USR1");
    job.signal("USR1").unwrap();
    assert_eq!(job.wait().unwrap().exit_code(), 6);
    let job = waiting("trap '' TERM");
    job.signal("TERM").unwrap();
    assert_eq!(job.try_wait().unwrap(), None);
    job.signal("KILL").unwrap();
    assert_eq!(job.wait().unwrap().exit_code(), 137);
    for odd in ["", "-9", "TERM INT", "SIGTERM;"] {
        let error = job.signal(odd).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
}

fn found_again(sandbox: &Sandbox) {
    let job = shell(sandbox, "echo hi; exit 4");
    let same = sandbox.job(job.id()).unwrap();
    assert_eq!(stdout(&same), b"hi\n");
    assert_eq!(same.wait().unwrap().exit_code(), 4);
    let other = sandbox.job("j00").unwrap();
    for error in [
        other.try_wait().unwrap_err(),
        other.wait().unwrap_err(),
        other.kill().unwrap_err(),
        other.wait_timeout(Duration::ZERO).unwrap_err(),
    ] {
        assert!(error.is_not_found(), "{error:?}");
        assert!(format!("{error:#}").contains("j00"), "{error}");
    }
    let error = other.stdout().read(&mut [0]).unwrap_err();
    assert!(format!("{error:#}").contains("no such job"), "{error}");
    for id in ["", "a/b", "..", "a b", "$x"] {
        assert_eq!(sandbox.job(id).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

fn job_list(sandbox: &Sandbox) {
    assert_eq!(sandbox.jobs().unwrap(), []);
    let first = shell(sandbox, "exit 2");
    let _ = first.wait().unwrap();
    let arguments = ["sleep", "1000", "a b", "ä\n", ""];
    let second = sandbox.spawn(arguments).unwrap();
    let jobs = sandbox.jobs().unwrap();
    assert_eq!(jobs.len(), 2);
    let of = |job: &Job| jobs.iter().find(|info| info.id() == job.id()).unwrap();
    assert!(matches!(of(&first).state(), JobState::Exited(status) if status.exit_code() == 2));
    assert_eq!(of(&first).command(), ["/bin/sh", "-c", "exit 2"]);
    assert_eq!(of(&second).command(), arguments);
    // `sleep` refuses the odd arguments.
    let _ = second.wait().unwrap();
    let age = std::time::SystemTime::now().duration_since(of(&first).started());
    assert!(age.unwrap() < Duration::from_secs(60));
}

fn command_settings(sandbox: &Sandbox) {
    sandbox.run(["mkdir", "sub dir"]).unwrap();
    let mut dirs = vec!["sub dir".to_owned()];
    for dir in own_dirs(sandbox) {
        sandbox
            .run(Command::from(["mkdir", "t"]).workdir(*dir))
            .unwrap();
        dirs.push(format!("{dir}/t"));
    }
    for dir in dirs {
        let mark = format!("{dir}/here");
        let command = Command::shell("cat; echo $K; : >here").workdir(&dir);
        let job = sandbox
            .spawn(command.env("K", "a b").stdin("in\n"))
            .unwrap();
        assert_eq!(String::from_utf8(stdout(&job)).unwrap(), "in\na b\n");
        assert!(sandbox.exists(mark).unwrap(), "{dir}");
    }
    let code = Command::code(Language::SH, "cat; echo \"$0 $*\"").arg("{file}");
    let job = sandbox.spawn(code.stdin(vec![0, 255])).unwrap();
    let out = stdout(&job);
    assert_eq!(out[..2], [0, 255]);
    let text = String::from_utf8_lossy(&out[2..]).into_owned();
    assert!(text.ends_with("/main.sh {file}\n"), "{text}");
    let unread = shell(sandbox, "cat");
    assert_eq!(stdout(&unread), b"", "without stdin, reads end at once");
    let nowhere = sandbox.spawn(Command::new("true").workdir("missing"));
    assert!(nowhere.is_err());
}

fn background_child(sandbox: &Sandbox) {
    let job = shell(sandbox, "sleep 1000 & echo done");
    assert_eq!(stdout(&job), b"done\n");
    assert!(job.wait().unwrap().success());
}

fn refused(sandbox: &Sandbox) {
    let refusal = |command: Command| {
        let error = sandbox.spawn(command).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        format!("{error:#}")
    };
    assert!(refusal(Vec::<String>::new().into()).contains("the command is empty"));
    assert!(refusal(Command::new("true").cancel_on(&Cancel::new())).contains("kill"));
}

fn timeout(sandbox: &Sandbox) {
    let out = with_longer_times(Duration::from_secs(1), |timeout| {
        let command = Command::shell("echo started; sleep 1000 & wait").timeout(timeout);
        let out = sandbox.spawn(command).unwrap().wait_with_output().unwrap();
        Some(out).filter(|out| !out.stdout_bytes().is_empty())
    });
    assert_eq!((out.exit_code(), &*out.stdout()), (124, "started\n"));
    let in_time = Command::shell("exit 3").timeout(Duration::from_secs(1000));
    assert_eq!(
        sandbox.spawn(in_time).unwrap().wait().unwrap().exit_code(),
        3
    );
}

fn concurrent_jobs(sandbox: &Sandbox) {
    std::thread::scope(|scope| {
        for n in 0..8 {
            scope.spawn(move || {
                let job = shell(sandbox, &format!("echo {n}; sleep 0.2; exit {n}"));
                assert_eq!(stdout(&job), format!("{n}\n").as_bytes());
                assert_eq!(job.wait().unwrap().exit_code(), n);
            });
        }
    });
    assert_eq!(sandbox.jobs().unwrap().len(), 8);
}

fn killed_waiter(sandbox: &Sandbox) {
    let job = shell(sandbox, "echo started; sleep 1000");
    let mut out = job.stdout();
    assert_eq!(out.read_text().unwrap().as_deref(), Some("started\n"));
    let waiter = format!(".noxrunner/jobs/{}/waiter", job.id());
    let end = Command::shell(format!("read -r pid rest <{waiter}; kill -9 $pid"));
    sandbox.exec(end).unwrap().check().unwrap();
    for error in [
        job.wait().unwrap_err(),
        out.read_text().unwrap_err(),
        job.wait_timeout(Duration::from_secs(20)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
        assert!(
            format!("{error:#}").contains("the process that waits for it was killed"),
            "{error}"
        );
    }
    assert_eq!(sandbox.jobs().unwrap()[0].state(), JobState::Lost);
    // The command still runs and can be killed.
    let pid = format!(".noxrunner/jobs/{}/pid", job.id());
    let runs = Command::shell(format!("read -r pid rest <{pid}; kill -0 $pid"));
    assert!(sandbox.exec(runs.clone()).unwrap().success());
    job.kill().unwrap();
    wait_for("the command ends", || {
        let state = "read -r pid rest <PID; read -r s </proc/$pid/stat 2>/dev/null || exit 0; case $s in *') Z '*) exit 0;; esac; exit 1";
        sandbox
            .exec(Command::shell(state.replace("PID", &pid)))
            .unwrap()
            .success()
    });
    job.kill().unwrap();
}

fn reopened_output(sandbox: &Sandbox) {
    let job = shell(
        sandbox,
        "echo one; echo two >>/dev/stdout; echo three; echo four >>/proc/self/fd/1",
    );
    assert_eq!(
        String::from_utf8(stdout(&job)).unwrap(),
        "one\ntwo\nthree\nfour\n"
    );
}

fn endless_output(sandbox: &Sandbox) {
    let job = shell(sandbox, "while :; do echo y; done");
    wait_for("there is output", || {
        let mut out = Vec::new();
        let status = job.copy_so_far(&mut out, &mut std::io::sink()).unwrap();
        assert_eq!(status, None);
        out.starts_with(b"y\ny\n")
    });
    job.kill().unwrap();
}

/// Its sandbox would end long before it does.
fn job_renews_ttl(client: &Client) {
    let spec = SandboxSpec::new().ttl(Duration::from_secs(10));
    let sandbox = client.create("kept alive", spec).unwrap();
    assert_eq!(stdout(&shell(&sandbox, "sleep 12; echo end")), b"end\n");
    sandbox.delete().unwrap();
}

#[test]
fn files_of_jobs_are_left_out() {
    let (backend, dir) = local_backend(Isolation::Namespaces);
    let sandbox = Client::with_backend(backend)
        .create("hidden", SandboxSpec::new())
        .unwrap();
    sandbox.write("a.txt", "a").unwrap();
    assert!(sandbox.spawn(["true"]).unwrap().wait().unwrap().success());
    let names = |path| sandbox.list(path).unwrap().len();
    assert_eq!((names("."), names("/workspace/.noxrunner")), (1, 1));
    let out = dir.path().join("out");
    assert_eq!(sandbox.download_dir(".", &out).unwrap().entries(), 1);
    assert!(!out.join(".noxrunner").exists() && out.join("a.txt").exists());
}

#[test]
fn job_in_a_full_sandbox_says_so() {
    let (backend, _dir) = local_backend(Isolation::Namespaces);
    let spec = SandboxSpec::new().storage("8Mi");
    let sandbox = Client::with_backend(backend).create("full", spec).unwrap();
    let fill = "head -c 20000000 /dev/zero >big; i=0; while mkdir $i; do i=$((i+1)); done";
    let _ = sandbox.exec(Command::shell(fill)).unwrap();
    let error = sandbox.spawn(["true"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error:#}");
    assert!(
        format!("{error:#}")
            .to_lowercase()
            .contains("no space left"),
        "{error:#}"
    );
}

#[test]
fn unsupported_backend_is_an_error_at_spawn() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().to_str().unwrap();
    for (options, said) in [
        (["--path", empty].as_slice(), "a job needs `sh`"),
        (&["--kill-children"], "kills processes that outlive an exec"),
    ] {
        let Some(server) = PlainServer::start(options) else {
            return;
        };
        let sandbox = server.client().create("jobs", SandboxSpec::new()).unwrap();
        let started = Instant::now();
        let error = sandbox.spawn(["sleep", "1000"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(format!("{error:#}").contains(said), "{error}");
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn minimal_backend_runs_jobs() {
    let Some(server) = PlainServer::start(&["--minimal"]) else {
        return;
    };
    let spec = SandboxSpec::new().ttl(Duration::from_secs(60));
    let sandbox = server.client().create("jobs", spec).unwrap();
    // Works without a known TTL and without touch.
    let sandbox = server.client().sandbox(sandbox.id()).unwrap();
    let job = shell(&sandbox, "echo one; sleep 1; exit 3");
    assert_eq!(stdout(&job), b"one\n");
    assert_eq!(job.wait().unwrap().exit_code(), 3);
}

#[test]
fn source_file_names_do_not_clash_with_job_files() {
    let (backend, _dir) = local_backend(Isolation::None);
    let client = Client::with_backend(backend);
    let sandbox = client.create("jobs", SandboxSpec::new()).unwrap();
    for name in [
        "exit", "command", "stdout", "waiter", "pid", "probe", "started",
    ] {
        let language = Language::new(name, ["sh", "{file}"]).unwrap();
        let job = sandbox
            .spawn(Command::code(language, "echo 9; exit 4"))
            .unwrap();
        assert_eq!(stdout(&job), b"9\n", "{name}");
        assert_eq!(job.wait().unwrap().exit_code(), 4, "{name}");
    }
}

//! The command `noxrc`: its output and exit codes.

/// `noxrc conformance`.
mod conformance;
/// Tokens and headers that are not in the arguments.
mod credentials;
/// Containers of Docker and Podman.
mod docker;
/// `upload`, `download` and `cp`.
mod files;
/// Text that tries to control the terminal.
mod hostile_text;
/// Detached commands.
mod jobs;
/// Output while a command runs, and its standard input.
mod live;
/// `noxrc run`.
mod run;
/// `noxrc serve`.
mod serve;
/// `noxrc shell` with lines from stdin.
mod shell;
/// Behaviour in a terminal.
mod terminal;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::processes::{send_signal, sleeps, unique_sleep, wait_for};
use crate::support::scripted::{CREATE_OK, EXEC_OK, Scripted};

const NOXRC: &str = env!("CARGO_BIN_EXE_noxrc");

/// A user with a private home directory, whose sandboxes are deleted on drop.
struct User {
    home: tempfile::TempDir,
}

struct CommandOutput {
    code: i32,
    stdout: String,
    stderr: String,
}

impl User {
    fn new() -> User {
        User {
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(NOXRC);
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.home.path())
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command
    }

    /// A line for a shell, in which `"$NOXRC"` is the command.
    fn shell(&self, shell: &str, line: &str) -> Command {
        let mut command = Command::new(shell);
        command
            .args(["-c", line])
            .env("NOXRC", NOXRC)
            .env("HOME", self.home.path())
            .env_remove("XDG_STATE_HOME");
        command
    }

    fn run(&self, args: &[&str]) -> CommandOutput {
        run_command(&mut self.command(args))
    }

    fn local(&self, args: &[&str]) -> CommandOutput {
        let all: Vec<&str> = ["--local"].iter().chain(args).copied().collect();
        self.run(&all)
    }

    /// Runs the command with this standard input.
    fn run_with_stdin(&self, args: &[&str], input: &str) -> CommandOutput {
        let mut command = self.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        output_of(child.wait_with_output().unwrap())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let kept = self.path(".local/state/noxrunner/persistent");
        for entry in fs::read_dir(kept).into_iter().flatten().flatten() {
            let Ok(record) = fs::read(entry.path().join("sandbox.json")) else {
                continue;
            };
            let record: Value = serde_json::from_slice(&record).unwrap();
            self.local(&["delete", record["id"].as_str().unwrap()]);
        }
    }
}

fn run_command(command: &mut Command) -> CommandOutput {
    output_of(command.output().unwrap())
}

fn output_of(out: std::process::Output) -> CommandOutput {
    CommandOutput {
        code: out.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

#[track_caller]
fn assert_output(ran: &CommandOutput, code: i32, stdout: &str, stderr: &str) {
    let shown = format!(
        "{}\nstdout: {}\nstderr: {}",
        ran.code, ran.stdout, ran.stderr
    );
    assert_eq!(ran.code, code, "{shown}");
    assert_eq!(ran.stdout, stdout, "{shown}");
    assert!(ran.stderr.contains(stderr), "{shown}");
    if stderr.is_empty() {
        assert_eq!(ran.stderr, "", "{shown}");
    }
}

fn interrupt(child: &Child) {
    signal(child, "INT");
}

fn signal(child: &Child, signal: &str) {
    assert!(send_signal(child.id(), signal));
}

#[test]
fn local_sandbox_persists_between_runs() {
    let user = User::new();
    assert_output(&user.local(&["health"]), 0, "", "✓ Manager is healthy\n");
    assert_output(
        &user.local(&["create", "a", "--ttl", "300"]),
        0,
        "",
        "✓ Sandbox created: local-a\n",
    );
    let start = "echo x > f; setsid sleep 3410 >/dev/null 2>&1 & echo started";
    assert_output(
        &user.local(&["exec", "a", "sh", "-c", start]),
        0,
        "started\n",
        "",
    );
    assert_output(&user.local(&["exec", "a", "cat", "f"]), 0, "x\n", "");
    wait_for("the process runs", || {
        user.local(&["exec", "a", "pgrep", "-c", "sleep"]).stdout == "1\n"
    });
    assert_output(&user.run(&["--local-test", "cat", "a", "f"]), 0, "x\n", "");
    assert_output(&user.local(&["touch", "a"]), 0, "", "✓ TTL extended\n");
    assert_output(&user.local(&["delete", "a"]), 0, "", "✓ Sandbox deleted\n");
    assert_output(&user.local(&["delete", "a"]), 1, "", "✗");
    let gone = user.local(&["exec", "a", "true"]);
    assert_output(&gone, 125, "", "noxrc create");
}

#[test]
fn exec_passes_on_exit_code_and_output() {
    let user = User::new();
    user.local(&["create", "a"]);
    let both = "printf 'o\\377'; printf 'e' >&2; exit 7";
    let out = user
        .command(&["--local", "exec", "a", "sh", "-c", both])
        .output()
        .unwrap();
    assert_eq!(
        (out.status.code(), &*out.stdout, &*out.stderr),
        (Some(7), &b"o\xff"[..], &b"e"[..])
    );
    assert_output(
        &user.local(&["exec", "--ignore-exit-code", "a", "false"]),
        0,
        "",
        "",
    );
    assert_output(
        &user.local(&["exec", "a", "nosuchcommand"]),
        127,
        "",
        "nosuchcommand",
    );
    assert_output(
        &user.local(&[
            "exec",
            "--env",
            "A=b c",
            "--workdir",
            "/tmp",
            "a",
            "sh",
            "-c",
            "echo $A; pwd",
        ]),
        0,
        "b c\n/tmp\n",
        "",
    );
    // Everything after the id belongs to the command.
    assert_output(
        &user.local(&["exec", "a", "echo", "--env", "-v", "--help"]),
        0,
        "--env -v --help\n",
        "",
    );
    assert_output(
        &user.local(&["exec", "--timeout-seconds", "1", "a", "sleep", "9"]),
        124,
        "",
        "--timeout-seconds",
    );
    assert_output(&user.local(&["exec", "a"]), 2, "", "<CMD>");
    let odd = user.local(&["exec", "--env", "A", "a", "true"]);
    assert_output(&odd, 0, "", "⚠ Invalid env format (missing =): A");
}

#[test]
fn unknown_option_before_the_command_is_refused() {
    let user = User::new();
    let refused = "unexpected argument '--memory' found";
    let run = user.local(&["run", "--memory", "64Mi", "true"]);
    assert_output(&run, 2, "", refused);
    let exec = user.local(&["exec", "a", "--memory", "64Mi", "true"]);
    assert_output(&exec, 2, "", refused);
    let run = user.local(&["run", "--", "--memory"]);
    assert_output(&run, 127, "", "--memory: command not found");
}

#[test]
fn backend_failure_has_its_own_exit_code() {
    let user = User::new();
    let unreachable = ["--base-url", "http://127.0.0.1:1"];
    let exec = user.run(&[unreachable[0], unreachable[1], "exec", "a", "true"]);
    assert_output(&exec, 125, "", "noxrc serve");
    assert!(exec.stderr.contains("--local"), "{}", exec.stderr);
    assert_output(
        &user.run(&[unreachable[0], unreachable[1], "run", "true"]),
        125,
        "",
        "✗",
    );
    assert_output(
        &user.run(&[unreachable[0], unreachable[1], "health"]),
        1,
        "",
        "✗",
    );
    assert_output(
        &user.run(&["--base-url", "nonsense", "health"]),
        1,
        "",
        "nonsense",
    );
    let json = user.run(&[
        "--json",
        unreachable[0],
        unreachable[1],
        "exec",
        "a",
        "true",
    ]);
    let value: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((json.code, &value["kind"]), (125, &json!("Connect")));
}

#[test]
fn help_and_completions_cover_every_command() {
    let user = User::new();
    let none = user.run(&[]);
    assert_eq!(none.code, 1);
    assert!(
        none.stdout.contains("Examples:") && none.stdout.contains("serve"),
        "{}",
        none.stdout
    );
    for command in [
        "health",
        "create",
        "exec",
        "run",
        "upload",
        "download",
        "cp",
        "cat",
        "touch",
        "delete",
        "jobs",
        "logs",
        "wait",
        "kill",
        "shell",
        "serve",
        "conformance",
        "doctor",
        "completions",
    ] {
        let help = user.run(&[command, "--help"]);
        assert_eq!(help.code, 0);
        assert!(
            help.stdout.contains("Examples:"),
            "{command}: {}",
            help.stdout
        );
    }
    let version = user.run(&["--version"]);
    assert_output(
        &version,
        0,
        &format!("noxrc {}\n", env!("CARGO_PKG_VERSION")),
        "",
    );
    assert_output(&user.run(&["nonsense"]), 2, "", "nonsense");
    for shell in ["bash", "zsh", "fish"] {
        assert!(user.run(&["completions", shell]).stdout.contains("noxrc"));
    }
}

#[test]
fn exceeded_limit_is_reported() {
    let user = User::new();
    let hog = [
        "run",
        "--mem",
        "64Mi",
        "python3",
        "-c",
        "bytearray(400 << 20)",
    ];
    let out = user.local(&hog);
    assert_eq!(out.code, 137);
    assert!(
        out.stderr.contains("⚠ The memory limit was exceeded"),
        "{}",
        out.stderr
    );
    let json = user.local(&[&["--json"], &hog[..]].concat());
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (&json["exitCode"], &json["killedBy"]),
        (&json!(137), &json!("memory"))
    );
    assert!(
        json["peakMemoryBytes"].as_u64().unwrap() > 32 << 20,
        "{json}"
    );
    let small = user.local(&["run", "--mem", "512m", "nproc"]);
    assert_eq!(small.code, 125);
    assert!(
        small.stderr.contains("did you mean \"512Mi\"?"),
        "{}",
        small.stderr
    );
}

#[test]
fn json_output_is_one_value() {
    let user = User::new();
    let json = |args: &[&str]| -> Value {
        let all: Vec<&str> = ["--json"].iter().chain(args).copied().collect();
        serde_json::from_str(&user.local(&all).stdout).unwrap()
    };
    assert_eq!(json(&["health"]), json!({"healthy": true}));
    let made = json(&["create", "a", "--image", "i", "--wait"]);
    assert_eq!(
        (&made["podName"], &made["ignored"], &made["ready"]),
        (&json!("local-a"), &json!(["image"]), &json!(true))
    );
    let exec = json(&["exec", "a", "sh", "-c", "echo o; exit 3"]);
    assert_eq!(
        (&exec["exitCode"], &exec["stdout"], &exec["timedOut"]),
        (&json!(3), &json!("o\n"), &json!(false))
    );
    assert_eq!(json(&["touch", "a"]), json!({"id": "a", "touched": true}));
    let doctor = json(&["doctor"]);
    assert_eq!(doctor["isolation"][0]["tier"], "namespaces");
    assert_eq!(doctor["isolation"][0]["works"], true);
    assert_eq!(json(&["delete", "a"]), json!({"id": "a", "deleted": true}));
    assert_eq!(json(&["delete", "a"])["kind"], "NotFound");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let user = User::new();
    user.local(&["create", "a"]);
    let redirected = |args: &str, to: &str, code: i32| {
        let line = format!("\"$NOXRC\" --local {args} {to}");
        let done = run_command(&mut user.shell("sh", &line));
        assert_eq!(done.code, code, "{line}");
    };
    redirected("exec a seq 100000", "> /dev/full", 125);
    redirected("exec a sh -c 'seq 100000 >&2'", "2> /dev/full", 125);
    redirected("--json exec a true", "> /dev/full", 125);
    redirected("run true", "> /dev/full", 0);
    redirected("run echo a", "> /dev/full", 125);
    redirected("jobs a", "> /dev/full", 0);
    redirected("--json jobs a", "> /dev/full", 1);
    redirected("completions bash", "> /dev/full", 1);
}

#[test]
fn broken_pipe_is_not_a_failure() {
    let user = User::new();
    user.local(&["create", "a"]);
    let line = "\"$NOXRC\" --local exec a seq 100000 | head -1; exit ${PIPESTATUS[0]}";
    let done = run_command(&mut user.shell("bash", line));
    assert_output(&done, 0, "1\n", "");
}

#[test]
fn colour_follows_the_environment() {
    let user = User::new();
    let with = |name: &str, value: &str| {
        let mut command = user.command(&["--local", "health"]);
        run_command(command.env(name, value)).stderr
    };
    assert_eq!(
        with("CLICOLOR_FORCE", "1"),
        "\x1b[32m✓ Manager is healthy\x1b[0m\n"
    );
    assert_eq!(with("CLICOLOR_FORCE", "0"), "✓ Manager is healthy\n");
    let mut command = user.command(&["--local", "health"]);
    let both = run_command(command.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1")).stderr;
    assert_eq!(both, "✓ Manager is healthy\n");
}

#[test]
fn options_of_local_sandboxes() {
    let user = User::new();
    let shared = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(shared.path().join("f"), "x").unwrap();
    let path = shared.path().to_str().unwrap();
    let network = "cat /etc/hosts";
    let out = user.local(&["--ro", path, "--network", "run", "--", "sh", "-c", network]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert_eq!(out.stdout, fs::read_to_string("/etc/hosts").unwrap());
    // Also after the command.
    let out = user.local(&["run", "--ro", path, "--", "ls", "-d", path]);
    assert_eq!((out.code, out.stdout.trim()), (0, path), "{}", out.stderr);
    let out = user.local(&["--ro", "relative", "run", "--", "true"]);
    assert_eq!(out.code, 125);
    assert!(out.stderr.contains("is not absolute"), "{}", out.stderr);
    let out = user.run(&["--network", "health"]);
    assert_eq!(out.code, 1);
    assert!(out.stderr.contains("add --local"), "{}", out.stderr);
    let out = user.local(&["--network", "--ro", path, "doctor"]);
    for part in ["--network: commands reach", "commands can read it"] {
        assert!(out.stderr.contains(part), "{}", out.stderr);
    }
}

#[test]
fn verbose_can_be_set_by_a_variable() {
    let user = User::new();
    let server = Scripted::always(200, EXEC_OK);
    for (value, logged) in [("1", true), ("0", false)] {
        let mut verbose = user.command(&["--base-url", &server.url(), "exec", "a", "true"]);
        let out = run_command(verbose.env("NOXRUNNER_VERBOSE", value));
        assert_eq!(out.stderr.contains("POST"), logged, "{}", out.stderr);
    }
}

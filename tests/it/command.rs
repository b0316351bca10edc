//! The command `noxrc`: its output and exit codes.

/// `noxrc conformance`.
mod conformance;
/// Text that tries to control the terminal.
mod hostile_text;
/// Detached commands.
mod jobs;
/// `noxrc serve`.
mod serve;
/// Behaviour in a terminal.
mod terminal;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::processes::{sleeps, unique_sleep, wait_for};

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
    assert_output(
        &user.local(&["exec", "a", "pgrep", "-c", "sleep"]),
        0,
        "1\n",
        "",
    );
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

/// A user with files to upload, and the sandbox `a`.
fn user_with_files() -> User {
    let user = User::new();
    user.local(&["create", "a"]);
    fs::create_dir_all(user.path("dir/sub")).unwrap();
    fs::write(user.path("one.txt"), "1").unwrap();
    fs::write(user.path("dir/two"), "2").unwrap();
    fs::write(user.path("dir/sub/three"), [0, 255]).unwrap();
    user
}

#[test]
fn upload_and_download_transfer_files_and_directories() {
    let user = user_with_files();
    let upload = |args: &[&str]| user.local(&[&["upload", "a"], args].concat());
    let uploaded = upload(&["one.txt", "dir/two"]);
    assert_output(&uploaded, 0, "", "✓ Uploaded 2 file(s) to /workspace\n");
    let uploaded = upload(&["--dir", "dir", "--dest", "/workspace/d"]);
    assert_output(&uploaded, 0, "", "✓ Uploaded");
    let find = ["exec", "a", "sh", "-c", "find . -type f | sort"];
    let files = "./d/sub/three\n./d/two\n./one.txt\n./two\n";
    assert_output(&user.local(&find), 0, files, "");
    assert_output(&upload(&["missing"]), 1, "", "missing");
    assert_output(&upload(&["dir"]), 1, "", "--dir");
    assert_output(&upload(&[]), 1, "", "--dir");

    let download = |args: &[&str]| user.local(&[&["download", "a"], args].concat());
    let extracted = download(&["--extract", "out"]);
    assert_output(&extracted, 0, "", "✓ Extracted to out\n");
    assert_eq!(fs::read(user.path("out/d/sub/three")).unwrap(), [0, 255]);
    assert_eq!(fs::read(user.path("out/one.txt")).unwrap(), b"1");
    let downloaded = download(&["--src", "/workspace/d", "--output", "d.tar.gz"]);
    assert_output(&downloaded, 0, "", "✓ Downloaded to d.tar.gz\n");
    assert!(fs::metadata(user.path("d.tar.gz")).unwrap().len() > 100);
    assert_output(&user.local(&["cat", "a", "missing"]), 1, "", "missing");
}

#[test]
fn download_to_stdout_follows_redirections() {
    let user = user_with_files();
    for (redirection, file, start) in [
        ("| cat >", "piped", ""),
        (">", "plain", ""),
        (">>", "appended", "old\n"),
    ] {
        fs::write(user.path(file), "old\n").unwrap();
        let script =
            format!("'{NOXRC}' --local download a --output /dev/stdout {redirection}{file}");
        let out = Command::new("sh")
            .args(["-c", &script])
            .env("HOME", user.path(""))
            .env_remove("XDG_STATE_HOME")
            .current_dir(user.path(""))
            .output();
        let out = output_of(out.unwrap());
        assert_output(&out, 0, "", "Downloaded to /dev/stdout");
        let written = fs::read(user.path(file)).unwrap();
        let archive = written.strip_prefix(start.as_bytes()).unwrap();
        assert!(archive.starts_with(&[0x1f, 0x8b]), "{redirection}");
    }
    assert!(fs::symlink_metadata("/dev/stdout").unwrap().is_symlink());
}

#[test]
fn cp_copies_in_both_directions() {
    let user = user_with_files();
    user.local(&["upload", "a", "--dir", "dir", "--dest", "/workspace/d"]);
    for (from, to) in [
        ("one.txt", "a:copied"),
        ("one.txt", "a:into/"),
        ("one.txt", "a:d"),
        ("dir", "a:"),
        ("dir", "a:other"),
        ("a:d/sub/three", "back"),
        ("a:d", "."),
        ("a:d", "new"),
    ] {
        assert_output(&user.local(&["cp", from, to]), 0, "", "✓ Copied");
    }
    let copies = "cat copied into/one.txt d/one.txt dir/two other/two";
    let copies = user.local(&["exec", "a", "sh", "-c", copies]);
    assert_output(&copies, 0, "11122", "");
    for file in ["back", "d/sub/three", "new/sub/three"] {
        assert_eq!(fs::read(user.path(file)).unwrap(), [0, 255], "{file}");
    }
    assert_output(&user.local(&["cp", "one.txt", "two.txt"]), 1, "", "ID:PATH");
    assert_output(&user.local(&["cp", "a:missing", "x"]), 1, "", "missing");
    assert!(!user.path("x").exists());
}

#[test]
fn run_creates_uses_and_deletes_a_sandbox() {
    let user = User::new();
    fs::write(user.path("in"), "3\n1\n2\n").unwrap();
    let out = user.local(&[
        "run",
        "--upload",
        "in",
        "--download",
        "out",
        "--",
        "sh",
        "-c",
        "sort in | tee out; exit 4",
    ]);
    assert_output(&out, 4, "1\n2\n3\n", "✓ Downloaded out");
    assert_eq!(fs::read(user.path("out")).unwrap(), b"1\n2\n3\n");
    let kept = || {
        fs::read_dir(user.path(".local/state/noxrunner/persistent"))
            .unwrap()
            .count()
    };
    assert_eq!(kept(), 0);
    assert_output(
        &user.local(&["run", "--upload", "missing", "true"]),
        125,
        "",
        "missing",
    );
    assert_eq!(kept(), 0);

    let sleep = unique_sleep(342_001);
    let mut command = user.command(&["--local", "run", "--timeout-seconds", "60", "sleep", &sleep]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the command runs", || sleeps(&sleep));
    interrupt(&child);
    let out = output_of(child.wait_with_output().unwrap());
    assert_eq!(out.code, 130, "{}", out.stderr);
    assert_eq!(kept(), 0);
    assert!(!sleeps(&sleep));
}

fn interrupt(child: &Child) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
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
fn shell_reads_lines_and_keeps_state() {
    let user = User::new();
    user.local(&["create", "a"]);
    let lines = "mkdir 'a b'\ncd 'a b'\npwd\ncd ~\npwd\ncd -\npwd\nexport A='x y' B=1\nunset B\n\
        echo \"$A-$B\"\necho 'two\nlines'\nls | wc -l\nfalse\ntouch\nhelp\n\nexit\necho never\n";
    let out = user.run_with_stdin(&["--local", "shell", "a"], lines);
    assert_eq!(out.code, 0);
    let expected =
        "/workspace/a b\n/workspace\n/workspace/a b\n/workspace/a b\nx y-\ntwo\nlines\n0\n";
    assert!(out.stdout.starts_with(expected), "{:?}", out.stdout);
    assert!(out.stdout.contains("Ctrl-D") && !out.stdout.contains("never"));
    assert!(
        out.stderr.contains("⚠ Command exited with code 1\n"),
        "{}",
        out.stderr
    );
    assert!(out.stderr.contains("✓ TTL extended\n"));
    let missing = user.run_with_stdin(&["--local", "shell", "missing"], "true\n");
    assert!(
        missing.stderr.contains("no such sandbox"),
        "{}",
        missing.stderr
    );
}

#[test]
fn broken_pipe_is_not_a_failure() {
    let user = User::new();
    user.local(&["create", "a"]);
    let line = format!("{NOXRC} --local exec a seq 100000 | head -1; exit ${{PIPESTATUS[0]}}");
    let mut shell = Command::new("bash");
    shell
        .args(["-c", &line])
        .env("HOME", user.home.path())
        .env_remove("XDG_STATE_HOME");
    assert_output(&run_command(&mut shell), 0, "1\n", "");
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

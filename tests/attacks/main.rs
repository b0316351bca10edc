//! Attacks on local sandboxes, as listed in attacks.md.
//!
//! A separate binary, because fork bombs and busy loops take all the CPU time they can get: cargo runs one
//! binary after the other, so the attacks do not starve the integration tests.
//!
//! Each run of the table is made by a separate process, which has everything that a sandbox must not find.
#![allow(clippy::excessive_nesting, reason = "closures of threads add levels")]

mod checks;
mod procedures;
#[path = "../support/mod.rs"]
mod support;
mod table;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use noxrunner::{Client, Command, Enforced, Isolation, LocalBackend, Sandbox, SandboxSpec};

use self::checks::Host;
use self::support::processes::{copy_this_program, unique_sleep};
use self::support::{in_parallel, is_root, long_tests_or_skip};
use self::table::{Clause, Outcome, Row};

const SECRET: &str = "NXSECRET";

fn all_rows() -> Vec<Row> {
    table::rows(include_str!("attacks.md"))
}

/// The rows for these tiers, and those that need a cgroup.
fn rows_of(tiers: &str) -> Vec<Row> {
    let mut rows = all_rows();
    rows.retain(|row| row.tier == "C" || tiers.contains(&row.tier));
    rows
}

/// True if sandboxes work here. Panics if they are required and do not.
fn sandboxes_work() -> bool {
    let Err(e) = Client::local() else { return true };
    assert!(
        std::env::var_os("NOXRUNNER_REQUIRE_SANDBOX").is_none(),
        "sandboxes are required: {e}"
    );
    println!("skipped: {e}");
    false
}

/// Lets one test run at a time, because its rows expect a certain load.
fn lock() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An id that no user has.
const PLAIN_USER: u32 = 65_533;

#[test]
fn namespaces_hold() {
    attack(None, NAMESPACES, 4);
}

#[test]
fn landlock_holds() {
    attack(None, LANDLOCK, 4);
}

/// For every user and tier, one row after the other with strict time limits, and eight at a time.
#[test]
fn every_tier_holds_for_every_user() {
    if !long_tests_or_skip("attacks one and eight at a time, as every user") {
        return;
    }
    let users: &[Option<u32>] = match is_root() {
        true => &[None, Some(PLAIN_USER)],
        false => &[None],
    };
    for user in users {
        for tiers in [NAMESPACES, LANDLOCK] {
            for at_a_time in [1, 8] {
                attack(*user, tiers, at_a_time);
            }
        }
    }
}

fn attack(user: Option<u32>, tiers: &str, at_a_time: u32) {
    if sandboxes_work() {
        let _lock = lock();
        HostProcess::new(user).attack(tiers, at_a_time);
    }
}

/// The values of the column `tier` that apply to an isolation tier.
const NAMESPACES: &str = "NLA";
const LANDLOCK: &str = "LA";

/// The process that creates the sandboxes, with everything that they must not find.
struct HostProcess {
    dir: tempfile::TempDir,
    user: Option<u32>,
    victim: Child,
    port: u16,
}

impl HostProcess {
    fn new(user: Option<u32>) -> HostProcess {
        let dir = tempfile::Builder::new()
            .prefix("nx_host_secret_dir")
            // Not in TMPDIR, which may be closed to other users.
            .tempdir_in("/tmp")
            .unwrap();
        let home = dir.path().join("home");
        fs::create_dir_all(home.join(".ssh")).unwrap();
        fs::write(home.join(".ssh/nx_canary"), SECRET).unwrap();
        copy_this_program(&dir.path().join("program"));
        for readable in ["", "home", "home/.ssh", "program"] {
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(dir.path().join(readable), mode).unwrap();
        }
        if let Some(user) = user {
            for path in ["home", "home/.ssh", "home/.ssh/nx_canary"] {
                std::os::unix::fs::chown(dir.path().join(path), Some(user), Some(user)).unwrap();
            }
        }
        // Fails if it belongs to another user, whose run wrote the same.
        let _ = fs::write("/tmp/nx_tmp_canary", SECRET);
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let name = SocketAddr::from_abstract_name(format!("nx_canary_{port}")).unwrap();
        let unix = UnixListener::bind_addr(&name).unwrap();
        std::thread::spawn(move || tcp.incoming().for_each(|s| answer(s.unwrap())));
        std::thread::spawn(move || unix.incoming().for_each(|s| answer(s.unwrap())));
        let victim = as_user(user, Path::new("sleep"))
            .arg("987654")
            .env("NX_CANARY_ENV", SECRET)
            .spawn()
            .unwrap();
        HostProcess {
            dir,
            user,
            victim,
            port,
        }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// A command that runs one of the ignored tests in that process.
    fn command(&self, test: &str) -> Process {
        let home = self.home();
        // The shell opens descriptor 9 without close-on-exec, so the program inherits it.
        let script = "exec 9<\"$1\"; shift; exec \"$@\"";
        let mut command = as_user(self.user, Path::new("sh"));
        command
            .args(["-c", script, "sh"])
            .arg(home.join(".ssh/nx_canary"))
            .arg(self.dir.path().join("program"))
            .args([
                "--exact",
                test,
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .current_dir("/")
            .env("NX_CANARY_ENV", SECRET)
            .env("NX_PORT", self.port.to_string())
            .env("NX_VICTIM", self.victim.id().to_string())
            .env("HOME", &home)
            .env("XDG_STATE_HOME", home.join("state"))
            .env("TMPDIR", &home)
            .stdout(Stdio::piped());
        command
    }

    fn attack(&self, tiers: &str, at_a_time: u32) {
        let mut child = self
            .command("attack_from_here")
            .env("NX_TIERS", tiers)
            .env("NX_AT_A_TIME", at_a_time.to_string())
            .spawn()
            .unwrap();
        let mut report = String::new();
        let mut out = child.stdout.take().unwrap();
        std::io::Read::read_to_string(&mut out, &mut report).unwrap();
        child.wait().unwrap();
        let mut failed = Vec::new();
        for row in rows_of(tiers) {
            let line = report
                .lines()
                .find_map(|line| line.strip_prefix(&format!("ROW {} ", row.id)));
            match line {
                Some("ok") => {}
                Some(reason) if reason.starts_with("skipped") => println!("{}: {reason}", row.id),
                Some(reason) => failed.push(format!("{}: {reason}", row.id)),
                None => failed.push(format!("{}: did not run", row.id)),
            }
        }
        assert!(failed.is_empty(), "\n{}\n\n{report}", failed.join("\n"));
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

fn answer(mut stream: impl Write) {
    let _ = stream.write_all(SECRET.as_bytes());
}

fn as_user(user: Option<u32>, program: &Path) -> Process {
    let Some(user) = user else {
        return Process::new(program);
    };
    let mut command = Process::new("setpriv");
    command
        .args([&format!("--reuid={user}"), &format!("--regid={user}")])
        .arg("--clear-groups")
        .arg(program);
    command
}

pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by the test that runs this one"))
}

/// Runs the table. The other tests start it in a separate process.
#[test]
#[ignore = "run by the other tests, in a separate process"]
fn attack_from_here() {
    let count: usize = variable("NX_AT_A_TIME").parse().unwrap();
    let host = Host {
        client: local_client(),
        home: variable("HOME").into(),
        victim: variable("NX_VICTIM"),
        port: variable("NX_PORT"),
    };
    let limits = local_backend().limits(&SandboxSpec::new()).unwrap();
    let have_cgroup = limits.memory().enforced() == Enforced::Exact;
    in_parallel(rows_of(&variable("NX_TIERS")), count, |row| {
        let result = if row.tier == "C" && !have_cgroup {
            "skipped: no cgroup v2 is delegated to this process".to_owned()
        } else {
            match run(&host, &row) {
                Ok(()) => "ok".to_owned(),
                Err(reason) => reason.replace('\n', "\\n"),
            }
        };
        println!("\nROW {} {result}", row.id);
    });
}

pub(crate) fn local_client() -> Client {
    Client::with_backend(local_backend())
}

fn local_backend() -> LocalBackend {
    let isolation = match std::env::var("NX_TIERS").as_deref() {
        Ok(LANDLOCK) => Isolation::Landlock,
        _ => Isolation::Namespaces,
    };
    let backend = LocalBackend::builder().isolation(isolation);
    backend.build().unwrap()
}

/// The argument of the background sleeps of the rows.
pub(crate) fn sleep() -> String {
    unique_sleep(434_343)
}

fn run(host: &Host, row: &Row) -> Result<(), String> {
    let Some(seconds) = row.seconds else {
        return procedures::procedure(host, &row.id);
    };
    // A limit of 60 s is not part of what a row tests. A busy machine may need more.
    let seconds = if seconds == 60 { 180 } else { seconds };
    let text = row
        .command
        .replace("@PORT@", &host.port)
        .replace("@HOME@", &host.home.to_string_lossy())
        .replace("@VICTIM@", &host.victim)
        .replace("@SLEEP@", &sleep())
        .replace("@HOSTPID@", &std::process::id().to_string());
    let mut spec = SandboxSpec::new();
    if row.id == "D05" {
        spec = spec.storage("64Mi");
    }
    let name = format!("attack-{}", row.id);
    let sandbox = host
        .client
        .create(&name, spec)
        .map_err(|e| format!("{e:#}"))?;
    if row.kind == "host" {
        return checks::with_sandbox(host, &row.id, &sandbox, &text, seconds);
    }
    run_commands(host, row, &sandbox, &text, seconds)?;
    sandbox.delete().map(drop).map_err(|e| format!("{e:#}"))
}

/// Runs the commands of a row and checks the outcome of the last one.
fn run_commands(
    host: &Host,
    row: &Row,
    sandbox: &Sandbox,
    text: &str,
    seconds: u64,
) -> Result<(), String> {
    let mut last = None;
    for command in text.split(" ;;; ") {
        let limit = if row.id == "D16" { 1 } else { seconds };
        let command = Command::from(["/bin/sh", "-c", command]).timeout(Duration::from_secs(limit));
        last = Some(sandbox.exec(command));
    }
    let result = last.ok_or("the row has no command")?;
    let (code, output) = match &result {
        Ok(out) => (out.exit_code(), format!("{}{}", out.stdout(), out.stderr())),
        // An attack may end its sandbox, but only if the row's check allows it.
        Err(e) => (-1, format!("ERROR {e}")),
    };
    let outcome = Outcome { code, output };
    for clause in &row.expect {
        if let Some(broken) = clause.broken(&outcome) {
            return Err(broken);
        }
    }
    let has_check = |clause: &Clause| matches!(clause, Clause::Host);
    if row.expect.iter().any(has_check) {
        checks::after(host, &row.id, sandbox, &result)?;
    } else if let Err(e) = &result {
        return Err(format!("{e:#}"));
    }
    if row.id == "S05" {
        let missing = sandbox.exec(["nosuchcommand_nx"]);
        let missing = missing.map_err(|e| format!("{e:#}"))?;
        if missing.exit_code() != 127 {
            return Err(format!("{missing:?}"));
        }
    }
    Ok(())
}

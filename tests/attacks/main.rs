//! Attacks on local sandboxes, by the table in attacks.md, each from a process of its own that has
//! what a sandbox must not find.

mod checks;
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
use std::time::{Duration, Instant};

use noxrunner::{Client, Command, Enforced, Isolation, LocalBackend, SandboxSpec};

use self::checks::Host;
use self::table::{Clause, Outcome, Row};

const SECRET: &str = "NXSECRET";

fn all_rows() -> Vec<Row> {
    table::rows(include_str!("attacks.md"))
}

/// With those that can't be run.
fn rows_of(tiers: &str) -> Vec<Row> {
    let mut rows = all_rows();
    rows.retain(|row| row.tier == "C" || tiers.contains(&row.tier));
    rows
}

/// Whether sandboxes can be had here. Where they must be there, that is no question.
fn have_sandboxes() -> bool {
    let Err(e) = Client::local() else { return true };
    assert!(
        std::env::var_os("NOXRUNNER_REQUIRE_SANDBOX").is_none(),
        "sandboxes are required: {e}"
    );
    println!("skipped: {e}");
    false
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// One test at a time: the rows must not have more company than they are said to have.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn one_after_the_other() {
    if have_sandboxes() {
        let _alone = alone();
        HostProcess::new(None).attack(NAMESPACES, "1");
    }
}

#[test]
fn eight_at_a_time() {
    if have_sandboxes() {
        let _alone = alone();
        HostProcess::new(None).attack(NAMESPACES, "8");
    }
}

/// An id of no user.
const PLAIN_USER: u32 = 65_533;

#[test]
fn as_a_plain_user() {
    if !is_root() {
        println!("skipped: this is a plain user already");
    } else if have_sandboxes() {
        let _alone = alone();
        HostProcess::new(Some(PLAIN_USER)).attack(NAMESPACES, "1");
        HostProcess::new(Some(PLAIN_USER)).attack(NAMESPACES, "8");
    }
}

#[test]
fn without_namespaces() {
    if have_sandboxes() {
        let _alone = alone();
        let users: &[Option<u32>] = match is_root() {
            true => &[None, Some(PLAIN_USER)],
            false => &[None],
        };
        for user in users {
            HostProcess::new(*user).attack(LANDLOCK, "1");
            HostProcess::new(*user).attack(LANDLOCK, "8");
        }
    }
}

/// The columns of the table that a tier has to hold.
const NAMESPACES: &str = "NLA";
const LANDLOCK: &str = "LA";

/// A copy of this program in a process of its own, with all that must not be found.
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
            .tempdir()
            .unwrap();
        let home = dir.path().join("home");
        fs::create_dir_all(home.join(".ssh")).unwrap();
        fs::write(home.join(".ssh/nx_canary"), SECRET).unwrap();
        fs::copy(std::env::current_exe().unwrap(), dir.path().join("program")).unwrap();
        for readable in ["", "home", "home/.ssh", "program"] {
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(dir.path().join(readable), mode).unwrap();
        }
        if let Some(user) = user {
            for path in ["home", "home/.ssh", "home/.ssh/nx_canary"] {
                std::os::unix::fs::chown(dir.path().join(path), Some(user), Some(user)).unwrap();
            }
        }
        // Another run may have left it, or be using it.
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

    /// Runs a test of this program there, one of those that are ignored here.
    fn command(&self, test: &str) -> Process {
        let home = self.home();
        // Descriptor 9 is the shell's to give: it is not closed by what it runs.
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
            .stdout(Stdio::piped());
        command
    }

    fn attack(&self, tiers: &str, at_a_time: &str) {
        let mut child = self
            .command("attack_from_here")
            .env("NX_TIERS", tiers)
            .env("NX_AT_A_TIME", at_a_time)
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

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by the test that runs this one"))
}

/// What the other tests run in a process of its own.
#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn attack_from_here() {
    let count: usize = variable("NX_AT_A_TIME").parse().unwrap();
    let host = Host {
        client: local_client(),
        home: variable("HOME").into(),
        victim: variable("NX_VICTIM"),
        port: variable("NX_PORT"),
        // One that has a fork bomb for a neighbour gets its turn only when that is over.
        slack: if count == 1 { 1 } else { 10 },
    };
    let limits = local_backend().limits(&SandboxSpec::new()).unwrap();
    let have_cgroup = limits.memory().enforced() == Enforced::Exact;
    let rows = Mutex::new(rows_of(&variable("NX_TIERS")).into_iter());
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                loop {
                    let row = rows.lock().unwrap().next();
                    let Some(row) = row else { return };
                    let result = match row.tier.as_str() {
                        "C" if !have_cgroup => {
                            "skipped: no cgroup v2 is delegated to this process".to_owned()
                        }
                        _ => match run(&host, &row) {
                            Ok(()) => "ok".to_owned(),
                            Err(reason) => reason.replace('\n', "\\n"),
                        },
                    };
                    println!("\nROW {} {result}", row.id);
                }
            });
        }
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

fn run(host: &Host, row: &Row) -> Result<(), String> {
    let Some(seconds) = row.seconds else {
        return checks::procedure(host, &row.id);
    };
    let text = row
        .command
        .replace("@PORT@", &host.port)
        .replace("@HOME@", &host.home.to_string_lossy())
        .replace("@VICTIM@", &host.victim)
        .replace("@HOSTPID@", &std::process::id().to_string());
    let mut spec = SandboxSpec::new();
    if row.id == "D05" {
        spec = spec.storage("64Mi");
    }
    checks::before(&row.id);
    let name = format!("attack-{}", row.id);
    let sandbox = host
        .client
        .create(&name, spec)
        .map_err(|e| format!("{e:#}"))?;
    if row.kind == "host" {
        return checks::with_sandbox(host, &row.id, &sandbox, &text, seconds);
    }
    let mut last = None;
    for command in text.split(" ;;; ") {
        let limit = if row.id == "D16" { 1 } else { seconds };
        let command = Command::from(["/bin/sh", "-c", command]).timeout(Duration::from_secs(limit));
        let started = Instant::now();
        let result = sandbox.exec(command);
        last = Some((result, started.elapsed().as_millis()));
    }
    let (result, millis) = last.ok_or("the row has no command")?;
    let outcome = match &result {
        Ok(out) => Outcome {
            code: out.exit_code(),
            output: format!("{}{}", out.stdout(), out.stderr()),
            millis: millis / u128::from(host.slack),
        },
        // A sandbox may be lost to an attack, but only where the check says so.
        Err(e) => Outcome {
            code: -1,
            output: format!("ERROR {e}"),
            millis: millis / u128::from(host.slack),
        },
    };
    for clause in &row.expect {
        if let Some(broken) = clause.broken(&outcome) {
            return Err(broken);
        }
    }
    if row
        .expect
        .iter()
        .any(|clause| matches!(clause, Clause::Host))
    {
        checks::after(host, &row.id, &sandbox, &result)?;
    } else if let Err(e) = &result {
        return Err(format!("{e:#}"));
    }
    if row.id == "S05" {
        let missing = sandbox
            .exec(["nosuchcommand_nx"])
            .map_err(|e| format!("{e:#}"))?;
        if missing.exit_code() != 127 {
            return Err(format!("{missing:?}"));
        }
    }
    sandbox.delete().map(drop).map_err(|e| format!("{e:#}"))
}

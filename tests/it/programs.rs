//! Real programs in local sandboxes with the default limits, as a user of the crate finds them.
//!
//! Programs that are not installed are skipped by name. With `NOXRUNNER_REQUIRE_PROGRAMS=1`, which CI
//! sets, a missing one fails the test, unless its row says that CI does not install it.

mod table;

use std::path::Path;
use std::process::Command as Process;
use std::sync::Mutex;
use std::time::Duration;

use noxrunner::{Client, Command, SandboxSpec};

use self::table::{PROGRAMS, Program};
use crate::support::processes::copy_this_program;
use crate::support::{in_parallel, is_root, long_tests_or_skip};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An unprivileged user without files.
const PLAIN_USER: u32 = 65_529;

#[test]
fn programs_work() {
    run_all();
}

#[test]
fn programs_work_as_a_plain_user() {
    if !is_root() {
        println!("skipped: this is a plain user already");
        return;
    }
    if !long_tests_or_skip("programs in sandboxes of a plain user") {
        return;
    }
    // Other users must be able to reach it, so it is not in a private TMPDIR.
    let home = tempfile::tempdir_in("/tmp").unwrap();
    let program = home.path().join("program");
    copy_this_program(&program);
    std::os::unix::fs::chown(home.path(), Some(PLAIN_USER), Some(PLAIN_USER)).unwrap();
    let out = Process::new("setpriv")
        .args([
            format!("--reuid={PLAIN_USER}"),
            format!("--regid={PLAIN_USER}"),
        ])
        .arg("--clear-groups")
        .arg(&program)
        .args(["--exact", "programs::programs_work", "--nocapture"])
        .env("HOME", home.path())
        .env("TMPDIR", home.path())
        .env_remove("XDG_STATE_HOME")
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}{errors}");
}

fn run_all() {
    let client = Client::local().expect("a local sandbox");
    let (skipped, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    in_parallel(PROGRAMS, 2, |program| {
        if !is_installed(program) {
            skipped.lock().unwrap().push(program);
        } else if let Err(reason) = run(&client, program) {
            failed
                .lock()
                .unwrap()
                .push(format!("{}: {reason}", program.name));
        }
    });
    let skipped = skipped.into_inner().unwrap();
    for program in &skipped {
        println!("skipped: {} is not installed", program.name);
    }
    let mut failed = failed.into_inner().unwrap();
    if std::env::var_os("NOXRUNNER_REQUIRE_PROGRAMS").is_some_and(|value| value == "1") {
        let required = skipped.iter().filter(|program| program.in_ci);
        failed.extend(required.map(|program| format!("{}: is not installed", program.name)));
    }
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

fn is_installed(program: &Program) -> bool {
    let out = Process::new("sh")
        .args(["-c", program.installed])
        .env_clear()
        .env("PATH", PATH)
        .current_dir(Path::new("/"))
        .output();
    out.unwrap().status.success()
}

fn run(client: &Client, program: &Program) -> Result<(), String> {
    let id = format!("program-{}", program.name.replace(' ', "-"));
    let sandbox = client
        .create(&id, SandboxSpec::new())
        .map_err(|e| format!("{e:#}"))?;
    let command = Command::shell(program.script).timeout(Duration::from_secs(300));
    let out = sandbox.exec(command).map_err(|e| format!("{e:#}"))?;
    let _ = sandbox.delete();
    println!(
        "{}: exit code {} after {:?}",
        program.name,
        out.exit_code(),
        out.duration()
    );
    let text = format!("{}{}", out.stdout(), out.stderr());
    if out.success() && text.contains(program.prints) {
        return Ok(());
    }
    let shown: String = text.chars().take(2000).collect();
    Err(format!("exit code {}: {shown}", out.exit_code()))
}

//! Processes that the tests start and look for in `/proc`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// An argument for `sleep` that no other process on the machine has, even if these tests run twice.
pub(crate) fn unique_sleep(seconds: u32) -> String {
    format!("{seconds}.{}", std::process::id())
}

/// The ids of the processes that have exactly this argument.
pub(crate) fn with_argument(argument: &str) -> Vec<u32> {
    all()
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0)
                .any(|arg| arg == argument.as_bytes())
        })
        .collect()
}

/// True if `sleep` runs with this argument. Programs that were told to run it do not count.
pub(crate) fn sleeps(argument: &str) -> bool {
    let line = format!("sleep\0{argument}\0");
    all()
        .any(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|got| got == line.as_bytes()))
}

/// The ids of all processes of the machine.
fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The id of a process's parent, or `None` if the process has ended.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line?.trim().parse().ok()
}

/// The ids of this process's children, zombies included.
pub(crate) fn children() -> Vec<u32> {
    let own = std::process::id();
    all().filter(|pid| parent_of(*pid) == Some(own)).collect()
}

/// Waits until a condition holds, far longer than it takes on a busy machine.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A command that runs one of the ignored tests of this program in a separate process, through these
/// words if there are any.
pub(crate) fn rerun(wrapper: &[&str], test: &str) -> Command {
    let this = std::env::current_exe().unwrap();
    let mut command = Command::new(wrapper.first().map_or(this.as_path(), Path::new));
    if let [_, rest @ ..] = wrapper {
        command.args(rest).arg(this);
    }
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    command
}

/// Copies this program. Another process writes the copy: a child that another thread starts meanwhile must not
/// inherit a writable descriptor of it, or the copy could not be executed ("text file busy").
pub(crate) fn copy_this_program(to: &Path) {
    let this = std::env::current_exe().unwrap();
    let status = Command::new("cp").arg(this).arg(to).status();
    assert!(status.unwrap().success());
}

/// Asserts that a command of [`rerun`] ran its test, and that the test passed.
#[track_caller]
pub(crate) fn assert_passes(mut command: Command) {
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}");
}

/// Wraps a command in a private mount namespace, where other programs' mounts do not appear.
pub(crate) fn private_mounts() -> [&'static str; 2] {
    ["unshare", if super::is_root() { "-m" } else { "-Urm" }]
}

/// The number of descriptors that this process has open.
pub(crate) fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

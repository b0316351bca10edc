//! Processes that the tests start and look for in `/proc`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// An argument for `sleep` that no other process on the machine has, even if these tests run twice.
pub(crate) fn unique_sleep(seconds: u32) -> String {
    format!("{seconds}.{}", std::process::id())
}

/// The ids of the processes that have exactly this argument.
pub(crate) fn with_argument(argument: &str) -> Vec<u32> {
    with_any_argument(|found| found == argument)
}

/// The ids of the processes with an argument that is accepted.
pub(crate) fn with_any_argument(accepts: impl Fn(&str) -> bool) -> Vec<u32> {
    all()
        .filter(|pid| {
            let line = command_line(*pid);
            let arguments = line.split(|byte| *byte == 0);
            arguments
                .filter_map(|argument| std::str::from_utf8(argument).ok())
                .any(&accepts)
        })
        .collect()
}

/// The arguments of a process, each with a NUL at its end. Empty if it has ended.
pub(crate) fn command_line(pid: u32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// True if `sleep` runs with this argument. Programs that were told to run it do not count.
pub(crate) fn sleeps(argument: &str) -> bool {
    let line = format!("sleep\0{argument}\0");
    all().any(|pid| command_line(pid) == line.as_bytes())
}

/// The ids of all processes of the machine.
fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A field of a process's status, or `None` if the process has ended.
pub(crate) fn status_field(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut fields = status.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(found, _)| *found == name)?;
    Some(value.trim().to_owned())
}

/// The id of a process's parent, or `None` if the process has ended.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    status_field(pid, "PPid")?.parse().ok()
}

/// True for process 1 of a process namespace other than this process's.
pub(crate) fn is_first_of_namespace(pid: u32) -> bool {
    let ids = status_field(pid, "NSpid").unwrap_or_default();
    let mut ids = ids.split_whitespace();
    ids.next().is_some() && ids.next_back() == Some("1")
}

/// When a process was started, in clock ticks since boot, or `None` if it has ended. It tells the process from a
/// later one with the same id.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, can contain any character.
    let after_name = stat.rsplit(')').next()?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// The ids of a process's children, zombies included.
pub(crate) fn children_of(pid: u32) -> impl Iterator<Item = u32> {
    all().filter(move |child| parent_of(*child) == Some(pid))
}

/// The ids of this process's children, zombies included.
pub(crate) fn children() -> Vec<u32> {
    children_of(std::process::id()).collect()
}

/// Sends a signal. Returns false if the process has ended.
pub(crate) fn send_signal(pid: u32, name: &str) -> bool {
    let mut kill = Command::new("kill");
    kill.args(["-s", name, &pid.to_string()]);
    kill.output().unwrap().status.success()
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

/// Calls the check with a longer time until it returns a value, because a busy machine may stop any process for
/// longer than the first.
#[track_caller]
pub(crate) fn with_longer_times<T>(first: Duration, check: impl FnMut(Duration) -> Option<T>) -> T {
    let mut times = [1, 3, 9].map(|factor| first * factor).into_iter();
    times
        .find_map(check)
        .expect("one of the times is long enough")
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

/// Copies this program, for other users as well. Another process writes the copy: a child that another thread starts meanwhile must not
/// inherit a writable descriptor of it, or the copy could not be executed ("text file busy").
pub(crate) fn copy_this_program(to: &Path) {
    let this = std::env::current_exe().unwrap();
    let status = Command::new("cp").arg(this).arg(to).status();
    assert!(status.unwrap().success());
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
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

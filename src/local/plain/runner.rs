//! Runs one command to its end or its time limit, and keeps what it said.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::super::files::path_failed;
use super::super::streams::Streams;
use super::super::{KILLED, NOT_EXECUTABLE, NOT_FOUND, TIMED_OUT, not_run};
use super::store::Place;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::os;
use crate::output::Output;
use crate::sandbox_path::WORKSPACE;

/// How long a killed process may take to be gone; one that waits for a disk takes its time.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Where the kernel has no pidfd, how often to ask whether the command has ended.
const TICK: Duration = Duration::from_millis(20);

/// Marks all processes of a sandbox, and all of one exec, in their environment.
pub(super) const SANDBOX_MARK: &str = "NOXRUNNER_SANDBOX";
const EXEC_MARK: &str = "NOXRUNNER_EXEC";

/// What a command gets of this process's environment.
const PASSED_ON: [&str; 5] = ["PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ"];

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn run(command: &Command, workdir: &Path, place: &Place) -> Result<Output> {
    let started = Instant::now();
    let exec_token = format!(
        "{:016x}{:016x}",
        crate::os::random::random_u64(),
        crate::os::random::random_u64()
    );
    let env = environment(command, place, &exec_token);
    let name = command
        .get_args()
        .first()
        .map(String::as_str)
        .unwrap_or_default();
    let not_run = |code, why| Ok(not_run(name, code, why, started.elapsed()));
    let path = env
        .get(OsStr::new("PATH"))
        .map_or(OsStr::new(""), OsString::as_os_str);
    let Some(program) = find_program(name, path) else {
        return not_run(NOT_FOUND, "command not found");
    };
    let mut child = match spawn(&program, command, workdir, &env) {
        Ok(child) => child,
        Err(e) => {
            // The same errors come from a workdir that is gone, or closed.
            if let Err(e) = fs::metadata(workdir.join(".")) {
                return Err(path_failed("workdir", command.get_workdir(), e));
            }
            return match (e.kind(), e.raw_os_error()) {
                (io::ErrorKind::NotFound, _) => not_run(NOT_FOUND, "no such file or interpreter"),
                (io::ErrorKind::PermissionDenied, _) => {
                    not_run(NOT_EXECUTABLE, "permission denied")
                }
                (_, Some(libc::ENOEXEC)) => not_run(NOT_EXECUTABLE, "not an executable format"),
                (io::ErrorKind::ArgumentListTooLong, _) => Err(Error::invalid(
                    "arguments and environment together are too long for this system: write them to a file",
                )),
                _ => Err(Error::io(format_args!("cannot start {name}"), e)),
            };
        }
    };
    if !place.is_there() {
        // Deleted while this started: nobody else would end it.
        kill(&mut child, &exec_token);
        reap(&mut child);
        return Err(Error::new(ErrorKind::NotFound, "no such sandbox"));
    }
    let streams = match (child.stdout.take(), child.stderr.take()) {
        (Some(out), Some(err)) => Streams::new(out.into(), err.into()),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    };
    let watched = streams.and_then(|mut streams| {
        let end = watch(&mut child, &mut streams, command, started)?;
        Ok((end, streams))
    });
    let (end, mut streams) = match watched {
        Ok(watched) => watched,
        Err(e) => {
            kill(&mut child, &exec_token);
            reap(&mut child);
            return Err(Error::io(format_args!("cannot watch {name}"), e));
        }
    };
    if !matches!(end, End::Exited(_)) {
        kill(&mut child, &exec_token);
    }
    let code = match end {
        End::Exited(status) => exit_code(status),
        End::TimedOut => {
            reap(&mut child);
            TIMED_OUT
        }
        End::Cancelled => reap(&mut child).map_or(KILLED, exit_code),
    };
    streams.drain();
    let truncated = streams.truncated();
    Ok(
        Output::new(code, streams.out.kept, streams.err.kept, started.elapsed())
            .with_timed_out(matches!(end, End::TimedOut))
            .with_truncated(truncated),
    )
}

type Environment = BTreeMap<OsString, OsString>;

fn environment(command: &Command, place: &Place, exec_token: &str) -> Environment {
    let root = place.root_path();
    let workspace = root.join(WORKSPACE.trim_start_matches('/'));
    let passed_on = PASSED_ON
        .iter()
        .filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    let mut env: Environment = passed_on.collect();
    env.entry("PATH".into())
        .or_insert_with(|| DEFAULT_PATH.into());
    env.insert("HOME".into(), workspace.clone().into());
    env.insert("NOX_WORKSPACE".into(), workspace.into());
    env.insert("TMPDIR".into(), root.join("tmp").into());
    env.extend(
        command
            .get_envs()
            .iter()
            .map(|(name, value)| (name.into(), value.into())),
    );
    env.insert(SANDBOX_MARK.into(), (&place.token).into());
    env.insert(EXEC_MARK.into(), exec_token.into());
    env
}

/// Looks a plain name up as a shell does, but in absolute directories only. None is not found.
fn find_program(name: &str, path: &OsStr) -> Option<PathBuf> {
    // Relative to the working directory, where the system looks once it is there.
    if name.contains('/') {
        return Some(name.into());
    }
    let is_program = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(is_program)
}

fn spawn(
    program: &Path,
    command: &Command,
    workdir: &Path,
    env: &Environment,
) -> io::Result<Child> {
    let mut args = command.get_args().iter();
    process::Command::new(program)
        .arg0(args.next().map(String::as_str).unwrap_or_default())
        .args(args)
        .env_clear()
        .envs(env)
        .current_dir(workdir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
}

enum End {
    Exited(ExitStatus),
    TimedOut,
    Cancelled,
}

/// Waits for the command's own end, not for that of the pipes: a background process may hold them
/// for as long as it likes.
fn watch(
    child: &mut Child,
    streams: &mut Streams,
    command: &Command,
    started: Instant,
) -> io::Result<End> {
    let deadline = started + command.get_timeout();
    let pidfd = os::pidfd_open(child.id());
    let cancelled = match command.get_cancel() {
        Some(cancel) => {
            let (wake, waker) = UnixStream::pair()?;
            // If the other end is gone, so is the command.
            Some((wake, cancel.on_cancel(move || drop((&waker).write(&[0])))))
        }
        None => None,
    };
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(End::Exited(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(End::TimedOut);
        }
        let wait = if pidfd.is_some() {
            left
        } else {
            left.min(TICK)
        };
        let fds = [
            streams.out.fd(),
            streams.err.fd(),
            pidfd.as_ref().map(AsFd::as_fd),
            cancelled.as_ref().map(|(wake, _)| wake.as_fd()),
        ];
        let [out, err, _, wake] = os::poll_readable(fds, wait)?;
        if wake {
            return Ok(End::Cancelled);
        }
        streams.read(out, err);
    }
}

/// Ends the command's process group, and what has left it.
fn kill(child: &mut Child, exec_token: &str) {
    // It has not been waited for, so the number is still its own.
    os::kill_group(child.id());
    kill_marked(EXEC_MARK, exec_token);
}

/// None where the kernel has not let it go in time: then the number stays taken, and no more.
fn reap(child: &mut Child) -> Option<ExitStatus> {
    let end = Instant::now() + KILL_WAIT;
    let pidfd = os::pidfd_open(child.id());
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => {}
            _ => return None,
        }
        let wait = if pidfd.is_some() { KILL_WAIT } else { TICK };
        let _ = os::poll_readable([pidfd.as_ref().map(AsFd::as_fd)], wait);
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .unwrap_or(KILLED)
}

/// Kills every process of this user with that mark in its environment, until a look finds none:
/// what is killed may have forked since the last one. Linux only.
pub(super) fn kill_marked(mark: &str, token: &str) {
    const ROUNDS: usize = 100;
    let wanted = format!("{mark}={token}").into_bytes();
    for _ in 0..ROUNDS {
        let marked = marked_processes(&wanted);
        if marked.is_empty() {
            return;
        }
        marked.into_iter().for_each(os::kill_process);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn marked_processes(wanted: &[u8]) -> Vec<u32> {
    let processes = fs::read_dir("/proc").ok().into_iter().flatten();
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|process| {
            // Another user's, or gone meanwhile: not ours to kill.
            let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
            environment
                .split(|b| *b == 0)
                .any(|variable| variable == wanted)
        })
        .collect()
}

//! Runs a command as a child of this process, with its timeout.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::cancel_fd::CancelFd;
use super::command_pipes::CommandPipes;
use super::environment::{DEFAULT_PATH, INHERITED};
use super::errors::{arguments_too_long, no_such_sandbox, path_error};
use super::exit_code::{KILLED, NOT_EXECUTABLE, NOT_FOUND, TIMED_OUT, not_run};
use super::process_marks::{EXEC_MARK, SANDBOX_MARK, kill_marked, random_token};
use crate::backend::Sink;
use crate::command::Command;
use crate::error::{Error, Result};
use crate::os;
use crate::os::child::try_wait;
use crate::output::{Output, Usage};
use crate::stdin::{Stdin, StdinReader};

/// Maximum time until a killed process is gone. A process that waits for a disk can take long.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Interval of checks whether the command has ended, on kernels without pidfds.
const TICK: Duration = Duration::from_millis(20);

pub(super) type Environment = BTreeMap<OsString, OsString>;

/// The place and the settings of a command's process.
pub(super) struct Place<'a> {
    pub(super) workdir: &'a Path,
    /// Environment variables of all commands. A command's own variables take precedence.
    pub(super) env: Environment,
    /// Marks the processes of the sandbox.
    pub(super) sandbox_token: &'a str,
    /// Returns false if the sandbox was deleted while the command started.
    pub(super) exists: &'a dyn Fn() -> bool,
    /// Changes the process before it is started.
    pub(super) prepare: fn(&mut process::Command),
}

/// Runs a command. Its output goes to `sink` while it runs, if there is one.
pub(super) fn run<'a>(
    command: &Command,
    place: Place<'_>,
    sink: Option<&'a mut Sink<'a>>,
) -> Result<Output> {
    let started = Instant::now();
    let exec_token = random_token();
    let mut env = place.env;
    add_variables(&mut env, command, place.sandbox_token, &exec_token);
    let name = program_name(command);
    let path = env.get(OsStr::new("PATH")).map(OsString::as_os_str);
    let Some(program) = find_program(name, path.unwrap_or_default()) else {
        let reason = "command not found";
        return Ok(not_run(name, NOT_FOUND, reason, started.elapsed()));
    };
    let stdin = command.get_stdin().map(Stdin::open).transpose()?;
    let child = match spawn(&program, command, place.workdir, &env, place.prepare) {
        Ok(child) => child,
        Err(e) => return spawn_failed(command, place.workdir, e, started),
    };
    let mut process = CommandProcess { child, exec_token };
    if !(place.exists)() {
        // The sandbox was deleted while the command started, and the deletion may not have seen it.
        process.kill_and_reap();
        return Err(no_such_sandbox());
    }
    let waited = process.pipes(sink, stdin).and_then(|mut pipes| {
        let outcome = process.wait(command, started, &mut pipes)?;
        Ok((outcome, pipes))
    });
    let (outcome, pipes) = waited.map_err(|e| {
        process.kill_and_reap();
        Error::io(format_args!("cannot wait for {name}"), e)
    })?;
    let timed_out = matches!(outcome, WaitOutcome::TimedOut);
    let ended = match outcome {
        WaitOutcome::Exited(status, usage) => Some((status, usage)),
        WaitOutcome::TimedOut | WaitOutcome::Cancelled => process.kill_and_reap(),
    };
    let code = match &ended {
        _ if timed_out => TIMED_OUT,
        Some((status, _)) => exit_code(*status),
        None => KILLED,
    };
    let out = pipes.into_output(code, started, timed_out, "")?;
    Ok(match ended {
        Some((_, usage)) => out.with_usage(usage),
        None => out,
    })
}

fn program_name(command: &Command) -> &str {
    command.get_args().first().map_or("", String::as_str)
}

/// Returns the variables of this process that commands inherit, and `more` of them. `PATH` has a default.
pub(super) fn inherited<const N: usize>(more: [&str; N]) -> Environment {
    let names = INHERITED.iter().chain(&more);
    let set = names.filter_map(|name| Some(((*name).into(), std::env::var_os(name)?)));
    set.collect()
}

/// Adds the variables of a command, and what marks its processes.
fn add_variables(env: &mut Environment, command: &Command, sandbox: &str, exec: &str) {
    let own = command.get_envs().iter();
    env.extend(own.map(|(name, value)| (name.into(), value.into())));
    env.entry("PATH".into())
        .or_insert_with(|| DEFAULT_PATH.into());
    env.insert(SANDBOX_MARK.into(), sandbox.into());
    env.insert(EXEC_MARK.into(), exec.into());
}

/// Searches for a program as a shell does, but in absolute directories only.
fn find_program(name: &str, path: &OsStr) -> Option<PathBuf> {
    // A path is relative to the working directory, which execve applies after the chdir.
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

/// Maximum time for repeating a start while another process has the program open for writing: one that
/// another thread forked during an upload has it until it executes its own program.
const BUSY_FOR: Duration = Duration::from_secs(1);

fn spawn(
    program: &Path,
    command: &Command,
    workdir: &Path,
    env: &Environment,
    prepare: fn(&mut process::Command),
) -> io::Result<Child> {
    let mut args = command.get_args().iter();
    let stdin = match command.get_stdin() {
        Some(_) => Stdio::piped(),
        None => Stdio::null(),
    };
    let mut child = process::Command::new(program);
    child
        .arg0(args.next().map(String::as_str).unwrap_or_default())
        .args(args)
        .env_clear()
        .envs(env)
        .current_dir(workdir)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    prepare(&mut child);
    let end = Instant::now() + BUSY_FOR;
    loop {
        match child.spawn() {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

/// Returns the result of a command that could not be started.
fn spawn_failed(
    command: &Command,
    workdir: &Path,
    error: io::Error,
    started: Instant,
) -> Result<Output> {
    // A working directory that was removed or is not accessible causes the same errors.
    if let Err(e) = fs::metadata(workdir.join(".")) {
        return Err(path_error("workdir", command.get_workdir(), e));
    }
    let name = program_name(command);
    let (code, reason) = match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => (NOT_FOUND, "no such file or interpreter"),
        (io::ErrorKind::PermissionDenied, _) => (NOT_EXECUTABLE, "permission denied"),
        (_, Some(libc::ENOEXEC)) => (NOT_EXECUTABLE, "not an executable format"),
        (io::ErrorKind::ArgumentListTooLong, _) => return Err(arguments_too_long()),
        _ => return Err(Error::io(format_args!("cannot start {name}"), error)),
    };
    Ok(not_run(name, code, reason, started.elapsed()))
}

/// The main process of a command.
struct CommandProcess {
    child: Child,
    /// Marks all processes of the exec.
    exec_token: String,
}

enum WaitOutcome {
    Exited(ExitStatus, Usage),
    TimedOut,
    Cancelled,
}

impl CommandProcess {
    /// Takes the pipes of the process.
    fn pipes<'a>(
        &mut self,
        sink: Option<&'a mut Sink<'a>>,
        stdin: Option<StdinReader>,
    ) -> io::Result<CommandPipes<'a>> {
        let mut pipes = match (self.child.stdout.take(), self.child.stderr.take()) {
            (Some(stdout), Some(stderr)) => CommandPipes::new(stdout.into(), stderr.into(), sink)?,
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        if let (Some(reader), Some(pipe)) = (stdin, self.child.stdin.take()) {
            pipes.feed_stdin(reader, pipe.into())?;
        }
        Ok(pipes)
    }

    /// Waits until the main process ends, and reads its output meanwhile. Does not wait for the end
    /// of the pipes, because background processes can keep them open.
    fn wait(
        &mut self,
        command: &Command,
        started: Instant,
        pipes: &mut CommandPipes<'_>,
    ) -> io::Result<WaitOutcome> {
        let pidfd = os::pidfd_open(self.child.id()).ok();
        let cancel = CancelFd::new(command.get_cancel())?;
        loop {
            if let Some((status, usage)) = try_wait(&self.child)? {
                return Ok(WaitOutcome::Exited(status, usage));
            }
            let deadline = started + command.get_timeout() + pipes.time_in_sink();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(WaitOutcome::TimedOut);
            }
            let wait = if pidfd.is_some() {
                left
            } else {
                left.min(TICK)
            };
            let [stdout, stderr, stdin] = pipes.fds();
            let fds = [
                stdout,
                stderr,
                stdin,
                pidfd.as_ref().map(AsFd::as_fd),
                cancel.as_ref().map(CancelFd::as_fd),
            ];
            let [stdout, stderr, stdin, _, cancelled] = os::poll_readable(fds, wait)?;
            if cancelled {
                return Ok(WaitOutcome::Cancelled);
            }
            pipes.handle([stdout, stderr, stdin]);
            if pipes.must_end() {
                return Ok(WaitOutcome::Cancelled);
            }
        }
    }

    /// Kills the process group of the command and the processes that have left it, and waits for the
    /// main process. Returns `None` if it does not end in time; its process id then stays in use.
    fn kill_and_reap(&mut self) -> Option<(ExitStatus, Usage)> {
        // The process was not reaped, so its id cannot belong to another one.
        os::kill_group(self.child.id());
        kill_marked(EXEC_MARK, &self.exec_token);
        let end = Instant::now() + KILL_WAIT;
        let pidfd = os::pidfd_open(self.child.id()).ok();
        loop {
            match try_wait(&self.child) {
                Ok(Some(ended)) => return Some(ended),
                Ok(None) if Instant::now() < end => {}
                _ => return None,
            }
            let wait = if pidfd.is_some() { KILL_WAIT } else { TICK };
            let _ = os::poll_readable([pidfd.as_ref().map(AsFd::as_fd)], wait);
        }
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    let signaled = || status.signal().map_or(KILLED, |signal| 128 + signal);
    status.code().unwrap_or_else(signaled)
}

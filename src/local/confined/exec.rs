//! One exec in a sandbox: its payload, the wait for its reply, and the errors of its start.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::encoding::Encoding;
use super::messages;
use super::protocol::{CommandUsage, EndRequest, HolderReply, Payload, StartStage};
use crate::command::Command;
use crate::error::{Error, Result};
use crate::local::cancel_fd::CancelFd;
use crate::local::command_pipes::CommandPipes;
use crate::local::environment::{DEFAULT_PATH, INHERITED};
use crate::local::errors::{arguments_too_long, path_error};
use crate::local::exit_code::{NOT_EXECUTABLE, NOT_FOUND, not_run};
use crate::os;
use crate::output::Output;

/// Maximum time between the deadline of a command and the holder's reply. After that the sandbox is
/// ended.
const END_WAIT: Duration = Duration::from_secs(5);

/// Returns the payload of a command. `root` is the directory of `/workspace` and `/tmp`, as the
/// command sees it; empty for `/`.
pub(super) fn command_payload(
    command: &Command,
    sandbox_env: &BTreeMap<String, String>,
    root: &str,
    workdir: String,
) -> Payload {
    let workspace = format!("{root}/workspace");
    let mut env = BTreeMap::from([
        ("PATH", DEFAULT_PATH.to_owned()),
        ("HOME", workspace.clone()),
        ("TMPDIR", format!("{root}/tmp")),
        ("NOX_WORKSPACE", workspace),
        ("USER", "sandbox".to_owned()),
        ("LOGNAME", "sandbox".to_owned()),
    ]);
    for name in INHERITED {
        if let Ok(value) = std::env::var(name) {
            env.insert(name, value);
        }
    }
    for (name, value) in sandbox_env.iter().chain(command.get_envs()) {
        env.insert(name, value.clone());
    }
    let path = env.get("PATH").map(String::as_str).unwrap_or_default();
    let absolute = path.split(':').filter(|dir| dir.starts_with('/'));
    Payload {
        workdir,
        args: command.get_args().to_vec(),
        path: absolute.map(str::to_owned).collect(),
        env: env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
    }
}

#[derive(Clone, Copy)]
pub(super) enum ExecOutcome {
    Replied(HolderReply, CommandUsage),
    /// The process that should have replied has ended.
    Closed,
    /// There was no reply until long after the deadline.
    NoReply,
}

/// Waits until the command ends, and reads its output meanwhile. Does not wait for the end of the
/// pipes, because background processes can keep them open.
pub(super) fn wait_for_reply(
    connection: &OwnedFd,
    pipes: &mut CommandPipes<'_>,
    command: &Command,
    started: Instant,
) -> io::Result<ExecOutcome> {
    let timeout = command.get_timeout();
    let cancel = CancelFd::new(command.get_cancel())?;
    let mut ending = false;
    // With live output this process keeps the time, because only it knows the time spent in the sink.
    let mut reply_by = (!pipes.are_live()).then(|| started + timeout + END_WAIT);
    loop {
        let [stdout, stderr, stdin] = pipes.fds();
        // Once the command is being ended, no other reason to end it matters.
        let [stdin, cancel] =
            [stdin, cancel.as_ref().map(CancelFd::as_fd)].map(|fd| fd.filter(|_| !ending));
        let fds = [Some(connection.as_fd()), cancel, stdout, stderr, stdin];
        let until = reply_by.unwrap_or_else(|| started + timeout + pipes.time_in_sink());
        let left = until.saturating_duration_since(Instant::now());
        let [replied, cancelled, stdout, stderr, stdin] = os::poll_readable(fds, left)?;
        pipes.handle([stdout, stderr, stdin]);
        if replied {
            return Ok(match receive_reply(connection)? {
                Some((reply, usage, _)) => ExecOutcome::Replied(reply, usage),
                None => ExecOutcome::Closed,
            });
        }
        if !ending && (cancelled || pipes.must_end()) {
            ending = true;
            reply_by = Some(request_end(connection, EndRequest::Cancel));
        } else if left.is_zero() {
            // A reply that arrived while the sink was slow has been seen by now.
            if reply_by.is_some() {
                return Ok(ExecOutcome::NoReply);
            }
            reply_by = Some(request_end(connection, EndRequest::TimeOut));
        }
    }
}

/// Asks the holder to end the command. Returns when it must have replied.
fn request_end(connection: &OwnedFd, request: EndRequest) -> Instant {
    // The send fails if the command has ended.
    let _ = messages::send(connection.as_fd(), &request.encode(), &[]);
    Instant::now() + END_WAIT
}

/// Receives a reply and its descriptors. Returns `None` if the connection is closed.
pub(super) fn receive_reply(
    connection: &OwnedFd,
) -> io::Result<Option<(HolderReply, CommandUsage, Vec<OwnedFd>)>> {
    let mut buffer = [0; 64];
    match messages::receive(connection.as_fd(), &mut buffer) {
        Ok((length, fds)) => {
            Ok(HolderReply::decode(&buffer[..length]).map(|(reply, usage)| (reply, usage, fds)))
        }
        // The holder has ended before it read the request.
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(e) => Err(e),
    }
}

/// Returns the result of a command that could not be started.
pub(super) fn not_started(
    command: &Command,
    stage: StartStage,
    errno: i32,
    started: Instant,
) -> Result<Output> {
    let name = command.get_args().first().map_or("", String::as_str);
    let error = io::Error::from_raw_os_error(errno);
    let shown = error.to_string();
    let (code, reason) = match (stage, errno) {
        (StartStage::Workdir, _) => {
            return Err(path_error("workdir", command.get_workdir(), error));
        }
        (StartStage::Fork, _) => {
            let operation = "cannot start a process in the sandbox (process limit reached?)";
            return Err(Error::io(operation, error));
        }
        (_, libc::E2BIG) => return Err(arguments_too_long()),
        (StartStage::Lookup, _) => (NOT_FOUND, "command not found"),
        (_, libc::ENOENT | libc::ENOTDIR) if name.contains('/') => {
            (NOT_FOUND, "no such file or interpreter")
        }
        (_, libc::ENOENT | libc::ENOTDIR) => (NOT_FOUND, "command not found"),
        (_, libc::EACCES) => (NOT_EXECUTABLE, "permission denied"),
        (_, libc::ENOEXEC) => (NOT_EXECUTABLE, "not an executable format"),
        (StartStage::Exec, _) => (NOT_EXECUTABLE, shown.as_str()),
    };
    Ok(not_run(name, code, reason, started.elapsed()))
}

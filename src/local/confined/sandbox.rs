//! A sandbox: the process that holds it, and requests to that process.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cgroup::Cgroup;
use super::disk_dir::DiskDir;
use super::encoding::Encoding;
use super::exec::{ExecOutcome, command_payload, not_started, receive_reply, wait_for_reply};
use super::messages;
use super::protocol::{
    CommandUsage, ExceededLimit, ExecFds, Features, HolderReply, HolderRequest, MAX_MESSAGE,
    Payload,
};
use crate::backend::Sink;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::local::command_pipes::CommandPipes;
use crate::local::errors::{ended_during_command, no_such_sandbox};
use crate::local::exit_code::{KILLED, TIMED_OUT};
use crate::local::files::SandboxFiles;
use crate::local::limits::RequestedLimits;
use crate::local::millis::millis;
use crate::local::sys::{self, FileUser};
use crate::os;
use crate::output::{KilledBy, Output, Usage};
use crate::stdin::Stdin;
use crate::upload::Upload;

/// Maximum time for the reply to a request that the holder can answer at once.
const REPLY_WAIT: Duration = Duration::from_secs(5);

/// Maximum time for a count of the files.
const COUNT_WAIT: Duration = Duration::from_secs(60);

/// Interval of attempts to lock the files for an upload.
const LOCK_TICK: Duration = Duration::from_millis(10);

/// Maximum time until a killed sandbox is gone.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// The system call filter kills only for calls of another architecture.
const KILLED_BY_FILTER: &str = "noxrunner: killed by the system call filter: programs of another architecture, such as 32-bit programs, do not run in a sandbox\n";

pub(super) struct ConfinedSandbox {
    pub(super) socket: RequestSocket,
    pub(super) process: HolderProcess,
    /// The optional features of the machine. Unknown for persistent sandboxes.
    pub(super) features: Features,
    pub(super) limits: RequestedLimits,
    /// Environment variables of all commands.
    pub(super) env: BTreeMap<String, String>,
    pub(super) resources: Resources,
}

/// Resources of a sandbox that ends with this process. They are freed when they are dropped.
#[derive(Default)]
pub(super) struct Resources {
    /// The sandbox's files, if they are not in memory.
    #[expect(dead_code, reason = "freed on drop")]
    pub(super) disk: Option<DiskDir>,
    /// The cgroup that enforces the limits. It can be removed only after the processes have ended.
    pub(super) cgroup: Option<Cgroup>,
}

/// The socket that takes requests to the holder.
pub(super) enum RequestSocket {
    /// The socket that the holder was started with. Each request carries a new connection for its
    /// reply.
    Control(OwnedFd),
    /// The holder listens on a socket in this directory.
    Directory(OwnedFd),
}

/// The process that holds a sandbox. The sandbox exists as long as it runs.
pub(super) struct HolderProcess {
    /// The process id of the first process of the namespaces, or of the guardian.
    pub(super) pid: u32,
    pub(super) pidfd: Arc<OwnedFd>,
    /// The user id that owns the files, if it is not this process's.
    pub(super) user: Option<u32>,
    /// The host's path of the files, if commands see them there. `None` if they have a private root.
    pub(super) host_dir: Option<PathBuf>,
}

impl HolderProcess {
    /// Returns true if the process ends within the time.
    pub(super) fn ends_within(&self, time: Duration) -> bool {
        os::poll_readable([Some(self.pidfd.as_fd())], time).is_ok_and(|[ended]| ended)
    }

    /// Ends the sandbox with all its processes.
    pub(super) fn end(&self) {
        let pidfd = self.pidfd.as_fd();
        // A guardian must kill the other processes before it ends itself. A pid namespace ends with
        // its first process.
        let signal = if self.host_dir.is_some() {
            libc::SIGTERM
        } else {
            libc::SIGKILL
        };
        sys::kill(pidfd, signal);
        // A process that waits for a disk takes longer, and cannot be hurried.
        let _ = os::poll_readable([Some(pidfd)], KILL_WAIT);
        sys::reap(pidfd);
    }
}

impl ConfinedSandbox {
    /// Sends an encoded request. Returns the connection for its reply.
    fn send(&self, request: &[u8], fds: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
        let send = || match &self.socket {
            RequestSocket::Control(control) => {
                let (ours, theirs) = sys::socket_pair()?;
                let mut all = vec![theirs.as_fd()];
                all.extend(fds);
                messages::send(control.as_fd(), request, &all)?;
                Ok(ours)
            }
            RequestSocket::Directory(dir) => {
                let connection = sys::connect(dir.as_fd())?;
                messages::send(connection.as_fd(), request, fds)?;
                Ok(connection)
            }
        };
        send().map_err(|e: io::Error| match e.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotFound => self.ended(),
            io::ErrorKind::WouldBlock => not_responding(),
            _ => cannot_reach(e),
        })
    }

    /// Sends a request that the holder answers within this time. Returns the reply and the descriptor
    /// in it.
    fn call(
        &self,
        request: &HolderRequest,
        wait: Duration,
    ) -> Result<(HolderReply, Option<OwnedFd>)> {
        let connection = self.send(&request.encode(), &[])?;
        let [replied] =
            os::poll_readable([Some(connection.as_fd())], wait).map_err(cannot_reach)?;
        if !replied {
            return Err(not_responding());
        }
        let received = receive_reply(&connection).map_err(cannot_reach)?;
        let (reply, _, fds) = received.ok_or_else(|| self.ended())?;
        Ok((reply, fds.into_iter().next()))
    }

    /// Waits for the end of a sandbox whose holder has closed a socket, and returns the error for it. The
    /// holder's sockets close before the other processes have ended.
    fn ended(&self) -> Error {
        if self.process.ends_within(KILL_WAIT) {
            no_such_sandbox()
        } else {
            not_responding()
        }
    }

    /// Restarts the TTL, with a new length if there is one.
    pub(super) fn touch(&self, ttl: Option<Duration>) -> Result<()> {
        self.call(&HolderRequest::Touch(ttl.map(millis)), REPLY_WAIT)
            .map(drop)
    }

    pub(super) fn files(&self) -> Result<SandboxFiles> {
        let (_, root) = self.call(&HolderRequest::Root, REPLY_WAIT)?;
        let root = root.ok_or_else(not_responding)?;
        let _user = self.process.user.map(FileUser::new);
        let stages = os::open_dir_at(root.as_fd(), b"stages")
            .map_err(|e| Error::io("cannot open the files of the sandbox", e))?;
        Ok(SandboxFiles {
            root,
            stages: Some(stages),
            root_is_shared: false,
            root_path: None,
            user: self.process.user,
            room: None,
        })
    }

    /// Unpacks an upload. Where the holder counts the files, one upload runs at a time, so that two
    /// cannot both use the space that is left.
    pub(super) fn upload(&self, dest: &str, archive: Upload<'_>) -> Result<()> {
        let mut files = self.files()?;
        if self.storage_room()?.is_some() {
            let failed = |e| Error::io("cannot lock the files of the sandbox", e);
            let stages = files.stages.as_ref();
            let lock = || stages.map_or(Ok(true), |stages| os::lock(stages.as_fd()));
            while !lock().map_err(failed)? {
                std::thread::sleep(LOCK_TICK);
            }
            files.room = self.storage_room()?;
        }
        files.upload(dest, archive)
    }

    /// Counts the files. Returns the space that is left, or `None` if the kernel limits it.
    fn storage_room(&self) -> Result<Option<u64>> {
        match self.call(&HolderRequest::StorageRoom, COUNT_WAIT)? {
            (HolderReply::StorageRoom(room), _) => Ok(Some(room)),
            _ => Ok(None),
        }
    }

    pub(super) fn exec<'a>(
        &self,
        command: &Command,
        sink: Option<&'a mut Sink<'a>>,
    ) -> Result<Output> {
        let started = Instant::now();
        let oom_kills = self.oom_kills();
        let (connection, mut pipes) = self.start_command(command, sink)?;
        let outcome = wait_for_reply(&connection, &mut pipes, command, started)
            .map_err(|e| Error::io("cannot wait for the command", e))?;
        if let ExecOutcome::Replied(HolderReply::NotStarted(stage, errno), _) = outcome {
            return not_started(command, stage, errno, started);
        }
        let run_time = started.elapsed().saturating_sub(pipes.time_in_sink());
        let in_time = run_time < command.get_timeout();
        let (code, timed_out) = self.exit_code(&outcome, in_time)?;
        let notice = match outcome {
            ExecOutcome::Replied(HolderReply::Signaled(libc::SIGSYS), _) => KILLED_BY_FILTER,
            _ => "",
        };
        let mut out = pipes.into_output(code, started, timed_out, notice)?;
        if let ExecOutcome::Replied(_, usage) = &outcome {
            out = with_usage(out, usage);
        }
        if self.oom_kills() > oom_kills {
            out = out.with_killed_by(KilledBy::Memory);
        }
        Ok(out)
    }

    /// Returns how often the kernel has killed a process because of the limit of the cgroup.
    fn oom_kills(&self) -> u64 {
        let cgroup = self.resources.cgroup.as_ref();
        cgroup.map_or(0, Cgroup::oom_kills)
    }

    /// Returns the exit code of a command that has ended, and whether it timed out.
    fn exit_code(&self, outcome: &ExecOutcome, in_time: bool) -> Result<(i32, bool)> {
        let reply = match outcome {
            ExecOutcome::Replied(reply, _) => *reply,
            ExecOutcome::NoReply => {
                // The holder was stopped and cannot kill the command.
                self.end();
                HolderReply::TimedOut
            }
            ExecOutcome::Closed if !self.holder_answers() => {
                return Err(ended_during_command());
            }
            // The command has killed its supervisor, and the holder has killed the command.
            ExecOutcome::Closed if in_time => HolderReply::Exited(KILLED),
            ExecOutcome::Closed => HolderReply::TimedOut,
        };
        match reply {
            HolderReply::Exited(code) => Ok((code, false)),
            HolderReply::Signaled(signal) => Ok((128 + signal, false)),
            HolderReply::TimedOut => Ok((TIMED_OUT, true)),
            _ => Err(no_such_sandbox()),
        }
    }

    /// Starts a command. Returns the connection for its reply, and its pipes.
    fn start_command<'a>(
        &self,
        command: &Command,
        sink: Option<&'a mut Sink<'a>>,
    ) -> Result<(OwnedFd, CommandPipes<'a>)> {
        let failed = |e| Error::io("cannot create a pipe", e);
        let (stdout, their_stdout) = sys::pipe().map_err(failed)?;
        let (stderr, their_stderr) = sys::pipe().map_err(failed)?;
        let reader = command.get_stdin().map(Stdin::open).transpose()?;
        let stdin = reader.as_ref().map(|_| sys::pipe());
        let (their_stdin, stdin) = stdin.transpose().map_err(failed)?.unzip();
        let mut pipes = CommandPipes::new(stdout, stderr, sink).map_err(failed)?;
        let fds = ExecFds {
            stdout: their_stdout,
            stderr: their_stderr,
            stdin: their_stdin,
            payload: None,
        };
        if let Some(user) = self.process.user {
            // Otherwise commands cannot open /dev/stdout and the others.
            for pipe in fds.list() {
                fchown(pipe, Some(user), Some(user)).map_err(failed)?;
            }
        }
        // With live output this process keeps the time.
        let timeout = (!pipes.are_live()).then(|| command.get_timeout());
        let connection = self.send_command(command, timeout, fds)?;
        if let Some((reader, pipe)) = reader.zip(stdin) {
            let fed = pipes.feed_stdin(reader, pipe);
            fed.map_err(|e| Error::io("cannot stream stdin", e))?;
        }
        Ok((connection, pipes))
    }

    /// Sends a command to the holder. Returns the connection for its reply.
    fn send_command(
        &self,
        command: &Command,
        timeout: Option<Duration>,
        mut fds: ExecFds,
    ) -> Result<OwnedFd> {
        let (millis, has_stdin) = (timeout.map(millis), fds.stdin.is_some());
        let payload = self.payload(command)?;
        let encoded_payload = payload.encode();
        let exec = |payload| HolderRequest::Exec(millis, payload, has_stdin).encode();
        let mut request = exec(Some(payload));
        if request.len() > MAX_MESSAGE {
            let file = sys::sealed_file("payload", &encoded_payload, false)
                .map_err(|e| Error::io("cannot write the command to a file in memory", e))?;
            fds.payload = Some(file);
            request = exec(None);
        }
        self.send(&request, &fds.list())
    }

    fn payload(&self, command: &Command) -> Result<Payload> {
        let workdir = command.get_workdir();
        match &self.process.host_dir {
            None => Ok(command_payload(command, &self.env, "", workdir.to_owned())),
            Some(host_dir) => {
                let workdir = self.files()?.resolve_workdir(workdir)?.path;
                Ok(command_payload(
                    command,
                    &self.env,
                    utf8(host_dir)?,
                    utf8(&workdir)?.to_owned(),
                ))
            }
        }
    }

    /// Returns true if the holder works. A killed one is still a process until all others of the sandbox
    /// have ended.
    fn holder_answers(&self) -> bool {
        self.call(&HolderRequest::Root, REPLY_WAIT).is_ok()
    }

    /// Returns true if the sandbox was running a moment ago.
    pub(super) fn is_running(&self) -> bool {
        !self.process.ends_within(Duration::ZERO)
    }

    /// Returns the cause of an error: if the sandbox has ended meanwhile, its files are gone.
    pub(super) fn cause(&self, error: Error) -> Error {
        match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::Io if !self.is_running() => no_such_sandbox(),
            _ => error,
        }
    }

    /// Ends all processes of the sandbox. In-memory files end with them.
    pub(super) fn end(&self) {
        self.process.end();
    }
}

/// Adds what a command has used to its output.
fn with_usage(out: Output, usage: &CommandUsage) -> Output {
    let cpu_time = Duration::from_micros(usage.cpu_micros);
    let out = out.with_usage(Usage::new(cpu_time, usage.peak_memory));
    match usage.exceeded {
        Some(ExceededLimit::Memory) => out.with_killed_by(KilledBy::Memory),
        Some(ExceededLimit::Storage) => out.with_killed_by(KilledBy::Storage),
        None => out,
    }
}

fn utf8(path: &Path) -> Result<&str> {
    let shown = path.display();
    path.to_str()
        .ok_or_else(|| Error::invalid(format!("{shown} is not UTF-8: choose another path")))
}

fn cannot_reach(cause: io::Error) -> Error {
    Error::io("cannot reach the sandbox", cause)
}

fn not_responding() -> Error {
    let text = "the sandbox does not respond: delete it";
    Error::new(ErrorKind::Timeout, text)
}

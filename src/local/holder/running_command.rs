//! A command from its start to its end.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::encoding::Encoding;
use crate::processes::{descendants, is_stopped, kill_descendants, kill_everything};
use crate::protocol::{CommandUsage, EndRequest, ExceededLimit, HolderReply};
use crate::supervisor::Supervisor;
use crate::sys::c::SIGKILL;
use crate::sys::messages;
use crate::sys::process::WaitStatus;

/// Time until the whole sandbox is killed, if one of its processes has stopped the supervisor.
const STOPPED_GRACE: Duration = Duration::from_millis(250);

/// Maximum time until a killed command has ended, also on a busy machine. After that the whole sandbox is
/// killed. The caller waits a second longer.
const KILL_GRACE: Duration = Duration::from_secs(4);

/// Shortest interval of searches for processes that were started while their parent was killed.
const KILL_TICK: Duration = Duration::from_millis(2);

pub(crate) struct RunningCommand {
    pub(crate) supervisor: Supervisor,
    /// The connection to the caller. `None` after the supervisor has replied.
    pub(crate) connection: Option<OwnedFd>,
    /// `None` if the caller keeps the time.
    deadline: Option<Instant>,
    /// When the command was killed, if it was.
    killed: Option<Instant>,
    timed_out: bool,
}

impl RunningCommand {
    pub(crate) fn new(
        supervisor: Supervisor,
        connection: OwnedFd,
        deadline: Option<Instant>,
    ) -> Self {
        RunningCommand {
            supervisor,
            connection: Some(connection),
            deadline,
            killed: None,
            timed_out: false,
        }
    }

    /// Returns when [`check`](RunningCommand::check) must be called next.
    pub(crate) fn next_check(&self, now: Instant) -> Option<Instant> {
        match (self.killed, self.deadline) {
            (Some(since), _) => Some(now + KILL_TICK.max(now.saturating_duration_since(since) / 8)),
            (None, Some(deadline)) if self.connection.is_none() => {
                Some(deadline.max(now) + STOPPED_GRACE)
            }
            (None, deadline) => deadline,
        }
    }

    /// Kills the command if its deadline has passed or the caller ends it. `readable` is true if the
    /// connection is.
    pub(crate) fn check(&mut self, now: Instant, readable: bool) {
        let late = self.deadline.is_some_and(|deadline| now >= deadline);
        if self.killed.is_none() && (readable || late) {
            let timed_out = !readable || self.end_request() == EndRequest::TimeOut;
            if self.supervisor.expect_end(timed_out) {
                self.timed_out = timed_out;
                self.killed = Some(now);
            } else {
                self.connection = None;
                self.deadline.get_or_insert(now);
            }
        }
        let late = self.deadline.filter(|deadline| now >= *deadline);
        if let Some(since) = self.killed.or(late) {
            // Without /proc the command's processes cannot be told from others.
            if self.is_stuck(now.saturating_duration_since(since))
                || (self.killed.is_some() && kill_descendants(self.supervisor.pid).is_err())
            {
                kill_everything();
            }
        }
    }

    /// Receives the caller's request to end the command. The end of the connection cancels it.
    fn end_request(&self) -> EndRequest {
        let mut buffer = [0; 8];
        let connection = self.connection.as_ref();
        let received = connection.and_then(|c| messages::receive(c.as_fd(), &mut buffer).ok());
        let length = received.map_or(0, |(length, _)| length);
        EndRequest::decode(&buffer[..length]).unwrap_or(EndRequest::Cancel)
    }

    /// Returns true if only the end of the whole sandbox ends the supervisor, because another process keeps it
    /// stopped.
    fn is_stuck(&self, waited: Duration) -> bool {
        waited >= KILL_GRACE || waited >= STOPPED_GRACE && is_stopped(self.supervisor.pid)
    }

    /// Marks the command if one of the processes is its own. Without `/proc` this is unknown.
    pub(crate) fn processes_killed(&self, killed: &[u32], limit: ExceededLimit) {
        let own = descendants(self.supervisor.pid);
        if own.map_or(true, |own| killed.iter().any(|pid| own.contains(pid))) {
            self.supervisor.set_exceeded(limit);
        }
    }

    /// Handles the end of the supervisor.
    pub(crate) fn supervisor_ended(self, status: WaitStatus) {
        if status == WaitStatus::Exited(0) {
            return;
        }
        // The command has killed its supervisor, so that only the holder can kill the command.
        kill_everything();
        let reply = if self.timed_out {
            HolderReply::TimedOut
        } else {
            HolderReply::Signaled(SIGKILL)
        };
        if let Some(connection) = self.connection {
            let usage = CommandUsage {
                exceeded: self.supervisor.exceeded(),
                ..CommandUsage::default()
            };
            let _ = messages::send(connection.as_fd(), &reply.encode(&usage), &[]);
        }
    }
}

//! A command from its start to its end.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::processes::{descendants, is_stopped, kill_descendants, kill_everything};
use crate::protocol::{CommandUsage, ExceededLimit, HolderReply};
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
    deadline: Instant,
    /// When the command was killed, if it was.
    killed: Option<Instant>,
    timed_out: bool,
}

impl RunningCommand {
    pub(crate) fn new(supervisor: Supervisor, connection: OwnedFd, deadline: Instant) -> Self {
        RunningCommand {
            supervisor,
            connection: Some(connection),
            deadline,
            killed: None,
            timed_out: false,
        }
    }

    /// Returns when [`check`](RunningCommand::check) must be called next.
    pub(crate) fn next_check(&self, now: Instant) -> Instant {
        match self.killed {
            Some(since) => now + KILL_TICK.max(now.saturating_duration_since(since) / 8),
            None if self.connection.is_none() => self.deadline.max(now) + STOPPED_GRACE,
            None => self.deadline,
        }
    }

    /// Kills the command if its deadline has passed or the caller has cancelled it.
    pub(crate) fn check(&mut self, now: Instant, cancelled: bool) {
        if self.killed.is_none() && (cancelled || now >= self.deadline) {
            if self.supervisor.expect_end(!cancelled) {
                self.timed_out = !cancelled;
                self.killed = Some(now);
            } else {
                self.connection = None;
            }
        }
        if now >= self.deadline || self.killed.is_some() {
            let since = self.killed.unwrap_or(self.deadline);
            // Without /proc the command's processes cannot be told from others.
            if self.is_stuck(now.saturating_duration_since(since))
                || (self.killed.is_some() && kill_descendants(self.supervisor.pid).is_err())
            {
                kill_everything();
            }
        }
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

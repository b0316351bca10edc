//! A command from its start to its end.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::processes::{descendants, kill_everything};
use crate::protocol::{CommandUsage, ExceededLimit, HolderReply};
use crate::supervisor::Supervisor;
use crate::sys::c::SIGKILL;
use crate::sys::messages;
use crate::sys::process::{WaitStatus, kill_process};

/// Maximum time until a killed command and its processes have ended. After that, one of them has
/// stopped the supervisor, and the whole sandbox is killed.
const KILL_GRACE: Duration = Duration::from_millis(250);

/// Interval of searches for processes that were started while their parent was killed.
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
            Some(_) => now + KILL_TICK,
            None if self.connection.is_none() => self.deadline + KILL_GRACE,
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
        match self.killed {
            Some(since) if now < since + KILL_GRACE => match descendants(self.supervisor.pid) {
                Ok(found) => found.into_iter().for_each(kill_process),
                // Without /proc the command's processes cannot be told from others.
                Err(_) => kill_everything(),
            },
            Some(_) => kill_everything(),
            // The supervisor has replied, and was then stopped by a remaining process.
            None if now >= self.deadline + KILL_GRACE => kill_everything(),
            None => {}
        }
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

//! The soak's knowledge of a sandbox: its commands, and the contents that it must have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use noxrunner::{Error, ErrorKind, Sandbox};

use crate::ledger::Ledger;
use crate::proxy::MAX_DELAY;
use crate::run::Soak;

/// File that every command appends its own line to.
pub(crate) const LOG: &str = "log";

/// File that tells this sandbox from one that replaces it.
pub(crate) const NONCE: &str = "nonce";

/// The time that a request may stay in a proxy after its client has given up.
pub(crate) const LATE: Duration = MAX_DELAY.saturating_mul(3);

/// The soak's knowledge of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was acknowledged.
    Ran,
    /// The error promises that nothing ran.
    NotRun,
    Unknown,
}

impl Fate {
    pub(crate) fn of_error(error: &Error) -> Fate {
        if error.is_retryable() || error.kind() == ErrorKind::InvalidInput {
            Fate::NotRun
        } else {
            Fate::Unknown
        }
    }
}

pub(crate) struct TrackedSandbox {
    pub(crate) id: String,
    /// The handle whose calls go through a proxy.
    pub(crate) sandbox: Sandbox,
    /// The handle whose calls do not.
    pub(crate) direct: Sandbox,
    pub(crate) nonce: String,
    /// Name of this sandbox among those that can be killed: its id can be used again.
    pub(crate) key: String,
    pub(crate) created: Instant,
    /// Start of the last acknowledged call that renewed the TTL.
    pub(crate) renewed: Instant,
    /// A call that creates the sandbox ended at this time.
    pub(crate) last_put: Instant,
    /// A call that was not acknowledged may renew the TTL until this time.
    pub(crate) renewable_until: Instant,
    pub(crate) is_deleted: bool,
    pub(crate) is_gone: bool,
    /// The lines of all commands, and what is known about them.
    pub(crate) lines: Vec<(String, Fate)>,
    /// The acknowledged files.
    pub(crate) files: Vec<(String, Arc<Vec<u8>>)>,
}

impl TrackedSandbox {
    /// Returns true if there is a reason why the sandbox may no longer exist.
    pub(crate) fn may_be_gone(&self, soak: &Soak<'_>) -> bool {
        let second = Duration::from_secs(1);
        self.is_deleted
            || self.renewed.elapsed() + second >= soak.backend.ttl()
            || soak.losses.may_have_lost(&self.key, self.created)
    }

    /// Returns true if a late request may have created the sandbox again, empty.
    pub(crate) fn may_be_replaced(&self, soak: &Soak<'_>) -> bool {
        self.may_be_gone(soak) && self.last_put.elapsed() < LATE
    }

    /// Records an error that says that the sandbox is gone, and checks that it may be.
    pub(crate) fn note_error(&mut self, soak: &Soak<'_>, what: &str, error: &Error) {
        if error.is_sandbox_gone() {
            self.is_gone = true;
            if !self.may_be_gone(soak) {
                let text = format!(
                    "{what}: gone without a reason, {:?} after the last renewal: {error:#}",
                    self.renewed.elapsed()
                );
                soak.ledger.broken(&self.key, &text);
            }
        } else if is_unexpected(error) {
            // Only a fault in the bytes may cause it.
            soak.ledger.count("errors about damaged messages");
        }
    }

    /// Checks the sandbox through a connection without faults.
    pub(crate) fn verify(&mut self, soak: &Soak<'_>) {
        let _running = soak.server.running();
        let started = Instant::now();
        match self.direct.touch() {
            Ok(()) => self.renewed = started,
            Err(e) => return self.failed(soak, "touch", &e),
        }
        let log = match self.direct.read(LOG) {
            Ok(log) => String::from_utf8_lossy(&log).into_owned(),
            Err(e) => return self.failed(soak, "read the log", &e),
        };
        self.check_lines(&soak.ledger, &log);
        for at in 0..self.files.len() {
            let (path, content) = self.files[at].clone();
            match self.direct.read(&path) {
                Ok(found) if found == *content => soak.ledger.count("acknowledged writes verified"),
                Ok(found) => {
                    let text = format!("{path} has {} bytes, not those written", found.len());
                    soak.ledger.broken(&self.key, &text);
                }
                Err(e) => return self.failed(soak, &format!("read {path}"), &e),
            }
        }
        soak.ledger.count("sandboxes verified");
    }

    /// Records the failure of a call without faults in between.
    fn failed(&mut self, soak: &Soak<'_>, what: &str, error: &Error) {
        let is_lost = error.is_sandbox_gone() || error.is_not_found() || is_lost_meanwhile(error);
        if is_lost && self.may_be_gone(soak) {
            self.is_gone = true;
        } else {
            let text = format!("{what} without faults: {error:#}");
            soak.ledger.broken(&self.key, &text);
        }
    }

    fn check_lines(&self, ledger: &Ledger, log: &str) {
        for line in log.lines() {
            if !self.lines.iter().any(|(known, _)| known == line) {
                ledger.broken(&self.key, &format!("unknown line in the log: {line:?}"));
            }
        }
        for (line, fate) in &self.lines {
            let times = log.lines().filter(|found| found == line).count();
            let (is_right, what) = match fate {
                Fate::Ran => (times == 1, "acknowledged execs verified"),
                Fate::NotRun => (times == 0, "refused execs verified"),
                Fate::Unknown if times == 1 => (true, "execs of unknown outcome that ran"),
                Fate::Unknown => (times == 0, "execs of unknown outcome that did not run"),
            };
            ledger.count(what);
            if !is_right {
                let text = format!("{line:?} is {fate:?}, but was run {times} times");
                ledger.broken(&self.key, &text);
            }
        }
    }
}

/// Returns true if the sandbox may have ended while the call was made.
fn is_lost_meanwhile(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::OutcomeUnknown | ErrorKind::Connect | ErrorKind::Archive
    )
}

/// Returns true for errors that neither a lost connection nor a lost sandbox may cause.
pub(crate) fn is_unexpected(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidInput
            | ErrorKind::NotFound
            | ErrorKind::Unauthorized
            | ErrorKind::Protocol
            | ErrorKind::Archive
            | ErrorKind::Command
            | ErrorKind::Io
            | ErrorKind::Isolation
            | ErrorKind::Unsupported
    )
}

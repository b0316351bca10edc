//! Sandboxes that must be gone at a known time.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use noxrunner::{Command, Error, ErrorKind, Sandbox};

use crate::run::{Soak, use_once};

/// Maximum time between the end of a TTL and that of the sandbox, on a busy machine.
const SLACK: Duration = Duration::from_secs(15);

pub(crate) struct Expiring<'a> {
    soak: &'a Soak<'a>,
    sandboxes: VecDeque<(Sandbox, Instant)>,
}

impl<'a> Expiring<'a> {
    pub(crate) fn new(soak: &'a Soak<'a>) -> Expiring<'a> {
        Expiring {
            soak,
            sandboxes: VecDeque::new(),
        }
    }

    /// Adds a sandbox that no call renews any more.
    pub(crate) fn add(&mut self, id: &str, gone_by: Instant) {
        let sandbox = self.soak.server.client().sandbox(id).unwrap();
        self.sandboxes.push_back((sandbox, gone_by + SLACK));
    }

    /// Checks the sandboxes whose time has come.
    pub(crate) fn check_due(&mut self) {
        let is_due = |(_, gone_by): &(Sandbox, Instant)| *gone_by < Instant::now();
        while self.sandboxes.front().is_some_and(is_due) {
            if let Some((sandbox, _)) = self.sandboxes.pop_front() {
                self.check(&sandbox);
            }
        }
    }

    /// Waits for the time of each sandbox, and checks it.
    pub(crate) fn check_all(mut self) {
        while let Some((sandbox, gone_by)) = self.sandboxes.pop_front() {
            thread::sleep(gone_by.saturating_duration_since(Instant::now()));
            self.check(&sandbox);
        }
    }

    /// Checks with an exec, which does not renew the TTL.
    fn check(&self, sandbox: &Sandbox) {
        let _running = self.soak.server.running();
        let probe = || sandbox.exec(Command::new("true").timeout(Duration::from_secs(5)));
        let mut result = probe();
        let is_unstarted = |e: &Error| e.kind() == ErrorKind::NotReady;
        if result.as_ref().is_err_and(is_unstarted) {
            // The next create removes a container whose creator was killed before it started.
            use_once(self.soak);
            result = probe();
        }
        match result {
            Err(e) if e.is_sandbox_gone() => self.soak.ledger.count("sandboxes gone in time"),
            result => {
                let text = format!("exists after its time: {result:?}");
                self.soak.ledger.broken(sandbox.id(), &text);
            }
        }
    }
}

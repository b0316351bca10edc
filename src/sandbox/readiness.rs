//! Waiting until a sandbox is ready.

use std::time::{Duration, Instant};

use super::Sandbox;
use crate::cancel::{Cancel, sleep};
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::validate::check_duration;

/// Timeout of one probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// First and longest pause between two probes.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Sandbox {
    /// Waits until the sandbox runs commands: repeats `echo ready` until the output is `ready`, with
    /// pauses of 0.1 s to 2 s, or as long as the server asks for.
    ///
    /// # Errors
    ///
    /// [`NotReady`](ErrorKind::NotReady) if the timeout passes; the cause is the last failure.
    /// [`Cancelled`](ErrorKind::Cancelled) if `cancel` is triggered. An error that waiting cannot fix,
    /// such as a wrong token, is returned at once.
    #[doc(alias = "wait_for_pod_ready")]
    pub fn wait_until_ready(&self, timeout: Duration, cancel: Option<&Cancel>) -> Result<()> {
        self.context("wait for", || {
            check_duration("the timeout", timeout)?;
            self.poll_until_ready(timeout, cancel)
        })
    }

    fn poll_until_ready(&self, timeout: Duration, cancel: Option<&Cancel>) -> Result<()> {
        let started = Instant::now();
        let deadline = started + timeout;
        let mut pause = FIRST_PAUSE;
        let mut earlier = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match self.probe(left.max(Duration::from_millis(1)), cancel) {
                Ok(()) => return Ok(()),
                Err(e) if is_final(e.kind()) => return Err(e),
                Err(e) => e,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            // An earlier error says more than that of a probe that the deadline cut short.
            let last = earlier.filter(|_| left.is_zero()).unwrap_or(error);
            let asked = last.retry_after().unwrap_or_default();
            if left <= pause.max(asked) {
                let waited = started.elapsed().as_secs_f64();
                let message = format!("not ready after {waited:.1} s");
                return Err(Error::new(ErrorKind::NotReady, message).with_source(last));
            }
            earlier = Some(last);
            sleep(pause.max(asked), cancel)?;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    fn probe(&self, left: Duration, cancel: Option<&Cancel>) -> Result<()> {
        let mut probe = Command::from(["echo", "ready"]).timeout(PROBE_TIMEOUT.min(left));
        if let Some(cancel) = cancel {
            probe = probe.cancel_on(cancel);
        }
        probe.give_up_after = Some(left);
        let out = self.backend().exec(self.session_id(), &probe)?;
        if out.success() && out.stdout().trim() == "ready" {
            return Ok(());
        }
        let (code, stdout) = (out.exit_code(), one_line(&out.stdout()));
        let message = format!("the probe exited with {code} and printed {stdout:?}");
        Err(Error::new(ErrorKind::NotReady, message))
    }
}

/// Returns true for errors that waiting cannot fix.
fn is_final(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::InvalidInput
            | ErrorKind::Unauthorized
            | ErrorKind::Isolation
            | ErrorKind::Unsupported
            | ErrorKind::Cancelled
    )
}

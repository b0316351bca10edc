//! Renewing the TTL of a sandbox for as long as it is in use.

use std::time::Duration;

use super::{PROBE_TIMEOUT, Sandbox};
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::os::time::whole_seconds;

/// Returns how often to renew a TTL: three times before it expires.
pub(crate) fn renewal_interval(ttl: Duration) -> Duration {
    // The protocol has whole seconds only.
    Duration::from_secs(whole_seconds(ttl).max(1)) / 3
}

/// Renews the TTL of a sandbox.
///
/// A minimal backend has no touch. There the sandbox is created again, which renews its TTL, but only
/// after a command has shown that it exists. Otherwise a lost sandbox would come back empty.
#[derive(Default)]
pub(crate) struct Renewal {
    /// Touch has succeeded before, so a 404 means that the sandbox is gone and not the call.
    touch_works: bool,
}

impl Renewal {
    pub(crate) fn renew(&mut self, sandbox: &Sandbox) -> Result<()> {
        let refused = match sandbox.touch() {
            Ok(()) => {
                self.touch_works = true;
                return Ok(());
            }
            Err(e) if !self.touch_works && may_lack_the_call(&e) => e,
            Err(e) => return Err(e),
        };
        let Some(spec) = &sandbox.spec else {
            return Err(refused);
        };
        sandbox.context("renew", || {
            let probe = Command::new("true").timeout(PROBE_TIMEOUT);
            let (backend, id) = (sandbox.backend(), sandbox.session_id());
            let _ = backend.exec(id, &probe)?;
            backend.create(id, spec).map(drop)
        })
    }
}

/// Returns true for errors of a backend that may not implement the call.
fn may_lack_the_call(error: &Error) -> bool {
    matches!(error.status(), Some(404 | 405 | 501)) || error.kind() == ErrorKind::Unsupported
}

//! Exit codes that the backend assigns, with the meaning that shells give them.

use std::time::Duration;

use crate::error::one_line;
use crate::output::Output;

pub(super) const TIMED_OUT: i32 = 124;
pub(super) const NOT_EXECUTABLE: i32 = 126;
pub(super) const NOT_FOUND: i32 = 127;
pub(super) const KILLED: i32 = 128 + libc::SIGKILL;

/// Returns the output of a command that could not be started, with the message of a shell.
pub(super) fn not_run(program: &str, code: i32, reason: &str, duration: Duration) -> Output {
    let stderr = format!("{}: {reason}\n", one_line(program));
    Output::new(code, "", stderr, duration)
        .with_timed_out(false)
        .with_truncated(false)
}

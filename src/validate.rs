//! Checks of arguments. Each argument is checked once, where it enters the crate.

use std::time::Duration;

use crate::error::{Error, Result};

/// Longest duration that any setting accepts: 365 days.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Refuses durations that are zero or absurdly long.
pub(crate) fn check_duration(what: &str, duration: Duration) -> Result<()> {
    if duration.is_zero() {
        return Err(Error::invalid(format!("{what} is zero")));
    }
    if duration > MAX_DURATION {
        let seconds = duration.as_secs();
        return Err(Error::invalid(format!(
            "{what} is {seconds} s, the limit is 365 days"
        )));
    }
    Ok(())
}

/// Refuses text with a NUL byte, which no argument, path or variable of a process can contain.
pub(crate) fn check_no_nul(what: impl Fn() -> String, text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::invalid(format!("{} contains a NUL byte", what())));
    }
    Ok(())
}

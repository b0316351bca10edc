//! The verdict of a check.

use crate::error::{Error, ErrorKind};

/// The observation of a check, `Ok` if it satisfies the rule.
pub(super) type Verdict = Result<String, NotPassed>;

/// The reason for a check not passing.
pub(super) enum NotPassed {
    /// The backend violates the rule.
    Failed(String),
    /// The check could not be made.
    Skipped(String),
}

impl From<Error> for NotPassed {
    fn from(error: Error) -> NotPassed {
        NotPassed::Failed(format!("{error:#}"))
    }
}

/// Passes if a condition holds.
pub(super) fn expect(condition: bool, seen: impl Into<String>) -> Verdict {
    if condition {
        Ok(seen.into())
    } else {
        Err(NotPassed::Failed(seen.into()))
    }
}

/// Passes if all verdicts pass.
pub(super) fn all(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
    let seen: Vec<String> = verdicts.into_iter().collect::<Result<_, NotPassed>>()?;
    Ok(seen.join("; "))
}

/// Returns true for errors that say nothing about the protocol, because there was no response.
pub(super) fn is_no_response(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Connect | ErrorKind::Timeout | ErrorKind::OutcomeUnknown | ErrorKind::Cancelled
    )
}

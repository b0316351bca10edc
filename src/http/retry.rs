//! Which requests are retried, and after which pause.

use std::time::{Duration, SystemTime};

use super::socket::Progress;
use super::transport::{Failure, FailureKind, Response};
use crate::os::random::random_u64;
use crate::os::time;

/// Longest `Retry-After` that is honoured.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(20);

/// First pause without a `Retry-After`. It doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The number of attempts of a request. This table shows which failures are retried:
///
/// | failure | health, create, touch, delete, download, upload | exec |
/// | --- | --- | --- |
/// | no connection, or the request was certainly not received | retried | retried |
/// | reset or closed before the response | retried | not retried |
/// | 429, 503 | retried | retried |
/// | 502, 504 | retried | not retried |
/// | timeout, any other status | not retried | not retried |
///
/// An upload from a reader that cannot be rewound is sent once. The pauses are 0.1 s, 0.2 s, 0.4 s and
/// so on, shortened by up to half at random. There is no pause if the server had closed an idle
/// connection. A `Retry-After` of up to 20 s is honoured. All attempts must fit into the call's
/// timeout.
///
/// Retries are part of the HTTP backend: [`LocalBackend`](crate::LocalBackend) and backends of your own
/// have none.
///
/// ```
/// use noxrunner::{Client, Retry};
///
/// let client = Client::builder("http://127.0.0.1:8080").retry(Retry::none()).build()?;
/// assert_eq!(Retry::none(), Retry::attempts(1));
/// assert_eq!(Retry::default(), Retry::attempts(3));
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    attempts: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { attempts: 3 }
    }
}

impl Retry {
    /// Sends each request once.
    #[must_use]
    pub fn none() -> Retry {
        Retry { attempts: 1 }
    }

    /// Attempts each request at most this often; 0 means 1. Defaults to 3.
    #[must_use]
    pub fn attempts(attempts: u32) -> Retry {
        Retry {
            attempts: attempts.max(1),
        }
    }
}

/// When a request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeatable {
    /// Sending it twice has the same effect as once.
    Always,
    IfNotReceived,
    /// The body can be read only once.
    IfUnsent,
}

/// Returns the pause before the next attempt after a failed one, if there may be one.
pub(super) fn after_failure(
    retry: Retry,
    attempt: u32,
    repeatable: Repeatable,
    failure: &Failure,
) -> Option<Duration> {
    let again = match (failure.kind, failure.progress) {
        (FailureKind::Broken, Progress::NotConnected) => true,
        (FailureKind::Broken, Progress::NotReceived) => repeatable != Repeatable::IfUnsent,
        (FailureKind::Broken, Progress::Sent) => repeatable == Repeatable::Always,
        _ => false,
    };
    (again && attempt < retry.attempts).then(|| match failure.progress {
        // The server is available: it had only closed an idle connection.
        Progress::NotReceived if attempt == 1 => Duration::ZERO,
        _ => pause(attempt),
    })
}

/// Returns the pause before the next attempt after an error response, if there may be one.
pub(super) fn after_status(
    retry: Retry,
    attempt: u32,
    repeatable: Repeatable,
    status: u16,
    retry_after: Option<Duration>,
) -> Option<Duration> {
    let again = match status {
        429 | 503 => repeatable != Repeatable::IfUnsent,
        502 | 504 => repeatable == Repeatable::Always,
        _ => false,
    };
    if !again || attempt >= retry.attempts {
        return None;
    }
    match retry_after {
        Some(wait) if wait > MAX_RETRY_AFTER => None,
        Some(wait) => Some(wait.max(pause(attempt))),
        None => Some(pause(attempt)),
    }
}

fn pause(attempt: u32) -> Duration {
    let full = FIRST_PAUSE * 2_u32.saturating_pow(attempt.saturating_sub(1).min(10));
    // Between half and all of it, so that many clients do not retry at the same time.
    let thousandths = u32::try_from(random_u64() % 501).unwrap_or(0);
    full - full * thousandths / 1000
}

impl Response {
    /// Returns how long the server asks to wait before the next attempt.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.header("retry-after").and_then(parse_retry_after)
    }
}

/// Parses a `Retry-After`: seconds, or an HTTP date such as `Fri, 02 Jan 2026 12:34:56 GMT`.
fn parse_retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let mut parts = value.split_once(", ")?.1.split(' ');
    let (day, month, year, clock) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let month = MONTHS.iter().position(|m| *m == month)? + 1;
    let at = time::parse(&format!("{year}-{month:02}-{day}T{clock}Z"))?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: FailureKind, progress: Progress) -> Failure {
        Failure {
            progress,
            kind,
            message: String::new(),
            cause: None,
        }
    }

    #[test]
    fn exec_that_may_have_started_is_not_retried() {
        let again = |kind, progress| {
            let failure = failure(kind, progress);
            after_failure(Retry::default(), 1, Repeatable::IfNotReceived, &failure).is_some()
        };
        assert!(again(FailureKind::Broken, Progress::NotConnected));
        assert!(again(FailureKind::Broken, Progress::NotReceived));
        assert!(!again(FailureKind::Broken, Progress::Sent));
        assert!(!again(FailureKind::TimedOut, Progress::NotConnected));
        for (status, wanted) in [
            (503, true),
            (429, true),
            (502, false),
            (504, false),
            (500, false),
        ] {
            let pause = after_status(Retry::default(), 1, Repeatable::IfNotReceived, status, None);
            assert_eq!(pause.is_some(), wanted, "{status}");
        }
    }

    #[test]
    fn attempts_are_limited_and_long_waits_refused() {
        let broken = failure(FailureKind::Broken, Progress::Sent);
        assert!(after_failure(Retry::none(), 1, Repeatable::Always, &broken).is_none());
        assert!(after_failure(Retry::default(), 3, Repeatable::Always, &broken).is_none());
        assert!(after_failure(Retry::default(), 2, Repeatable::Always, &broken).is_some());
        let wait = |time| after_status(Retry::default(), 1, Repeatable::Always, 429, Some(time));
        let longest = Duration::from_secs(20);
        assert_eq!(wait(longest), Some(longest));
        assert_eq!(wait(Duration::from_secs(21)), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(parse_retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(
            parse_retry_after("Fri, 02 Jan 2026 12:34:56 GMT"),
            Some(Duration::ZERO)
        );
        let far = parse_retry_after("Fri, 02 Jan 2099 12:34:56 GMT").unwrap();
        assert!(far > Duration::from_secs(365 * 86_400));
        for bad in ["", "soon", "-1", "Fri, 02 Foo 2026 12:34:56 GMT"] {
            assert_eq!(parse_retry_after(bad), None, "{bad}");
        }
    }
}

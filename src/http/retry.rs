//! What may be sent again, and after how long.

use std::time::{Duration, SystemTime};

use super::socket::Reach;
use super::transport::{Failure, What};
use crate::os::time;

/// The longest pause that a server's `Retry-After` is honoured for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(20);

/// The first pause, without one; it doubles with each try.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How often a request is tried. Which failures are worth another try is a table by operation:
///
/// | what happened | health, create, touch, delete, download, upload | exec |
/// | --- | --- | --- |
/// | no connection, or the request was certainly not received | again | again |
/// | reset or closed before the answer | again | never |
/// | 429, 503 | again | again |
/// | 502, 504 | again | never |
/// | time over, any other answer | never | never |
///
/// An upload from a reader that can be read once is sent once. Pauses are 0.1 s, 0.2 s and so on,
/// shortened by up to half at random, and none at first where the server had let go of a kept
/// connection; a `Retry-After` of up to 20 s is honoured. Everything stays
/// within the call's deadline.
///
/// ```
/// use noxrunner::{Client, Retry};
///
/// let client = Client::builder("http://127.0.0.1:8080").retry(Retry::none()).build()?;
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
    /// Each request is sent once.
    ///
    /// ```
    /// use noxrunner::Retry;
    ///
    /// assert_eq!(Retry::none(), Retry::attempts(1));
    /// ```
    #[must_use]
    pub fn none() -> Retry {
        Retry { attempts: 1 }
    }

    /// Each request is tried this often at most; 0 counts as 1. Defaults to 3.
    ///
    /// ```
    /// use noxrunner::Retry;
    ///
    /// assert_eq!(Retry::attempts(3), Retry::default());
    /// ```
    #[must_use]
    pub fn attempts(attempts: u32) -> Retry {
        Retry {
            attempts: attempts.max(1),
        }
    }
}

/// Whether doing it twice is as good as once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Idempotent,
    Exec,
    /// The body is gone once it was read.
    OnlyUnsent,
}

/// The pause before another try, if there is to be one.
pub(super) fn after_failure(
    retry: Retry,
    attempt: u32,
    repeat: Repeat,
    failure: &Failure,
) -> Option<Duration> {
    let again = match (failure.what, failure.reach) {
        (What::Broken, Reach::Nowhere) => true,
        (What::Broken, Reach::NotReceived) => repeat != Repeat::OnlyUnsent,
        (What::Broken, Reach::Sent) => repeat == Repeat::Idempotent,
        _ => false,
    };
    (again && attempt < retry.attempts).then(|| match failure.reach {
        // The server is there, it had only let go of an old connection.
        Reach::NotReceived if attempt == 1 => Duration::ZERO,
        _ => pause(attempt),
    })
}

pub(super) fn after_status(
    retry: Retry,
    attempt: u32,
    repeat: Repeat,
    status: u16,
    retry_after: Option<Duration>,
) -> Option<Duration> {
    let again = match status {
        429 | 503 => repeat != Repeat::OnlyUnsent,
        502 | 504 => repeat == Repeat::Idempotent,
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
    // Between half and all of it, so that many clients do not come back as one.
    let thousandths = u32::try_from(crate::os::random::random_u64() % 501).unwrap_or(0);
    full - full * thousandths / 1000
}

/// Seconds, or a date as HTTP writes it: `Fri, 02 Jan 2026 12:34:56 GMT`.
pub(super) fn parse_retry_after(value: &str) -> Option<Duration> {
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
    Some(
        at.duration_since(SystemTime::now())
            .unwrap_or(Duration::ZERO),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(what: What, reach: Reach) -> Failure {
        Failure {
            reach,
            what,
            message: String::new(),
            source: None,
        }
    }

    #[test]
    fn an_exec_that_may_have_started_is_never_sent_again() {
        let again = |what, reach| {
            after_failure(Retry::default(), 1, Repeat::Exec, &failure(what, reach)).is_some()
        };
        assert!(again(What::Broken, Reach::Nowhere));
        assert!(again(What::Broken, Reach::NotReceived));
        assert!(!again(What::Broken, Reach::Sent));
        assert!(!again(What::TimedOut, Reach::Nowhere));
        for (status, wanted) in [
            (503, true),
            (429, true),
            (502, false),
            (504, false),
            (500, false),
        ] {
            let pause = after_status(Retry::default(), 1, Repeat::Exec, status, None);
            assert_eq!(pause.is_some(), wanted, "{status}");
        }
    }

    #[test]
    fn attempts_end_and_long_waits_are_not_made() {
        let broken = failure(What::Broken, Reach::Sent);
        assert!(after_failure(Retry::none(), 1, Repeat::Idempotent, &broken).is_none());
        assert!(after_failure(Retry::default(), 3, Repeat::Idempotent, &broken).is_none());
        assert!(after_failure(Retry::default(), 2, Repeat::Idempotent, &broken).is_some());
        let wait = |secs| {
            after_status(
                Retry::default(),
                1,
                Repeat::Idempotent,
                429,
                Some(Duration::from_secs(secs)),
            )
        };
        assert_eq!(wait(20), Some(Duration::from_secs(20)));
        assert_eq!(wait(21), None);
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

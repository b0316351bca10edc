//! Which requests are retried, and after which pause.

use std::time::{Duration, SystemTime};

use super::socket::Progress;
use super::transport::{Failure, FailureKind, Response};
use crate::os::random::random_u64;
use crate::os::time;

/// First pause without a `Retry-After`. It doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause without a `Retry-After`.
const MAX_PAUSE: Duration = Duration::from_secs(3);

/// Longest time that a server can ask to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The number of attempts of a request, and how long it waits for a rate limit. This table shows which failures
/// are retried:
///
/// | failure | health, create, touch, delete, download, upload | exec |
/// | --- | --- | --- |
/// | no connection, or the request was certainly not received | retried | retried |
/// | reset or closed before the response | retried | not retried |
/// | 429; 503 with `Retry-After` | retried while [`wait_for`](Retry::wait_for) lasts | the same |
/// | 503 with the JSON error of NoxRunner v1 | retried | retried |
/// | any other 503, 502, 504 | retried | not retried |
/// | timeout, any other status | not retried | not retried |
///
/// A proxy may answer 503 after it has delivered an exec, so the error of such an answer is
/// [`OutcomeUnknown`](crate::ErrorKind::OutcomeUnknown).
///
/// An upload from a reader that cannot be rewound is sent once. The pauses are 0.1 s, 0.2 s, 0.4 s and
/// so on up to 3 s, shortened by up to half at random. There is no pause if the server had closed an
/// idle connection. A `Retry-After`, in seconds or as a date, is honoured and added to the pause. All
/// attempts must fit into the call's timeout, which does not include the waits for 429 and `Retry-After`.
///
/// Jobs, [`wait_until_ready`](crate::Sandbox::wait_until_ready) and leases poll less often while a
/// server limits the rate.
///
/// Retries are part of the HTTP backend: [`LocalBackend`](crate::LocalBackend) and backends of your own
/// have none.
///
/// ```
/// use noxrunner::{Client, Retry};
/// use std::time::Duration;
///
/// let retry = Retry::attempts(5).wait_for(Duration::from_secs(300));
/// let client = Client::builder("http://127.0.0.1:8080").retry(retry).build()?;
/// assert_eq!(Retry::none(), Retry::attempts(1).wait_for(Duration::ZERO));
/// assert_eq!(Retry::default(), Retry::attempts(3));
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    attempts: u32,
    wait_for: Option<Duration>,
}

impl Default for Retry {
    fn default() -> Self {
        Retry::attempts(3)
    }
}

impl Retry {
    /// Sends each request once.
    #[must_use]
    pub fn none() -> Retry {
        Retry::attempts(1).wait_for(Duration::ZERO)
    }

    /// Attempts each request at most this often; 0 means 1. Defaults to 3. Attempts that a server
    /// refused with 429 or a `Retry-After` do not count.
    #[must_use]
    pub fn attempts(attempts: u32) -> Retry {
        Retry {
            attempts: attempts.max(1),
            wait_for: None,
        }
    }

    /// Sets how long a call waits in total while the server answers 429, or 503 with `Retry-After`.
    /// This is in addition to the call's timeout. If the server asks for a longer wait than what is
    /// left, the call fails at once. Defaults to the call's timeout; for an exec to that of its
    /// command.
    #[must_use]
    pub fn wait_for(mut self, total: Duration) -> Retry {
        self.wait_for = Some(total);
        self
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

/// Action after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    GiveUp,
    /// Send the request again after this pause. This counts as an attempt.
    Retry(Duration),
    /// The server limits the rate: send the request again after this pause.
    Wait(Duration),
}

/// The attempts of a call so far.
#[derive(Debug)]
pub(super) struct Attempts {
    repeatable: Repeatable,
    /// Attempts that are left after the current one.
    left: u32,
    failed: u32,
    refused: u32,
    wait_left: Duration,
}

impl Attempts {
    /// `timeout` is the timeout of the call.
    pub(super) fn new(retry: Retry, repeatable: Repeatable, timeout: Duration) -> Attempts {
        Attempts {
            repeatable,
            left: retry.attempts - 1,
            failed: 0,
            refused: 0,
            wait_left: retry.wait_for.unwrap_or(timeout),
        }
    }

    /// Returns the number of the current attempt, from 1.
    pub(super) fn number(&self) -> u32 {
        1 + self.failed + self.refused
    }

    /// Decides after an attempt without a response.
    pub(super) fn after_failure(&mut self, failure: &Failure) -> Next {
        let again = match (failure.kind, failure.progress) {
            (FailureKind::Broken, Progress::NotConnected) => true,
            (FailureKind::Broken, Progress::NotReceived) => self.repeatable != Repeatable::IfUnsent,
            (FailureKind::Broken, Progress::Sent) => self.repeatable == Repeatable::Always,
            _ => false,
        };
        // The server is available: it had only closed an idle connection.
        let at_once = failure.progress == Progress::NotReceived && self.failed == 0;
        match self.retry(again) {
            Next::Retry(_) if at_once => Next::Retry(Duration::ZERO),
            next => next,
        }
    }

    /// Decides after an error response. `is_own` is true for the error of a NoxRunner server, which has
    /// not run the command.
    pub(super) fn after_response(
        &mut self,
        status: u16,
        retry_after: Option<Duration>,
        is_own: bool,
    ) -> Next {
        match (status, self.repeatable, retry_after) {
            (_, Repeatable::IfUnsent, _) => Next::GiveUp,
            (429, _, _) | (503, _, Some(_)) => self.wait(retry_after.unwrap_or_default()),
            (503, _, None) if is_own => self.retry(true),
            (502..=504, Repeatable::Always, _) => self.retry(true),
            _ => Next::GiveUp,
        }
    }

    /// Records that an attempt and the pause after it took this long, because of the rate.
    pub(super) fn waited(&mut self, time: Duration) {
        self.wait_left = self.wait_left.saturating_sub(time);
    }

    fn retry(&mut self, again: bool) -> Next {
        if !again || self.left == 0 {
            return Next::GiveUp;
        }
        self.left -= 1;
        self.failed += 1;
        Next::Retry(pause(self.failed))
    }

    fn wait(&mut self, asked: Duration) -> Next {
        if self.wait_left.is_zero() || asked > self.wait_left {
            return Next::GiveUp;
        }
        self.refused += 1;
        // More than asked for, so that many clients do not come back at the same time.
        Next::Wait((asked + pause(self.refused)).min(self.wait_left))
    }
}

fn pause(attempt: u32) -> Duration {
    let full = FIRST_PAUSE * 2_u32.saturating_pow(attempt.saturating_sub(1).min(10));
    let full = full.min(MAX_PAUSE);
    // Between half and all of it, so that many clients do not retry at the same time.
    let thousandths = u32::try_from(random_u64() % 501).unwrap_or(0);
    full - full * thousandths / 1000
}

impl Response {
    /// Returns how long the server asks to wait before the next attempt.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        // By the clock of the server, if it sends the time.
        let now = self.header("date").and_then(parse_date);
        let now = now.unwrap_or_else(SystemTime::now);
        parse_retry_after(self.header("retry-after")?, now)
    }
}

/// Parses a `Retry-After`: seconds, which some servers send with a fraction, or a date. Longer times count as
/// [`MAX_RETRY_AFTER`], so that callers can calculate with them.
fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let asked = match value.parse::<f64>() {
        Ok(seconds) if seconds >= 0.0 && seconds.is_finite() => {
            Duration::try_from_secs_f64(seconds).unwrap_or(MAX_RETRY_AFTER)
        }
        Ok(_) => return None,
        Err(_) => parse_date(value)?.duration_since(now).unwrap_or_default(),
    };
    Some(asked.min(MAX_RETRY_AFTER))
}

/// Parses an HTTP date, such as `Fri, 02 Jan 2026 12:34:56 GMT`.
fn parse_date(value: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut parts = value.split_once(", ")?.1.split(' ');
    let (day, month, year, clock) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let month = MONTHS.iter().position(|m| *m == month)? + 1;
    time::parse(&format!("{year}-{month:02}-{day}T{clock}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    fn failure(kind: FailureKind, progress: Progress) -> Failure {
        Failure {
            progress,
            kind,
            message: String::new(),
            cause: None,
        }
    }

    fn attempts(repeatable: Repeatable) -> Attempts {
        Attempts::new(Retry::default(), repeatable, TIMEOUT)
    }

    #[test]
    fn exec_that_may_have_started_is_not_retried() {
        let again = |kind, progress| {
            let next = attempts(Repeatable::IfNotReceived).after_failure(&failure(kind, progress));
            next != Next::GiveUp
        };
        assert!(again(FailureKind::Broken, Progress::NotConnected));
        assert!(again(FailureKind::Broken, Progress::NotReceived));
        assert!(!again(FailureKind::Broken, Progress::Sent));
        assert!(!again(FailureKind::TimedOut, Progress::NotConnected));
        let second = Some(Duration::from_secs(1));
        for (status, retry_after, is_own, wanted) in [
            (503, None, true, true),
            (503, None, false, false),
            (503, second, false, true),
            (429, None, false, true),
            (502, second, true, false),
            (504, None, true, false),
            (500, second, true, false),
        ] {
            let mut attempts = attempts(Repeatable::IfNotReceived);
            let next = attempts.after_response(status, retry_after, is_own);
            assert_eq!(
                next != Next::GiveUp,
                wanted,
                "{status} {retry_after:?} {is_own}"
            );
        }
    }

    #[test]
    fn body_that_can_be_read_once_is_sent_once() {
        let after = |progress| {
            let broken = failure(FailureKind::Broken, progress);
            attempts(Repeatable::IfUnsent).after_failure(&broken)
        };
        assert!(matches!(after(Progress::NotConnected), Next::Retry(_)));
        assert_eq!(after(Progress::NotReceived), Next::GiveUp);
        assert_eq!(after(Progress::Sent), Next::GiveUp);
        for status in [429, 503] {
            let next = attempts(Repeatable::IfUnsent).after_response(status, None, true);
            assert_eq!(next, Next::GiveUp, "{status}");
        }
    }

    #[test]
    fn idempotent_request_is_retried_after_errors_of_gateways() {
        for (status, wanted) in [
            (500, false),
            (501, false),
            (502, true),
            (503, true),
            (504, true),
            (505, false),
        ] {
            let next = attempts(Repeatable::Always).after_response(status, None, false);
            assert_eq!(next != Next::GiveUp, wanted, "{status}");
        }
    }

    #[test]
    fn pauses_double_up_to_three_seconds() {
        for (attempt, millis) in [
            (1, 100),
            (2, 200),
            (3, 400),
            (5, 1600),
            (6, 3000),
            (99, 3000),
        ] {
            let full = Duration::from_millis(millis);
            let pauses: Vec<Duration> = (0..200).map(|_| pause(attempt)).collect();
            assert!(pauses.iter().all(|pause| (full / 2..=full).contains(pause)));
            // They are random.
            assert!(pauses.iter().any(|pause| *pause < full * 3 / 4));
            assert!(pauses.iter().any(|pause| *pause > full * 3 / 4));
        }
    }

    #[test]
    fn first_request_on_a_closed_connection_is_retried_at_once() {
        let mut attempts = attempts(Repeatable::IfNotReceived);
        let not_received = failure(FailureKind::Broken, Progress::NotReceived);
        assert_eq!(
            attempts.after_failure(&not_received),
            Next::Retry(Duration::ZERO)
        );
        let Next::Retry(pause) = attempts.after_failure(&not_received) else {
            panic!("not retried");
        };
        // Half of the second pause at least.
        assert!(pause >= FIRST_PAUSE);
    }

    #[test]
    fn attempts_are_limited() {
        let broken = failure(FailureKind::Broken, Progress::Sent);
        let mut none = Attempts::new(Retry::none(), Repeatable::Always, TIMEOUT);
        assert_eq!(none.after_failure(&broken), Next::GiveUp);
        assert_eq!(none.after_response(429, None, true), Next::GiveUp);
        let mut attempts = attempts(Repeatable::Always);
        assert!(matches!(attempts.after_failure(&broken), Next::Retry(_)));
        assert!(matches!(
            attempts.after_response(503, None, false),
            Next::Retry(_)
        ));
        // Rate limits have their own budget.
        assert!(matches!(
            attempts.after_response(429, None, false),
            Next::Wait(_)
        ));
        assert_eq!(attempts.number(), 4);
        assert_eq!(attempts.after_response(503, None, true), Next::GiveUp);
    }

    #[test]
    fn waits_are_limited_by_their_budget() {
        let mut attempts = attempts(Repeatable::IfNotReceived);
        let mut ask = |seconds, took| {
            attempts.waited(Duration::from_secs(took));
            attempts.after_response(429, Some(Duration::from_secs(seconds)), false)
        };
        assert_eq!(ask(21, 0), Next::GiveUp);
        assert_eq!(ask(20, 0), Next::Wait(TIMEOUT));
        assert_eq!(ask(11, 10), Next::GiveUp);
        assert!(matches!(ask(0, 0), Next::Wait(pause) if pause <= MAX_PAUSE));
        assert_eq!(ask(0, 10), Next::GiveUp);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = parse_date("Fri, 02 Jan 2026 12:34:56 GMT").unwrap();
        let parse = |value| parse_retry_after(value, now);
        assert_eq!(parse(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(parse("0.5"), Some(Duration::from_millis(500)));
        let later = parse("Fri, 02 Jan 2026 12:35:06 GMT");
        assert_eq!(later, Some(Duration::from_secs(10)));
        let year = Duration::from_secs(365 * 24 * 3600);
        for long in ["1e19", "1e30", "Fri, 02 Jan 9999 12:34:56 GMT"] {
            assert_eq!(parse(long), Some(year), "{long}");
        }
        let earlier = parse("Thu, 01 Jan 2026 00:00:00 GMT");
        assert_eq!(earlier, Some(Duration::ZERO));
        for bad in [
            "",
            "soon",
            "-1",
            "NaN",
            "1e400",
            "Fri, 02 Foo 2026 12:34:56 GMT",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}

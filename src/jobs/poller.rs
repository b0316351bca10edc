//! Polling a job repeatedly: when to poll, for how long to retry, and keeping the sandbox alive.

use std::time::{Duration, Instant};

use super::job::Job;
use super::poll::Polled;
use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::renewal::{Renewal, renewal_interval};

/// Shortest and longest pause between two polls.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Pauses are at most `ACTIVE_PAUSE` for this long after the last output, so that the output of a job
/// that writes every second arrives soon.
const ACTIVE_FOR: Duration = Duration::from_millis(1250);
const ACTIVE_PAUSE: Duration = Duration::from_millis(225);

/// First and longest pause between two polls while the server limits the rate, unless it asks for a
/// longer one.
const MIN_THROTTLE: Duration = Duration::from_millis(500);
const MAX_THROTTLE: Duration = Duration::from_secs(10);

/// Maximum time for repeating failed polls, and the longest pause that a server may ask for.
const RETRY_FOR: Duration = Duration::from_secs(60);

/// Maximum time of a poll after the caller's deadline.
const LAST_POLL_GRACE: Duration = Duration::from_secs(5);

/// Interval of touches for an unknown TTL, and the maximum for a known one.
const TOUCH_UNKNOWN: Duration = Duration::from_secs(30);
const TOUCH_AT_LEAST: Duration = Duration::from_secs(60);

/// Returns the pause before the next poll of a job without output for `idle`.
fn pause_after(idle: Duration) -> Duration {
    let max = if idle < ACTIVE_FOR {
        ACTIVE_PAUSE
    } else {
        MAX_PAUSE
    };
    (idle * 3).clamp(MIN_PAUSE, max)
}

/// State between two polls of a job.
pub(super) struct Poller {
    last_output: Instant,
    /// A single poll touches nothing.
    polled: bool,
    touched: Option<Instant>,
    renewal: Renewal,
    throttle: Throttle,
}

/// The shortest pause between two polls that the server accepts.
#[derive(Default)]
struct Throttle(Duration);

impl Throttle {
    /// Adapts to the result of a poll: quickly to a refusal, slowly to a success.
    fn adapt(&mut self, error: Option<&Error>) {
        self.0 = match error {
            Some(error) if error.status() == Some(429) || error.retry_after().is_some() => {
                let longer = (self.0 * 2).clamp(MIN_THROTTLE, MAX_THROTTLE);
                longer.max(error.retry_after().unwrap_or_default())
            }
            Some(_) => self.0,
            None => self.0 * 7 / 8,
        };
    }
}

impl Poller {
    pub(super) fn new() -> Poller {
        Poller {
            last_output: Instant::now(),
            polled: false,
            touched: None,
            renewal: Renewal::default(),
            throttle: Throttle::default(),
        }
    }

    /// Polls the job, and repeats that while the backend is unavailable.
    pub(super) fn poll(
        &mut self,
        job: &Job,
        offsets: [Option<u64>; 2],
        deadline: Option<Instant>,
    ) -> Result<Polled> {
        if std::mem::replace(&mut self.polled, true) {
            self.keep_alive(job);
        }
        let started = Instant::now();
        let mut pause = MIN_PAUSE;
        loop {
            let left = time_left(deadline);
            let error = match self.poll_once(job, offsets, left) {
                Ok(polled) => return Ok(polled),
                Err(e) => e,
            };
            let wait = pause.max(self.throttle.0);
            let expired = started.elapsed() >= RETRY_FOR.max(wait * 2)
                || wait > RETRY_FOR
                || left.is_some_and(|left| left < wait);
            if expired || !is_temporary(&error) {
                return Err(error);
            }
            log::debug!(
                "poll job {} in {:?}: {error:#}",
                job.id(),
                job.sandbox().id()
            );
            std::thread::sleep(wait);
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    fn poll_once(
        &mut self,
        job: &Job,
        offsets: [Option<u64>; 2],
        left: Option<Duration>,
    ) -> Result<Polled> {
        let give_up = left.map_or(Duration::MAX, |left| left + LAST_POLL_GRACE);
        let polled = job.poll(offsets, Some(give_up));
        self.throttle.adapt(polled.as_ref().err());
        let has_output = |polled: &Polled| polled.new.iter().any(|new| !new.is_empty());
        if polled.as_ref().is_ok_and(has_output) {
            self.last_output = Instant::now();
        }
        polled
    }

    /// Sleeps before the next poll. Returns false if the deadline has passed.
    pub(super) fn pause(&self, job: &Job, deadline: Option<Instant>) -> bool {
        let pause = pause_after(self.last_output.elapsed()).max(self.throttle.0);
        let pause = pause.min(touch_interval(job));
        let left = time_left(deadline).unwrap_or(Duration::MAX);
        std::thread::sleep(pause.min(left));
        left > Duration::ZERO
    }

    /// Touches the sandbox when that is due. The backend may not implement touch, so an error is only
    /// logged: the next poll shows whether the sandbox exists.
    fn keep_alive(&mut self, job: &Job) {
        let is_recent = |touched: Instant| touched.elapsed() < touch_interval(job);
        if !self.touched.is_some_and(is_recent) {
            self.touched = Some(Instant::now());
            if let Err(e) = self.renewal.renew(job.sandbox()) {
                log::warn!("job {}: {e:#}", job.id());
            }
        }
    }
}

fn time_left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|end| end.saturating_duration_since(Instant::now()))
}

fn touch_interval(job: &Job) -> Duration {
    let ttl = job.sandbox().ttl();
    ttl.map_or(TOUCH_UNKNOWN, |ttl| {
        renewal_interval(ttl).min(TOUCH_AT_LEAST)
    })
}

/// Returns true if the same poll may succeed later. A poll changes nothing, so it may always be
/// repeated.
fn is_temporary(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Connect
        | ErrorKind::Timeout
        | ErrorKind::OutcomeUnknown
        | ErrorKind::NotReady
        // The sandbox is at one of its limits, so the script could not run properly.
        | ErrorKind::Io => true,
        ErrorKind::Status => error
            .status()
            .is_some_and(|status| status == 429 || status >= 500),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_jobs_are_polled_rarely_and_active_ones_often() {
        let mut idle = Duration::ZERO;
        let mut polls = 0;
        while idle < Duration::from_secs(60) {
            let pause = pause_after(idle);
            assert!((MIN_PAUSE..=MAX_PAUSE).contains(&pause));
            if idle < Duration::from_secs(1) {
                assert!(pause <= Duration::from_millis(225));
            }
            idle += pause;
            polls += 1;
        }
        // Two touches come on top if the TTL is unknown.
        assert!(polls <= 38, "{polls} in the first minute");
    }

    #[test]
    fn throttle_follows_the_server() {
        let refused = |seconds| {
            Error::new(ErrorKind::Status, "slow down")
                .with_status(429)
                .with_retry_after(seconds)
        };
        let mut throttle = Throttle::default();
        throttle.adapt(Some(&Error::new(ErrorKind::Connect, "refused")));
        assert_eq!(throttle.0, Duration::ZERO);
        throttle.adapt(Some(&refused(None)));
        throttle.adapt(Some(&refused(None)));
        assert_eq!(throttle.0, MIN_THROTTLE * 2);
        throttle.adapt(Some(&refused(Some(Duration::from_secs(30)))));
        assert_eq!(throttle.0, Duration::from_secs(30));
        for _ in 0..80 {
            throttle.adapt(None);
        }
        assert!(throttle.0 < MIN_PAUSE);
    }
}

//! A limit of requests per second, as the public control plane has one.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A token bucket.
pub(crate) struct RateLimit {
    per_second: f64,
    burst: f64,
    /// The tokens that are left, and when they were counted.
    bucket: Mutex<(f64, Instant)>,
    /// The value of `Retry-After` in refusals.
    pub(crate) retry_after: Option<&'static str>,
    admitted: AtomicUsize,
    refused: AtomicUsize,
}

impl RateLimit {
    pub(crate) fn new(per_second: u32, burst: u32) -> RateLimit {
        RateLimit {
            per_second: per_second.into(),
            burst: burst.into(),
            bucket: Mutex::new((burst.into(), Instant::now())),
            retry_after: None,
            admitted: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        }
    }

    pub(crate) fn admits(&self) -> bool {
        let mut bucket = self.bucket.lock().unwrap();
        let now = Instant::now();
        let new = now.duration_since(bucket.1).as_secs_f64() * self.per_second;
        *bucket = ((bucket.0 + new).min(self.burst), now);
        let admits = bucket.0 >= 1.0;
        if admits {
            bucket.0 -= 1.0;
        }
        let count = if admits {
            &self.admitted
        } else {
            &self.refused
        };
        count.fetch_add(1, Ordering::SeqCst);
        admits
    }

    /// The number of admitted and of refused requests.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let count = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        (count(&self.admitted), count(&self.refused))
    }
}

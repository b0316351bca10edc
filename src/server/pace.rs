//! The minimum rate of a transfer.

use std::time::Duration;

/// Minimum rate of a body, in either direction, in bytes per second.
const MIN_RATE: u32 = 1024;

/// Allows a peer to keep the server waiting. Each byte earns some of the time back, so a transfer of any
/// length may continue at the minimum rate, and one that only trickles ends.
pub(super) struct Pace {
    max: Duration,
    left: Duration,
}

impl Pace {
    pub(super) fn new(max: Duration) -> Pace {
        Pace { max, left: max }
    }

    /// Returns how much longer the peer may keep the server waiting.
    pub(super) fn left(&self) -> Duration {
        self.left
    }

    /// Records that the peer transferred some bytes after a wait.
    pub(super) fn moved(&mut self, bytes: usize, waited: Duration) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let earned = Duration::from_secs(1).saturating_mul(bytes) / MIN_RATE;
        self.left = self.left.saturating_sub(waited).saturating_add(earned);
        self.left = self.left.min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn trickle_runs_out_of_time() {
        let mut pace = Pace::new(30 * SECOND);
        for _ in 0..5 {
            pace.moved(1, 5 * SECOND);
        }
        assert!(pace.left() > 5 * SECOND);
        pace.moved(1, 5 * SECOND);
        assert!(pace.left() < SECOND);
    }

    #[test]
    fn minimum_rate_may_continue() {
        let mut pace = Pace::new(30 * SECOND);
        for _ in 0..1000 {
            pace.moved(5 * 1024, 5 * SECOND);
        }
        assert_eq!(pace.left(), 30 * SECOND);
        // Fast times do not allow longer waits later.
        pace.moved(usize::MAX, SECOND);
        assert_eq!(pace.left(), 30 * SECOND);
    }
}

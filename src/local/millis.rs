//! Times in whole milliseconds, as records and messages store them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns a duration in milliseconds, `u64::MAX` if it is longer than that.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the time since 1970.
pub(super) fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

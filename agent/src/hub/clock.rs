//! Durations as the wire has them.

use std::time::Duration;

/// Milliseconds.
pub(crate) fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A duration of the hub's, within what makes sense.
pub(crate) fn within(milliseconds: u64, least: Duration, most: Duration) -> Duration {
    Duration::from_millis(milliseconds).clamp(least, most)
}

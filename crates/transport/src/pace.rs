//! Notices a server that sends just enough not to be called silent: the slow retrieval attack on an updater.

use std::time::{Duration, Instant};

/// The slowest line that is waited for, in bytes a second: below any usable one. A release of 6 MiB would take 100 minutes.
const SLOWEST: u64 = 1 << 10;

/// Watches how fast a body comes in, over windows of twice the time that it may stand still.
#[derive(Debug, Clone)]
pub struct Pace {
    window: Duration,
    since: Instant,
    from: u64,
}

/// A body that comes in too slowly to be honest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSlow {
    /// So many bytes would have been enough,
    pub bytes: u64,
    /// in so long a time.
    pub window: Duration,
}

impl Pace {
    /// Of a body that may stand still for `stall`, and of which `length` bytes are there at `now`.
    pub fn new(stall: Duration, now: Instant, length: u64) -> Self {
        Self { window: window(stall), since: now, from: length }
    }

    /// The longest time that a body of `bytes` can take.
    pub(crate) fn longest(stall: Duration, bytes: u64) -> Duration {
        window(stall).saturating_add(Duration::from_secs(bytes.div_ceil(SLOWEST)))
    }

    /// Looks at the clock; to be asked after each read.
    ///
    /// # Errors
    /// [`TooSlow`] when fewer than 1,024 bytes a second came in over the last window.
    pub fn check(&mut self, now: Instant, length: u64) -> Result<(), TooSlow> {
        if now.duration_since(self.since) < self.window {
            return Ok(());
        }
        let bytes = self.window.as_secs() * SLOWEST;
        let came = length.saturating_sub(self.from);
        (self.since, self.from) = (now, length);
        if came < bytes { Err(TooSlow { bytes, window: self.window }) } else { Ok(()) }
    }
}

fn window(stall: Duration) -> Duration {
    stall.saturating_mul(2).max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(30);

    #[test]
    fn a_drip_is_noticed_after_its_window_and_a_slow_line_is_not_a_drip() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut drip = Pace::new(STALL, start, 0);
        assert_eq!(drip.check(at(59), 10), Ok(()));
        assert_eq!(drip.check(at(60), 60), Err(TooSlow { bytes: 60 << 10, window: Duration::from_secs(60) }));
        let mut slow = Pace::new(STALL, start, 0);
        assert_eq!(slow.check(at(60), 60 << 10), Ok(()));
        assert!(slow.check(at(120), (60 << 10) + 1).is_err(), "each window is judged by itself");
    }

    #[test]
    fn a_body_may_take_as_long_as_on_the_slowest_line_and_one_window_more() {
        assert_eq!(Pace::longest(STALL, 16 << 10), Duration::from_secs(60 + 16));
        assert!(Pace::longest(STALL, u64::MAX) > STALL, "nothing overflows");
    }

    #[test]
    fn what_was_there_before_does_not_count_as_having_come_in() {
        let start = Instant::now();
        let mut resumed = Pace::new(STALL, start, 5 << 20);
        assert!(resumed.check(start + STALL * 2, (5 << 20) + 100).is_err());
    }
}

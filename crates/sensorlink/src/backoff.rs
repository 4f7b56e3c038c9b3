//! How long to wait before the next attempt: doubled each time, capped, and spread.

use std::time::Duration;

/// Exponential backoff with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The wait before the second attempt.
    pub first: Duration,
    /// No wait is longer.
    pub longest: Duration,
}

impl Default for Backoff {
    /// From a tenth of a second to ten seconds: the other side is on the same machine, and is started by the same
    /// service manager.
    fn default() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(10) }
    }
}

impl Backoff {
    /// The wait before the attempt after `failures` failed ones. `random` is any number; the wait lies between half of
    /// the doubled time and all of it ("equal jitter").
    pub fn wait(self, failures: u32, random: u64) -> Duration {
        let full = self.first.saturating_mul(1 << failures.min(20)).min(self.longest);
        let half = full / 2;
        let spread = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        half + Duration::from_micros(random % spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_are_never_less_than_half() {
        let backoff = Backoff::default();
        assert_eq!(backoff.wait(0, 0), Duration::from_millis(50));
        assert_eq!(backoff.wait(1, 0), Duration::from_millis(100));
        assert_eq!(backoff.wait(40, 0), Duration::from_secs(5));
        for random in [0, 1, 7_777_777, u64::MAX] {
            for failures in 0..64 {
                let wait = backoff.wait(failures, random);
                assert!(wait >= backoff.first / 2 && wait <= backoff.longest, "{wait:?}");
            }
        }
    }
}

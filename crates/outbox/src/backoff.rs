//! How long to wait after a failure: exponential, capped, with full jitter.
//!
//! Full jitter ("Exponential Backoff And Jitter", AWS Architecture Blog, Marc Brooker, 2015): the wait is drawn evenly
//! from nothing up to the exponential one. Of the schemes compared there it needs the fewest calls, and ten thousand
//! machines that lost the same hub do not come back at the same second.

use std::time::Duration;

/// Counts failures and says how long to wait. Decides nothing by a clock of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// The first wait is at most `base`, each further one at most twice the one before, none more than `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap: cap.max(base), failures: 0 }
    }

    /// Another failure: how long to wait, with `random` any number evenly drawn.
    pub fn fail(&mut self, random: u64) -> Duration {
        let most = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(match most.checked_add(1) {
            Some(choices) => random % choices,
            None => random,
        })
    }

    /// The longest that the next wait can be.
    pub fn ceiling(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.base.checked_mul(factor).unwrap_or(self.cap).min(self.cap)
    }

    /// It worked.
    pub fn succeed(&mut self) {
        self.failures = 0;
    }

    /// Failures since it worked last.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// A number evenly drawn, for [`Backoff::fail`].
pub fn random() -> u64 {
    // Without random bytes all machines wait the longest time: slower, never wrong.
    getrandom::u64().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_wait_doubles_up_to_the_cap_and_begins_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        let mut ceilings = Vec::new();
        for _ in 0..6 {
            ceilings.push(backoff.ceiling().as_secs());
            backoff.fail(0);
        }
        assert_eq!(ceilings, [1, 2, 4, 8, 10, 10]);
        backoff.succeed();
        assert_eq!((backoff.ceiling().as_secs(), backoff.failures()), (1, 0));
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_the_cap(base in 0..10_000u64, cap in 0..1_000_000u64, randoms in proptest::collection::vec(any::<u64>(), 1..80)) {
            let mut backoff = Backoff::new(Duration::from_millis(base), Duration::from_millis(cap));
            for random in randoms {
                let ceiling = backoff.ceiling();
                prop_assert!(ceiling <= Duration::from_millis(cap.max(base)));
                prop_assert!(backoff.fail(random) <= ceiling);
            }
        }

        #[test]
        fn waits_are_spread_over_the_whole_range(seed in any::<u64>()) {
            let waits: Vec<u64> = (0..1000u64).map(|n| {
                let mut backoff = Backoff::new(Duration::from_millis(999), Duration::from_secs(10));
                let random = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                u64::try_from(backoff.fail(random).as_millis()).unwrap()
            }).collect();
            let low = waits.iter().filter(|wait| **wait < 500).count();
            prop_assert!((350..=650).contains(&low), "{low} of 1000 in the lower half");
        }
    }
}

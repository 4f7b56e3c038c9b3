//! A circuit breaker: after several failures in a row nothing is tried for a while, then one attempt decides.
//!
//! Closed, open, half-open (M. Nygard, "Release It!", 2007, chapter 5.2). A pure state machine: the caller says what
//! time it is, in time since boot.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Attempts go through.
    Closed,
    /// Nothing goes through.
    Open,
    /// One attempt is under way or due; it decides.
    HalfOpen,
}

impl BreakerState {
    /// The word in status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// What an attempt is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Go.
    Go,
    /// Not for so long.
    Wait(Duration),
}

/// A circuit breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    threshold: u32,
    cool_down: Duration,
    failures: u32,
    opened: Option<Duration>,
    probing: bool,
    times_opened: u64,
}

impl Breaker {
    /// Opens after `threshold` failures in a row, and lets one attempt through `cool_down` after it opened.
    pub fn new(threshold: u32, cool_down: Duration) -> Self {
        Self { threshold: threshold.max(1), cool_down, failures: 0, opened: None, probing: false, times_opened: 0 }
    }

    /// A closed one that goes on with the count of how often it opened.
    pub(crate) fn renewed(&self, threshold: u32, cool_down: Duration) -> Self {
        Self { times_opened: self.times_opened, ..Self::new(threshold, cool_down) }
    }

    /// Whether an attempt may be made at `now`. After the cool-down the answer is [`Admission::Go`] once, until the
    /// attempt's outcome is told.
    pub fn admit(&mut self, now: Duration) -> Admission {
        let Some(opened) = self.opened else { return Admission::Go };
        let ready = opened + self.cool_down;
        if let Some(left) = ready.checked_sub(now).filter(|left| !left.is_zero()) {
            return Admission::Wait(left);
        }
        if self.probing {
            return Admission::Wait(self.cool_down);
        }
        self.probing = true;
        Admission::Go
    }

    /// The attempt worked.
    pub fn succeed(&mut self) {
        (self.failures, self.opened, self.probing) = (0, None, false);
    }

    /// The attempt failed at `now`.
    pub fn fail(&mut self, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.threshold {
            self.opened = Some(now);
            self.times_opened += 1;
        }
        self.probing = false;
    }

    /// There was nothing to attempt with after all: the permission is given back.
    pub fn abstain(&mut self) {
        self.probing = false;
    }

    /// Where it stands at `now`.
    pub fn state(&self, now: Duration) -> BreakerState {
        match self.opened {
            None => BreakerState::Closed,
            Some(opened) if now < opened + self.cool_down => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How often it opened.
    pub fn times_opened(&self) -> u64 {
        self.times_opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_opens_after_the_failures_and_closes_after_one_attempt_that_works() {
        let mut breaker = Breaker::new(3, MINUTE);
        for second in 0..3 {
            assert_eq!(breaker.admit(at(second)), Admission::Go);
            breaker.fail(at(second));
        }
        assert_eq!(breaker.state(at(3)), BreakerState::Open);
        assert_eq!(breaker.admit(at(32)), Admission::Wait(at(30)));
        assert_eq!(breaker.state(at(62)), BreakerState::HalfOpen);
        assert_eq!(breaker.admit(at(62)), Admission::Go);
        assert!(matches!(breaker.admit(at(62)), Admission::Wait(_)), "one attempt, not two");
        breaker.succeed();
        assert_eq!((breaker.state(at(62)), breaker.failures()), (BreakerState::Closed, 0));
    }

    #[test]
    fn one_failed_attempt_opens_it_again_for_the_whole_time() {
        let mut breaker = Breaker::new(1, MINUTE);
        breaker.fail(at(0));
        assert_eq!(breaker.admit(at(60)), Admission::Go);
        breaker.fail(at(61));
        assert_eq!(breaker.admit(at(120)), Admission::Wait(at(1)));
        assert_eq!(breaker.times_opened(), 2);
    }

    #[test]
    fn a_success_in_between_begins_the_count_anew() {
        let mut breaker = Breaker::new(2, MINUTE);
        breaker.fail(at(0));
        breaker.succeed();
        breaker.fail(at(1));
        assert_eq!(breaker.state(at(1)), BreakerState::Closed);
    }

    proptest! {
        #[test]
        fn it_is_never_shut_for_longer_than_the_cool_down(steps in proptest::collection::vec((0..100u64, any::<bool>()), 1..100)) {
            let mut breaker = Breaker::new(3, MINUTE);
            let mut now = 0;
            for (pause, works) in steps {
                now += pause;
                match breaker.admit(at(now)) {
                    Admission::Go if works => breaker.succeed(),
                    Admission::Go => breaker.fail(at(now)),
                    Admission::Wait(left) => {
                        prop_assert!(left <= MINUTE && breaker.state(at(now)) == BreakerState::Open);
                        prop_assert_eq!(breaker.clone().admit(at(now) + left), Admission::Go);
                    }
                }
            }
        }
    }
}

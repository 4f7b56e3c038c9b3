//! The two clocks that retention needs, and when the wall clock is not to be believed.

use std::time::{Duration, Instant};

/// How much the wall clock may gain on the other one before it is doubted, in milliseconds: one day.
const LEAP_MS: i64 = 86_400_000;
/// How long a clock that leapt forward must stand before retention goes by it.
const PROBATION: Duration = Duration::from_secs(3_600);

/// A source of time.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970, as the machine believes.
    fn wall_ms(&self) -> i64;
    /// Time since some moment, never set.
    fn steady(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// The machine's clocks.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall_ms(&self) -> i64 {
        jiff::Timestamp::now().as_millisecond()
    }

    fn steady(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Decides whether rows may be deleted by the wall clock.
///
/// A clock that is set forward by years for a minute would make every row old at once. So a leap of more than a day
/// (against the steady clock, and at the start against the newest row) is believed after the new time has stood for an
/// hour. Until then nothing is deleted by age; the limit of size works on. A clock set backwards deletes less, never more.
#[derive(Debug)]
pub(crate) struct Doubt {
    wall_ms: i64,
    steady: Duration,
    since: Option<Duration>,
}

impl Doubt {
    /// `newest_ms` is the time of the newest row, which an earlier run believed; none in an empty store.
    pub(crate) fn new(newest_ms: Option<i64>, clock: &dyn Clock) -> Self {
        Self { wall_ms: newest_ms.unwrap_or(i64::MAX), steady: clock.steady(), since: None }
    }

    /// Whether the wall clock may be gone by now.
    pub(crate) fn believes(&mut self, clock: &dyn Clock) -> bool {
        let (wall, steady) = (clock.wall_ms(), clock.steady());
        let passed = i64::try_from(steady.saturating_sub(self.steady).as_millis()).unwrap_or(i64::MAX);
        let expected = self.wall_ms.saturating_add(passed);
        if wall <= expected.saturating_add(LEAP_MS) {
            (self.wall_ms, self.steady, self.since) = (wall, steady, None);
            return true;
        }
        let since = *self.since.get_or_insert(steady);
        if steady.saturating_sub(since) >= PROBATION {
            (self.wall_ms, self.steady, self.since) = (wall, steady, None);
            return true;
        }
        false
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A clock that is set by hand.
    pub(crate) struct HandClock(pub(crate) Mutex<(i64, Duration)>);

    impl HandClock {
        pub(crate) fn at(wall_ms: i64) -> Self {
            Self(Mutex::new((wall_ms, Duration::ZERO)))
        }

        pub(crate) fn pass(&self, time: Duration) {
            let mut now = self.0.lock().unwrap();
            now.0 += i64::try_from(time.as_millis()).unwrap();
            now.1 += time;
        }

        pub(crate) fn set(&self, wall_ms: i64) {
            self.0.lock().unwrap().0 = wall_ms;
        }
    }

    impl Clock for HandClock {
        fn wall_ms(&self) -> i64 {
            self.0.lock().unwrap().0
        }

        fn steady(&self) -> Duration {
            self.0.lock().unwrap().1
        }
    }

    const NOW: i64 = 1_800_000_000_000;
    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_clock_that_leaps_forward_is_believed_after_an_hour_and_one_that_comes_back_at_once() {
        let clock = HandClock::at(NOW);
        let mut doubt = Doubt::new(Some(NOW - 1000), &clock);
        assert!(doubt.believes(&clock));
        clock.set(NOW + 400 * LEAP_MS);
        assert!(!doubt.believes(&clock));
        clock.pass(HOUR / 2);
        assert!(!doubt.believes(&clock));
        clock.set(NOW + 1_800_000);
        assert!(doubt.believes(&clock));
        clock.set(NOW + 400 * LEAP_MS);
        assert!(!doubt.believes(&clock));
        clock.pass(HOUR);
        assert!(doubt.believes(&clock));
    }

    #[test]
    fn a_long_run_a_start_after_a_night_and_a_clock_set_back_raise_no_doubt() {
        let clock = HandClock::at(NOW);
        let mut doubt = Doubt::new(Some(NOW - LEAP_MS / 2), &clock);
        assert!(doubt.believes(&clock));
        clock.pass(100 * 24 * HOUR);
        assert!(doubt.believes(&clock));
        clock.set(0);
        assert!(doubt.believes(&clock));
    }

    #[test]
    fn a_start_with_a_clock_a_month_ahead_of_the_newest_row_is_doubted_for_an_hour() {
        let clock = HandClock::at(NOW);
        let mut doubt = Doubt::new(Some(NOW - 30 * LEAP_MS), &clock);
        assert!(!doubt.believes(&clock));
        clock.pass(HOUR);
        assert!(doubt.believes(&clock));
        assert!(Doubt::new(None, &clock).believes(&clock));
    }
}

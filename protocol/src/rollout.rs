//! How a release reaches the machines of a channel in time: waves, windows, jitter, and the emergency stop.
//!
//! All of it is signed with the channel, and every machine works out its own turn: a fleet needs no coordinator. A
//! reader that does not know these fields ignores them and takes the release at once; so it was before there were any.

use crate::window::Window;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// The most waves of one rollout.
pub const MAX_WAVES: usize = 32;
/// The most windows of one rollout.
pub const MAX_WINDOWS: usize = 32;
/// The longest a rollout may take to reach everybody, in seconds: a year.
pub const MAX_ROLLOUT_SECONDS: u32 = 366 * 86_400;
/// The longest jitter, in seconds: a week.
pub const MAX_JITTER_SECONDS: u32 = 7 * 86_400;
/// The longest reason of a stop, in bytes.
pub const MAX_REASON: usize = 1000;

/// One wave: from a time on, a share of the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wave {
    /// When it opens, in seconds after the rollout's start.
    pub after_seconds: u32,
    /// How many of all machines, in percent, may have the release from then on: those of the waves before are among them.
    pub percent: u8,
}

/// In which time windows are meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowTime {
    /// The time zone of each machine.
    #[default]
    Local,
    /// UTC.
    Utc,
}

/// A release's way to the machines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// From when the waves count (RFC 3339, UTC); the release's `published` where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Timestamp>,
    /// The waves, in their order; the last is everybody. None at all is everybody at the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<Wave>,
    /// The least time between the openings of two waves, in seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub soak_seconds: u32,
    /// Over how long the machines of a wave are spread, in seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub jitter_seconds: u32,
    /// When machines may restart for it, where their operator says nothing; none is at any time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// In which time the windows are meant.
    #[serde(default)]
    pub window_time: WindowTime,
}

/// A halt, in an emergency: machines that have not taken it do not; those that run it stay, unless it is yanked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Why, in the vendor's words.
    pub reason: String,
    /// Since when (RFC 3339, UTC).
    pub at: Timestamp,
}

/// Why a rollout or a stop is not usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RolloutError {
    /// Too many waves.
    #[error("it has more than {MAX_WAVES} waves")]
    TooManyWaves,
    /// Too many windows.
    #[error("it has more than {MAX_WINDOWS} windows")]
    TooManyWindows,
    /// A share is not one.
    #[error("a wave of {0} % is not possible: 1 to 100")]
    Percent(u8),
    /// The shares do not grow.
    #[error("the wave of {0} % does not reach more machines than the one before")]
    NotRising(u8),
    /// The last wave leaves machines out for ever.
    #[error("the last wave reaches {0} % and not everybody (100 %)")]
    NotEverybody(u8),
    /// A wave opens before the one before it.
    #[error("the wave of {0} % opens before the one before it")]
    OutOfOrder(u8),
    /// It would take too long.
    #[error("it takes more than {} days to reach everybody", MAX_ROLLOUT_SECONDS / 86_400)]
    TooLong,
    /// Machines of one wave are spread too far.
    #[error("its jitter is more than {} days", MAX_JITTER_SECONDS / 86_400)]
    Jitter,
    /// A stop without a reason, or with a book of them.
    #[error("a stop needs a reason of 1 to {MAX_REASON} bytes")]
    Reason,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Rollout {
    /// Checks it: bounded, rising, ending with everybody.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), RolloutError> {
        if self.waves.len() > MAX_WAVES {
            return Err(RolloutError::TooManyWaves);
        }
        if self.windows.len() > MAX_WINDOWS {
            return Err(RolloutError::TooManyWindows);
        }
        if self.jitter_seconds > MAX_JITTER_SECONDS {
            return Err(RolloutError::Jitter);
        }
        let mut before: Option<Wave> = None;
        for wave in &self.waves {
            let Wave { after_seconds, percent } = *wave;
            if !(1..=100).contains(&percent) {
                return Err(RolloutError::Percent(percent));
            }
            if before.is_some_and(|before| percent <= before.percent) {
                return Err(RolloutError::NotRising(percent));
            }
            if before.is_some_and(|before| after_seconds < before.after_seconds) {
                return Err(RolloutError::OutOfOrder(percent));
            }
            before = Some(*wave);
        }
        if let Some(last) = before.filter(|last| last.percent != 100) {
            return Err(RolloutError::NotEverybody(last.percent));
        }
        match self.offsets().last() {
            Some(last) if *last > u64::from(MAX_ROLLOUT_SECONDS) => Err(RolloutError::TooLong),
            _ => Ok(()),
        }
    }

    /// When each wave opens, in seconds after the start: no sooner than its own time, nor than the soak after the one
    /// before.
    fn offsets(&self) -> Vec<u64> {
        let mut before = None;
        let open = |wave: &Wave| {
            let earliest = before.map_or(0, |before: u64| before + u64::from(self.soak_seconds));
            let opens = u64::from(wave.after_seconds).max(earliest);
            before = Some(opens);
            opens
        };
        self.in_effect().iter().map(open).collect()
    }

    /// The waves, where there are none the one that is everybody.
    pub fn in_effect(&self) -> Vec<Wave> {
        if self.waves.is_empty() { vec![Wave { after_seconds: 0, percent: 100 }] } else { self.waves.clone() }
    }

    /// From when the waves count, for a release that was published at `published`.
    pub fn start(&self, published: Timestamp) -> Timestamp {
        self.start.unwrap_or(published)
    }

    /// When each wave opens, for a release that was published at `published`.
    pub fn openings(&self, published: Timestamp) -> Vec<Timestamp> {
        self.offsets().into_iter().map(|offset| later(self.start(published), offset)).collect()
    }

    /// The rollout after a stop from `stopped` to `resumed`: waves that had opened stay open, the others come as much
    /// later as the stop was long, so that none is cut short.
    #[must_use]
    pub fn resumed(&self, published: Timestamp, stopped: Timestamp, resumed: Timestamp) -> Self {
        let pause = u64::try_from(resumed.duration_since(stopped).as_secs()).unwrap_or(0);
        let start = self.start(published);
        let offsets = self.offsets();
        let mut waves = self.in_effect();
        for (wave, offset) in waves.iter_mut().zip(offsets) {
            let pause = if later(start, offset) > stopped { pause } else { 0 };
            wave.after_seconds = u32::try_from(offset + pause).unwrap_or(u32::MAX);
        }
        Self { start: Some(start), waves, ..self.clone() }
    }
}

impl Stop {
    /// Checks it.
    ///
    /// # Errors
    /// [`RolloutError::Reason`].
    pub fn check(&self) -> Result<(), RolloutError> {
        if (1..=MAX_REASON).contains(&self.reason.len()) { Ok(()) } else { Err(RolloutError::Reason) }
    }
}

/// `seconds` after `start`; the end of time where there is nothing later.
fn later(start: Timestamp, seconds: u64) -> Timestamp {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    start.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn waves(waves: &[(u32, u8)]) -> Rollout {
        let waves =
            waves.iter().map(|(after_seconds, percent)| Wave { after_seconds: *after_seconds, percent: *percent });
        Rollout { waves: waves.collect(), ..Rollout::default() }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_rollout_that_could_leave_machines_out_or_never_end_is_refused() {
        let year = MAX_ROLLOUT_SECONDS;
        let cases = [
            (waves(&[]), None),
            (waves(&[(0, 100)]), None),
            (waves(&[(0, 1), (60, 10), (60, 100)]), None),
            (waves(&[(0, 0), (60, 100)]), Some(RolloutError::Percent(0))),
            (waves(&[(0, 101)]), Some(RolloutError::Percent(101))),
            (waves(&[(0, 50), (60, 50), (70, 100)]), Some(RolloutError::NotRising(50))),
            (waves(&[(0, 50), (60, 10), (70, 100)]), Some(RolloutError::NotRising(10))),
            (waves(&[(0, 1), (60, 99)]), Some(RolloutError::NotEverybody(99))),
            (waves(&[(61, 1), (60, 100)]), Some(RolloutError::OutOfOrder(100))),
            (waves(&[(0, 1), (year + 1, 100)]), Some(RolloutError::TooLong)),
            (Rollout { soak_seconds: year, ..waves(&[(1, 1), (2, 100)]) }, Some(RolloutError::TooLong)),
            (Rollout { jitter_seconds: u32::MAX, ..waves(&[]) }, Some(RolloutError::Jitter)),
            (waves(&[(0, 1); MAX_WAVES + 1]), Some(RolloutError::TooManyWaves)),
            (
                Rollout { windows: vec!["02:00-03:00".parse().unwrap(); MAX_WINDOWS + 1], ..waves(&[]) },
                Some(RolloutError::TooManyWindows),
            ),
        ];
        for (rollout, expected) in cases {
            assert_eq!(rollout.check().err(), expected, "{rollout:?}");
        }
    }

    #[test]
    fn no_wave_opens_before_its_time_nor_before_the_soak_after_the_one_before() {
        let rollout = Rollout { soak_seconds: 100, ..waves(&[(0, 1), (10, 10), (300, 100)]) };
        assert_eq!(rollout.openings(at(1000)), [at(1000), at(1100), at(1300)]);
        let started = Rollout { start: Some(at(5000)), ..rollout };
        assert_eq!(started.openings(at(1000)), [at(5000), at(5100), at(5300)]);
    }

    #[test]
    fn after_a_stop_the_waves_that_had_not_opened_come_later_by_its_length() {
        let rollout = Rollout { soak_seconds: 100, ..waves(&[(0, 1), (10, 10), (300, 100)]) };
        let resumed = rollout.resumed(at(1000), at(1050), at(1950));
        assert_eq!(resumed.openings(at(7)), [at(1000), at(2000), at(2200)]);
        assert_eq!(resumed.check(), Ok(()));
        let back = rollout.resumed(at(1000), at(1050), at(900));
        assert_eq!(back.openings(at(7)), rollout.openings(at(1000)), "a clock that was set back takes nothing away");
    }

    proptest! {
        #[test]
        fn openings_never_go_backwards_and_keep_the_soak(
            after in proptest::collection::vec(0..MAX_ROLLOUT_SECONDS, 1..20),
            soak in 0..MAX_ROLLOUT_SECONDS,
            stopped in 0_i64..100_000_000, pause in 0_i64..100_000_000,
        ) {
            let mut after = after;
            after.sort_unstable();
            let last = after.len();
            let waves = after.iter().enumerate().map(|(i, after)| Wave {
                after_seconds: *after,
                percent: if i + 1 == last { 100 } else { u8::try_from(i + 1).unwrap() },
            });
            let rollout = Rollout { waves: waves.collect(), soak_seconds: soak, ..Rollout::default() };
            let openings = rollout.openings(at(0));
            let resumed = rollout.resumed(at(0), at(stopped), at(stopped + pause)).openings(at(0));
            for pair in openings.windows(2) {
                prop_assert!(pair[1].duration_since(pair[0]).as_secs() >= i64::from(soak));
            }
            for (before, after) in openings.iter().zip(&resumed) {
                prop_assert!(after >= before);
                prop_assert!(*before > at(stopped) || after == before, "an open wave was closed");
            }
        }
    }
}

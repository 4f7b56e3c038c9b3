//! When each group is measured next: a pure function of the clock, the interval and the last time.
//!
//! Times are multiples of the interval, so that groups of one interval wake the machine together. A time that was missed
//! (a suspended machine, a disk that did not answer) is left out, never made up for.

use super::sample::Group;
use std::time::Duration;

/// The shortest interval: below it the agent would measure mostly itself.
pub const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Processor time is a difference between two readings; the first pair is taken this far apart, so that the first
/// sample is there at once. The kernel counts in ticks of 10 ms.
const FIRST_DIFFERENCE: Duration = Duration::from_millis(250);

/// When `group` is due; times count from the start of measuring. `last` is when it was measured last.
pub(super) fn due(group: Group, last: Option<Duration>, interval: Duration) -> Duration {
    let interval = interval.max(MIN_INTERVAL);
    match last {
        None if matches!(group, Group::Cpu | Group::Processes) => FIRST_DIFFERENCE,
        None => Duration::ZERO,
        Some(last) => {
            let (last, interval) = (last.as_nanos(), interval.as_nanos());
            let next = (last / interval + 1).saturating_mul(interval);
            // 10 years of interval are 3e17 ns; the age of the universe does not fit, and need not.
            Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn all_come_at_once_but_differences_a_moment_later() {
        assert_eq!(due(Group::Memory, None, MINUTE), Duration::ZERO);
        assert_eq!(due(Group::Cpu, None, MINUTE), FIRST_DIFFERENCE);
        assert_eq!(due(Group::Cpu, Some(FIRST_DIFFERENCE), MINUTE), MINUTE);
        assert_eq!(due(Group::Memory, Some(Duration::ZERO), MINUTE), MINUTE);
    }

    #[test]
    fn missed_times_are_left_out() {
        let woke = MINUTE * 7 + Duration::from_secs(5);
        assert_eq!(due(Group::Memory, Some(woke), MINUTE), MINUTE * 8);
    }

    proptest! {
        #[test]
        fn the_next_time_is_after_the_last_and_at_most_one_interval_away(last in 0_u64..1 << 50, interval in 0_u64..1 << 40) {
            let (last, interval) = (Duration::from_micros(last), Duration::from_micros(interval));
            let next = due(Group::Disk, Some(last), interval);
            prop_assert!(next > last && next <= last + interval.max(MIN_INTERVAL));
        }
    }
}

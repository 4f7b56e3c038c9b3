//! The last samples of one series: values and times in twelve bytes each.
//!
//! A time is kept as milliseconds after the ring's base, in 32 bits: 49.7 days, and no ring keeps more than
//! [`MAX_RETENTION`]. The two columns lie apart because a pair of them would be padded to sixteen bytes. They grow as
//! samples come, and never beyond the limit.

use jiff::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;

/// The longest time a ring remembers: 30 days, which leaves the 32 bits some air.
pub const MAX_RETENTION: Duration = Duration::from_secs(30 * 86_400);

/// One remembered sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// When it was taken.
    pub at: Timestamp,
    /// Its value, in the series' unit.
    pub value: f64,
}

/// The last samples of one series, in the order they came.
#[derive(Debug, Default)]
pub struct Ring {
    /// Milliseconds since the epoch that the offsets count from.
    base: i64,
    offsets: VecDeque<u32>,
    values: VecDeque<f64>,
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Ring {
    /// Adds a sample; forgets the oldest beyond `limit`, and whatever is older than `retention`.
    pub fn push(&mut self, at: Timestamp, value: f64, limit: usize, retention: Duration) {
        self.forget_before(at, retention);
        let offset = self.offset(at.as_millisecond());
        while self.values.len() >= limit.max(1) {
            self.offsets.pop_front();
            self.values.pop_front();
        }
        self.make_room(limit);
        self.offsets.push_back(offset);
        self.values.push_back(value);
    }

    /// Forgets what is older than `retention` at `now`. Times behind a step of the clock go when it has caught up.
    pub fn forget_before(&mut self, now: Timestamp, retention: Duration) {
        let oldest = now.as_millisecond().saturating_sub(millis(retention.min(MAX_RETENTION)));
        while self.offsets.front().is_some_and(|offset| self.base + i64::from(*offset) < oldest) {
            self.offsets.pop_front();
            self.values.pop_front();
        }
        if self.values.is_empty() && self.values.capacity() > 16 {
            *self = Self::default();
        }
    }

    /// The offset of `at`, moving the base where it does not fit. A clock that steps by more than 49 days makes the ring
    /// begin again: what it held can no longer be placed.
    fn offset(&mut self, at: i64) -> u32 {
        if self.offsets.is_empty() {
            self.base = at;
            return 0;
        }
        if let Ok(offset) = u32::try_from(at - self.base) {
            return offset;
        }
        let times: Vec<i64> = self.offsets.iter().map(|offset| self.base + i64::from(*offset)).collect();
        let base = times.iter().copied().fold(at, i64::min);
        let moved: Option<VecDeque<u32>> = times.iter().map(|time| u32::try_from(time - base).ok()).collect();
        if let (Some(moved), Ok(offset)) = (moved, u32::try_from(at - base)) {
            self.base = base;
            self.offsets = moved;
            offset
        } else {
            *self = Self { base: at, ..Self::default() };
            0
        }
    }

    /// Doubles the room, but not beyond `limit`.
    fn make_room(&mut self, limit: usize) {
        let len = self.values.len();
        if len == self.values.capacity() {
            let more = len.max(4).min(limit.max(1) - len);
            self.values.reserve_exact(more);
            self.offsets.reserve_exact(more);
        }
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// The samples, oldest first, that were taken at or after `since`.
    pub fn points(&self, since: Option<Timestamp>) -> impl Iterator<Item = Point> {
        let since = since.map_or(i64::MIN, Timestamp::as_millisecond);
        self.offsets.iter().zip(&self.values).filter_map(move |(offset, value)| {
            let at = self.base + i64::from(*offset);
            let at = (at >= since).then(|| Timestamp::from_millisecond(at).ok()).flatten()?;
            Some(Point { at, value: *value })
        })
    }

    /// The bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.offsets.capacity() * size_of::<u32>() + self.values.capacity() * size_of::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_ring_keeps_the_last_samples_and_grows_only_as_they_come() {
        let mut ring = Ring::default();
        assert_eq!(ring.heap_bytes(), 0);
        for second in 0..5_000 {
            ring.push(at(second), second as f64, 1_000, HOUR);
            assert!(ring.heap_bytes() <= 12_000, "{} bytes", ring.heap_bytes());
        }
        assert_eq!(ring.len(), 1_000);
        let points: Vec<Point> = ring.points(None).collect();
        assert_eq!(points[0], Point { at: at(4_000), value: 4_000.0 });
        assert_eq!(points[999], Point { at: at(4_999), value: 4_999.0 });
        assert_eq!(ring.points(Some(at(4_990))).count(), 10);
    }

    #[test]
    fn what_is_older_than_the_retention_goes_and_its_memory_with_it() {
        let mut ring = Ring::default();
        for second in 0..100 {
            ring.push(at(second), 1.0, 1_000, HOUR);
        }
        ring.forget_before(at(3_650), HOUR);
        assert_eq!(ring.len(), 50);
        ring.forget_before(at(9_000), HOUR);
        assert_eq!((ring.len(), ring.heap_bytes()), (0, 0));
    }

    #[test]
    fn a_clock_that_steps_back_loses_nothing_and_one_that_leaps_begins_again() {
        let mut ring = Ring::default();
        ring.push(at(10_000), 1.0, 10, HOUR);
        ring.push(at(9_000), 2.0, 10, HOUR);
        ring.push(at(9_060), 3.0, 10, HOUR);
        let values: Vec<f64> = ring.points(None).map(|point| point.value).collect();
        assert_eq!(values, [1.0, 2.0, 3.0]);
        assert_eq!(ring.points(Some(at(9_500))).count(), 1);
        // Sixty days back: the old samples cannot be placed any more.
        ring.push(at(10_000 - 60 * 86_400), 4.0, 10, HOUR);
        assert_eq!(ring.len(), 1);
    }

    proptest! {
        #[test]
        fn a_ring_is_a_list_that_is_cut_at_both_bounds(
            steps in prop::collection::vec(0_i64..400_000, 0..200),
            limit in 1_usize..40,
            retention in 1_u64..3_000,
        ) {
            let retention = Duration::from_millis(retention * 1_000);
            let (mut ring, mut model, mut now) = (Ring::default(), Vec::new(), 1_700_000_000_000_i64);
            for (index, step) in steps.iter().enumerate() {
                now += step;
                let at = Timestamp::from_millisecond(now).unwrap();
                ring.push(at, index as f64, limit, retention);
                model.push((now, index as f64));
                model.retain(|(time, _)| *time >= now - i64::try_from(retention.as_millis()).unwrap());
                let excess = model.len().saturating_sub(limit);
                model.drain(..excess);
                let points: Vec<(i64, f64)> =
                    ring.points(None).map(|point| (point.at.as_millisecond(), point.value)).collect();
                prop_assert_eq!(&points, &model);
            }
        }

        #[test]
        fn no_clock_makes_a_ring_panic(times in prop::collection::vec(-100_000_000_000_000_i64..200_000_000_000_000, 0..50)) {
            let mut ring = Ring::default();
            for time in times {
                ring.push(Timestamp::from_millisecond(time).unwrap(), 1.0, 10, MAX_RETENTION);
                prop_assert!(ring.len() <= 10 && ring.points(None).count() == ring.len());
            }
        }
    }
}

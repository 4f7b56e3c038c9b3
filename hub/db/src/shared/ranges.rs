//! Which sequence numbers came, as ranges that neither overlap nor touch: a pure set, and what of it is to be written.

use std::collections::BTreeMap;

/// Ranges of a stream, by their first numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    ranges: BTreeMap<u64, u64>,
    /// As they are in the database.
    kept: BTreeMap<u64, u64>,
}

/// What is to be written so that the database has the set.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// First numbers of ranges that are no more.
    pub(crate) removed: Vec<u64>,
    /// Ranges that are new or end elsewhere.
    pub(crate) written: Vec<(u64, u64)>,
}

impl Ranges {
    /// The set as it is in the database: at least those ranges that hold or touch what will be inserted.
    pub(crate) fn load(ranges: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let kept: BTreeMap<u64, u64> = ranges.into_iter().collect();
        Self { ranges: kept.clone(), kept }
    }

    /// Adds a number; says whether it was not there.
    pub(crate) fn insert(&mut self, number: u64) -> bool {
        let before = self.ranges.range(..=number).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| last >= number) {
            return false;
        }
        let after = number.checked_add(1).and_then(|next| self.ranges.get(&next).copied());
        if after.is_some() {
            self.ranges.remove(&(number + 1));
        }
        let first = match before {
            Some((first, last)) if last + 1 == number => first,
            _ => number,
        };
        self.ranges.insert(first, after.unwrap_or(number));
        true
    }

    /// What is to be written.
    pub(crate) fn taken(&self) -> Taken {
        let removed = self.kept.keys().filter(|first| !self.ranges.contains_key(first)).copied().collect();
        let written = self.ranges.iter().filter(|(first, last)| self.kept.get(first) != Some(last));
        Taken { removed, written: written.map(|(first, last)| (*first, *last)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_hold_what_a_set_holds_and_never_touch(
            kept in proptest::collection::btree_set(1_u64..200, 0..60),
            numbers in proptest::collection::vec(1_u64..200, 0..120),
        ) {
            let mut before = Ranges::default();
            for number in &kept {
                before.insert(*number);
            }
            let mut model: BTreeSet<u64> = kept;
            let mut ranges = Ranges::load(before.ranges.clone());
            for number in numbers {
                prop_assert_eq!(ranges.insert(number), model.insert(number));
            }
            let held: BTreeSet<u64> = ranges.ranges.iter().flat_map(|(first, last)| *first..=*last).collect();
            prop_assert_eq!(&held, &model);
            for ((_, last), (first, _)) in ranges.ranges.iter().zip(ranges.ranges.iter().skip(1)) {
                prop_assert!(last + 1 < *first);
            }
            // Written over what was there, it is the same set.
            let taken = ranges.taken();
            let mut database = before.ranges;
            for first in &taken.removed {
                prop_assert!(database.remove(first).is_some());
            }
            database.extend(taken.written);
            prop_assert_eq!(database, ranges.ranges);
        }
    }

    #[test]
    fn the_highest_number_there_is_can_be_inserted() {
        let mut ranges = Ranges::default();
        assert!(ranges.insert(u64::MAX) && ranges.insert(u64::MAX - 1) && !ranges.insert(u64::MAX));
        assert_eq!(ranges.taken().written, [(u64::MAX - 1, u64::MAX)]);
    }
}

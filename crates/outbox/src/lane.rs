//! The four lanes, each first in, first out; and how a batch is made up of them.

use picket_protocol::event::Priority;

/// A queue of its own: gap records, and one for each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Gap records. They account for others, weigh nothing and are never given up.
    Gaps,
    /// Class high.
    High,
    /// Class normal.
    Normal,
    /// Class low.
    Low,
}

impl Lane {
    /// All lanes, the most urgent first.
    pub(crate) const ALL: [Self; 4] = [Self::Gaps, Self::High, Self::Normal, Self::Low];
    /// Those that quotas apply to, the first to go first.
    pub(crate) const EVICTED: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    pub(crate) fn of(class: Priority) -> Self {
        match class {
            Priority::Low => Self::Low,
            Priority::Normal => Self::Normal,
            Priority::High => Self::High,
        }
    }

    /// The class its records travel in.
    pub(crate) fn class(self) -> Priority {
        match self {
            Self::Gaps | Self::High => Priority::High,
            Self::Normal => Priority::Normal,
            Self::Low => Priority::Low,
        }
    }

    /// Its table.
    pub(crate) fn table(self) -> &'static str {
        match self {
            Self::Gaps => "lane_gaps",
            Self::High => "lane_high",
            Self::Normal => "lane_normal",
            Self::Low => "lane_low",
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// What each lane may take of a batch before the rest goes by urgency, in eighths: with strict urgency alone, a storm of
/// alerts would keep every file event waiting until its age quota takes it.
const SHARES: [usize; 4] = [1, 4, 2, 1];

/// How many records from the head of each lane make up a batch: each lane its share, then what is left over by urgency.
///
/// `sizes` are the bytes of the records at the head of each lane, in order. At least one record is taken if there is
/// one, whatever its size: a limit must not stop the queue.
pub(crate) fn compose(sizes: &[Vec<usize>; 4], max_bytes: usize, max_records: usize) -> [usize; 4] {
    let mut taken = [0; 4];
    let (mut bytes, mut records) = (0, 0);
    for round in 0..2 {
        for lane in Lane::ALL.map(Lane::index) {
            let (mut lane_bytes, mut lane_records) = (0, 0);
            let (byte_share, record_share) = match round {
                0 => (max_bytes * SHARES[lane] / 8, max_records * SHARES[lane] / 8),
                _ => (max_bytes, max_records),
            };
            while let Some(size) = sizes[lane].get(taken[lane]) {
                let within_share = lane_bytes + size <= byte_share && lane_records < record_share;
                if !within_share || bytes + size > max_bytes || records >= max_records {
                    break;
                }
                taken[lane] += 1;
                lane_bytes += size;
                lane_records += 1;
                bytes += size;
                records += 1;
            }
        }
    }
    if records == 0
        && let Some(lane) = (0..4).find(|lane| !sizes[*lane].is_empty())
    {
        taken[lane] = 1;
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urgent_records_go_first_and_the_others_keep_a_share() {
        let storm = || vec![100; 1000];
        let taken = compose(&[vec![], storm(), storm(), storm()], 8000, 1000);
        assert_eq!(taken, [0, 50, 20, 10]);
        assert_eq!(compose(&[vec![], vec![], storm(), vec![]], 8000, 1000), [0, 0, 80, 0]);
        assert_eq!(compose(&[vec![], vec![9000], storm(), vec![]], 8000, 1000), [0, 0, 80, 0]);
    }

    #[test]
    fn one_record_larger_than_a_batch_does_not_stop_the_queue() {
        assert_eq!(compose(&[vec![], vec![9000], vec![], vec![]], 8000, 1000), [0, 1, 0, 0]);
        assert_eq!(compose(&[vec![], vec![9000, 9000], vec![1], vec![]], 1, 1), [0, 0, 1, 0]);
    }

    proptest! {
        #[test]
        fn a_batch_keeps_its_limits_and_is_never_empty_while_something_waits(
            lanes in proptest::array::uniform4(proptest::collection::vec(1..500usize, 0..40)), max_bytes in 1..4000usize, max_records in 1..60usize,
        ) {
            let taken = compose(&lanes, max_bytes, max_records);
            let bytes: usize = lanes.iter().zip(taken).map(|(sizes, n)| sizes[..n].iter().sum::<usize>()).sum();
            let records: usize = taken.iter().sum();
            prop_assert!(records == 1 || (bytes <= max_bytes && records <= max_records));
            prop_assert_eq!(records == 0, lanes.iter().all(Vec::is_empty));
        }
    }
}

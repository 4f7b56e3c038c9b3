//! How long events take from when they happened until they are durable.

use crate::draft::Draft;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The upper bounds of the classes in which delays are counted, in milliseconds; longer ones are in a class of their own.
pub const DELAY_BOUNDS_MS: [u64; 13] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];

/// Delays since the outbox was opened, by the wall clock: a jump of that clock shows in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delays {
    /// How many were in each class of [`DELAY_BOUNDS_MS`], and how many were longer.
    pub counts: [u64; DELAY_BOUNDS_MS.len() + 1],
    /// Their sum, in milliseconds.
    pub sum_ms: u64,
}

impl Delays {
    /// Counts records that are durable as of `now_ms`.
    pub(crate) fn note(&mut self, drafts: &[Draft], now_ms: i64) {
        for draft in drafts {
            // What seems to come from the future took no time.
            let delay = now_ms.saturating_sub(draft.at_ms).max(0).cast_unsigned();
            let class = DELAY_BOUNDS_MS.partition_point(|bound| *bound < delay);
            self.counts[class] += 1;
            self.sum_ms = self.sum_ms.saturating_add(delay);
        }
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The delay that the share `share` of all did not exceed, as near as the classes tell: linear within a class, as
    /// Prometheus' `histogram_quantile` has it. Nothing where there was none; the last bound for what lies beyond it.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = share.clamp(0.0, 1.0) * count as f64;
        let (mut below, mut lower) = (0_u64, 0_u64);
        for (bound, in_class) in DELAY_BOUNDS_MS.into_iter().zip(self.counts) {
            if in_class > 0 && (below + in_class) as f64 >= rank {
                let part = ((rank - below as f64) / in_class as f64).clamp(0.0, 1.0);
                return Some(Duration::from_secs_f64((lower as f64 + part * (bound - lower) as f64) / 1_000.0));
            }
            below += in_class;
            lower = bound;
        }
        Some(Duration::from_millis(lower))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::Priority;

    fn drafts(at_ms: impl IntoIterator<Item = i64>) -> Vec<Draft> {
        let draft = |at_ms| Draft { class: Priority::Normal, weight: 1, at_ms, body: Vec::new() };
        at_ms.into_iter().map(draft).collect()
    }

    #[test]
    fn quantiles_lie_within_the_class_that_holds_them() {
        let mut delays = Delays::default();
        assert_eq!(delays.quantile(0.5), None);
        // 90 of 8 ms, 9 of 150 ms, one of an hour, one from the future.
        delays.note(&drafts((0..90).map(|_| 992).chain((0..9).map(|_| 850)).chain([-3_599_000])), 1_000);
        assert_eq!(delays.count(), 100);
        let quantile = |share| delays.quantile(share).unwrap().as_millis();
        assert!((5..=10).contains(&quantile(0.5)), "{}", quantile(0.5));
        assert!((100..=200).contains(&quantile(0.99)), "{}", quantile(0.99));
        assert_eq!(quantile(1.0), 10_000);
        delays.note(&drafts([2_000]), 1_000);
        assert_eq!(delays.counts[0], 1);
    }
}

//! What a set of samples amounts to.

use crate::ring::Point;
use serde::Serialize;

/// Statistics of samples; with none of them there is only the count.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Summary {
    /// How many samples.
    pub count: usize,
    /// What they amount to, in the metric's unit; absent when there are none.
    #[serde(flatten)]
    pub stats: Option<Stats>,
}

/// What samples amount to, in the metric's unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stats {
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// The arithmetic mean.
    pub avg: f64,
    /// The newest.
    pub latest: f64,
    /// The median.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
}

impl Summary {
    /// The summary of `points`, whose values are finite.
    pub fn of(points: impl Iterator<Item = Point>) -> Self {
        let mut latest: Option<Point> = None;
        let mut values: Vec<f64> = points
            .inspect(|point| latest = latest.filter(|newest| newest.at > point.at).or(Some(*point)))
            .map(|point| point.value)
            .collect();
        values.sort_unstable_by(f64::total_cmp);
        let (Some(latest), Some(min), Some(max)) = (latest, values.first(), values.last()) else {
            return Self::default();
        };
        let count = values.len();
        // Each value is divided before it is added: the sum of great values would be infinite, their mean is not.
        let avg = values.iter().map(|value| value / count as f64).sum();
        let (p50, p95, p99) = (nearest_rank(&values, 50), nearest_rank(&values, 95), nearest_rank(&values, 99));
        Self { count, stats: Some(Stats { min: *min, max: *max, avg, latest: latest.value, p50, p95, p99 }) }
    }
}

/// The `percent`th percentile of `sorted`, which is not empty, by the nearest-rank method: the least value that is not
/// exceeded by at least `percent` of 100 of them, the ⌈n·percent/100⌉th. It is always one of the samples (definition 1
/// of Hyndman and Fan, "Sample Quantiles in Statistical Packages", The American Statistician 50(4), 1996).
fn nearest_rank(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use proptest::prelude::*;

    fn points(values: &[f64]) -> impl Iterator<Item = Point> {
        let at = |index: usize| Timestamp::from_second(i64::try_from(index).unwrap()).unwrap();
        values.iter().enumerate().map(move |(index, value)| Point { at: at(index), value: *value })
    }

    #[test]
    fn a_summary_of_nothing_is_a_count_of_nothing() {
        assert_eq!(serde_json::to_string(&Summary::of(points(&[]))).unwrap(), r#"{"count":0}"#);
    }

    #[test]
    fn the_percentiles_are_those_of_the_textbook() {
        // The worked example of the nearest-rank method: 15, 20, 35, 40, 50.
        let stats = Summary::of(points(&[50.0, 15.0, 40.0, 20.0, 35.0])).stats.unwrap();
        assert_eq!((stats.p50, stats.p95, stats.p99), (35.0, 50.0, 50.0));
        assert_eq!((stats.min, stats.max, stats.avg, stats.latest), (15.0, 50.0, 32.0, 35.0));
    }

    #[test]
    fn great_values_have_a_mean() {
        let stats = Summary::of(points(&[f64::MAX, f64::MAX])).stats.unwrap();
        assert!(stats.avg.is_finite());
    }

    proptest! {
        #[test]
        fn a_percentile_is_what_counting_says(values in prop::collection::vec(-1e9_f64..1e9, 1..300)) {
            let stats = Summary::of(points(&values)).stats.unwrap();
            for (percent, found) in [(50, stats.p50), (95, stats.p95), (99, stats.p99)] {
                // The least sample with at least `percent` of the samples at or below it.
                let covers = |bound: f64| values.iter().filter(|v| **v <= bound).count() * 100 >= percent * values.len();
                let least = values.iter().copied().filter(|v| covers(*v)).fold(f64::INFINITY, f64::min);
                prop_assert_eq!(found.to_bits(), least.to_bits());
            }
            prop_assert!(stats.min <= stats.avg + 1e-3 && stats.avg <= stats.max + 1e-3);
            prop_assert_eq!(stats.latest.to_bits(), values.last().unwrap().to_bits());
        }
    }
}

//! From timed operations to samples: how long each took, what failed, and how much of all failed.

use crate::sample::{Moment, Sample};
use std::collections::BTreeSet;
use std::time::Duration;

/// The most operations told apart; those beyond are `other`.
pub const MAX_OPERATIONS: usize = 64;
/// From how many operations on a share of failures says something. Fewer wait for the next reckoning.
const ENOUGH: u64 = 10;
/// The longest name of an operation in a metric's name, in bytes.
const MAX_NAME: usize = 64;

/// Counts operations between two reckonings of the share that failed.
#[derive(Debug, Default)]
pub struct Operations {
    names: BTreeSet<String>,
    total: u64,
    failed: u64,
}

impl Operations {
    /// The samples of one operation that ended at `at`: `response_time.NAME` in seconds with the tag `success`, and
    /// `errors.NAME` if it failed. What the error said stands in the log: as a tag it would make a series of its own.
    pub fn record(&mut self, name: &str, duration: Duration, success: bool, at: Moment) -> Vec<Sample> {
        self.total += 1;
        let name = self.known(name);
        let time = Sample::new(format!("response_time.{name}"), duration.as_secs_f64(), "seconds", at)
            .tag("success", success.to_string());
        if success {
            return vec![time];
        }
        self.failed += 1;
        vec![time, Sample::new(format!("errors.{name}"), 1.0, "count", at)]
    }

    /// The share of operations that failed since the last answer, in percent, once there were enough of them.
    pub fn error_rate(&mut self, at: Moment) -> Option<Sample> {
        if self.total < ENOUGH {
            return None;
        }
        let rate = 100.0 * self.failed as f64 / self.total as f64;
        (self.total, self.failed) = (0, 0);
        Some(Sample::new("error_rate", rate, "percent", at))
    }

    fn known<'a>(&mut self, name: &'a str) -> &'a str {
        if self.names.contains(name) {
            return name;
        }
        if self.names.len() >= MAX_OPERATIONS || name.is_empty() || name.len() > MAX_NAME {
            return "other";
        }
        self.names.insert(name.to_owned());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const EPOCH: Moment = Moment { wall: jiff::Timestamp::UNIX_EPOCH, steady: Duration::ZERO };

    #[test]
    fn an_operation_gives_its_time_and_a_failed_one_an_error_too() {
        let (mut operations, at) = (Operations::default(), EPOCH);
        let samples = operations.record("heartbeat", SECOND * 2, true, at);
        assert_eq!(samples, [Sample::new("response_time.heartbeat", 2.0, "seconds", at).tag("success", "true")]);
        let samples = operations.record("heartbeat", SECOND, false, at);
        assert_eq!(samples[1], Sample::new("errors.heartbeat", 1.0, "count", at));
    }

    #[test]
    fn a_share_of_failures_waits_for_enough_operations() {
        let (mut operations, at) = (Operations::default(), EPOCH);
        operations.record("a", SECOND, false, at);
        assert_eq!(operations.error_rate(at), None, "one failure of one is no rate");
        (0..9).for_each(|_| drop(operations.record("a", SECOND, true, at)));
        assert_eq!(operations.error_rate(at), Some(Sample::new("error_rate", 10.0, "percent", at)));
        assert_eq!(operations.error_rate(at), None);
    }

    #[test]
    fn more_names_than_can_be_told_apart_are_one() {
        let (mut operations, at) = (Operations::default(), EPOCH);
        for index in 0..1_000 {
            operations.record(&format!("op{index}"), SECOND, true, at);
        }
        assert_eq!(operations.record("op999", SECOND, true, at)[0].name, "response_time.other");
        assert_eq!(operations.record("op0", SECOND, true, at)[0].name, "response_time.op0");
    }
}

//! Budgets: how many events of a type may go out in a second, so that a flood of one does not drown the others.
//!
//! A token bucket for each type (RFC 2697, §3, without colours): it fills at the rate and holds the burst. An event that
//! finds it empty is shed and counted.

use picket_protocol::event::EventBody;
use std::time::Instant;

/// A rate and how much of it may be saved up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Events a second.
    pub(crate) per_second: u32,
    /// Events at once, after a pause.
    pub(crate) burst: u32,
}

impl Rate {
    /// A tenth of it, and at least something.
    pub(crate) fn tenth(self) -> Self {
        Self { per_second: self.per_second.div_ceil(10), burst: self.burst.div_ceil(10) }
    }
}

/// The buckets of all types that have a budget.
pub(crate) struct Budgets {
    file: Bucket,
    network: Bucket,
}

struct Bucket {
    rate: Rate,
    tokens: f64,
    filled: Instant,
}

impl Budgets {
    /// Full buckets.
    pub(crate) fn new(file: Rate, network: Rate, now: Instant) -> Self {
        Self { file: Bucket::full(file, now), network: Bucket::full(network, now) }
    }

    /// Whether `body` may go out now. Alerts, gaps and changes of the configuration always may: they are few and matter.
    pub(crate) fn allow(&mut self, body: &EventBody, now: Instant) -> bool {
        match body {
            EventBody::File(_) => self.file.take(now),
            EventBody::Network(_) => self.network.take(now),
            EventBody::Alert(_) | EventBody::Gap(_) | EventBody::Config(_) => true,
        }
    }
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: f64::from(rate.burst), filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.duration_since(self.filled).as_secs_f64();
        self.filled = now;
        let most = f64::from(self.rate.burst.max(1));
        self.tokens = elapsed.mul_add(f64::from(self.rate.per_second), self.tokens).min(most);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_then_the_rate_rules_and_a_pause_saves_up_no_more_than_the_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::full(Rate { per_second: 10, burst: 5 }, start);
        let passed = |bucket: &mut Bucket, at| (0..100).filter(|_| bucket.take(at)).count();
        assert_eq!(passed(&mut bucket, start), 5);
        assert_eq!(passed(&mut bucket, start + Duration::from_millis(300)), 3);
        assert_eq!(passed(&mut bucket, start + Duration::from_secs(3_600)), 5);
    }
}

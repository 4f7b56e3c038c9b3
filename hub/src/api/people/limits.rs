//! How often somebody may ask: a rate for each principal, and for each address of nobody's.

use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use picket_protocol::hub::ProblemCode;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// After how many requests those are forgotten who have not asked for a while.
const FORGET_EVERY: u64 = 4096;

/// Counts requests.
pub struct RequestRates {
    limiter: DefaultKeyedRateLimiter<String>,
    clock: DefaultClock,
    asked: AtomicU64,
    refused: AtomicU64,
    text: String,
}

impl std::fmt::Debug for RequestRates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RequestRates({})", self.text)
    }
}

impl RequestRates {
    /// `limit` requests within `window`, of which `burst` at once.
    pub fn new(limit: u32, window: Duration, burst: u32) -> Self {
        let limit = limit.max(1);
        let each = (window / limit).max(Duration::from_micros(1));
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(each).unwrap_or(Quota::per_second(burst)).allow_burst(burst);
        let text = format!("{limit} within {} s, {burst} at once", window.as_secs());
        let clock = DefaultClock::default();
        Self { limiter: RateLimiter::keyed(quota), clock, asked: AtomicU64::new(0), refused: AtomicU64::new(0), text }
    }

    /// How many requests were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn check(&self, key: &str) -> Outcome<()> {
        if self.asked.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == 0 {
            self.limiter.retain_recent();
        }
        self.limiter.check_key(&key.to_owned()).map_err(|not_until| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            let wait = not_until.wait_time_from(self.clock.now());
            Refusal::new(ProblemCode::RateLimited, format!("more requests than {}", self.text)).after(wait)
        })
    }
}

/// Counts a request of `key`.
pub(super) fn within(hub: &Hub, key: &str) -> Outcome<()> {
    hub.rates.check(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_what_is_more_is_told_when_to_come_back() {
        let rates = RequestRates::new(100, Duration::from_secs(60), 10);
        for _ in 0..10 {
            assert!(rates.check("ada").is_ok());
        }
        let refusal = rates.check("ada").unwrap_err();
        assert_eq!((refusal.code(), refusal.0.retry_after), (ProblemCode::RateLimited, Some(1)));
        assert!(rates.check("bob").is_ok(), "everybody has a rate of their own");
        assert_eq!(rates.refused(), 1);
    }
}

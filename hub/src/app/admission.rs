//! How many may come in at a time: enrolments, connections of agents.
//!
//! Who is too many is told when to come back, each a different time: a fleet that was turned away at once must not come
//! back at once.

use crate::refusal::{Outcome, Refusal};
use governor::clock::{Clock as _, QuantaClock};
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use picket_protocol::hub::ProblemCode;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The longest that somebody is sent away for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Lets so many in a second, and a burst of as many.
pub struct Admission {
    what: &'static str,
    per_second: u32,
    limiter: RateLimiter<NotKeyed, InMemoryState, QuantaClock>,
    clock: QuantaClock,
    /// How many were sent away within the last while: what spreads those to come.
    turned_away: AtomicU64,
    shed: AtomicU64,
}

impl Admission {
    /// Lets `per_second` in, at least one.
    pub fn new(what: &'static str, per_second: u32) -> Self {
        let rate = NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN);
        let clock = QuantaClock::default();
        let limiter = RateLimiter::direct_with_clock(Quota::per_second(rate), clock.clone());
        Self { what, per_second: rate.get(), limiter, clock, turned_away: AtomicU64::new(0), shed: AtomicU64::new(0) }
    }

    /// Lets one in.
    ///
    /// # Errors
    /// `overloaded`, with a time to come back that is later for each who is sent away.
    pub fn admit(&self) -> Outcome<()> {
        match self.limiter.check() {
            Ok(()) => {
                self.turned_away.store(0, Ordering::Relaxed);
                Ok(())
            }
            Err(not_until) => {
                self.shed.fetch_add(1, Ordering::Relaxed);
                let before = self.turned_away.fetch_add(1, Ordering::Relaxed);
                let turn = Duration::from_millis(before.saturating_mul(1000) / u64::from(self.per_second));
                let wait = (not_until.wait_time_from(self.clock.now()) + turn).min(MAX_WAIT);
                let detail = format!("more {} at once than the hub takes ({} a second)", self.what, self.per_second);
                Err(Refusal::new(ProblemCode::Overloaded, detail).after(wait))
            }
        }
    }

    /// How many were sent away.
    pub fn shed(&self) -> u64 {
        self.shed.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Admission({} {} a second, {} sent away)", self.per_second, self.what, self.shed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_too_many_is_sent_away_each_for_another_time() {
        let admission = Admission::new("connections", 5);
        let mut waits = Vec::new();
        for _ in 0..1000 {
            if let Err(refusal) = admission.admit() {
                assert_eq!(refusal.code(), ProblemCode::Overloaded);
                waits.push(refusal.0.retry_after.unwrap());
            }
        }
        assert!(waits.len() >= 990, "{}", waits.len());
        assert_eq!(admission.shed(), waits.len() as u64);
        // A thousand at five a second take 200 s; nobody waits longer than a minute, and no second has more than its share.
        assert_eq!(waits.iter().max(), Some(&60));
        let at_ten = waits.iter().filter(|wait| **wait == 10).count();
        assert!((4..=6).contains(&at_ten), "{at_ten}");
    }
}

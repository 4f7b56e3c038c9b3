//! How many may come in at a time: enrolments, connections of agents.
//!
//! Who is too many is told when to come back, each a different time: a fleet that was turned away at once must not come
//! back at once.

use crate::refusal::{Outcome, Refusal};
use governor::clock::{Clock as _, DefaultClock, QuantaClock};
use governor::state::{InMemoryState, NotKeyed};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use picket_protocol::hub::ProblemCode;
use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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

/// Lets each in so often: one address or one agent cannot take the room of all.
pub struct Each<K: Hash + Eq + Clone> {
    what: &'static str,
    limiter: DefaultKeyedRateLimiter<K>,
    clock: DefaultClock,
    asked: AtomicU64,
    shed: AtomicU64,
}

/// After how many requests those are forgotten who have not asked for a while.
const FORGET_EVERY: u64 = 4096;

impl<K: Hash + Eq + Clone> Each<K> {
    /// Lets one of each in within `period`, and `burst` at once.
    pub fn new(what: &'static str, period: Duration, burst: u32) -> Self {
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(period).unwrap_or(Quota::per_second(burst)).allow_burst(burst);
        let (asked, shed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { what, limiter: RateLimiter::keyed(quota), clock: DefaultClock::default(), asked, shed }
    }

    /// Lets one of `key` in.
    ///
    /// # Errors
    /// `overloaded`, with a time to come back.
    pub fn admit(&self, key: &K) -> Outcome<()> {
        if self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(FORGET_EVERY) {
            self.limiter.retain_recent();
        }
        self.limiter.check_key(key).map_err(|not_until| {
            self.shed.fetch_add(1, Ordering::Relaxed);
            let wait = not_until.wait_time_from(self.clock.now()).min(MAX_WAIT);
            Refusal::new(ProblemCode::Overloaded, format!("more {} at once than one may ask for", self.what))
                .after(wait)
        })
    }

    /// How many were sent away.
    pub fn shed(&self) -> u64 {
        self.shed.load(Ordering::Relaxed)
    }
}

impl<K: Hash + Eq + Clone> std::fmt::Debug for Each<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Each({}, {} sent away)", self.what, self.shed())
    }
}

/// How many requests of each may be under way at once.
#[derive(Debug)]
pub struct Turns<K: Hash + Eq> {
    most: u32,
    taken: Arc<Mutex<HashMap<K, u32>>>,
}

/// A turn, given back when it is dropped.
#[derive(Debug)]
pub struct Turn<K: Hash + Eq> {
    key: K,
    taken: Arc<Mutex<HashMap<K, u32>>>,
}

impl<K: Hash + Eq + Clone> Turns<K> {
    /// At most `most` of each.
    pub fn new(most: u32) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// Takes a turn of `key`; none is left when as many are under way as may be.
    pub fn take(&self, key: K) -> Option<Turn<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Turn { key, taken: Arc::clone(&self.taken) })
    }
}

impl<K: Hash + Eq> Drop for Turn<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
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

    #[test]
    fn one_who_asks_too_often_does_not_keep_others_out() {
        let each = Each::new("enrolments", Duration::from_secs(3600), 3);
        let admitted = (0..10).filter(|_| each.admit(&"one").is_ok()).count();
        assert_eq!((admitted, each.shed()), (3, 7));
        assert!(each.admit(&"another").is_ok());
    }

    #[test]
    fn a_turn_is_given_back_when_it_is_over() {
        let turns = Turns::new(2);
        let (first, second) = (turns.take(7).unwrap(), turns.take(7));
        assert!(second.is_some() && turns.take(7).is_none() && turns.take(8).is_some());
        drop(first);
        assert!(turns.take(7).is_some());
        drop(second);
        assert!(turns.taken.lock().unwrap().is_empty(), "nothing is kept of who is gone");
    }
}

//! What is known of a source while it is in force: shared by all shards, counted without locks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::health::{Budget, RuleHealth, RuleState, Suspension};
use crate::rule::RuleKey;
use crate::shard::Shard;

/// A source's meters and whether it is asked.
#[derive(Debug)]
pub(super) struct SourceState {
    pub key: RuleKey,
    pub title: String,
    pub shards: Vec<Shard>,
    active: AtomicBool,
    why: Mutex<Option<Suspension>>,
    matches: AtomicU64,
    sampled: AtomicU64,
    nanos: AtomicU64,
    max: AtomicU64,
    /// The samples that are judged next: how many, and their time.
    recent: AtomicU64,
    recent_nanos: AtomicU64,
    /// Matches by minute of the events' time: the last few minutes, each in its own slot.
    minutes: Mutex<[(i64, u32); 8]>,
}

impl SourceState {
    pub fn new(key: RuleKey, title: String, shards: Vec<Shard>, suspended: bool) -> Self {
        Self {
            key,
            title,
            shards,
            active: AtomicBool::new(!suspended),
            why: Mutex::new(suspended.then_some(Suspension::Held)),
            matches: AtomicU64::new(0),
            sampled: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            max: AtomicU64::new(0),
            recent: AtomicU64::new(0),
            recent_nanos: AtomicU64::new(0),
            minutes: Mutex::new([(i64::MIN, 0); 8]),
        }
    }

    pub fn is_active(&self) -> bool {
        self.active.load(Relaxed)
    }

    /// Stops asking it; whether it was asked.
    pub fn suspend(&self, why: Suspension) -> bool {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        self.active.swap(false, Relaxed)
    }

    /// Asks it again, its measurements forgotten; whether it was suspended.
    pub fn resume(&self) -> bool {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = None;
        for counter in [&self.matches, &self.sampled, &self.nanos, &self.max, &self.recent, &self.recent_nanos] {
            counter.store(0, Relaxed);
        }
        *self.minutes.lock().unwrap_or_else(PoisonError::into_inner) = [(i64::MIN, 0); 8];
        !self.active.swap(true, Relaxed)
    }

    /// Takes a measurement; the reason to suspend it, when there were enough and they break the budget.
    pub fn measured(&self, took: Duration, budget: &Budget) -> Option<Suspension> {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sampled.fetch_add(1, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
        self.max.fetch_max(nanos, Relaxed);
        // A thread that was put aside for a while (a quota of the container, a busy machine) is not the rule's fault: one
        // measurement counts for no more than eight times the budget.
        let limit = u64::try_from(budget.mean.as_nanos()).unwrap_or(u64::MAX);
        let nanos = nanos.min(limit.saturating_mul(8));
        let sum = self.recent_nanos.fetch_add(nanos, Relaxed).saturating_add(nanos);
        let count = self.recent.fetch_add(1, Relaxed) + 1;
        if count < u64::from(budget.samples.max(1)) {
            return None;
        }
        self.recent.store(0, Relaxed);
        self.recent_nanos.store(0, Relaxed);
        let mean = sum / count;
        (mean > limit).then_some(Suspension::Slow { mean_nanos: mean, budget_nanos: limit })
    }

    /// Counts a match; the reason to suspend it, when it matches too often.
    pub fn matched(&self, at: jiff::Timestamp, budget: &Budget) -> Option<Suspension> {
        self.matches.fetch_add(1, Relaxed);
        let minute = at.as_second().div_euclid(60);
        let mut minutes = self.minutes.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut minutes[usize::try_from(minute.rem_euclid(8)).unwrap_or(0)];
        if slot.0 != minute {
            *slot = (minute, 0);
        }
        slot.1 = slot.1.saturating_add(1);
        let limit = budget.matches_per_minute;
        (slot.1 > limit).then_some(Suspension::Exploding { matches: slot.1, budget: limit })
    }

    pub fn health(&self) -> RuleHealth {
        let sampled = self.sampled.load(Relaxed);
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let state = match why {
            Some(why) => RuleState::Suspended { why },
            None if self.shards.is_empty() => RuleState::Unreached,
            None => RuleState::Active,
        };
        RuleHealth {
            rule: self.key,
            title: self.title.clone(),
            shards: self.shards.clone(),
            state,
            matches: self.matches.load(Relaxed),
            sampled,
            mean_nanos: self.nanos.load(Relaxed) / sampled.max(1),
            max_nanos: self.max.load(Relaxed),
        }
    }
}

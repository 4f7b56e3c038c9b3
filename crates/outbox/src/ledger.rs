//! The loss ledger: `emitted = acknowledged + queued + gaps`, for each class, at every instant.
//!
//! All numbers are events. A record that stands for several (folded ones) counts as many as its weight says.

use picket_protocol::event::{GapReason, Priority};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The books of one class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Everything that was handed to the outbox, and what was given up before it could be.
    pub emitted: u64,
    /// What the receiver has stored.
    pub acknowledged: u64,
    /// What waits.
    pub queued: u64,
    /// What is missing, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gaps: BTreeMap<GapReason, u64>,
}

impl Account {
    /// All that is missing.
    pub fn gap_total(&self) -> u64 {
        self.gaps.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Whether the books add up.
    pub fn holds(&self) -> bool {
        let parts = u128::from(self.acknowledged) + u128::from(self.queued);
        let gaps: u128 = self.gaps.values().map(|count| u128::from(*count)).sum();
        u128::from(self.emitted) == parts + gaps
    }

    fn add(&mut self, other: &Self) {
        self.emitted = self.emitted.saturating_add(other.emitted);
        self.acknowledged = self.acknowledged.saturating_add(other.acknowledged);
        self.queued = self.queued.saturating_add(other.queued);
        for (reason, count) in &other.gaps {
            self.add_gap(*reason, *count);
        }
    }

    fn add_gap(&mut self, reason: GapReason, count: u64) {
        let sum = self.gaps.entry(reason).or_default();
        *sum = sum.saturating_add(count);
    }

    fn subtract(&mut self, other: &Self) {
        self.emitted = self.emitted.saturating_sub(other.emitted);
        self.acknowledged = self.acknowledged.saturating_sub(other.acknowledged);
        self.queued = self.queued.saturating_sub(other.queued);
        for (reason, count) in &other.gaps {
            let sum = self.gaps.entry(*reason).or_default();
            *sum = sum.saturating_sub(*count);
        }
        self.gaps.retain(|_, count| *count > 0);
    }
}

/// The books of all classes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Routine telemetry.
    pub low: Account,
    /// File and network events.
    pub normal: Account,
    /// Alerts, results, changes of the configuration.
    pub high: Account,
}

impl Ledger {
    /// The books of one class.
    pub fn of(&self, class: Priority) -> &Account {
        match class {
            Priority::Low => &self.low,
            Priority::Normal => &self.normal,
            Priority::High => &self.high,
        }
    }

    fn of_mut(&mut self, class: Priority) -> &mut Account {
        match class {
            Priority::Low => &mut self.low,
            Priority::Normal => &mut self.normal,
            Priority::High => &mut self.high,
        }
    }

    /// All classes together.
    pub fn total(&self) -> Account {
        let mut total = self.low.clone();
        total.add(&self.normal);
        total.add(&self.high);
        total
    }

    /// Whether the books of every class add up.
    pub fn holds(&self) -> bool {
        Priority::ALL.iter().all(|class| self.of(*class).holds())
    }

    /// `count` events came and wait.
    pub(crate) fn emit(&mut self, class: Priority, count: u64) {
        let account = self.of_mut(class);
        account.emitted = account.emitted.saturating_add(count);
        account.queued = account.queued.saturating_add(count);
    }

    /// `count` events of those that wait are stored at the receiver's.
    pub(crate) fn acknowledge(&mut self, class: Priority, count: u64) {
        let account = self.of_mut(class);
        let count = count.min(account.queued);
        account.queued -= count;
        account.acknowledged = account.acknowledged.saturating_add(count);
    }

    /// `count` events of those that wait were given up. Says how many there were to give up.
    pub(crate) fn give_up(&mut self, class: Priority, reason: GapReason, count: u64) -> u64 {
        let account = self.of_mut(class);
        let count = count.min(account.queued);
        account.queued -= count;
        if count > 0 {
            account.add_gap(reason, count);
        }
        count
    }

    /// `count` events were given up before they could wait.
    pub(crate) fn miss(&mut self, class: Priority, reason: GapReason, count: u64) {
        if count > 0 {
            let account = self.of_mut(class);
            account.emitted = account.emitted.saturating_add(count);
            account.add_gap(reason, count);
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for class in Priority::ALL {
            self.of_mut(class).add(other.of(class));
        }
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        for class in Priority::ALL {
            self.of_mut(class).subtract(other.of(class));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_without_measure_reach_the_end_of_the_scale_and_go_no_further() {
        let mut ledger = Ledger::default();
        for _ in 0..3 {
            ledger.miss(Priority::Low, GapReason::KernelOverflow, u64::MAX);
            ledger.miss(Priority::Low, GapReason::RateLimit, u64::MAX);
            ledger.emit(Priority::High, u64::MAX);
            ledger.give_up(Priority::High, GapReason::Shed, u64::MAX);
        }
        assert_eq!(
            (ledger.low.gap_total(), ledger.high.gap_total(), ledger.low.emitted),
            (u64::MAX, u64::MAX, u64::MAX)
        );
        assert_eq!(ledger.total().gap_total(), u64::MAX);
    }

    proptest! {
        #[test]
        fn no_order_of_entries_makes_the_books_wrong(entries in proptest::collection::vec((0..4u8, 0..3usize, 0..9usize, 0..1000u64), 0..60)) {
            let (mut ledger, mut other) = (Ledger::default(), Ledger::default());
            for (kind, class, reason, count) in entries {
                let (class, reason) = (Priority::ALL[class], GapReason::ALL[reason]);
                match kind {
                    0 => ledger.emit(class, count),
                    1 => ledger.acknowledge(class, count),
                    2 => { ledger.give_up(class, reason, count); }
                    _ => other.miss(class, reason, count),
                }
                prop_assert!(ledger.holds() && other.holds());
            }
            let mut both = ledger.clone();
            both.add(&other);
            prop_assert!(both.holds());
            both.subtract(&other);
            prop_assert_eq!(both, ledger);
        }
    }
}

//! The outbox beside a model of it: any order of operations, restarts, kills, reboots and full disks.

use crate::bench::{Bench, Receiver, WAIT, draft};
use picket_outbox::{Batch, BatchLimits, CleanRequest, Gap, Outbox};
use picket_protocol::event::{EventId, GapReason, Priority};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

#[derive(Debug, Clone)]
enum Op {
    Emit { class: usize, weight: u64, count: u8 },
    EmitDurable { class: usize, weight: u64 },
    Gap { class: usize, count: u64 },
    Flush,
    Deliver { records: usize },
    LoseAnswer { records: usize },
    Release,
    GiveUp { records: usize },
    Clean { class: usize },
    Pass { hours: u64 },
    Jump { years: i64 },
    Restart,
    Kill,
    Reboot,
    FullDisk(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let class = 0..3usize;
    prop_oneof![
        6 => (class.clone(), 1..5u64, 1..20u8).prop_map(|(class, weight, count)| Op::Emit { class, weight, count }),
        2 => (class.clone(), 1..5u64).prop_map(|(class, weight)| Op::EmitDurable { class, weight }),
        2 => (class.clone(), 0..50u64).prop_map(|(class, count)| Op::Gap { class, count }),
        2 => Just(Op::Flush),
        4 => (1..30usize).prop_map(|records| Op::Deliver { records }),
        2 => (1..30usize).prop_map(|records| Op::LoseAnswer { records }),
        1 => Just(Op::Release),
        1 => (1..4usize).prop_map(|records| Op::GiveUp { records }),
        1 => class.prop_map(|class| Op::Clean { class }),
        1 => (1..30u64).prop_map(|hours| Op::Pass { hours }),
        1 => (-10..10i64).prop_map(|years| Op::Jump { years }),
        1 => Just(Op::Restart),
        1 => Just(Op::Kill),
        1 => Just(Op::Reboot),
        1 => any::<bool>().prop_map(Op::FullDisk),
    ]
}

/// What the model knows of a record.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Known {
    weight: u64,
    hour: u64,
}

/// The books as they must be: of records whose fate only the quotas decide, the sum.
#[derive(Default)]
struct Model {
    emitted: BTreeMap<usize, u64>,
    acknowledged: BTreeMap<usize, u64>,
    /// What the durable queue held when it was seen last, by class, oldest first.
    waiting: [VecDeque<Known>; 3],
    hour: u64,
}

struct World {
    bench: Bench,
    outbox: Option<Outbox>,
    model: Model,
    receiver: Receiver,
    ids: HashSet<EventId>,
    boots: u32,
    full: bool,
}

impl World {
    fn new() -> Self {
        let mut bench = Bench::quick();
        bench.limits.max_bytes = 60_000;
        let outbox = Some(bench.open());
        let (model, receiver) = (Model::default(), Receiver::default());
        Self { bench, outbox, model, receiver, ids: HashSet::new(), boots: 1, full: false }
    }

    fn outbox(&self) -> &Outbox {
        self.outbox.as_ref().unwrap()
    }

    fn emitted(&mut self, class: usize, weight: u64) {
        *self.model.emitted.entry(class).or_default() += weight;
        self.model.waiting[class].push_back(Known { weight, hour: self.model.hour });
    }

    fn batch(&self, records: usize) -> Option<Batch> {
        self.outbox().next_batch(BatchLimits { bytes: 1 << 20, records }).unwrap_or(None)
    }

    fn reopen(&mut self) {
        self.outbox = Some(self.bench.open());
        self.full = false;
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Emit { class, weight, count } => {
                for _ in 0..*count {
                    assert!(self.outbox().emit(draft(Priority::ALL[*class], *weight, 200)));
                    self.emitted(*class, *weight);
                }
            }
            Op::EmitDurable { class, weight } => {
                if self.full {
                    return;
                }
                let id = self.outbox().emit_durable(draft(Priority::ALL[*class], *weight, 200), WAIT).unwrap();
                assert!(self.ids.insert(id), "{id:?} was given twice");
                self.emitted(*class, *weight);
            }
            Op::Gap { class, count } => {
                let (reason, class_of) = (GapReason::RateLimit, Priority::ALL[*class]);
                let gap = Gap {
                    reason,
                    class: class_of,
                    source: "x".into(),
                    count: Some(*count),
                    since: None,
                    detail: "x".into(),
                };
                self.outbox().account_gap(gap);
                *self.model.emitted.entry(*class).or_default() += count;
            }
            Op::Flush => {
                let flushed = self.outbox().flush(if self.full { Duration::ZERO } else { WAIT });
                assert!(self.full || flushed.is_ok(), "{flushed:?}");
            }
            Op::Deliver { records } => {
                let Some(batch) = self.batch(*records) else { return };
                self.receiver.receive(&batch);
                if self.outbox().acknowledge(&batch).is_ok_and(|ours| ours) {
                    for record in &batch.records {
                        *self.model.acknowledged.entry(record.class as usize).or_default() += record.weight;
                    }
                }
            }
            Op::LoseAnswer { records } => {
                if let Some(batch) = self.batch(*records) {
                    self.receiver.receive(&batch);
                }
            }
            Op::Release => {
                // Only what certainly did not arrive may be released.
                if let Some(batch) =
                    self.batch(5).filter(|batch| !self.receiver.stored.contains_key(&batch.records[0].id))
                {
                    let _ = self.outbox().release(&batch);
                }
            }
            Op::GiveUp { records } => {
                if let Some(batch) = self.batch(*records).filter(|batch| {
                    batch.records.iter().all(|r| r.weight > 0 && !self.receiver.stored.contains_key(&r.id))
                }) {
                    let _ = self.outbox().give_up(&batch, GapReason::Format);
                }
            }
            Op::Clean { class } => {
                let request = CleanRequest { class: Priority::ALL[*class], older_than_seconds: 3600 };
                let _ = self.outbox().clean(request);
            }
            Op::Pass { hours } => {
                self.bench.clock.advance(Duration::from_secs(hours * 3600));
                self.model.hour += hours;
            }
            Op::Jump { years } => {
                let noon: jiff::Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
                self.bench.clock.set_wall(noon + jiff::SignedDuration::from_hours(years * 8766));
            }
            Op::Restart => {
                self.outbox = None;
                self.reopen();
            }
            Op::Kill => {
                self.outbox.take().unwrap().abandon();
                self.reopen();
            }
            Op::Reboot => {
                self.outbox.take().unwrap().abandon();
                self.boots += 1;
                self.bench.kernel_boot = format!("boot-{}", self.boots);
                self.bench.clock.reboot();
                self.reopen();
            }
            Op::FullDisk(full) => {
                self.full = self.outbox().limit_growth(*full).is_ok() && *full;
            }
        }
    }

    fn check(&self) {
        let ledger = self.outbox().ledger();
        assert!(ledger.holds(), "{ledger:?}");
        for (index, class) in Priority::ALL.into_iter().enumerate() {
            let account = ledger.of(class);
            assert_eq!(account.emitted, self.model.emitted.get(&index).copied().unwrap_or(0), "{class:?} {account:?}");
            let acknowledged = self.model.acknowledged.get(&index).copied().unwrap_or(0);
            assert_eq!(account.acknowledged, acknowledged, "{class:?} {account:?}");
            // Nothing that is younger than the quota's age may have gone for its age.
            let old: u64 =
                self.model.waiting[index].iter().filter(|k| self.model.hour - k.hour >= 7 * 24).map(|k| k.weight).sum();
            let aged = account.gaps.get(&GapReason::QuotaAge).copied().unwrap_or(0);
            assert!(aged <= old, "{aged} were evicted for their age, {old} were old");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_books_add_up_after_every_operation_and_in_the_end_everything_is_accounted_for(ops in proptest::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
            world.check();
        }
        world.outbox().limit_growth(false).unwrap();
        world.outbox().flush(WAIT).unwrap();
        let World { outbox, model, mut receiver, .. } = world;
        let outbox = outbox.unwrap();
        receiver.drain(&outbox);
        let emitted: u64 = model.emitted.values().sum();
        let (stored, missing) = receiver.totals();
        prop_assert_eq!(stored + missing, emitted, "stored {} and missing {}", stored, missing);
        let status = outbox.status();
        prop_assert!(status.ledger_holds && status.untold == 0 && status.queued.total() == 0);
        prop_assert_eq!(status.ledger.total().gap_total(), missing);
    }
}

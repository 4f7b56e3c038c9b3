//! What can be seen of the outbox from outside: for metrics, health and `cache status`.

use crate::delays::Delays;
use crate::engine::Engine;
use crate::ledger::Ledger;
use crate::state::{BootAccount, State};
use crate::work::{LaneStat, Memory};
use serde::{Deserialize, Serialize};

/// How many records wait, by lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    /// Gap records.
    pub gaps: u64,
    /// Records of class high.
    pub high: u64,
    /// Records of class normal.
    pub normal: u64,
    /// Records of class low.
    pub low: u64,
}

impl Queued {
    fn of(stats: [LaneStat; 4]) -> Self {
        let [gaps, high, normal, low] = stats.map(|stat| stat.records);
        Self { gaps, high, normal, low }
    }

    /// All of them.
    pub fn total(self) -> u64 {
        self.gaps + self.high + self.normal + self.low
    }
}

/// The queue as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// The books; events, not records.
    pub ledger: Ledger,
    /// Whether they add up: `emitted = acknowledged + queued + gaps` in each class.
    pub ledger_holds: bool,
    /// The books of the last boots.
    pub boots: Vec<BootAccount>,
    /// Gaps of which nobody knows the size.
    pub unknown_gaps: u64,
    /// Missing events of which the receiver has not been told yet.
    pub untold: u64,
    /// Records that are durable and wait.
    pub queued: Queued,
    /// What they take, in bytes.
    pub bytes: u64,
    /// What they may take, in bytes; 0 where it is not known.
    pub max_bytes: u64,
    /// Records that are not durable yet.
    pub in_memory: u64,
    /// How long the oldest record has waited, in seconds.
    pub oldest_seconds: Option<u64>,
    /// Records that do not open any more and were put into quarantine.
    pub quarantined: u64,
    /// Damaged databases that were set aside.
    pub set_aside: u64,
    /// How long records took to become durable, since the outbox was opened.
    #[serde(default)]
    pub delays: Delays,
    /// Why nothing becomes durable at present.
    pub trouble: Option<String>,
}

/// What is durable, as of the last commit.
#[derive(Debug, Clone)]
pub(crate) struct Durable {
    pub(crate) ledger: Ledger,
    boots: Vec<BootAccount>,
    unknown_gaps: u64,
    told: u64,
    pub(crate) stats: [LaneStat; 4],
    aged_ms: i64,
    oldest_ms: Option<i64>,
    quarantined: u64,
    set_aside: u64,
}

impl Durable {
    pub(crate) fn of(engine: &Engine) -> Self {
        Self::new(&engine.memory, engine.oldest_aged().ok().flatten())
    }

    fn new(memory: &Memory, oldest_ms: Option<i64>) -> Self {
        let State { boots, unknown_gaps, told, aged, quarantined, set_aside, .. } = memory.state.clone();
        Self {
            ledger: memory.state.ledger(),
            boots,
            unknown_gaps,
            told,
            stats: memory.stats,
            aged_ms: aged.ms,
            oldest_ms,
            quarantined,
            set_aside,
        }
    }

    /// From what another process reads.
    pub(crate) fn read(state: State, stats: [LaneStat; 4], oldest_ms: Option<i64>) -> Self {
        let mut memory = Memory::new(state);
        memory.stats = stats;
        Self::new(&memory, oldest_ms)
    }

    /// The whole, with the books of everything and what is not durable yet.
    pub(crate) fn status(
        &self,
        ledger: Ledger,
        in_memory: usize,
        max_bytes: u64,
        trouble: Option<String>,
    ) -> QueueStatus {
        let age = self.oldest_ms.map(|oldest| self.aged_ms.saturating_sub(oldest).max(0).cast_unsigned() / 1000);
        QueueStatus {
            ledger_holds: ledger.holds(),
            untold: ledger.total().gap_total().saturating_sub(self.told),
            ledger,
            boots: self.boots.clone(),
            unknown_gaps: self.unknown_gaps,
            queued: Queued::of(self.stats),
            bytes: self.stats.iter().map(|stat| stat.bytes).sum(),
            max_bytes,
            in_memory: in_memory as u64,
            oldest_seconds: age,
            quarantined: self.quarantined,
            set_aside: self.set_aside,
            delays: Delays::default(),
            trouble,
        }
    }
}

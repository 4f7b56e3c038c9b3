//! What is decided about a batch before anything is stored: which of its events are new.

use super::Ranges;
use crate::events::event_id;
use crate::{IngestBatch, IngestOutcome, NewEvent, TenantId};
use jiff::Timestamp;
use uuid::Uuid;

/// What a row has besides its texts of any length, with what the wire adds: ids, times, numbers, two words.
const ROW_BYTES: usize = 160;

/// A batch whose events were looked at, ready to be stored.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) batch: IngestBatch,
    pub(crate) ledger: Option<String>,
    /// For each event its id, or none for one that can never be stored.
    ids: Vec<Option<Uuid>>,
}

/// What of a batch is new.
#[derive(Debug, Default)]
pub(crate) struct Sifted {
    pub(crate) outcome: IngestOutcome,
    /// The highest number that came.
    pub(crate) last_seq: u64,
    /// Where the new events are in the batch.
    pub(crate) new: Vec<usize>,
}

impl Prepared {
    /// Looks at the events; not on a thread that others wait for.
    pub(crate) fn of(tenant: TenantId, batch: &IngestBatch) -> Self {
        let mut batch = batch.clone();
        // As it is kept: to the microsecond.
        batch.received_at =
            Timestamp::from_microsecond(batch.received_at.as_microsecond()).unwrap_or(batch.received_at);
        let id = |event: &NewEvent| {
            let id = || event_id(tenant, batch.agent, batch.boot_id, event.seq, batch.received_at);
            event.check().is_ok().then(id)
        };
        let ids = batch.events.iter().map(id).collect();
        Self { ids, ledger: batch.ledger.as_ref().map(serde_json::Value::to_string), batch }
    }

    /// The event at this place of the batch, and its id.
    pub(crate) fn event(&self, at: usize) -> Option<(&NewEvent, Uuid)> {
        Some((self.batch.events.get(at)?, (*self.ids.get(at)?)?))
    }

    /// The lowest and the highest number of the batch that a database can count to.
    pub(crate) fn span(&self) -> Option<(i64, i64)> {
        let numbers = || self.batch.events.iter().filter_map(|event| i64::try_from(event.seq).ok());
        numbers().min().zip(numbers().max())
    }

    /// About how many bytes its rows have.
    pub(crate) fn bytes(&self) -> usize {
        let row = |event: &NewEvent| event.data.len() + event.kind.len() + ROW_BYTES;
        self.batch.events.iter().map(row).sum()
    }

    /// Takes what is new into the ranges of the stream.
    pub(crate) fn sift(&self, ranges: &mut Ranges) -> Sifted {
        let mut sifted = Sifted::default();
        let outcome = &mut sifted.outcome;
        for (at, (event, id)) in self.batch.events.iter().zip(&self.ids).enumerate() {
            if event.seq == 0 || i64::try_from(event.seq).is_err() {
                outcome.rejected += 1;
            } else if !ranges.insert(event.seq) {
                outcome.duplicates += 1;
            } else {
                sifted.last_seq = sifted.last_seq.max(event.seq);
                if id.is_some() {
                    outcome.records += 1;
                    outcome.stored = outcome.stored.saturating_add(event.weight);
                    outcome.gaps = outcome.gaps.saturating_add(event.gap);
                    sifted.new.push(at);
                } else {
                    // It came, and is not asked for again.
                    outcome.rejected += 1;
                }
            }
        }
        sifted
    }
}

/// A number as both databases keep it.
pub(crate) fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

//! What was accepted and is not durable yet: bounded, by class, and in the books from the first instant.

use crate::delays::Delays;
use crate::draft::{Draft, Gap};
use crate::error::OutboxError;
use crate::ledger::Ledger;
use crate::marks::AcceptedFile;
use crate::settings::Limits;
use crate::status::Durable;
use picket_protocol::event::{EVENT_MAX_BYTES, EventId, GapReason, Priority};
use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;

/// What a record takes in memory besides its body, about.
const RECORD_BYTES: usize = 96;
/// Kinds of gaps that wait to be written; further ones are booked under the source `other`.
const GAP_KINDS_MAX: usize = 64;

/// Tells a caller that waits what became of its record; dropped when the record is given up.
pub(crate) type Reply = SyncSender<Result<EventId, OutboxError>>;

struct Held {
    ticket: u64,
    draft: Draft,
    reply: Option<Reply>,
}

impl Held {
    fn bytes(&self) -> usize {
        self.draft.body.len() + RECORD_BYTES
    }
}

/// What the writer has in hand.
#[derive(Default)]
pub(crate) struct Taken {
    held: Vec<Held>,
    /// The gaps.
    pub(crate) gaps: Vec<Gap>,
    /// The oldest ticket of the gaps.
    gaps_ticket: u64,
}

impl Taken {
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.gaps.is_empty()
    }

    /// The records, moved out for the engine; [`Taken::put_drafts`] puts them back.
    pub(crate) fn take_drafts(&mut self) -> Vec<Draft> {
        self.held
            .iter_mut()
            .map(|held| {
                let Draft { class, weight, at_ms, body } = &mut held.draft;
                Draft { class: *class, weight: *weight, at_ms: *at_ms, body: std::mem::take(body) }
            })
            .collect()
    }

    pub(crate) fn put_drafts(&mut self, drafts: Vec<Draft>) {
        self.held.iter_mut().zip(drafts).for_each(|(held, draft)| held.draft = draft);
    }

    /// The gaps alone.
    pub(crate) fn split_gaps(&mut self) -> Self {
        Self { held: Vec::new(), gaps: std::mem::take(&mut self.gaps), gaps_ticket: self.gaps_ticket }
    }

    /// Tells those who wait which records theirs became.
    pub(crate) fn answer(&mut self, ids: &[EventId]) {
        for (held, id) in self.held.iter_mut().zip(ids) {
            if let Some(reply) = held.reply.take() {
                let _ = reply.try_send(Ok(*id));
            }
        }
    }

    fn overlay(&self) -> Ledger {
        let mut overlay = Ledger::default();
        self.held.iter().for_each(|held| overlay.emit(held.draft.class, held.draft.weight));
        self.gaps.iter().for_each(|gap| overlay.miss(gap.class, gap.reason, gap.count.unwrap_or(0)));
        overlay
    }
}

/// What was accepted and is not durable yet, and what is known of that which is.
pub(crate) struct Intake {
    limits: Limits,
    /// By class, in the order of [`Priority::ALL`].
    waiting: [VecDeque<Held>; 3],
    gaps: Vec<Gap>,
    gaps_ticket: u64,
    /// Records and bytes that wait or are in the writer's hand.
    records: usize,
    bytes: usize,
    /// The oldest ticket in the writer's hand.
    in_hand: Option<u64>,
    ticket: u64,
    /// The books of what is not durable: they balance by themselves.
    unwritten: Ledger,
    durable: Durable,
    accepted: AcceptedFile,
    /// How long records took to become durable.
    pub(crate) delays: Delays,
    /// Why nothing becomes durable at present.
    pub(crate) trouble: Option<String>,
}

impl Intake {
    pub(crate) fn new(limits: Limits, durable: Durable, accepted: AcceptedFile) -> Self {
        Self {
            limits,
            waiting: Default::default(),
            gaps: Vec::new(),
            gaps_ticket: 0,
            records: 0,
            bytes: 0,
            in_hand: None,
            ticket: 0,
            unwritten: Ledger::default(),
            durable,
            accepted,
            delays: Delays::default(),
            trouble: None,
        }
    }

    /// The books of everything, durable or not.
    pub(crate) fn ledger(&self) -> Ledger {
        let mut ledger = self.durable.ledger.clone();
        ledger.add(&self.unwritten);
        ledger
    }

    pub(crate) fn durable(&self) -> &Durable {
        &self.durable
    }

    /// Records that wait or are in the writer's hand, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.records, self.bytes)
    }

    /// Accepts a record, or gives one up: the oldest of the lowest class below it, or itself. Says whether it is in.
    pub(crate) fn offer(&mut self, draft: Draft, reply: Option<Reply>) -> bool {
        let draft = Draft { weight: draft.weight.max(1), ..draft };
        if draft.body.len() > EVENT_MAX_BYTES || draft.body.first() != Some(&b'{') {
            self.miss(Gap::own(GapReason::Format, draft.class, Some(draft.weight)));
            return false;
        }
        self.ticket += 1;
        let held = Held { ticket: self.ticket, draft, reply };
        while self.records + 1 > self.limits.memory_records || self.bytes + held.bytes() > self.limits.memory_bytes {
            if !self.give_up_below(held.draft.class) {
                self.miss(Gap::own(self.reason(), held.draft.class, Some(held.draft.weight)));
                return false;
            }
        }
        self.unwritten.emit(held.draft.class, held.draft.weight);
        self.records += 1;
        self.bytes += held.bytes();
        self.waiting[held.draft.class as usize].push_back(held);
        self.note_accepted();
        true
    }

    fn reason(&self) -> GapReason {
        if self.trouble.is_some() { GapReason::DiskFull } else { GapReason::QueueFull }
    }

    /// Gives up the oldest waiting record of the lowest class below `class`.
    fn give_up_below(&mut self, class: Priority) -> bool {
        let Some(held) = self.waiting[..class as usize].iter_mut().find_map(VecDeque::pop_front) else { return false };
        self.records -= 1;
        self.bytes -= held.bytes();
        let reason = self.reason();
        self.unwritten.give_up(held.draft.class, reason, held.draft.weight);
        self.add_gap(Gap::own(reason, held.draft.class, Some(held.draft.weight)));
        if let Some(reply) = held.reply {
            let _ = reply.try_send(Err(OutboxError::GivenUp));
        }
        true
    }

    /// Enters events that were given up before they became records.
    pub(crate) fn miss(&mut self, gap: Gap) {
        self.unwritten.miss(gap.class, gap.reason, gap.count.unwrap_or(0));
        self.add_gap(gap);
        self.note_accepted();
    }

    fn add_gap(&mut self, mut gap: Gap) {
        self.ticket += 1;
        if self.gaps.is_empty() {
            self.gaps_ticket = self.ticket;
        }
        let same = |ours: &Gap, gap: &Gap| {
            (ours.reason, ours.class, &ours.source, ours.count.is_some())
                == (gap.reason, gap.class, &gap.source, gap.count.is_some())
        };
        if self.gaps.len() >= GAP_KINDS_MAX && !self.gaps.iter().any(|ours| same(ours, &gap)) {
            "other".clone_into(&mut gap.source);
        }
        match self.gaps.iter_mut().find(|ours| same(ours, &gap)) {
            Some(ours) => {
                if let (Some(ours), Some(theirs)) = (ours.count.as_mut(), gap.count) {
                    *ours = ours.saturating_add(theirs);
                }
                ours.since = ours.since.into_iter().chain(gap.since).min();
            }
            None => self.gaps.push(gap),
        }
    }

    fn note_accepted(&mut self) {
        let accepted = Priority::ALL
            .map(|class| self.durable.ledger.of(class).emitted.saturating_add(self.unwritten.of(class).emitted));
        self.accepted.write(accepted);
    }

    /// Whether something waits to be written, and how many records.
    pub(crate) fn waiting(&self) -> Option<usize> {
        let records = self.waiting.iter().map(VecDeque::len).sum();
        (records > 0 || !self.gaps.is_empty()).then_some(records)
    }

    /// Puts up to `max` records and all gaps into the writer's hand, the most urgent first.
    pub(crate) fn take(&mut self, max: usize) -> Taken {
        let gaps = std::mem::take(&mut self.gaps);
        let mut taken = Taken { held: Vec::new(), gaps, gaps_ticket: self.gaps_ticket };
        for class in self.waiting.iter_mut().rev() {
            let some = class.len().min(max - taken.held.len());
            taken.held.extend(class.drain(..some));
        }
        let gaps = (!taken.gaps.is_empty()).then_some(taken.gaps_ticket);
        self.in_hand = taken.held.iter().map(|held| held.ticket).chain(gaps).min();
        taken
    }

    /// What was in the writer's hand is durable.
    pub(crate) fn committed(&mut self, taken: &Taken, bytes: usize, durable: Durable) {
        self.unwritten.subtract(&taken.overlay());
        self.records -= taken.held.len();
        self.bytes -= bytes;
        self.in_hand = None;
        self.durable = durable;
    }

    /// What was in the writer's hand could not be written.
    pub(crate) fn put_back(&mut self, taken: Taken) {
        self.in_hand = None;
        for held in taken.held.into_iter().rev() {
            self.waiting[held.draft.class as usize].push_front(held);
        }
        if taken.gaps.is_empty() {
            return;
        }
        let newer = std::mem::take(&mut self.gaps);
        taken.gaps.into_iter().chain(newer).for_each(|gap| self.add_gap(gap));
        // Whoever waits for them waits on: they are as old as they were.
        self.gaps_ticket = taken.gaps_ticket;
    }

    /// Takes over what the engine says after something else was done.
    pub(crate) fn update(&mut self, durable: Durable) {
        self.durable = durable;
    }

    /// The last ticket given.
    pub(crate) fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Whether everything up to `ticket` is durable or given up.
    pub(crate) fn is_settled(&self, ticket: u64) -> bool {
        let fronts = self.waiting.iter().filter_map(|class| class.front().map(|held| held.ticket));
        let gaps = (!self.gaps.is_empty()).then_some(self.gaps_ticket);
        fronts.chain(gaps).chain(self.in_hand).min().is_none_or(|oldest| oldest > ticket)
    }
}

impl Taken {
    /// What the records take in memory; to be asked for while their bodies are there.
    pub(crate) fn bytes(&self) -> usize {
        self.held.iter().map(Held::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::engine::{Engine, Options};
    use crate::settings::OutboxSettings;
    use picket_seal::{Keyring, Sealer};
    use std::sync::Arc;
    use uuid::Uuid;

    #[test]
    fn gaps_that_could_not_be_written_are_waited_for_until_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::open_or_create(&dir.path().join("key")).unwrap();
        let limits = OutboxSettings::default().limits();
        let engine = Engine::open(Options {
            folder: dir.path().join("outbox"),
            sealer: Arc::new(Sealer::new(Arc::new(keyring)).unwrap()),
            limits,
            kernel_boot: "boot-1".to_owned(),
            clock: Arc::new(ManualClock::new("2026-11-21T12:00:00Z".parse().unwrap())),
        })
        .unwrap();
        let durable = Durable::of(&engine);
        let (file, _) = AcceptedFile::open(&dir.path().join("accepted"), Uuid::nil()).unwrap();
        let mut intake = Intake::new(limits, durable.clone(), file);
        intake.miss(Gap::own(GapReason::QueueFull, Priority::Low, Some(3)));
        let ticket = intake.ticket();
        for _ in 0..3 {
            let taken = intake.take(10);
            // One more of another kind comes while the first is in hand.
            intake.miss(Gap::own(GapReason::Format, Priority::Low, Some(1)));
            assert!(!intake.is_settled(ticket));
            intake.put_back(taken);
            assert!(!intake.is_settled(ticket), "put back is not durable");
        }
        let taken = intake.take(10);
        intake.committed(&taken, 0, durable);
        assert!(intake.is_settled(ticket));
    }
}

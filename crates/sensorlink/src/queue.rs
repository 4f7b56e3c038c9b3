//! The queue of what the agent has not acknowledged: bounded in bytes and events, gaps apart.
//!
//! Events are kept encoded: their bytes are what the limit counts, and sending them again costs nothing. Gaps are kept
//! as they are, because one that was not sent yet takes up more of its kind instead of becoming two.

use picket_protocol::event::{EVENT_MAX_BYTES, GapEvent};
use picket_protocol::sensor::{Counters, EventsFrame, FrameError, encode_event};
use picket_protocol::{EventBody, GapReason, Priority};
use std::collections::VecDeque;

/// How much the queue may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In bytes of events as they are sent.
    pub bytes: usize,
    /// In events.
    pub events: usize,
}

impl Default for Limits {
    /// 8 MiB and 50,000 events: at 2,000 events a second that is half a minute without an agent, and a restart takes
    /// a second.
    fn default() -> Self {
        Self { bytes: 8 << 20, events: 50_000 }
    }
}

/// How many gaps are kept apart before those of one reason become one.
const GAPS_APART: usize = 1_000;
/// What a gap counts for in bytes.
const GAP_BYTES: usize = 512;
/// What stands behind a gap's `source` where this crate found it.
pub(crate) const SOURCE: &str = "sensor";

#[derive(Debug)]
struct Entry {
    seq: u64,
    encoded: Box<[u8]>,
}

#[derive(Debug)]
struct Gap {
    seq: u64,
    event: GapEvent,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    limits: Limits,
    /// One for each class of [`Priority::ALL`], each in ascending order.
    classes: [VecDeque<Entry>; 3],
    /// In ascending order.
    gaps: VecDeque<Gap>,
    bytes: usize,
    position: Position,
}

/// Where the numbers and the ledger stand: what outlives the process with the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Position {
    /// The next number.
    pub(crate) next: u64,
    /// The highest number that was ever sent. What was sent may be durable on the other side, so it is neither given up
    /// nor changed any more; the server keeps little on the way at a time.
    pub(crate) sent: u64,
    /// The highest number that was acknowledged.
    pub(crate) acked: u64,
    /// See [`Counters`].
    pub(crate) emitted: u64,
    /// See [`Counters`].
    pub(crate) acknowledged: u64,
    /// See [`Counters`].
    pub(crate) shed: u64,
}

impl Default for Position {
    fn default() -> Self {
        Self { next: 1, sent: 0, acked: 0, emitted: 0, acknowledged: 0, shed: 0 }
    }
}

impl Position {
    /// Whether it can be gone on from: numbers in order, and nothing near the end of what a number can count.
    pub(crate) fn is_sound(&self) -> bool {
        let ordered = self.acked <= self.sent && self.sent < self.next;
        ordered && [self.next, self.emitted, self.acknowledged, self.shed].iter().all(|n| *n < u64::MAX / 4)
    }
}

/// An acknowledgement of something that was never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("number {up_to} was acknowledged, but only {sent} was sent")]
pub(crate) struct NeverSent {
    up_to: u64,
    sent: u64,
}

/// A frame that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Ready {
    /// Its bytes, with their length before them.
    pub(crate) bytes: Vec<u8>,
    /// The number of its last event.
    pub(crate) last: u64,
}

fn place(class: Priority) -> usize {
    match class {
        Priority::Low => 0,
        Priority::Normal => 1,
        Priority::High => 2,
    }
}

impl Queue {
    pub(crate) fn new(limits: Limits, position: Position) -> Self {
        Self { limits, classes: Default::default(), gaps: VecDeque::new(), bytes: 0, position }
    }

    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Takes what a watcher reports.
    pub(crate) fn push(&mut self, body: EventBody, now: jiff::Timestamp) {
        let class = body.class();
        let body = match body {
            EventBody::Gap(gap) => return self.push_gap(gap),
            body => body,
        };
        self.position.emitted += 1;
        let seq = self.next();
        match encode_event(seq, &body) {
            Ok(encoded) if encoded.len() <= EVENT_MAX_BYTES => self.insert(class, seq, encoded.into()),
            Ok(encoded) => {
                let detail = format!("a {} event of {} bytes is too long to be sent", body.type_name(), encoded.len());
                self.lose(GapReason::Format, detail, now);
            }
            Err(error) => {
                let detail = format!("a {} event cannot be written: {error}", body.type_name());
                self.lose(GapReason::Format, detail, now);
            }
        }
        self.keep_within_limits(now);
    }

    fn next(&mut self) -> u64 {
        let seq = self.position.next;
        self.position.next += 1;
        seq
    }

    fn insert(&mut self, class: Priority, seq: u64, encoded: Box<[u8]>) {
        self.bytes += encoded.len();
        self.classes[place(class)].push_back(Entry { seq, encoded });
    }

    /// Puts back an event that was spooled: numbers come in ascending order.
    pub(crate) fn restore(&mut self, seq: u64, body: EventBody, encoded: &[u8]) {
        match body {
            EventBody::Gap(event) => {
                self.bytes += GAP_BYTES;
                self.gaps.push_back(Gap { seq, event });
            }
            body => self.insert(body.class(), seq, encoded.into()),
        }
    }

    /// Counts one event that is not in the queue and never will be.
    fn lose(&mut self, reason: GapReason, detail: String, now: jiff::Timestamp) {
        self.position.shed += 1;
        self.push_gap(GapEvent {
            timestamp: now,
            reason,
            source: SOURCE.to_owned(),
            count: Some(1),
            since: Some(now),
            detail,
        });
    }

    /// Counts what an earlier life had in its queue and what was not restored, so that the ledger holds again. `damaged`
    /// says that something, if only a gap, could not be read.
    pub(crate) fn reconcile(&mut self, damaged: bool, now: jiff::Timestamp) {
        let Counters { emitted, acknowledged, queued, shed, .. } = self.counters();
        let known = acknowledged.saturating_add(queued).saturating_add(shed);
        let lost = emitted.saturating_sub(known);
        self.position.emitted = emitted.max(known);
        self.position.shed = shed.saturating_add(lost);
        if damaged || lost > 0 {
            self.push_gap(GapEvent {
                timestamp: now,
                reason: GapReason::Corruption,
                source: SOURCE.to_owned(),
                count: (lost > 0).then_some(lost),
                since: None,
                detail: "stored events could not be read back".to_owned(),
            });
        }
    }

    /// Takes a gap. One that was not sent yet takes up another of its kind.
    pub(crate) fn push_gap(&mut self, gap: GapEvent) {
        let sent = self.position.sent;
        let crowded = self.gaps.len() >= GAPS_APART;
        let same = |known: &&mut Gap| {
            known.seq > sent
                && known.event.reason == gap.reason
                && (crowded || known.event.source == gap.source)
                // One whose count nobody knows stays apart: together, neither number would mean anything.
                && (crowded || known.event.count.is_some() == gap.count.is_some())
        };
        if let Some(known) = self.gaps.iter_mut().rev().take_while(|known| known.seq > sent).find(same) {
            known.event.count = known.event.count.zip(gap.count).map(|(a, b)| a.saturating_add(b));
            known.event.since = known.event.since.into_iter().chain(gap.since).min();
            known.event.timestamp = gap.timestamp;
            known.event.detail = gap.detail;
            return;
        }
        let seq = self.next();
        self.bytes += GAP_BYTES;
        self.gaps.push_back(Gap { seq, event: gap });
    }

    fn events(&self) -> usize {
        self.classes.iter().map(VecDeque::len).sum()
    }

    fn keep_within_limits(&mut self, now: jiff::Timestamp) {
        while self.bytes > self.limits.bytes || self.events() > self.limits.events {
            if !self.shed_one(now) {
                return;
            }
        }
    }

    /// Gives up the oldest event of the lowest class among those that were never sent.
    fn shed_one(&mut self, now: jiff::Timestamp) -> bool {
        let sent = self.position.sent;
        for class in &mut self.classes {
            let at = class.partition_point(|entry| entry.seq <= sent);
            if let Some(entry) = class.remove(at) {
                self.bytes -= entry.encoded.len();
                let Limits { bytes, events } = self.limits;
                let detail =
                    format!("the agent did not take them, and the sensor keeps {events} events or {bytes} bytes");
                self.lose(GapReason::QueueFull, detail, now);
                return true;
            }
        }
        false
    }

    /// The next frame of events after number `cursor`; `None` where there is none.
    ///
    /// # Errors
    /// Never in practice: a frame is ended long before its limit.
    pub(crate) fn frame_after(&mut self, cursor: u64) -> Result<Option<Ready>, FrameError> {
        let mut frame = EventsFrame::default();
        let mut last = cursor;
        let mut at = [0; 4];
        for (index, class) in self.classes.iter().enumerate() {
            at[index] = class.partition_point(|entry| entry.seq <= cursor);
        }
        at[3] = self.gaps.partition_point(|gap| gap.seq <= cursor);
        while frame.has_room() {
            let heads = self.classes.iter().zip(at).enumerate();
            let next = heads.filter_map(|(index, (class, at))| Some((class.get(at)?.seq, index))).min();
            let gap = self.gaps.get(at[3]).map(|gap| (gap.seq, 3));
            let Some((seq, index)) = next.into_iter().chain(gap).min() else { break };
            if index == 3 {
                frame.push(&encode_event(seq, &EventBody::Gap(self.gaps[at[3]].event.clone()))?);
            } else {
                frame.push(&self.classes[index][at[index]].encoded);
            }
            at[index] += 1;
            last = seq;
        }
        if frame.is_empty() {
            return Ok(None);
        }
        self.position.sent = self.position.sent.max(last);
        Ok(Some(Ready { bytes: frame.finish()?, last }))
    }

    /// Forgets everything up to `up_to`: it is durable on the other side.
    pub(crate) fn acknowledge(&mut self, up_to: u64) -> Result<(), NeverSent> {
        if up_to > self.position.sent {
            return Err(NeverSent { up_to, sent: self.position.sent });
        }
        self.position.acked = self.position.acked.max(up_to);
        for class in &mut self.classes {
            let count = class.partition_point(|entry| entry.seq <= up_to);
            self.bytes -= class.drain(..count).map(|entry| entry.encoded.len()).sum::<usize>();
            self.position.acknowledged += count as u64;
        }
        let count = self.gaps.partition_point(|gap| gap.seq <= up_to);
        self.gaps.drain(..count);
        self.bytes -= count * GAP_BYTES;
        Ok(())
    }

    /// Whether nothing waits, no gap either.
    pub(crate) fn is_empty(&self) -> bool {
        self.gaps.is_empty() && self.classes.iter().all(VecDeque::is_empty)
    }

    pub(crate) fn counters(&self) -> Counters {
        let Position { emitted, acknowledged, shed, .. } = self.position;
        Counters {
            emitted,
            acknowledged,
            queued: self.events() as u64,
            shed,
            queued_bytes: self.bytes as u64,
            limit_bytes: self.limits.bytes as u64,
            limit_events: self.limits.events as u64,
        }
    }

    /// Every event and gap in ascending order, encoded.
    pub(crate) fn encoded(&self) -> Result<Vec<(u64, Vec<u8>)>, serde_json::Error> {
        let entries = self.classes.iter().flatten();
        let mut all: Vec<(u64, Vec<u8>)> = entries.map(|entry| (entry.seq, entry.encoded.to_vec())).collect();
        for gap in &self.gaps {
            all.push((gap.seq, encode_event(gap.seq, &EventBody::Gap(gap.event.clone()))?));
        }
        all.sort_unstable_by_key(|(seq, _)| *seq);
        Ok(all)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use picket_protocol::event::{AlertAction, AlertEvent, AlertLevel};
    use picket_protocol::event::{Confidence, FileAction, FileEvent, FileKind, FileMethod};
    use picket_protocol::sensor::{Events, Frame};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    pub(crate) const NOW: jiff::Timestamp = jiff::Timestamp::UNIX_EPOCH;

    pub(crate) fn file(path: &str) -> EventBody {
        EventBody::File(FileEvent {
            timestamp: NOW,
            action: FileAction::Created,
            path: path.to_owned(),
            path_base64: None,
            path_from: None,
            kind: FileKind::File,
            meta: None,
            sha256: None,
            actor: None,
            method: FileMethod::Fanotify,
            confidence: Confidence::Observed,
            fold: None,
        })
    }

    fn alert() -> EventBody {
        EventBody::Alert(AlertEvent {
            timestamp: NOW,
            alert_id: uuid::Uuid::nil(),
            action: AlertAction::Raised,
            level: AlertLevel::Warning,
            metric: "cpu".into(),
            tags: BTreeMap::new(),
            value: 1.0,
            threshold: 1.0,
            message: String::new(),
            by: None,
            note: None,
        })
    }

    fn gap(reason: GapReason, source: &str, count: Option<u64>) -> EventBody {
        let source = source.to_owned();
        EventBody::Gap(GapEvent { timestamp: NOW, reason, source, count, since: None, detail: String::new() })
    }

    fn events(ready: &Ready) -> Vec<(u64, EventBody)> {
        let Frame::Events(Events { events }) = Frame::decode(&ready.bytes[4..]).unwrap() else { panic!("no events") };
        events.into_iter().map(|numbered| (numbered.seq, numbered.event)).collect()
    }

    fn few(events: usize) -> Queue {
        Queue::new(Limits { bytes: 1 << 20, events }, Position::default())
    }

    fn assert_ledger(queue: &Queue) {
        let c = queue.counters();
        assert_eq!(c.emitted, c.acknowledged + c.queued + c.shed, "{c:?}");
    }

    #[test]
    fn what_does_not_fit_goes_the_oldest_of_the_lowest_class_first_and_is_counted() {
        let mut queue = few(3);
        queue.push(alert(), NOW);
        for name in ["/a", "/b", "/c", "/d"] {
            queue.push(file(name), NOW);
        }
        assert_ledger(&queue);
        let sent = events(&queue.frame_after(0).unwrap().unwrap());
        let paths: Vec<&str> = sent
            .iter()
            .map(|(_, body)| match body {
                EventBody::File(event) => event.path.as_str(),
                EventBody::Gap(gap) => {
                    assert_eq!((gap.reason, gap.count), (GapReason::QueueFull, Some(2)));
                    "gap"
                }
                _ => "alert",
            })
            .collect();
        assert_eq!(paths, ["alert", "/c", "gap", "/d"]);
    }

    #[test]
    fn what_is_on_the_way_is_not_given_up_and_a_gap_that_was_sent_is_not_changed() {
        let mut queue = few(2);
        queue.push(file("/a"), NOW);
        queue.push(file("/b"), NOW);
        let first = queue.frame_after(0).unwrap().unwrap();
        queue.push(file("/c"), NOW);
        assert_eq!((queue.counters().queued, queue.counters().shed), (2, 1));
        // The gap for /c goes out; the next loss is another one.
        let second = queue.frame_after(first.last).unwrap().unwrap();
        queue.push(file("/d"), NOW);
        let third = events(&queue.frame_after(second.last).unwrap().unwrap());
        assert!(matches!(&third[..], [(_, EventBody::Gap(gap))] if gap.count == Some(1)));
        queue.acknowledge(second.last).unwrap();
        assert_eq!((queue.counters().acknowledged, queue.counters().shed), (2, 2));
        assert_ledger(&queue);
    }

    #[test]
    fn a_limit_in_bytes_holds_and_gaps_are_never_given_up() {
        let mut queue = Queue::new(Limits { bytes: 4_000, events: 1_000 }, Position::default());
        queue.push(gap(GapReason::KernelOverflow, "files", None), NOW);
        for number in 0..500 {
            queue.push(file(&format!("/var/lib/{number}")), NOW);
            assert!(queue.counters().queued_bytes <= 4_000);
        }
        let kernel = |(_, body): &(u64, EventBody)| matches!(body, EventBody::Gap(gap) if gap.source == "files");
        assert_eq!(events(&queue.frame_after(0).unwrap().unwrap()).iter().filter(|event| kernel(event)).count(), 1);
        assert_ledger(&queue);
    }

    #[test]
    fn an_event_that_is_too_long_is_a_gap() {
        let mut queue = few(10);
        queue.push(file(&"x".repeat(EVENT_MAX_BYTES)), NOW);
        let sent = events(&queue.frame_after(0).unwrap().unwrap());
        assert!(
            matches!(&sent[..], [(_, EventBody::Gap(gap))] if gap.reason == GapReason::Format && gap.count == Some(1))
        );
        assert_ledger(&queue);
    }

    #[test]
    fn gaps_of_one_kind_become_one_and_those_without_a_count_stay_apart() {
        let mut queue = few(10);
        queue.push(gap(GapReason::KernelOverflow, "files", Some(2)), NOW);
        queue.push(gap(GapReason::KernelOverflow, "network", Some(3)), NOW);
        queue.push(gap(GapReason::KernelOverflow, "files", Some(5)), NOW);
        queue.push(gap(GapReason::KernelOverflow, "files", None), NOW);
        let counts: Vec<Option<u64>> = events(&queue.frame_after(0).unwrap().unwrap())
            .iter()
            .filter_map(|(_, body)| if let EventBody::Gap(gap) = body { Some(gap.count) } else { None })
            .collect();
        assert_eq!(counts, [Some(7), Some(3), None]);
    }

    #[test]
    fn any_number_of_kinds_of_gaps_stays_bounded() {
        let mut queue = few(10);
        for number in 0..5_000 {
            queue.push(gap(GapReason::Shed, &number.to_string(), Some(1)), NOW);
        }
        assert!(queue.gaps.len() <= GAPS_APART);
        let total: u64 = queue.gaps.iter().filter_map(|gap| gap.event.count).sum();
        assert_eq!(total, 5_000);
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_refused() {
        let mut queue = few(10);
        queue.push(file("/a"), NOW);
        assert_eq!(queue.acknowledge(1), Err(NeverSent { up_to: 1, sent: 0 }));
        queue.frame_after(0).unwrap();
        assert_eq!(queue.acknowledge(1), Ok(()));
        assert_eq!(queue.acknowledge(0), Ok(()));
        assert!(queue.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u8),
        Send,
        Acknowledge(u64),
        Reconnect,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0_u8..3).prop_map(Step::Push),
            2 => Just(Step::Send),
            2 => (0_u64..60).prop_map(Step::Acknowledge),
            1 => Just(Step::Reconnect),
        ];
        proptest::collection::vec(step, 0..120)
    }

    proptest! {
        /// Whatever is pushed, sent, acknowledged and sent again: the ledger holds, and a receiver that takes each
        /// number once gets every event or its count in a gap.
        #[test]
        fn nothing_is_lost_without_being_counted(steps in steps(), limit in 1_usize..12) {
            let mut queue = few(limit);
            let (mut cursor, mut emitted) = (0, 0_u64);
            let mut received: BTreeMap<u64, EventBody> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Push(kind) => {
                        queue.push(if kind == 0 { alert() } else { file("/x") }, NOW);
                        emitted += 1;
                    }
                    Step::Send => {
                        if let Some(ready) = queue.frame_after(cursor).unwrap() {
                            for (seq, body) in events(&ready) {
                                // A number that comes twice means the same twice.
                                prop_assert!(received.get(&seq).is_none_or(|known| *known == body));
                                received.insert(seq, body);
                            }
                            cursor = ready.last;
                        }
                    }
                    Step::Acknowledge(up_to) => {
                        let up_to = up_to.min(received.keys().last().copied().unwrap_or(0));
                        queue.acknowledge(up_to).unwrap();
                    }
                    Step::Reconnect => cursor = queue.position().acked,
                }
                assert_ledger(&queue);
                prop_assert!(queue.events() <= limit);
            }
            while let Some(ready) = queue.frame_after(cursor).unwrap() {
                received.extend(events(&ready));
                cursor = ready.last;
            }
            let counted: u64 = received
                .values()
                .map(|body| if let EventBody::Gap(gap) = body { gap.count.unwrap() } else { 1 })
                .sum();
            prop_assert_eq!(counted, emitted);
        }
    }
}

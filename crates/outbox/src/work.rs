//! What is done within one transaction: records in, records out, and the books that go with them.

use crate::batch::{Batch, ENVELOPE_BYTES, Record};
use crate::database::{Read, Row, Tables};
use crate::draft::{Draft, Gap};
use crate::error::Trouble;
use crate::lane::{Lane, compose};
use crate::settings::{BatchLimits, Limits};
use crate::state::{Lease, State};
use picket_protocol::event::{EventBody, EventId, GapEvent, GapReason, Priority};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Rows that are read at once while evicting: few at first, for a full queue evicts as much as comes in, and no more.
const CHUNKS: (usize, usize) = (8, 256);
/// Rows that one transaction evicts at most, so that none takes long; the next goes on.
const EVICT_MAX: usize = 8192;
/// Gap records that are added to rather than joined by another.
const OPEN_GAPS_MAX: usize = 64;

/// What lies in one lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LaneStat {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

/// A gap record that was not handed out since this process began, and so may still grow.
#[derive(Debug, Clone)]
pub(crate) struct OpenGap {
    class: Priority,
    event: GapEvent,
    row: Row,
}

/// All that changes with a transaction, and is put back if that fails.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) state: State,
    pub(crate) stats: [LaneStat; 4],
    pub(crate) open_gaps: Vec<OpenGap>,
}

impl Memory {
    pub(crate) fn new(state: State) -> Self {
        Self { state, stats: [LaneStat::default(); 4], open_gaps: Vec::new() }
    }

    /// What the byte quota is held against. Gap records are not in it: the record that tells of one eviction would
    /// cause the next, up to class high. They are few, for they grow instead of becoming more.
    fn evictable_bytes(&self) -> u64 {
        Lane::EVICTED.iter().map(|lane| self.stats[lane.index()].bytes).sum()
    }
}

/// Which queued records [`Work::clean`] drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CleanRequest {
    /// This class and those below it.
    pub class: Priority,
    /// Only those that are at least so old, in seconds of the outbox's own time.
    pub older_than_seconds: u64,
}

/// One transaction.
pub(crate) struct Work<'a> {
    pub(crate) tables: Tables<'a>,
    pub(crate) memory: &'a mut Memory,
    pub(crate) limits: Limits,
    pub(crate) wall: jiff::Timestamp,
}

/// How far an eviction goes.
#[derive(Clone, Copy)]
enum Until {
    /// Until so many bytes are queued in all.
    Bytes(u64),
    /// Until the next one is younger than this age mark.
    AgedBefore(i64),
}

impl Work<'_> {
    /// Adds a record.
    pub(crate) fn insert(&mut self, draft: &Draft) -> Result<EventId, Trouble> {
        let row = self.new_row(Lane::of(draft.class), draft.weight.max(1), 0, draft.at_ms, draft.body.clone());
        self.memory.state.present().emit(draft.class, row.weight);
        self.put_new(Lane::of(draft.class), &row)?;
        Ok(EventId { boot_id: row.boot, seq: row.seq })
    }

    fn new_row(&mut self, lane: Lane, weight: u64, lost: u64, at: i64, body: Vec<u8>) -> Row {
        let state = &mut self.memory.state;
        let marks = &mut state.lanes[lane.index()];
        marks.last += 1;
        let id = marks.last;
        Row { id, boot: state.boot(), seq: state.next_seq(), weight, lost, at, aged: state.aged.ms, body }
    }

    fn put_new(&mut self, lane: Lane, row: &Row) -> Result<(), Trouble> {
        self.tables.put(lane, row)?;
        let stat = &mut self.memory.stats[lane.index()];
        stat.records += 1;
        stat.bytes += row.stored_bytes();
        Ok(())
    }

    /// Enters events that were given up before they became records, and tells of them.
    pub(crate) fn account(&mut self, gap: &Gap) -> Result<(), Trouble> {
        self.memory.state.present().miss(gap.class, gap.reason, gap.count.unwrap_or(0));
        self.tell(gap)
    }

    /// Tells of missing events that are in the books already: a gap record grows, or a new one is added.
    pub(crate) fn tell(&mut self, gap: &Gap) -> Result<(), Trouble> {
        if gap.count == Some(0) {
            return Ok(());
        }
        if gap.count.is_none() {
            self.memory.state.unknown_gaps += 1;
        }
        let open = self.memory.open_gaps.iter().position(|open| open.is_for(gap));
        match open {
            Some(index) => {
                let mut open = self.memory.open_gaps[index].clone();
                open.grow(gap, self.wall);
                let before = open.row.stored_bytes();
                open.write();
                self.tables.put(Lane::Gaps, &open.row)?;
                let stat = &mut self.memory.stats[Lane::Gaps.index()];
                stat.bytes = (stat.bytes + open.row.stored_bytes()).saturating_sub(before);
                self.memory.open_gaps[index] = open;
            }
            None => {
                let row = self.new_row(Lane::Gaps, 0, gap.count.unwrap_or(0), self.wall.as_millisecond(), Vec::new());
                let Gap { reason, class, source, count, since, detail } = gap.clone();
                let event = GapEvent { timestamp: self.wall, reason, source, count, since, detail };
                let mut open = OpenGap { class, event, row };
                open.write();
                self.put_new(Lane::Gaps, &open.row)?;
                if self.memory.open_gaps.len() >= OPEN_GAPS_MAX {
                    self.memory.open_gaps.remove(0);
                }
                self.memory.open_gaps.push(open);
            }
        }
        Ok(())
    }

    /// Evicts what is over the quotas: age first, then bytes, of class low before normal before high, oldest first.
    /// What is handed out stays: it may be with the receiver already, and must not be counted as missing too.
    pub(crate) fn enforce_quotas(&mut self) -> Result<(), Trouble> {
        let oldest = self.memory.state.aged.ms.saturating_sub(self.limits.max_age_ms);
        let mut budget = EVICT_MAX;
        for lane in Lane::EVICTED {
            self.evict(lane, Until::AgedBefore(oldest), GapReason::QuotaAge, &mut budget)?;
        }
        for lane in Lane::EVICTED {
            self.evict(lane, Until::Bytes(self.limits.max_bytes), GapReason::QuotaBytes, &mut budget)?;
        }
        Ok(())
    }

    /// Drops what `request` says, counted as shed. Says how many events went.
    pub(crate) fn clean(&mut self, request: CleanRequest) -> Result<u64, Trouble> {
        let before = self.memory.state.ledger().total().queued;
        let age = i64::try_from(request.older_than_seconds).unwrap_or(i64::MAX).saturating_mul(1000);
        // An age of nothing takes what came this instant, too.
        let until = self.memory.state.aged.ms.saturating_sub(age).saturating_add(1);
        let mut budget = usize::MAX;
        for lane in Lane::EVICTED.into_iter().filter(|lane| lane.class() <= request.class) {
            self.evict(lane, Until::AgedBefore(until), GapReason::Shed, &mut budget)?;
        }
        Ok(before.saturating_sub(self.memory.state.ledger().total().queued))
    }

    /// The last id of `lane` that an eviction must not touch.
    fn kept_to(&self, lane: Lane) -> i64 {
        let state = &self.memory.state;
        state.lanes[lane.index()].removed_to.max(state.leased_to(lane.index()))
    }

    fn evict(&mut self, lane: Lane, until: Until, reason: GapReason, budget: &mut usize) -> Result<(), Trouble> {
        let (mut count, mut since, first) = (0, None, self.kept_to(lane));
        let (mut after, mut chunk) = (first, CHUNKS.0);
        'chunks: while *budget > 0 && self.memory.stats[lane.index()].records > 0 {
            // Most of the time there is nothing to do, and that must cost next to nothing.
            match until {
                Until::Bytes(max) if self.memory.evictable_bytes() <= max => break,
                Until::AgedBefore(mark) if self.tables.first_aged(lane, after)?.is_none_or(|aged| aged >= mark) => {
                    break;
                }
                _ => {}
            }
            let rows = self.tables.rows(lane, after, i64::MAX, chunk.min(*budget))?;
            chunk = (chunk * 2).min(CHUNKS.1);
            if rows.is_empty() {
                break;
            }
            for read in rows {
                let Read::Whole(row) = read else { return Err(Trouble::Row) };
                let done = match until {
                    Until::Bytes(max) => self.memory.evictable_bytes() <= max,
                    Until::AgedBefore(mark) => row.aged >= mark,
                };
                if done {
                    break 'chunks;
                }
                if self.memory.state.books_of(row.boot).give_up(lane.class(), reason, row.weight) != row.weight {
                    return Err(Trouble::Row);
                }
                self.forget(lane, row.stored_bytes());
                count += row.weight;
                since = since.or(jiff::Timestamp::from_millisecond(row.at).ok());
                after = row.id;
                *budget -= 1;
            }
        }
        if after > first {
            self.tables.remove(lane, first, after)?;
            let leased_to = self.memory.state.leased_to(lane.index());
            let marks = &mut self.memory.state.lanes[lane.index()];
            if leased_to <= marks.removed_to {
                marks.removed_to = after;
            } else {
                (marks.kept_to, marks.evicted_to) = (leased_to, after);
            }
            self.tell(&Gap { since, ..Gap::own(reason, lane.class(), Some(count)) })?;
        }
        Ok(())
    }

    fn forget(&mut self, lane: Lane, bytes: u64) {
        let stat = &mut self.memory.stats[lane.index()];
        stat.records = stat.records.saturating_sub(1);
        stat.bytes = stat.bytes.saturating_sub(bytes);
    }

    /// Hands out records: those that were handed out already and not acknowledged, else new ones.
    pub(crate) fn lease(&mut self, limits: BatchLimits) -> Result<Option<Batch>, Trouble> {
        if self.memory.state.lease.is_none() {
            let mut ids: [Vec<i64>; 4] = Default::default();
            let mut sizes: [Vec<usize>; 4] = Default::default();
            for lane in Lane::ALL {
                let index = lane.index();
                if self.memory.stats[index].records > 0 {
                    let after = self.memory.state.lanes[index].removed_to;
                    let head = self.tables.sizes(lane, after, limits.records)?;
                    (ids[index], sizes[index]) = head.into_iter().map(|(id, size)| (id, size + ENVELOPE_BYTES)).unzip();
                }
            }
            let taken = compose(&sizes, limits.bytes, limits.records);
            let mut to = self.memory.state.lanes.map(|marks| marks.removed_to);
            for lane in 0..4 {
                if let Some(id) = taken[lane].checked_sub(1).and_then(|last| ids[lane].get(last)) {
                    to[lane] = *id;
                }
            }
            if taken == [0; 4] {
                return Ok(None);
            }
            self.memory.state.leases += 1;
            self.memory.state.lease = Some(Lease { token: self.memory.state.leases, to });
            let told_to = to[Lane::Gaps.index()];
            self.memory.open_gaps.retain(|open| open.row.id > told_to);
        }
        self.leased()
    }

    /// Reads what is handed out.
    fn leased(&mut self) -> Result<Option<Batch>, Trouble> {
        let Some(lease) = self.memory.state.lease else { return Ok(None) };
        let mut batch = Batch { token: lease.token, records: Vec::new() };
        for lane in Lane::ALL {
            let after = self.memory.state.lanes[lane.index()].removed_to;
            for read in self.tables.rows(lane, after, lease.to[lane.index()], usize::MAX)? {
                let Read::Whole(row) = read else { return Err(Trouble::Row) };
                batch.records.push(Record {
                    id: EventId { boot_id: row.boot, seq: row.seq },
                    class: lane.class(),
                    weight: row.weight,
                    lane,
                    lost: row.lost,
                    stored_bytes: row.stored_bytes(),
                    body: row.body,
                });
            }
        }
        if batch.records.is_empty() {
            // All of it was lost to damage.
            self.end_lease(lease)?;
            return Ok(None);
        }
        Ok(Some(batch))
    }

    /// Removes what is handed out.
    fn end_lease(&mut self, lease: Lease) -> Result<(), Trouble> {
        for lane in Lane::ALL {
            let (removed_to, to) = (self.memory.state.lanes[lane.index()].removed_to, lease.to[lane.index()]);
            if to > removed_to {
                self.tables.remove(lane, removed_to, to)?;
                self.memory.state.lanes[lane.index()].removed_to = to;
            }
        }
        self.memory.state.lease = None;
        Ok(())
    }

    /// The receiver has stored `batch`. Says whether it was the one that is handed out.
    pub(crate) fn acknowledge(&mut self, batch: &Batch) -> Result<bool, Trouble> {
        let Some(lease) = self.memory.state.lease.filter(|lease| lease.token == batch.token) else { return Ok(false) };
        for record in &batch.records {
            self.memory.state.books_of(record.id.boot_id).acknowledge(record.class, record.weight);
            self.memory.state.told += record.lost;
            self.forget(record.lane, record.stored_bytes);
        }
        self.end_lease(lease)?;
        Ok(true)
    }

    /// `batch` certainly did not reach the receiver: the next one may be made up anew. Says whether it was handed out.
    pub(crate) fn release(&mut self, batch: &Batch) -> bool {
        let ours = self.memory.state.lease.is_some_and(|lease| lease.token == batch.token);
        if ours {
            self.memory.state.lease = None;
        }
        ours
    }

    /// The receiver will never take `batch`: it is given up, and counted.
    pub(crate) fn give_up(&mut self, batch: &Batch, reason: GapReason) -> Result<bool, Trouble> {
        let Some(lease) = self.memory.state.lease.filter(|lease| lease.token == batch.token) else { return Ok(false) };
        let mut counts: BTreeMap<Priority, u64> = BTreeMap::new();
        for record in &batch.records {
            let gone = self.memory.state.books_of(record.id.boot_id).give_up(record.class, reason, record.weight);
            *counts.entry(record.class).or_default() += gone;
            // A gap record that the receiver does not take: what it told is taken as told, or it would come again.
            self.memory.state.told += record.lost;
            self.forget(record.lane, record.stored_bytes);
        }
        self.end_lease(lease)?;
        for (class, count) in counts {
            self.tell(&Gap::own(reason, class, Some(count)))?;
        }
        Ok(true)
    }

    /// Ends a boot and begins another on the wire.
    pub(crate) fn begin_boot(&mut self, boot: Uuid) {
        self.memory.state.begin_boot(boot);
        self.memory.open_gaps.clear();
    }
}

impl OpenGap {
    fn is_for(&self, gap: &Gap) -> bool {
        (self.event.reason, self.class, self.event.source.as_str(), self.event.count.is_some())
            == (gap.reason, gap.class, gap.source.as_str(), gap.count.is_some())
    }

    fn grow(&mut self, gap: &Gap, now: jiff::Timestamp) {
        self.event.timestamp = now;
        self.event.since = match (self.event.since, gap.since) {
            (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
            (ours, theirs) => ours.or(theirs),
        };
        if let (Some(ours), Some(theirs)) = (self.event.count.as_mut(), gap.count) {
            *ours = ours.saturating_add(theirs);
            self.row.lost = *ours;
        }
    }

    /// Puts the event into the row.
    fn write(&mut self) {
        // Nothing in a gap event can fail to be written; an empty body would be left out of a batch.
        self.row.body = serde_json::to_vec(&EventBody::Gap(self.event.clone())).unwrap_or_default();
    }
}

//! What is done about damage: every row is looked at, what is not whole goes to quarantine, and the books are made to say
//! what is left.

use crate::database::{self, Read, Tables};
use crate::draft::Gap;
use crate::error::Trouble;
use crate::lane::Lane;
use crate::state::State;
use crate::work::{LaneStat, Work};
use picket_protocol::event::{GapReason, Priority};
use std::collections::HashMap;
use std::path::Path;
use uuid::Uuid;

/// Rows that are looked at at once.
const CHUNK: usize = 512;
/// How often a salvage asks a damaged tree for rows before it leaves the rest.
const PROBES_MAX: u32 = 20_000;
/// No id is greater: at a million a second it takes 34 years.
const ID_MAX: i64 = 1 << 50;
/// Rows between two looks that a salvage puts down in one transaction.
const SALVAGE_CHUNK: usize = 64;

/// What lies in the lanes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) stats: [LaneStat; 4],
    last: [i64; 4],
    /// Events by the boot and the class they are booked under.
    weights: HashMap<(Uuid, Priority), u64>,
    /// Missing events that gap records tell of.
    lost: u64,
}

impl Contents {
    /// Adds up what the lanes claim to hold, without opening a body: quick, and enough to see whether the books add up.
    pub(crate) fn claimed(tables: Tables<'_>) -> Result<Self, Trouble> {
        let mut contents = Self::default();
        for lane in Lane::ALL {
            // Sums of real numbers do not overflow; whole ones of flipped bits would be an error of SQLite's.
            let sql = format!(
                "SELECT boot, COUNT(*), TOTAL(weight), TOTAL(lost), SUM(length(body)), MAX(id) FROM {} GROUP BY boot",
                lane.table()
            );
            let mut statement = tables.db.prepare(&sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let boot = row.get_ref(0)?.as_blob().ok().and_then(|blob| Uuid::from_slice(blob).ok());
                let boot = boot.ok_or(Trouble::Row)?;
                let records: i64 = row.get(1)?;
                let bytes: i64 = row.get(4)?;
                let bodies =
                    bytes.cast_unsigned().saturating_sub(records.cast_unsigned() * picket_seal::OVERHEAD as u64);
                contents.add(
                    lane,
                    boot,
                    records.cast_unsigned(),
                    whole(row.get(2)?).ok_or(Trouble::Row)?,
                    whole(row.get(3)?).ok_or(Trouble::Row)?,
                    bodies + records.cast_unsigned() * database::ROW_BYTES,
                );
                contents.last[lane.index()] = contents.last[lane.index()].max(row.get(5)?);
            }
        }
        Ok(contents)
    }

    fn add(&mut self, lane: Lane, boot: Uuid, records: u64, weight: u64, lost: u64, bytes: u64) {
        let stat = &mut self.stats[lane.index()];
        stat.records += records;
        stat.bytes += bytes;
        *self.weights.entry((boot, lane.class())).or_default() += weight;
        self.lost = self.lost.saturating_add(lost);
    }

    /// Whether the books say what is there.
    pub(crate) fn agrees(&self, state: &State) -> bool {
        let mut booked = state.clone();
        for ((boot, class), weight) in &self.weights {
            let books = booked.books_of(*boot);
            if books.of(*class).queued < *weight {
                return false;
            }
            books.acknowledge(*class, *weight);
        }
        let nothing_else = booked.ledger().total().queued == 0;
        let told = state.ledger().total().gap_total() == state.told.saturating_add(self.lost);
        let within = Lane::ALL.iter().all(|lane| self.last[lane.index()] <= state.lanes[lane.index()].last);
        nothing_else && told && within
    }
}

/// A sum that SQLite made as a real number, if it is one that whole numbers make exactly.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and below 2^53")]
fn whole(sum: f64) -> Option<u64> {
    (0.0..9_007_199_254_740_992.0).contains(&sum).then_some(sum as u64)
}

impl Work<'_> {
    /// Removes rows that the state says are gone: commits that SQLite forgot had removed them.
    pub(crate) fn remove_departed(&mut self) -> Result<(), Trouble> {
        for lane in Lane::ALL {
            let marks = self.memory.state.lanes[lane.index()];
            self.tables.remove(lane, i64::MIN, marks.removed_to)?;
            self.tables.remove(lane, ID_MAX, i64::MAX)?;
            if marks.evicted_to > marks.kept_to {
                self.tables.remove(lane, marks.kept_to, marks.evicted_to)?;
            }
        }
        Ok(())
    }

    /// Opens every row, moves what does not open to quarantine, and makes the books agree with the rest.
    pub(crate) fn scrub(&mut self) -> Result<(), Trouble> {
        let mut contents = Contents::default();
        for lane in Lane::ALL {
            let mut after = i64::MIN;
            loop {
                let rows = self.tables.rows(lane, after, i64::MAX, CHUNK)?;
                let Some(last) = rows.last().map(Read::id) else { break };
                for read in rows {
                    match read {
                        Read::Whole(row) => {
                            contents.add(lane, row.boot, 1, row.weight, row.lost, row.stored_bytes());
                            contents.last[lane.index()] = row.id;
                        }
                        Read::Damaged(id) => {
                            self.tables.quarantine(lane, id)?;
                            self.memory.state.quarantined += 1;
                        }
                    }
                }
                after = last;
            }
        }
        self.reconcile(&contents)
    }

    /// Makes the books agree with what is there. What is booked as waiting and is not there is a gap; what is there and
    /// not booked was emitted after the books were last seen.
    fn reconcile(&mut self, contents: &Contents) -> Result<(), Trouble> {
        self.memory.stats = contents.stats;
        self.memory.open_gaps.clear();
        let state = &mut self.memory.state;
        for lane in 0..4 {
            state.lanes[lane].last = state.lanes[lane].last.max(contents.last[lane]);
        }
        let known: Vec<Uuid> = state.boots.iter().map(|account| account.boot).collect();
        let mut missing = [0; 3];
        for boot in known.iter().map(Some).chain([None]) {
            for (index, class) in Priority::ALL.into_iter().enumerate() {
                let matches = |of: &Uuid| boot.map_or(!known.contains(of), |boot| boot == of);
                let there: u64 =
                    contents.weights.iter().filter(|((of, c), _)| *c == class && matches(of)).map(|(_, w)| w).sum();
                let books = match boot {
                    Some(boot) => state.books_of(*boot),
                    None => &mut state.earlier,
                };
                let booked = books.of(class).queued;
                missing[index] += books.give_up(class, GapReason::Corruption, booked.saturating_sub(there));
                books.emit(class, there.saturating_sub(booked));
            }
        }
        let told_of = state.ledger().total().gap_total() - missing.iter().sum::<u64>();
        let telling = state.told.saturating_add(contents.lost);
        if telling > told_of {
            state.told = told_of.saturating_sub(contents.lost);
        }
        for (class, count) in Priority::ALL.into_iter().zip(missing) {
            self.tell(&Gap::own(GapReason::Corruption, class, Some(count)))?;
        }
        let untold = told_of.saturating_sub(telling);
        if untold > 0 {
            let detail = "gap records were lost to damage; this one stands for them".to_owned();
            self.tell(&Gap { detail, ..Gap::own(GapReason::Corruption, Priority::Normal, Some(untold)) })?;
        }
        Ok(())
    }
}

impl Read {
    fn id(&self) -> i64 {
        match self {
            Self::Whole(row) => row.id,
            Self::Damaged(id) => *id,
        }
    }
}

/// Copies every row that can still be read and opened from the damaged database at `from` into a new one at `to`.
/// What `state` says is gone does not come back.
///
/// # Errors
/// Only those of writing: what cannot be read is left.
pub(crate) fn salvage(from: &Path, to: Tables<'_>, state: &State) -> Result<u64, Trouble> {
    let Ok(old) = database::connect(from) else { return Ok(0) };
    let old = Tables { db: &old, sealer: to.sealer };
    let mut salvaged = 0;
    for lane in Lane::ALL {
        let mut probes = PROBES_MAX;
        let mut ranges = vec![(state.lanes[lane.index()].removed_to, ID_MAX)];
        while let Some((after, upto)) = ranges.pop() {
            if after >= upto || probes == 0 {
                continue;
            }
            probes -= 1;
            match old.rows(lane, after, upto, SALVAGE_CHUNK) {
                Ok(rows) => {
                    let Some(reached) = rows.last().map(Read::id) else { continue };
                    let transaction = to.db.unchecked_transaction()?;
                    for read in rows {
                        if let Read::Whole(row) = read
                            && !state.is_gone(lane.index(), row.id)
                        {
                            to.put(lane, &row)?;
                            salvaged += 1;
                        }
                    }
                    transaction.commit()?;
                    probes += 1;
                    ranges.push((reached, upto));
                }
                // Somewhere in there is a page that cannot be read: half by half, until it is alone.
                Err(_) if upto - after > 1 => {
                    let middle = after + (upto - after) / 2;
                    ranges.push((middle, upto));
                    ranges.push((after, middle));
                }
                Err(_) => {}
            }
        }
    }
    Ok(salvaged)
}

//! Places in the order of commits, as numbers that two databases share.
//!
//! SQLite's places are numbers already and stay what they are. PostgreSQL's are a transaction and a row, and mean nothing
//! on another server: its events are numbered anew in their order, and whatever refers to a place gets the number of the
//! last event at or before it. In whichever database they come to, the numbers are the rows of transaction 0, before all
//! that is written there later.

use crate::{Backend, DbError, Position, Result};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::collections::BTreeMap;

/// Events of one transaction whose rows follow one another.
#[derive(Debug)]
struct Run {
    tenant: i64,
    transaction: i64,
    first: i64,
    number: i64,
    length: i64,
}

/// The places of one database while it is read. What was numbered lies in a temporary file, not in memory.
pub(super) struct Places {
    backend: Backend,
    scratch: Connection,
    run: Option<Run>,
    event: i64,
    change: i64,
    /// The highest number of a change, for each tenant.
    changes: BTreeMap<i32, i64>,
}

fn wrong(error: &rusqlite::Error) -> DbError {
    DbError::Io { operation: "number the events", why: error.to_string() }
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Places {
    pub(super) fn new(backend: Backend) -> Result<Self> {
        // An empty name is a temporary file that goes with the connection.
        let open = || {
            let scratch = Connection::open("")?;
            scratch.execute_batch(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-16384; \
                 CREATE TABLE runs (tenant INTEGER, xid INTEGER, first INTEGER, number INTEGER, length INTEGER, \
                 PRIMARY KEY (tenant, xid, first)) WITHOUT ROWID; BEGIN",
            )?;
            Ok(scratch)
        };
        let scratch = open().map_err(|error| wrong(&error))?;
        Ok(Self { backend, scratch, run: None, event: 0, change: 0, changes: BTreeMap::new() })
    }

    /// The highest place of an event that was given out.
    pub(super) fn last_event(&self) -> i64 {
        self.event
    }

    /// The number of an event; they come in their order, tenant by tenant.
    pub(super) fn event(&mut self, tenant: i64, place: Position) -> Result<i64> {
        let (transaction, row) = (whole(place.transaction), whole(place.row));
        if self.backend == Backend::Sqlite {
            self.event = self.event.max(row);
            return Ok(row);
        }
        self.event += 1;
        if let Some(run) = &mut self.run
            && (run.tenant, run.transaction, run.first + run.length) == (tenant, transaction, row)
        {
            run.length += 1;
            return Ok(self.event);
        }
        self.keep_run()?;
        self.run = Some(Run { tenant, transaction, first: row, number: self.event, length: 1 });
        Ok(self.event)
    }

    fn keep_run(&mut self) -> Result<()> {
        let Some(run) = self.run.take() else { return Ok(()) };
        let keep = || {
            self.scratch
                .prepare_cached("INSERT INTO runs (tenant, xid, first, number, length) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![run.tenant, run.transaction, run.first, run.number, run.length])
        };
        keep().map(drop).map_err(|error| wrong(&error))
    }

    /// The number of the last event at or before a place; 0 when there is none. All events have come.
    pub(super) fn at(&mut self, tenant: i64, place: Position) -> Result<i64> {
        let (transaction, row) = (whole(place.transaction), whole(place.row));
        if self.backend == Backend::Sqlite {
            return Ok(row);
        }
        self.keep_run()?;
        let find = || {
            self.scratch
                .prepare_cached(
                    "SELECT xid, first, number, length FROM runs WHERE tenant = ?1 AND (xid, first) <= (?2, ?3) \
                     ORDER BY xid DESC, first DESC LIMIT 1",
                )?
                .query_row(params![tenant, transaction, row], |found| {
                    let (xid, first): (i64, i64) = (found.get(0)?, found.get(1)?);
                    let (number, length): (i64, i64) = (found.get(2)?, found.get(3)?);
                    let within = if xid == transaction { (row - first).min(length - 1) } else { length - 1 };
                    Ok(number + within)
                })
                .optional()
        };
        find().map(Option::unwrap_or_default).map_err(|error| wrong(&error))
    }

    /// The number of a change; they come in their order.
    pub(super) fn change(&mut self, tenant: i64, place: Position) -> i64 {
        self.change += 1;
        let number = if self.backend == Backend::Sqlite { whole(place.row) } else { self.change };
        self.changed(tenant, number);
        number
    }

    /// A change of that number was made.
    pub(super) fn changed(&mut self, tenant: i64, number: i64) {
        let highest = self.changes.entry(i32::try_from(tenant).unwrap_or_default()).or_default();
        *highest = number.max(*highest);
    }

    /// The highest number of a change, for each tenant.
    pub(super) fn changes(&self) -> BTreeMap<i32, i64> {
        self.changes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_place_becomes_the_number_of_the_last_event_at_or_before_it(
            events in prop::collection::btree_set((1_u64..6, 0_u64..40), 0..80),
            asked in prop::collection::vec((0_u64..7, 0_u64..45), 1..40),
        ) {
            let events: BTreeSet<(u64, u64)> = events;
            let mut places = Places::new(Backend::Postgres).unwrap();
            for (transaction, row) in &events {
                places.event(1, Position::new(*transaction, *row)).unwrap();
            }
            for (transaction, row) in asked {
                let before = events.iter().filter(|event| **event <= (transaction, row)).count();
                prop_assert_eq!(places.at(1, Position::new(transaction, row)).unwrap(), i64::try_from(before).unwrap());
                prop_assert_eq!(places.at(2, Position::new(transaction, row)).unwrap(), 0);
            }
        }
    }
}

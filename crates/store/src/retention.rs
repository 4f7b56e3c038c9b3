//! What is too old or too much goes, in steps so small that the writer never waits long.
//!
//! One step is one transaction of at most [`STEP_ROWS`] rows or [`STEP_PAGES`] pages. Order: what is over its age; then,
//! while the file is too large, rows from the future and after them the oldest rows of the tables that have an age; then
//! free pages go back to the file system. Tables that are kept for ever are never touched.
//!
//! Rows from the future were written while a clock was ahead, and their time says nothing. They go with the rows that were
//! written after them. Where none were, their age counts from the first round that saw them: `meta` notes up to which id
//! they were there, and when.

use crate::error::{Doing as _, Result};
use crate::{Policy, Table, schema};
use rusqlite::Connection;
use std::path::Path;

/// How many rows one step removes.
const STEP_ROWS: i64 = 256;
/// How many pages one step gives back to the file system.
const STEP_PAGES: u32 = 128;
/// Free pages that are left for rows to come: below this, or a quarter of the file, giving them back is wasted work.
const SPARE_PAGES: u64 = 256;
/// A row is from the future when its time is further ahead than this, in milliseconds: one day.
const FUTURE_MS: i64 = 86_400_000;

/// How thorough a round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vacuum {
    /// Leave free pages to rows to come.
    Spare,
    /// Give back all.
    All,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It removed so many rows; there may be more to do.
    Removed(Table, u64),
    /// It gave pages back; there may be more to do.
    Vacuumed,
    /// There is nothing to do.
    Done,
}

/// One round over the tables.
#[derive(Debug)]
pub(crate) struct Sweep {
    policy: Policy,
    /// The wall clock, if it may be gone by.
    now_ms: Option<i64>,
    vacuum: Vacuum,
    /// The table whose old rows are being removed.
    table: usize,
}

impl Sweep {
    pub(crate) fn new(policy: Policy, now_ms: Option<i64>, vacuum: Vacuum) -> Self {
        Self { policy, now_ms, vacuum, table: 0 }
    }

    /// Does one step.
    pub(crate) fn step(&mut self, connection: &mut Connection, path: &Path) -> Result<Step> {
        while let Some(table) = Table::ALL.get(self.table).copied() {
            if let (Some(keep), Some(now)) = (self.policy.keep(table), self.now_ms) {
                let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
                let mut removed = remove_old(connection, path, table, now.saturating_sub(keep))?;
                if removed == 0 {
                    removed = remove_future(connection, path, table, keep, now)?;
                }
                if removed > 0 {
                    return Ok(Step::Removed(table, removed));
                }
            }
            self.table += 1;
        }
        let size = Size::of(connection, path)?;
        if self.policy.max_bytes().is_some_and(|max| size.used_bytes() > max)
            && let Some(victim) = self.victim(connection, path)?
        {
            let (table, removed) = match victim {
                Victim::Future(table, beyond) => (table, remove_beyond(connection, path, table, beyond)?),
                Victim::Oldest(table) => (table, remove_first(connection, path, table)?),
            };
            return Ok(Step::Removed(table, removed));
        }
        let spare = match self.vacuum {
            Vacuum::Spare => SPARE_PAGES.max(size.pages / 4),
            Vacuum::All => 0,
        };
        if size.free_pages > spare {
            return vacuum(connection, path, &size);
        }
        Ok(Step::Done)
    }

    /// Which rows go when there is too much: those from the future before any others, for a table that has them would
    /// seem the newest for ever; else the first rows of the table whose first row is the oldest.
    fn victim(&self, connection: &Connection, path: &Path) -> Result<Option<Victim>> {
        let mut oldest = None;
        for table in Table::ALL.into_iter().filter(|table| self.policy.keep(*table).is_some()) {
            if let Some(beyond) = self.now_ms.map(horizon)
                && has_beyond(connection, path, table, beyond)?
            {
                return Ok(Some(Victim::Future(table, beyond)));
            }
            let sql = format!("SELECT at FROM {table} ORDER BY id LIMIT 1");
            let first: Option<i64> = optional(connection, path, &sql)?;
            if let Some(at) = first
                && oldest.is_none_or(|(before, _)| at < before)
            {
                oldest = Some((at, table));
            }
        }
        Ok(oldest.map(|(_, table)| Victim::Oldest(table)))
    }
}

/// What loses rows because the file is too large.
enum Victim {
    /// The rows of this table later than this.
    Future(Table, i64),
    /// The first rows of this table.
    Oldest(Table),
}

/// What is later than this is from the future.
pub(crate) fn horizon(now: i64) -> i64 {
    now.saturating_add(FUTURE_MS)
}

/// Up to which id rows from the future have had their time at `now`.
pub(crate) fn expired_future(connection: &Connection, path: &Path, table: Table, keep: i64, now: i64) -> Result<i64> {
    let passed = last_old(connection, path, table)?;
    if keep == 0 {
        return Ok(i64::MAX);
    }
    let noted = match note(connection, path, table)? {
        Some((id, at)) if at <= now.saturating_sub(keep) => id,
        _ => 0,
    };
    Ok(passed.max(noted))
}

/// The highest id that went because of its age: what was written before it is older still.
fn last_old(connection: &Connection, path: &Path, table: Table) -> Result<i64> {
    let value = schema::meta(connection, path, &format!("expired:{table}"))?;
    Ok(value.and_then(|bytes| bytes.try_into().ok()).map_or(0, i64::from_be_bytes))
}

/// Up to which id rows were seen from the future, and when.
fn note(connection: &Connection, path: &Path, table: Table) -> Result<Option<(i64, i64)>> {
    let value = schema::meta(connection, path, &format!("future:{table}"))?;
    let number = |bytes: &[u8]| bytes.try_into().ok().map(i64::from_be_bytes);
    Ok(value.and_then(|bytes| Some((number(bytes.get(..8)?)?, number(bytes.get(8..)?)?))))
}

fn set_note(connection: &Connection, path: &Path, table: Table, id: i64, now: i64) -> Result<()> {
    let value = [id.to_be_bytes(), now.to_be_bytes()].concat();
    schema::set_meta(connection, path, &format!("future:{table}"), &value)
}

fn has_beyond(connection: &Connection, path: &Path, table: Table, beyond: i64) -> Result<bool> {
    let sql = format!("SELECT 1 FROM {table} WHERE at > ?1 LIMIT 1");
    connection.prepare_cached(&sql).and_then(|mut statement| statement.exists([beyond])).doing("read", path)
}

/// Removes rows from the future that have had their time, or notes that they are there.
fn remove_future(connection: &mut Connection, path: &Path, table: Table, keep: i64, now: i64) -> Result<u64> {
    let beyond = horizon(now);
    if !has_beyond(connection, path, table, beyond)? {
        return Ok(0);
    }
    let expired = expired_future(connection, path, table, keep, now)?;
    let transaction = schema::begin(connection, path)?;
    let sql = format!(
        "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE at > ?1 AND id <= ?2 LIMIT {STEP_ROWS}) RETURNING id"
    );
    let (removed, highest) = delete(&transaction, path, &sql, &[beyond, expired])?;
    if let Some(highest) = highest {
        schema::raise_high(&transaction, path, table, highest)?;
    } else {
        let sql = format!("SELECT coalesce(max(id), 0) FROM {table}");
        let last: i64 = transaction.query_row(&sql, [], |row| row.get(0)).doing("read", path)?;
        match note(&transaction, path, table)? {
            // Waits for its time. A note from a time that is yet to come was made by a clock that was ahead, too.
            Some((id, at)) if at <= now && id > expired => return Ok(0),
            _ => set_note(&transaction, path, table, last, now)?,
        }
    }
    transaction.commit().doing("clean", path)?;
    Ok(removed)
}

/// Removes rows later than `beyond`, whatever their age.
fn remove_beyond(connection: &mut Connection, path: &Path, table: Table, beyond: i64) -> Result<u64> {
    let transaction = schema::begin(connection, path)?;
    let sql = format!(
        "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE at > ?1 ORDER BY at LIMIT {STEP_ROWS}) RETURNING id"
    );
    let (removed, highest) = delete(&transaction, path, &sql, &[beyond])?;
    if let Some(highest) = highest {
        schema::raise_high(&transaction, path, table, highest)?;
    }
    transaction.commit().doing("clean", path)?;
    Ok(removed)
}

/// Removes rows older than `before`.
fn remove_old(connection: &mut Connection, path: &Path, table: Table, before: i64) -> Result<u64> {
    let any = format!("SELECT 1 FROM {table} WHERE at < ?1 LIMIT 1");
    let found = connection.prepare_cached(&any).and_then(|mut s| s.exists([before])).doing("read", path)?;
    if !found {
        return Ok(0);
    }
    let transaction = schema::begin(connection, path)?;
    let sql = format!(
        "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE at < ?1 ORDER BY at LIMIT {STEP_ROWS}) RETURNING id"
    );
    let (removed, highest) = delete(&transaction, path, &sql, &[before])?;
    if let Some(highest) = highest {
        if highest > last_old(&transaction, path, table)? {
            schema::set_meta(&transaction, path, &format!("expired:{table}"), &highest.to_be_bytes())?;
        }
        schema::raise_high(&transaction, path, table, highest)?;
    }
    transaction.commit().doing("clean", path)?;
    Ok(removed)
}

/// Removes the first rows: by id, which no clock can change.
fn remove_first(connection: &mut Connection, path: &Path, table: Table) -> Result<u64> {
    let transaction = schema::begin(connection, path)?;
    let sql =
        format!("DELETE FROM {table} WHERE id IN (SELECT id FROM {table} ORDER BY id LIMIT {STEP_ROWS}) RETURNING id");
    let (removed, highest) = delete(&transaction, path, &sql, &[])?;
    if let Some(highest) = highest {
        schema::raise_high(&transaction, path, table, highest)?;
    }
    transaction.commit().doing("clean", path)?;
    Ok(removed)
}

/// Runs a `DELETE … RETURNING id`: how many rows, and the highest id.
fn delete(connection: &Connection, path: &Path, sql: &str, parameters: &[i64]) -> Result<(u64, Option<i64>)> {
    let mut statement = connection.prepare_cached(sql).doing("clean", path)?;
    let mut rows = statement.query(rusqlite::params_from_iter(parameters)).doing("clean", path)?;
    let (mut count, mut highest) = (0, None);
    while let Some(row) = rows.next().doing("clean", path)? {
        let id: i64 = row.get(0).doing("clean", path)?;
        count += 1;
        highest = highest.max(Some(id));
    }
    Ok((count, highest))
}

fn vacuum(connection: &Connection, path: &Path, before: &Size) -> Result<Step> {
    // The pragma gives back one page a step of its statement: it must be run to its end.
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({STEP_PAGES})")).doing("clean", path)?;
    let mut rows = statement.query([]).doing("clean", path)?;
    while rows.next().doing("clean", path)?.is_some() {}
    drop(rows);
    drop(statement);
    let after = Size::of(connection, path)?;
    Ok(if after.pages < before.pages { Step::Vacuumed } else { Step::Done })
}

fn optional<T: rusqlite::types::FromSql>(connection: &Connection, path: &Path, sql: &str) -> Result<Option<T>> {
    use rusqlite::OptionalExtension as _;
    let mut statement = connection.prepare_cached(sql).doing("read", path)?;
    statement.query_row([], |row| row.get(0)).optional().doing("read", path)
}

/// How large the database is. Cheap: three numbers of its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Size {
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages of the database.
    pub pages: u64,
    /// Pages of them that are free for rows to come.
    pub free_pages: u64,
}

impl Size {
    pub(crate) fn of(connection: &Connection, path: &Path) -> Result<Self> {
        let number = |pragma: &str| -> Result<u64> {
            let value: i64 =
                connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0)).doing("read", path)?;
            Ok(u64::try_from(value).unwrap_or(0))
        };
        Ok(Self {
            page_bytes: number("page_size")?,
            pages: number("page_count")?,
            free_pages: number("freelist_count")?,
        })
    }

    /// Bytes that rows and indexes take.
    pub fn used_bytes(&self) -> u64 {
        self.pages.saturating_sub(self.free_pages) * self.page_bytes
    }
}

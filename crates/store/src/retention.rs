//! What is too old or too much goes, in steps so small that the writer never waits long.
//!
//! One step is one transaction of at most [`STEP_ROWS`] rows or [`STEP_PAGES`] pages. Order: what is over its age; then,
//! while the file is too large, the oldest rows of the tables that have an age; then free pages go back to the file system.
//! Tables that are kept for ever are never touched.

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
                let removed = remove_old(connection, path, table, now.saturating_sub(keep), now)?;
                if removed > 0 {
                    return Ok(Step::Removed(table, removed));
                }
            }
            self.table += 1;
        }
        let size = Size::of(connection, path)?;
        if self.policy.max_bytes().is_some_and(|max| size.used_bytes() > max)
            && let Some(table) = self.oldest_table(connection, path)?
        {
            let removed = remove_first(connection, path, table)?;
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

    /// Which of the tables that may lose rows has the oldest first row.
    fn oldest_table(&self, connection: &Connection, path: &Path) -> Result<Option<Table>> {
        let mut oldest = None;
        for table in Table::ALL.into_iter().filter(|table| self.policy.keep(*table).is_some()) {
            let sql = format!("SELECT at FROM {table} ORDER BY id LIMIT 1");
            let first: Option<i64> = optional(connection, path, &sql)?;
            if let Some(at) = first
                && oldest.is_none_or(|(before, _)| at < before)
            {
                oldest = Some((at, table));
            }
        }
        Ok(oldest.map(|(_, table)| table))
    }
}

/// Removes rows older than `before`. Rows from the future (a clock was ahead once) have no age of their own: they go with
/// the rows that were written after them.
fn remove_old(connection: &mut Connection, path: &Path, table: Table, before: i64, now: i64) -> Result<u64> {
    let any = format!("SELECT 1 FROM {table} WHERE at < ?1 LIMIT 1");
    let found = connection.prepare_cached(&any).and_then(|mut s| s.exists([before])).doing("read", path)?;
    if !found {
        return Ok(0);
    }
    let transaction = schema::begin(connection, path)?;
    let sql = format!(
        "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE at < ?1 ORDER BY at LIMIT {STEP_ROWS}) RETURNING id"
    );
    let (mut removed, highest) = delete(&transaction, path, &sql, &[before])?;
    if let Some(highest) = highest {
        let sql = format!(
            "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE at > ?1 AND id < ?2 LIMIT {STEP_ROWS}) RETURNING id"
        );
        removed += delete(&transaction, path, &sql, &[now.saturating_add(FUTURE_MS), highest])?.0;
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

//! Every intact row of a damaged store into a new one; the damaged files are read, never written.
//!
//! Rows are found in the pages themselves ([`crate::carve`]), so it does not matter which tree is broken, nor whether the
//! header is. Then the new store takes the place of the old, which is kept aside.

use crate::carve::{Free, Pages};
use crate::error::{Doing as _, Result, StoreError};
use crate::maintenance::{Progress, Watch};
use crate::replace::{self, UNPROVEN, beside, put_in_place, remove_database};
use crate::schema::{self, PAGE_BYTES};
use crate::store::{lock, open_database};
use crate::table::SealedRow;
use crate::{DATABASE, Table, files, log, writer};
use picket_seal::{Keyring, Sealer};
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many pages a transaction of salvage covers.
const STEP_PAGES: u32 = 256;
/// How many lost ranges, rows and pages a report names.
const NAMED: usize = 1000;
/// How many lost rows of a table are told apart.
const LOST_MAX: usize = 1 << 20;
/// How far beyond the highest id that was saved a lost one is believed.
const IDS_AHEAD: i64 = 1 << 24;

/// Ids of a table that were not found, first and last included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct MissingRows {
    /// The table.
    pub table: Table,
    /// The first id.
    pub first: i64,
    /// The last id.
    pub last: i64,
    /// Whether it is known that they were there, for the table's index names them. Else they were lost, or had been
    /// removed before.
    pub known: bool,
}

/// What was salvaged, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RecoverReport {
    /// Rows salvaged, by table.
    pub salvaged: Vec<(Table, u64)>,
    /// Rows that are whole, but do not open with the key file, at most a thousand of them.
    pub foreign: Vec<(Table, i64)>,
    /// Rows that are known to have been there and were not found, with those whose table and id nobody can tell.
    pub lost_rows: u64,
    /// Ids that were not found, in the order of tables and ids: those that an index names, wherever, and those between the
    /// first and the last of a table. At most a thousand ranges.
    pub missing: Vec<MissingRows>,
    /// Pages on which something should have been a row and is not, at most a thousand.
    pub broken_pages: Vec<u32>,
    /// Pages that are in use and hold nothing but zeroes, at most a thousand.
    pub zeroed_pages: Vec<u32>,
    /// Pages at the end of the database that are no longer there.
    pub cut_pages: u32,
    /// Pages that the disk does not give, at most a thousand.
    pub unreadable_pages: Vec<u32>,
    /// Frames of the write-ahead log that do not count: what was being written at a crash, or damage.
    pub lost_log_frames: u64,
    /// Where the damaged files were put.
    pub kept: Vec<PathBuf>,
}

impl RecoverReport {
    /// All rows together.
    pub fn rows(&self) -> u64 {
        self.salvaged.iter().map(|(_, rows)| rows).sum()
    }

    /// Whether nothing is known to be lost: every row that an index names was saved, and no page is damaged. Rows on a
    /// damaged page may have been removed before; nobody can tell any more.
    pub fn is_complete(&self) -> bool {
        let pages = [&self.broken_pages, &self.zeroed_pages, &self.unreadable_pages];
        let damaged = pages.iter().any(|pages| !pages.is_empty()) || self.cut_pages > 0;
        self.lost_rows == 0 && self.foreign.is_empty() && !damaged
    }

    /// How many ids are missing.
    pub fn missing_rows(&self) -> u64 {
        self.missing.iter().map(|range| range.last.abs_diff(range.first) + 1).sum()
    }
}

/// Salvages the store in `dir`: a new one takes its place, and the damaged files are kept beside it with `.damaged`
/// (and a number, if there are such) at the end of their names.
///
/// # Errors
/// [`StoreError::InUse`] while an agent runs; [`StoreError::Absent`]; [`StoreError::OtherDevice`] as
/// [`StoreError::WrongKey`] if not one row opens with this key file. Nothing was changed then.
pub fn recover(dir: &Path, keyring: &Arc<Keyring>, watch: Watch<'_>) -> Result<RecoverReport> {
    if !dir.is_dir() {
        return Err(StoreError::Absent(dir.join(DATABASE)));
    }
    let _lock = lock(dir)?;
    let path = schema::real_path(&dir.join(DATABASE))?;
    replace::finish(&path)?;
    replace::tidy(&path)?;
    let new = path.with_file_name(UNPROVEN);
    let mut report = RecoverReport::default();
    let result = salvage(&path, &new, keyring, &mut report, watch);
    if let Err(error) = result {
        remove_database(&new)?;
        return Err(error);
    }
    report.kept = put_in_place(&new, &path, ".damaged")?;
    Ok(report)
}

/// Puts every whole row of the files at `path` into a new database at `new`.
pub(crate) fn salvage(
    path: &Path,
    new: &Path,
    keyring: &Arc<Keyring>,
    report: &mut RecoverReport,
    watch: Watch<'_>,
) -> Result<()> {
    let pages = open_pages(path, report)?;
    let sealer = Sealer::new(Arc::clone(keyring))?;
    let mut connection = open_database(new, keyring, &sealer)?;
    let free = pages.free().unwrap_or_default();
    report.cut_pages = pages.cut().unwrap_or(0);
    let mut salvaged = [0; Table::ALL.len()];
    let mut first = 1;
    while first <= pages.count() {
        let last = first.saturating_add(STEP_PAGES - 1).min(pages.count());
        let transaction = schema::begin(&mut connection, new)?;
        for page in (first..=last).filter(|page| !free.has(*page)) {
            let Ok(found) = pages.rows(page) else {
                name(&mut report.unreadable_pages, page);
                continue;
            };
            if found.broken {
                name(&mut report.broken_pages, page);
            }
            if found.zeroed && free.whole {
                name(&mut report.zeroed_pages, page);
            }
            for row in &found.rows {
                keep(&transaction, new, &sealer, row, &mut salvaged, report)?;
            }
        }
        transaction.commit().doing("write", new)?;
        if watch(Progress { done: u64::from(last), total: Some(u64::from(pages.count())) }).is_break() {
            return Err(StoreError::Stopped);
        }
        first = last.saturating_add(1);
    }
    let rows: u64 = salvaged.iter().sum();
    if rows == 0 && !report.foreign.is_empty() {
        return Err(StoreError::WrongKey(path.to_owned()));
    }
    report.salvaged = Table::ALL.into_iter().zip(salvaged).collect();
    let lost = if free.whole { Lost::find(&pages, &free, &connection, new)? } else { Lost::default() };
    report.lost_rows = lost.rows;
    report.missing = missing(&connection, new, &lost)?;
    lost.keep_ids(&mut connection, new)?;
    close(connection, new)
}

fn open_pages(path: &Path, report: &mut RecoverReport) -> Result<Pages> {
    let io = |doing| move |source| StoreError::from(picket_durable::Error::new(doing, path, source));
    let file = files::open(path).map_err(io("open"))?;
    let log = match files::open(&beside(path, "-wal")).map_err(io("open the log of"))? {
        Some(mut file) => {
            let log = log::scan(&mut std::io::BufReader::new(&mut file), PAGE_BYTES).map_err(io("read the log of"))?;
            report.lost_log_frames = log.beyond;
            Some((file, log))
        }
        None => None,
    };
    // A log without its database has the pages that were written since the last checkpoint.
    if file.is_none() && log.as_ref().is_none_or(|(_, log)| log.pages.is_empty()) {
        return Err(StoreError::Absent(path.to_owned()));
    }
    Pages::new(file, log).map_err(io("read"))
}

/// Takes a row over if it opens. Of two that claim one id, the one under the newer key is later.
fn keep(
    connection: &Connection,
    path: &Path,
    sealer: &Sealer,
    row: &SealedRow,
    salvaged: &mut [u64; Table::ALL.len()],
    report: &mut RecoverReport,
) -> Result<()> {
    if row.open(sealer).is_err() {
        name(&mut report.foreign, (row.table, row.id));
        return Ok(());
    }
    let sql = format!(
        "INSERT INTO {}(id, at, sealed, sha256) VALUES(?1, ?2, ?3, ?4) ON CONFLICT(id) DO UPDATE SET at=excluded.at, \
         sealed=excluded.sealed, sha256=excluded.sha256 WHERE substr(excluded.sealed, 2, 4) > substr(sealed, 2, 4)",
        row.table
    );
    let before = writer::has(connection, path, row.table, row.id)?;
    let mut statement = connection.prepare_cached(&sql).doing("write", path)?;
    statement.execute((row.id, row.at, &row.sealed[..], &row.sha256[..])).doing("write", path)?;
    salvaged[row.table.index()] += u64::from(!before);
    Ok(())
}

/// The ranges of ids that are not in the new database.
fn missing(connection: &Connection, path: &Path, lost: &Lost) -> Result<Vec<MissingRows>> {
    let mut all: Vec<MissingRows> = Vec::new();
    for table in Table::ALL {
        let sql = format!(
            "SELECT id + 1, next - 1 FROM (SELECT id, lead(id) OVER (ORDER BY id) AS next FROM {table}) \
             WHERE next > id + 1 LIMIT {NAMED}"
        );
        let mut statement = connection.prepare(&sql).doing("read", path)?;
        let gaps = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .and_then(Iterator::collect::<rusqlite::Result<Vec<(i64, i64)>>>)
            .doing("read", path)?;
        let known = ranges(&lost.ids[table.index()]);
        let unknown = gaps.into_iter().flat_map(|gap| without(gap, &known));
        let range = |known| move |(first, last)| MissingRows { table, first, last, known };
        let mut found: Vec<MissingRows> =
            unknown.map(range(false)).chain(known.iter().copied().map(range(true))).collect();
        found.sort_by_key(|range| range.first);
        all.extend(found);
    }
    all.truncate(NAMED);
    Ok(all)
}

/// Ids as ranges, first and last included.
fn ranges(ids: &BTreeSet<i64>) -> Vec<(i64, i64)> {
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for id in ids {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*id) => *last = *id,
            _ => ranges.push((*id, *id)),
        }
    }
    ranges
}

/// What of a range is in none of `known`, which are in order.
fn without((first, last): (i64, i64), known: &[(i64, i64)]) -> Vec<(i64, i64)> {
    let (mut rest, mut from) = (Vec::new(), first);
    for (begin, end) in known.iter().filter(|(begin, end)| *end >= first && *begin <= last) {
        if *begin > from {
            rest.push((from, begin - 1));
        }
        from = end.saturating_add(1);
    }
    if from <= last {
        rest.push((from, last));
    }
    rest
}

/// Rows that an index names and that are not in the new database.
#[derive(Default)]
struct Lost {
    /// How many, with those whose table nobody can tell.
    rows: u64,
    /// Their ids, at most [`LOST_MAX`] of them, by table.
    ids: [BTreeSet<i64>; Table::ALL.len()],
}

impl Lost {
    fn find(pages: &Pages, free: &Free, connection: &Connection, path: &Path) -> Result<Self> {
        let mut lost = Self::default();
        let roots = index_roots(connection, path)?;
        for page in (1..=pages.count()).filter(|page| !free.has(*page)) {
            let Ok(entries) = pages.index_entries(page) else { continue };
            // The first page of an index is known by its place, which every store shares; others by their entries.
            let table = match roots.get(&page) {
                Some(table) => Some(*table),
                None => table_of(&entries, connection, path)?,
            };
            let Some(table) = table else {
                lost.rows += entries.len() as u64;
                continue;
            };
            for (_, id) in entries {
                if !writer::has(connection, path, table, id)? && lost.ids[table.index()].len() < LOST_MAX {
                    lost.ids[table.index()].insert(id);
                }
            }
        }
        lost.rows += lost.ids.iter().map(|ids| ids.len() as u64).sum::<u64>();
        Ok(lost)
    }

    /// Lets no id be given twice, lest another row seem to be a lost one. A damaged entry must not use them all up.
    fn keep_ids(&self, connection: &mut Connection, path: &Path) -> Result<()> {
        let transaction = schema::begin(connection, path)?;
        let next = writer::next_ids(&transaction, path)?;
        for table in Table::ALL {
            let limit = next[table.index()].saturating_add(IDS_AHEAD);
            if let Some(highest) = self.ids[table.index()].range(..limit).next_back() {
                schema::raise_high(&transaction, path, table, *highest)?;
            }
        }
        transaction.commit().doing("write", path)
    }
}

/// The first page of each table's index.
fn index_roots(connection: &Connection, path: &Path) -> Result<BTreeMap<u32, Table>> {
    let sql = "SELECT rootpage, tbl_name FROM sqlite_schema WHERE type='index'";
    let mut statement = connection.prepare(sql).doing("read", path)?;
    let roots = statement
        .query_map([], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, String>(1)?)))
        .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
        .doing("read", path)?;
    Ok(roots.into_iter().filter_map(|(page, name)| Some((page, Table::from_name(&name)?))).collect())
}

/// Whose index the entries are from: that of the table with the most rows of these ids and times. None where all of them are lost.
fn table_of(entries: &[(i64, i64)], connection: &Connection, path: &Path) -> Result<Option<Table>> {
    let mut most = (0, None);
    for table in Table::ALL {
        let sql = format!("SELECT 1 FROM {table} WHERE id=?1 AND at=?2");
        let mut statement = connection.prepare_cached(&sql).doing("read", path)?;
        let mut rows = 0;
        for (at, id) in entries {
            rows += u32::from(statement.exists([id, at]).doing("read", path)?);
        }
        if rows > most.0 {
            most = (rows, Some(table));
        }
    }
    Ok(most.1)
}

fn name<T>(list: &mut Vec<T>, item: T) {
    if list.len() < NAMED {
        list.push(item);
    }
}

/// Closes a database so that nothing of it is in a log.
pub(crate) fn close(connection: Connection, path: &Path) -> Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).doing("write", path)?;
    connection.close().map_err(|(_, error)| error).doing("close", path)
}

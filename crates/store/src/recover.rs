//! Every intact row of a damaged store into a new one; the damaged files are read, never written.
//!
//! Rows are found in the pages themselves ([`crate::carve`]), so it does not matter which tree is broken, nor whether the
//! header is. Then the new store takes the place of the old, which is kept aside.

use crate::carve::Pages;
use crate::error::{Doing as _, Result, StoreError};
use crate::maintenance::{Progress, Watch};
use crate::replace::{self, UNPROVEN, beside, put_in_place, remove_database};
use crate::schema::{self, PAGE_BYTES};
use crate::store::{lock, open_database};
use crate::table::SealedRow;
use crate::{DATABASE, Table, files, log, writer};
use picket_seal::{Keyring, Sealer};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many pages a transaction of salvage covers.
const STEP_PAGES: u32 = 256;
/// How many lost ranges, rows and pages a report names.
const NAMED: usize = 1000;

/// Ids of a table that were not found, first and last included. They were lost, or had been removed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct MissingRows {
    /// The table.
    pub table: Table,
    /// The first id.
    pub first: i64,
    /// The last id.
    pub last: i64,
}

/// What was salvaged, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RecoverReport {
    /// Rows salvaged, by table.
    pub salvaged: Vec<(Table, u64)>,
    /// Rows that are whole, but do not open with the key file, at most a thousand of them.
    pub foreign: Vec<(Table, i64)>,
    /// Ids between the first and the last of a table that were not found, at most a thousand ranges.
    pub missing: Vec<MissingRows>,
    /// Pages on which something should have been a row and is not, at most a thousand.
    pub broken_pages: Vec<u32>,
    /// Pages that the disk does not give.
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
    let mut salvaged = [0; Table::ALL.len()];
    let mut first = 1;
    while first <= pages.count() {
        let last = first.saturating_add(STEP_PAGES - 1).min(pages.count());
        let transaction = schema::begin(&mut connection, new)?;
        for page in (first..=last).filter(|page| !free.contains(page)) {
            let Ok(found) = pages.rows(page) else {
                name(&mut report.unreadable_pages, page);
                continue;
            };
            if found.broken {
                name(&mut report.broken_pages, page);
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
    report.missing = missing(&connection, new)?;
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

fn missing(connection: &Connection, path: &Path) -> Result<Vec<MissingRows>> {
    let mut all = Vec::new();
    for table in Table::ALL {
        let sql = format!(
            "SELECT id + 1, next - 1 FROM (SELECT id, lead(id) OVER (ORDER BY id) AS next FROM {table}) \
             WHERE next > id + 1 LIMIT {}",
            NAMED - all.len().min(NAMED)
        );
        let mut statement = connection.prepare(&sql).doing("read", path)?;
        let ranges = statement
            .query_map([], |row| Ok(MissingRows { table, first: row.get(0)?, last: row.get(1)? }))
            .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>);
        all.extend(ranges.doing("read", path)?);
    }
    Ok(all)
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

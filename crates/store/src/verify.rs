//! Whether every row is the one that was written: its checksum, its seal, and the trees that lead to it.

use crate::error::{Doing as _, Result, StoreError};
use crate::maintenance::{Progress, Watch, count_rows};
use crate::schema::{self, Access, Look, PAGE_BYTES};
use crate::table::SealedRow;
use crate::{DATABASE, Table, files, log, reader, replace, store};
use picket_seal::{Keyring, Sealer};
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;

/// How many findings a report names; the rest is counted.
const NAMED: usize = 1000;
const CHUNK_ROWS: usize = 512;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Finding {
    /// A row.
    Row {
        /// Its table.
        table: Table,
        /// Its id.
        id: i64,
        /// What is wrong with it.
        what: String,
    },
    /// Rows that cannot be read at all.
    Unreadable {
        /// Their table.
        table: Table,
        /// The last id before them that can be read.
        after: Option<i64>,
        /// The first id after them that can be read.
        before: Option<i64>,
    },
    /// The file as such.
    File {
        /// What is wrong with it.
        what: String,
    },
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Row { table, id, what } => write!(f, "row {id} of {table} {what}"),
            Self::Unreadable { table, after, before } => {
                write!(f, "rows of {table} cannot be read")?;
                after.map_or(Ok(()), |id| write!(f, " after {id}"))?;
                before.map_or(Ok(()), |id| write!(f, " before {id}"))
            }
            Self::File { what } => f.write_str(what),
        }
    }
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct VerifyReport {
    /// Rows whose checksum was reckoned.
    pub rows: u64,
    /// Whether the rows were opened, too: not without the key.
    pub opened: bool,
    /// What is not as it was written, at most a thousand.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub unnamed: u64,
    /// What is no damage by itself, but should be known.
    pub notes: Vec<String>,
}

impl VerifyReport {
    /// Whether all is as it was written.
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }

    fn add(&mut self, finding: Finding) {
        if self.findings.len() < NAMED {
            self.findings.push(finding);
        } else {
            self.unnamed += 1;
        }
    }

    fn file(&mut self, what: impl Into<String>) {
        self.add(Finding::File { what: what.into() });
    }
}

/// Looks at every row of the store in `dir`, and at the file. Without a key, checksums only. Beside a running agent, too.
///
/// # Errors
/// [`StoreError::Absent`], [`StoreError::Stopped`], and where the keys are at fault rather than the file
/// ([`StoreError::OtherDevice`], [`StoreError::KeyMissing`], [`StoreError::WrongKey`], [`StoreError::TooNew`]). Damage is
/// in the report, never an error.
pub fn verify(dir: &Path, keyring: Option<&Arc<Keyring>>, watch: Watch<'_>) -> Result<VerifyReport> {
    let database = dir.join(DATABASE);
    if !dir.is_dir() {
        return Err(StoreError::Absent(database));
    }
    let path = schema::real_path(&database)?;
    replace::settle(dir, &path)?;
    verify_file(&path, keyring, store::writer_process(dir).is_some(), watch)
}

pub(crate) fn verify_file(
    path: &Path,
    keyring: Option<&Arc<Keyring>>,
    in_use: bool,
    watch: Watch<'_>,
) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    match schema::look(path) {
        Ok(Look::Fresh) => return Err(StoreError::Absent(path.to_owned())),
        Ok(Look::Store) => {}
        Err(error) if error.is_damage() => {
            report.file(error.to_string());
            return Ok(report);
        }
        Err(error) => return Err(error),
    }
    // While somebody writes, the log is a moving thing.
    if !in_use && let Ok(Some(file)) = files::open(&replace::beside(path, "-wal")) {
        let log = log::scan(&mut std::io::BufReader::new(file), PAGE_BYTES);
        if let Ok(log) = log.map(|log| log.beyond)
            && log > 0
        {
            report.notes.push(format!(
                "{log} frames at the end of the write-ahead log do not count: they were being written when the machine \
                 stopped, or are damaged"
            ));
        }
    }
    match look_inside(path, keyring, &mut report, watch) {
        Ok(()) => {}
        Err(error) if error.is_damage() => report.file(error.to_string()),
        Err(error) => return Err(error),
    }
    Ok(report)
}

fn look_inside(path: &Path, keyring: Option<&Arc<Keyring>>, report: &mut VerifyReport, watch: Watch<'_>) -> Result<()> {
    let connection = schema::connect(path, Access::Read)?;
    let sealer = match keyring {
        Some(keyring) => {
            let sealer = Sealer::new(Arc::clone(keyring))?;
            schema::check(&connection, path, keyring, &sealer)?;
            Some(sealer)
        }
        None => {
            schema::check_schema(&connection, path)?;
            None
        }
    };
    report.opened = sealer.is_some();
    schema_as_written(&connection, path, report)?;
    schema::bad_meta(&connection, path)?.into_iter().for_each(|what| report.file(what));
    let total = count_rows(&connection, path).ok();
    for table in Table::ALL {
        look_at_table(&connection, path, table, sealer.as_ref(), report, total, &mut *watch)?;
    }
    let mut statement = connection.prepare("PRAGMA integrity_check(100)").doing("read", path)?;
    let mut rows = statement.query([]).doing("read", path)?;
    while let Some(row) = rows.next().doing("read", path)? {
        let line: String = row.get(0).doing("read", path)?;
        if line != "ok" {
            report.file(line);
        }
    }
    Ok(())
}

/// The schema's text is part of the file: an index that is not there any more would be missed by nobody else.
fn schema_as_written(connection: &Connection, path: &Path, report: &mut VerifyReport) -> Result<()> {
    let mut statement =
        connection.prepare("SELECT EXISTS(SELECT 1 FROM sqlite_schema WHERE sql = ?1)").doing("read", path)?;
    if schema::user_version(connection, path)? > schema::SCHEMA_WRITES {
        return Ok(());
    }
    let expected = Table::ALL.into_iter().flat_map(schema::table_sql).chain([schema::META_SQL.to_owned()]);
    for sql in expected {
        let there: bool = statement.query_row([&sql], |row| row.get(0)).doing("read", path)?;
        if !there {
            report.file(format!("the schema lacks: {sql}"));
        }
    }
    Ok(())
}

fn look_at_table(
    connection: &Connection,
    path: &Path,
    table: Table,
    sealer: Option<&Sealer>,
    report: &mut VerifyReport,
    total: Option<u64>,
    watch: Watch<'_>,
) -> Result<()> {
    let mut last = None;
    loop {
        match chunk(connection, path, table, last, Way::Up, CHUNK_ROWS) {
            Ok(rows) => {
                let Some(end) = rows.last().map(|row| row.id) else { return Ok(()) };
                if last.is_some_and(|last| end <= last) {
                    // An id that was changed: the same rows would be read again, for ever.
                    report.file(format!("the rows of {table} are out of order"));
                    return Ok(());
                }
                rows.iter().for_each(|row| look_at_row(row, sealer, report));
                last = Some(end);
            }
            Err(error) if error.is_damage() => {
                // Row by row up to the bad spot, then from the other end down to it.
                while let Ok(rows) = chunk(connection, path, table, last, Way::Up, 1) {
                    let Some(row) = rows.first().filter(|row| last.is_none_or(|last| row.id > last)) else { break };
                    look_at_row(row, sealer, report);
                    last = Some(row.id);
                }
                let before = look_backwards(connection, path, table, last, sealer, report);
                report.add(Finding::Unreadable { table, after: last, before });
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        if watch(Progress { done: report.rows, total: total.map(|total| total.max(report.rows)) }).is_break() {
            return Err(StoreError::Stopped);
        }
    }
}

/// Rows from the end down to what cannot be read; the lowest id that can.
fn look_backwards(
    connection: &Connection,
    path: &Path,
    table: Table,
    after: Option<i64>,
    sealer: Option<&Sealer>,
    report: &mut VerifyReport,
) -> Option<i64> {
    let mut lowest = None;
    for size in [CHUNK_ROWS, 1] {
        while let Ok(rows) = chunk(connection, path, table, lowest, Way::Down, size) {
            let before = lowest;
            let is_new = |row: &&SealedRow| after.is_none_or(|after| row.id > after);
            for row in rows.iter().take_while(is_new) {
                look_at_row(row, sealer, report);
                lowest = Some(row.id);
            }
            let is_lower = lowest.is_some_and(|lowest| before.is_none_or(|before| lowest < before));
            if !is_lower || rows.last().is_none_or(|row| lowest != Some(row.id)) {
                break;
            }
        }
    }
    lowest
}

fn look_at_row(row: &SealedRow, sealer: Option<&Sealer>, report: &mut VerifyReport) {
    report.rows += 1;
    let (table, id) = (row.table, row.id);
    if !row.is_intact() {
        report.add(Finding::Row { table, id, what: "is damaged: its checksum does not hold".to_owned() });
    } else if let Some(Err(error)) = sealer.map(|sealer| row.open(sealer)) {
        report.add(Finding::Row { table, id, what: error.to_string() });
    }
}

#[derive(Clone, Copy)]
enum Way {
    Up,
    Down,
}

fn chunk(
    connection: &Connection,
    path: &Path,
    table: Table,
    from: Option<i64>,
    way: Way,
    limit: usize,
) -> Result<Vec<SealedRow>> {
    let (beyond, order) = match way {
        Way::Up => (">", "ASC"),
        Way::Down => ("<", "DESC"),
    };
    let columns = format!("SELECT id, at, sealed, sha256 FROM {table}");
    let end = format!("ORDER BY id {order} LIMIT {limit}");
    match from {
        Some(id) => reader::read_rows(connection, path, table, &format!("{columns} WHERE id {beyond} ?1 {end}"), [id]),
        None => reader::read_rows(connection, path, table, &format!("{columns} {end}"), []),
    }
}

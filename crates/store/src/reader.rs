//! Reading apart from the writer: rows in order, a handful in memory, and what there is in numbers.

use crate::error::{Doing as _, Result, StoreError};
use crate::retention::Size;
use crate::schema::{self, Access};
use crate::table::SealedRow;
use crate::{Table, store};
use jiff::Timestamp;
use picket_seal::{Keyring, Sealer};
use rusqlite::Connection;
use rusqlite::types::Value;
use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many rows are read at a time. Between two reads no transaction is open, so that a long export does not keep the
/// write-ahead log from being taken over into the database.
const CHUNK_ROWS: usize = 512;
/// How many sealed bytes are read at a time, at least one row.
const CHUNK_BYTES: usize = 4 << 20;

/// Which rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range {
    /// Only rows of this time or later.
    pub since: Option<Timestamp>,
    /// Only rows before this time.
    pub until: Option<Timestamp>,
    /// At most so many.
    pub limit: Option<u64>,
    /// The latest first, instead of the earliest.
    pub newest_first: bool,
    /// In the order in which they were written, which no clock can change, instead of that of their times.
    pub as_written: bool,
}

/// A row, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its table.
    pub table: Table,
    /// Its id in the table.
    pub id: i64,
    /// When it happened, to the millisecond.
    pub at: Timestamp,
    /// Its payload: JSON.
    pub payload: Vec<u8>,
}

/// What is in a table, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TableStats {
    /// The table.
    pub table: Table,
    /// How many rows it has.
    pub rows: u64,
    /// Bytes of its pages and those of its index.
    pub bytes: u64,
    /// Bytes of its payloads, as they would be in clear.
    pub payload_bytes: u64,
    /// The time of the earliest row.
    pub oldest: Option<Timestamp>,
    /// The time of the latest row.
    pub newest: Option<Timestamp>,
}

/// What is in the store, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// The schema of the file.
    pub schema: u32,
    /// Each table.
    pub tables: Vec<TableStats>,
    /// The pages of the database.
    pub size: Size,
    /// Bytes of the database file.
    pub file_bytes: u64,
    /// Bytes of the write-ahead log beside it.
    pub log_bytes: u64,
}

/// A connection that reads. Not shared between threads; open one for each.
pub struct Reader {
    connection: Connection,
    path: PathBuf,
    sealer: Arc<Sealer>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens the store in `dir` for reading: beside a running agent, too.
    ///
    /// # Errors
    /// [`StoreError::Absent`], and those of [`crate::Store::open`] that have to do with the file and its keys.
    pub fn open(dir: &Path, keyring: &Arc<Keyring>) -> Result<Self> {
        store::open_reader(dir, keyring)
    }

    pub(crate) fn connect(path: &Path, sealer: Arc<Sealer>) -> Result<Self> {
        Ok(Self { connection: schema::connect(path, Access::Read)?, path: path.to_owned(), sealer })
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives every row of `range` to `visit`, in the order of time (and of ids where times are equal) or of ids alone, a
    /// bounded number in memory. A row that does not open is given as its error, and reading goes on. Rows that come while it runs may or
    /// may not be among them.
    ///
    /// # Errors
    /// When the database cannot be read on, or what `visit` returns.
    pub fn rows(
        &self,
        table: Table,
        range: &Range,
        mut visit: impl FnMut(Result<Row>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut left = range.limit.unwrap_or(u64::MAX);
        let mut after = None;
        while left > 0 {
            let limit = usize::try_from(left).unwrap_or(CHUNK_ROWS).min(CHUNK_ROWS);
            let (chunk, end) = self.chunk(table, range, after.as_ref(), limit)?;
            let Some(end) = end else { return Ok(()) };
            if after.is_some_and(|after: Cursor| !end.is_beyond(&after, range)) {
                // It would be read in a circle, for ever.
                let why = format!("the index of {table} is out of order");
                return Err(StoreError::Damaged { path: self.path.clone(), why });
            }
            after = Some(end);
            for row in chunk {
                left -= 1;
                if visit(self.open_row(&row))?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// [`Reader::rows`] as a list, for few.
    ///
    /// # Errors
    /// The first row that does not open, too.
    pub fn collect(&self, table: Table, range: &Range) -> Result<Vec<Row>> {
        let mut all = Vec::new();
        self.rows(table, range, |row| {
            all.push(row?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }

    fn open_row(&self, row: &SealedRow) -> Result<Row> {
        let (table, id) = (row.table, row.id);
        let payload = row.open(&self.sealer).map_err(|source| StoreError::Row { table, id, source })?;
        let at = Timestamp::from_millisecond(row.at).map_err(|_| StoreError::RowDamaged { table, id })?;
        Ok(Row { table, id, at, payload })
    }

    /// The next rows after (time, id) in the order of the range.
    fn chunk(
        &self,
        table: Table,
        range: &Range,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<(Vec<SealedRow>, Option<Cursor>)> {
        // The key (at, id) is the index: each chunk is a seek, however many rows lie before it.
        let (beyond, order, first) = if range.newest_first { ("<", "DESC", i64::MAX) } else { (">", "ASC", i64::MIN) };
        let (place, order) = if range.as_written {
            (format!("id {beyond} ?2"), format!("id {order}"))
        } else {
            (format!("(at, id) {beyond} (?1, ?2)"), format!("at {order}, id {order}"))
        };
        let sql = format!(
            "SELECT id, at, sealed, sha256 FROM {table} WHERE {place} AND at >= ?3 AND at < ?4 ORDER BY {order} LIMIT ?5"
        );
        let (at, id) = after.map_or((Value::Integer(first), first), |after| (after.at.clone(), after.id));
        let since = range.since.map_or(i64::MIN, first_millisecond);
        let until = range.until.map_or(i64::MAX, first_millisecond);
        let parameters = (at, id, since, until, i64::try_from(limit).unwrap_or(i64::MAX));
        read_rows_to(&self.connection, &self.path, table, &sql, parameters)
    }

    /// How many rows of `table` are in `range`, by the index alone; they may be damaged all the same.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn count(&self, table: Table, range: &Range) -> Result<u64> {
        let sql = format!("SELECT count(*) FROM {table} WHERE at >= ?1 AND at < ?2");
        let since = range.since.map_or(i64::MIN, first_millisecond);
        let until = range.until.map_or(i64::MAX, first_millisecond);
        let rows: i64 = self.connection.query_row(&sql, (since, until), |row| row.get(0)).doing("read", &self.path)?;
        Ok(u64::try_from(rows).unwrap_or(0).min(range.limit.unwrap_or(u64::MAX)))
    }

    /// What is in the store, in numbers. Reads every page once: seconds for gigabytes.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        let tables = Table::ALL.into_iter().map(|table| self.table_stats(table)).collect::<Result<_>>()?;
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        Ok(Stats {
            schema: schema::user_version(&self.connection, &self.path)?,
            tables,
            size: Size::of(&self.connection, &self.path)?,
            file_bytes: self.path.metadata().map_or(0, |meta| meta.len()),
            log_bytes: Path::new(&log).metadata().map_or(0, |meta| meta.len()),
        })
    }

    /// How large the database is, without reading it.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn size(&self) -> Result<Size> {
        Size::of(&self.connection, &self.path)
    }

    fn table_stats(&self, table: Table) -> Result<TableStats> {
        let (rows, oldest, newest): (i64, Option<i64>, Option<i64>) = self
            .connection
            .query_row(
                &format!(
                    "SELECT (SELECT count(*) FROM {table}), (SELECT min(at) FROM {table}), (SELECT max(at) FROM {table})"
                ),
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .doing("read", &self.path)?;
        let bytes: i64 = self
            .connection
            .query_row(
                "SELECT coalesce(sum(pgsize), 0) FROM dbstat WHERE name IN (?1, ?1 || '_at') AND aggregate = TRUE",
                [table.as_str()],
                |row| row.get(0),
            )
            .doing("read", &self.path)?;
        // The lengths are in the rows' headers: no payload is read for it.
        let sealed: i64 = self
            .connection
            .query_row(&format!("SELECT coalesce(sum(length(sealed)), 0) FROM {table}"), [], |row| row.get(0))
            .doing("read", &self.path)?;
        let rows = u64::try_from(rows).unwrap_or(0);
        let seals = rows.saturating_mul(picket_seal::OVERHEAD as u64);
        let time = |ms: Option<i64>| ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        Ok(TableStats {
            table,
            rows,
            bytes: u64::try_from(bytes).unwrap_or(0),
            payload_bytes: u64::try_from(sealed).unwrap_or(0).saturating_sub(seals),
            oldest: time(oldest),
            newest: time(newest),
        })
    }
}

/// The first whole millisecond at or after `time`: rows have no finer time.
fn first_millisecond(time: Timestamp) -> i64 {
    let ms = time.as_millisecond();
    match Timestamp::from_millisecond(ms) {
        Ok(whole) if whole < time => ms.saturating_add(1),
        _ => ms,
    }
}

/// Where a reading in the order of time is: the time as it lies in the index, which need not be a whole number there.
struct Cursor {
    at: Value,
    id: i64,
}

impl Cursor {
    fn is_beyond(&self, other: &Self, range: &Range) -> bool {
        let wanted = if range.newest_first { Ordering::Less } else { Ordering::Greater };
        if range.as_written {
            return self.id.cmp(&other.id) == wanted;
        }
        let key = |cursor: &Self| match cursor.at {
            // Whole up to 2^53, which no time that was written exceeds.
            Value::Integer(at) => at as f64,
            Value::Real(at) => at,
            _ => f64::NAN,
        };
        let order = key(self).partial_cmp(&key(other)).map(|order| order.then(self.id.cmp(&other.id)));
        order == Some(wanted)
    }
}

/// Runs a query whose columns are those of a sealed row; stops at [`CHUNK_BYTES`].
pub(crate) fn read_rows(
    connection: &Connection,
    path: &Path,
    table: Table,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<SealedRow>> {
    read_rows_to(connection, path, table, sql, parameters).map(|(rows, _)| rows)
}

/// [`read_rows`], and where it stopped.
fn read_rows_to(
    connection: &Connection,
    path: &Path,
    table: Table,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> Result<(Vec<SealedRow>, Option<Cursor>)> {
    let mut statement = connection.prepare_cached(sql).doing("read", path)?;
    let mut rows = statement.query(parameters).doing("read", path)?;
    let mut chunk = Vec::new();
    let mut end = None;
    let mut bytes = 0;
    while let Some(row) = rows.next().doing("read", path)? {
        // The key of the tree itself is always a number. A column of another type is damage, or somebody's doing: what
        // stands for it then never was written, so that neither checksum nor seal hold.
        let id = row.get(0).doing("read", path)?;
        let column = |index| row.get_ref(index).doing("read", path);
        let blob = |index| column(index).map(|value| value.as_blob().unwrap_or_default().to_vec());
        let at = column(1)?;
        end = Some(Cursor { at: at.try_into().unwrap_or(Value::Null), id });
        let at = at.as_i64().unwrap_or(i64::MIN);
        let row = SealedRow { table, id, at, sealed: blob(2)?, sha256: blob(3)? };
        bytes += row.sealed.len();
        chunk.push(row);
        if bytes >= CHUNK_BYTES {
            break;
        }
    }
    Ok((chunk, end))
}

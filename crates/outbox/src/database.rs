//! The database: its tables, and reading and writing one row.
//!
//! ```text
//! lane_gaps, lane_high, lane_normal, lane_low   one row a record; id counts up, rows go from the lowest id on
//!     id INTEGER PRIMARY KEY, boot BLOB, seq, weight, lost, at, aged INTEGER, body BLOB (sealed)
//! state_a, state_b                              one row: the state of the same commit (see `state`), sealed
//! quarantine                                    rows that do not open any more, the last thousand
//! ```
//! There is no index but the primary keys: nothing can disagree with the rows. All columns of a row are bound into the
//! seal of its body, so that a flipped bit in any of them is found.

use crate::error::Trouble;
use crate::lane::Lane;
use crate::state::{STATE_FORM, State, StateError};
use picket_seal::{OVERHEAD, Place, Sealer};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use uuid::Uuid;

/// The form of the tables (`user_version`); the state says it too, where no flipped bit can.
const FORM: i64 = STATE_FORM;
/// `PkOb`, for `file(1)` and people.
const APPLICATION_ID: i64 = 0x506b_4f62;
/// Rows that are kept in quarantine.
const QUARANTINE_ROWS: i64 = 1000;
/// What a row takes besides its body: seal, columns, and SQLite's own, about.
pub(crate) const ROW_BYTES: u64 = OVERHEAD as u64 + 64;
/// The longest body that is read: the longest event, sealed, with room for later versions.
const BODY_BYTES_MAX: i32 = 1 << 20;

/// One record as it lies in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) boot: Uuid,
    pub(crate) seq: u64,
    /// Events it stands for.
    pub(crate) weight: u64,
    /// Events that are missing, of which it tells.
    pub(crate) lost: u64,
    /// Wall clock, milliseconds.
    pub(crate) at: i64,
    /// The outbox's own time, milliseconds.
    pub(crate) aged: i64,
    /// The plain body.
    pub(crate) body: Vec<u8>,
}

impl Row {
    /// What it counts against the byte quota.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.body.len() as u64 + ROW_BYTES
    }

    /// All columns but id and body, for the seal.
    fn context(&self) -> [u8; 56] {
        let mut context = [0; 56];
        context[..16].copy_from_slice(self.boot.as_bytes());
        let numbers = [self.seq, self.weight, self.lost, self.at.cast_unsigned(), self.aged.cast_unsigned()];
        for (index, number) in numbers.iter().enumerate() {
            context[16 + 8 * index..24 + 8 * index].copy_from_slice(&number.to_be_bytes());
        }
        context
    }
}

/// A row, or the id of one that is not what was written.
pub(crate) enum Read {
    Whole(Row),
    Damaged(i64),
}

/// Opens the database at `path` for its one writer and makes its tables if there are none.
pub(crate) fn connect(path: &Path) -> Result<Connection, Trouble> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    prepare(&db)?;
    // Only before there are tables does this have an effect.
    db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    // What is acknowledged to the caller survives a power cut: sync at every commit (SQLite, "PRAGMA synchronous").
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "wal_autocheckpoint", 1000)?;
    db.pragma_update_and_check(None, "journal_size_limit", 8 << 20, |_| Ok(()))?;
    let form: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if form == 0 {
        create(&db)?;
    }
    Ok(db)
}

/// Opens the database for looking only.
pub(crate) fn connect_read_only(path: &Path) -> Result<Connection, Trouble> {
    // SQLite would wait on a pipe that somebody put in its place.
    if !path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(rusqlite::Error::InvalidPath(path.to_owned()).into());
    }
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    prepare(&db)?;
    Ok(db)
}

fn prepare(db: &Connection) -> Result<(), Trouble> {
    use rusqlite::config::DbConfig;
    db.set_limit(rusqlite::limits::Limit::SQLITE_LIMIT_LENGTH, BODY_BYTES_MAX * 2)?;
    // A damaged schema runs no code, and a damaged page is an error rather than a guess (SQLite, "Defense Against The
    // Dark Arts").
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.pragma_update(None, "cell_size_check", true)?;
    db.pragma_update(None, "mmap_size", 0)?;
    // 4 MiB of page cache: a batch and what it touches.
    db.pragma_update(None, "cache_size", -4096)?;
    db.set_prepared_statement_cache_capacity(64);
    db.busy_timeout(std::time::Duration::from_secs(2))?;
    Ok(())
}

/// Makes the tables.
pub(crate) fn create(db: &Connection) -> Result<(), Trouble> {
    let mut sql = String::from("BEGIN IMMEDIATE;\n");
    for lane in Lane::ALL {
        let table = lane.table();
        let _ = writeln!(
            sql,
            "CREATE TABLE {table} (id INTEGER PRIMARY KEY, boot BLOB NOT NULL, seq INTEGER NOT NULL, weight INTEGER NOT \
             NULL, lost INTEGER NOT NULL, at INTEGER NOT NULL, aged INTEGER NOT NULL, body BLOB NOT NULL);"
        );
    }
    for table in STATE_TABLES {
        let _ = writeln!(sql, "CREATE TABLE {table} (id INTEGER PRIMARY KEY CHECK (id = 1), body BLOB NOT NULL);");
    }
    sql += "CREATE TABLE quarantine (n INTEGER PRIMARY KEY, lane TEXT, id, boot, seq, weight, lost, at, aged, body);\n";
    let _ = write!(sql, "PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {FORM};\nCOMMIT;");
    Ok(db.execute_batch(&sql)?)
}

/// The columns of a record that this version knows; a later one may have added others.
const COLUMNS: &str = "id, boot, seq, weight, lost, at, aged, body";
/// The two copies of the state.
const STATE_TABLES: [&str; 2] = ["state_a", "state_b"];

/// The numbers of the keys that rows and state are sealed under; they stand in clear before each seal (`picket_seal`).
pub(crate) fn keys(db: &Connection) -> Result<BTreeSet<u32>, Trouble> {
    let mut keys = BTreeSet::new();
    for table in Lane::ALL.into_iter().map(Lane::table).chain(STATE_TABLES) {
        let mut statement = db.prepare(&format!("SELECT DISTINCT substr(body, 2, 4) FROM {table}"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let bytes: Vec<u8> = row.get(0)?;
            keys.extend(<[u8; 4]>::try_from(bytes).ok().map(u32::from_be_bytes));
        }
    }
    Ok(keys)
}

/// Reading and writing, with the seal.
#[derive(Clone, Copy)]
pub(crate) struct Tables<'a> {
    pub(crate) db: &'a Connection,
    pub(crate) sealer: &'a Sealer,
}

impl Tables<'_> {
    /// Seals and inserts a record, or replaces the one of the same id.
    pub(crate) fn put(self, lane: Lane, row: &Row) -> Result<(), Trouble> {
        let place = Place { table: lane.table(), row: row.id, context: &row.context() };
        let body = self.sealer.seal(place, &row.body).map_err(Trouble::Seal)?;
        let sql = match lane {
            Lane::Gaps => {
                "INSERT OR REPLACE INTO lane_gaps(id, boot, seq, weight, lost, at, aged, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
            }
            Lane::High => {
                "INSERT INTO lane_high(id, boot, seq, weight, lost, at, aged, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
            }
            Lane::Normal => {
                "INSERT INTO lane_normal(id, boot, seq, weight, lost, at, aged, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
            }
            Lane::Low => {
                "INSERT INTO lane_low(id, boot, seq, weight, lost, at, aged, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
            }
        };
        let (seq, weight, lost) = (row.seq.cast_signed(), row.weight.cast_signed(), row.lost.cast_signed());
        self.db.prepare_cached(sql)?.execute(params![
            row.id,
            row.boot.as_bytes().as_slice(),
            seq,
            weight,
            lost,
            row.at,
            row.aged,
            body
        ])?;
        Ok(())
    }

    /// Up to `limit` records of `lane` after the id `after` and up to `to`, each opened.
    pub(crate) fn rows(self, lane: Lane, after: i64, to: i64, limit: usize) -> Result<Vec<Read>, Trouble> {
        let sql = format!("SELECT {COLUMNS} FROM {} WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3", lane.table());
        let mut statement = self.db.prepare_cached(&sql)?;
        let mut rows = statement.query(params![after, to, i64::try_from(limit).unwrap_or(i64::MAX)])?;
        let mut read = Vec::new();
        while let Some(row) = rows.next()? {
            // The key of the tree itself is always a number.
            let id: i64 = row.get(0)?;
            read.push(self.open(lane, id, row).map_or(Read::Damaged(id), Read::Whole));
        }
        Ok(read)
    }

    fn open(self, lane: Lane, id: i64, row: &rusqlite::Row<'_>) -> Option<Row> {
        let number = |index: usize| row.get::<_, i64>(index).ok();
        let boot = Uuid::from_slice(row.get_ref(1).ok()?.as_blob().ok()?).ok()?;
        let mut read = Row {
            id,
            boot,
            seq: number(2)?.cast_unsigned(),
            weight: number(3)?.cast_unsigned(),
            lost: number(4)?.cast_unsigned(),
            at: number(5)?,
            aged: number(6)?,
            body: Vec::new(),
        };
        let place = Place { table: lane.table(), row: id, context: &read.context() };
        read.body = self.sealer.open(place, row.get_ref(7).ok()?.as_blob().ok()?).ok()?;
        Some(read)
    }

    /// The ids and stored bytes at the head of `lane`; bodies are not opened.
    pub(crate) fn sizes(self, lane: Lane, after: i64, limit: usize) -> Result<Vec<(i64, usize)>, Trouble> {
        let sql = format!("SELECT id, length(body) FROM {} WHERE id > ?1 ORDER BY id LIMIT ?2", lane.table());
        let mut statement = self.db.prepare_cached(&sql)?;
        let rows = statement.query_map(params![after, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok((row.get(0)?, usize::try_from(row.get::<_, i64>(1)?).unwrap_or(usize::MAX / 4)))
        })?;
        rows.map(|row| Ok(row?)).collect()
    }

    /// The age mark of the first record of `lane` after the id `after`.
    pub(crate) fn first_aged(self, lane: Lane, after: i64) -> Result<Option<i64>, Trouble> {
        let sql = format!("SELECT aged FROM {} WHERE id > ?1 ORDER BY id LIMIT 1", lane.table());
        Ok(self.db.prepare_cached(&sql)?.query_row([after], |row| row.get(0)).optional()?)
    }

    /// Removes the records of `lane` after the id `after` and up to `to`.
    pub(crate) fn remove(self, lane: Lane, after: i64, to: i64) -> Result<(), Trouble> {
        let sql = format!("DELETE FROM {} WHERE id > ?1 AND id <= ?2", lane.table());
        self.db.prepare_cached(&sql)?.execute([after, to])?;
        Ok(())
    }

    /// Moves the record `id` of `lane` to quarantine.
    pub(crate) fn quarantine(self, lane: Lane, id: i64) -> Result<(), Trouble> {
        let table = lane.table();
        let copy = format!(
            "INSERT INTO quarantine({COLUMNS}, n, lane) SELECT {COLUMNS}, NULL, '{table}' FROM {table} WHERE id = ?1"
        );
        self.db.execute(&copy, [id])?;
        self.db.execute(&format!("DELETE FROM {table} WHERE id = ?1"), [id])?;
        self.db.execute("DELETE FROM quarantine WHERE n <= (SELECT MAX(n) FROM quarantine) - ?1", [QUARANTINE_ROWS])?;
        Ok(())
    }

    /// Writes both copies of the state.
    pub(crate) fn put_state(self, json: &[u8]) -> Result<(), Trouble> {
        for table in STATE_TABLES {
            let body = self.sealer.seal(Place { table, row: 1, context: b"" }, json).map_err(Trouble::Seal)?;
            self.db.prepare_cached(&format!("INSERT OR REPLACE INTO {table} VALUES (1, ?1)"))?.execute([body])?;
        }
        Ok(())
    }

    /// The copy of the state that is whole; `None` if there never was one.
    ///
    /// # Errors
    /// Why neither copy is whole.
    pub(crate) fn state(self) -> Result<Option<State>, StateError> {
        let mut why = None;
        for table in STATE_TABLES {
            let sql = format!("SELECT body FROM {table} WHERE id = 1");
            let body = self.db.query_row(&sql, [], |row| row.get::<_, Vec<u8>>(0)).optional();
            let Ok(Some(body)) = body else { continue };
            match self.sealer.open(Place { table, row: 1, context: b"" }, &body) {
                Ok(json) => return State::read(&json).map(Some),
                Err(_) => why = Some(StateError::Damaged),
            }
        }
        why.map_or(Ok(None), Err)
    }
}

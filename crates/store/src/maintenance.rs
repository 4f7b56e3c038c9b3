//! Work on a store beside its writer, also from another process: clean up, and seal everything under a new key.
//!
//! Each step is one small transaction; after it comes a pause twice as long as the step, so that the writer, which
//! waits by asking SQLite again and again, gets its turn. Nothing here inserts a row: ids are the writer's to give.

use crate::error::{Doing as _, Result, StoreError};
use crate::retention::{Step, Sweep, Vacuum};
use crate::schema::{self, Access, Look};
use crate::table::SealedRow;
use crate::{DATABASE, Policy, Table, reader, replace};
use picket_seal::{Keyring, Sealer};
use rusqlite::Connection;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many rows one step seals anew.
const STEP_ROWS: usize = 128;
/// The shortest pause after a step.
const PAUSE: Duration = Duration::from_millis(5);
/// The key in `meta` that says a rekeying is under way, and to which key.
const REKEY: &str = "rekey";
/// How many damaged rows a report names.
const NAMED_ROWS: usize = 1000;

/// How far a long operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is done, in the unit of `total`.
    pub done: u64,
    /// What there is to do, as far as it is known.
    pub total: Option<u64>,
}

/// Where a long operation tells how far it is; [`ControlFlow::Break`] asks it to stop at the next safe point.
pub type Watch<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// Whether something beside the store is still sealed under the key of this number, or may yet be.
pub type NeededKey<'a> = &'a mut dyn FnMut(u32) -> bool;

/// What a clean-up removed, or would.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct CleanupReport {
    /// Rows of each table that lost any.
    pub removed: Vec<(Table, u64)>,
    /// Bytes that went back to the file system.
    pub freed_bytes: u64,
}

impl CleanupReport {
    /// All rows together.
    pub fn rows(&self) -> u64 {
        self.removed.iter().map(|(_, rows)| rows).sum()
    }
}

/// What a rekeying did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RekeyReport {
    /// The number of the key that everything is sealed under now.
    pub key: u32,
    /// When that key was made.
    pub made: Option<jiff::Timestamp>,
    /// Whether it went on with one that was interrupted: the key is of that run.
    pub resumed: bool,
    /// Rows sealed anew.
    pub rows: u64,
    /// Keys that were forgotten for good.
    pub retired: Vec<u32>,
    /// Keys that were kept because rows that do not open are sealed under them.
    pub kept: Vec<u32>,
    /// Keys that were kept because something beside the store needs them. The next run takes this one up and forgets
    /// them, once nothing does.
    pub needed: Vec<u32>,
    /// Rows that do not open, at most a thousand of them.
    pub damaged: Vec<(Table, i64)>,
}

/// How far a rekeying is.
struct Work {
    /// The last id of each table that was looked at.
    last: [i64; Table::ALL.len()],
    seen: u64,
    total: u64,
}

/// A second, careful connection to a store.
pub struct Maintenance {
    connection: Connection,
    path: PathBuf,
    sealer: Arc<Sealer>,
}

impl std::fmt::Debug for Maintenance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maintenance").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Maintenance {
    /// Opens the store in `dir`, whether or not an agent writes to it.
    ///
    /// # Errors
    /// [`StoreError::Absent`], and those of [`crate::Store::open`] that have to do with the file and its keys.
    pub fn open(dir: &Path, keyring: &Arc<Keyring>) -> Result<Self> {
        let database = dir.join(DATABASE);
        if !dir.is_dir() {
            return Err(StoreError::Absent(database));
        }
        let path = schema::real_path(&database)?;
        replace::settle(dir, &path)?;
        if schema::look(&path)? == Look::Fresh {
            return Err(StoreError::Absent(database));
        }
        let sealer = Arc::new(Sealer::new(Arc::clone(keyring))?);
        let connection = schema::connect(&path, Access::Write)?;
        schema::check(&connection, &path, keyring, &sealer)?;
        Ok(Self { connection, path, sealer })
    }

    /// Removes what `policy` says is too old or too much at `now_ms`, and gives the space back. A person asks for this,
    /// so the clock is believed.
    ///
    /// # Errors
    /// When the database cannot be written; what was removed by then stays removed.
    pub fn clean_up(&mut self, policy: Policy, now_ms: i64, watch: Watch<'_>) -> Result<CleanupReport> {
        let before = crate::Size::of(&self.connection, &self.path)?;
        let mut sweep = Sweep::new(policy, Some(now_ms), Vacuum::All);
        let mut removed = [0; Table::ALL.len()];
        loop {
            let began = Instant::now();
            match sweep.step(&mut self.connection, &self.path)? {
                Step::Done => break,
                Step::Vacuumed => {}
                Step::Removed(table, rows) => removed[table.index()] += rows,
            }
            if watch(Progress { done: removed.iter().sum(), total: None }).is_break() {
                break;
            }
            pause(began);
        }
        let after = crate::Size::of(&self.connection, &self.path)?;
        let removed = Table::ALL.into_iter().zip(removed).filter(|(_, rows)| *rows > 0).collect();
        Ok(CleanupReport { removed, freed_bytes: before.pages.saturating_sub(after.pages) * before.page_bytes })
    }

    /// Makes a new key, seals every row under it, and forgets the old keys once nothing is sealed under them. An
    /// interrupted run is taken up where it stood. The writer, here or in another process, goes on meanwhile: it reads
    /// the key file within each transaction.
    ///
    /// With `fresh`, an interrupted run is not taken up: its key may be as old as that run. There is another new key then,
    /// every row is sealed under that, and the key of the interrupted run goes with the others.
    ///
    /// `needed` is asked of each old key before it is forgotten: other things are sealed under the same keys.
    ///
    /// Backups made before need the key file of their time: its old keys are gone afterwards.
    ///
    /// # Errors
    /// When the key file or the database cannot be written. The store is whole at any moment.
    pub fn rekey(&mut self, fresh: bool, needed: NeededKey<'_>, watch: Watch<'_>) -> Result<RekeyReport> {
        let (key, resumed) = self.begin_rekey(fresh)?;
        let made = self.sealer.keyring().list().into_iter().find(|info| info.id == key).map(|info| info.created);
        let mut report = RekeyReport { key, made, resumed, ..RekeyReport::default() };
        let total = self.count_rows()?;
        let mut work = Work { last: [0; Table::ALL.len()], seen: 0, total };
        loop {
            for table in Table::ALL {
                // What comes later is under the new key: a busy writer must not be chased for ever.
                let end = self.highest(table)?;
                self.rekey_table(table, end, &mut work, &mut report, &mut *watch)?;
            }
            if self.finish_rekey(&work.last, &mut *needed, &mut report)? {
                return Ok(report);
            }
        }
    }

    fn highest(&self, table: Table) -> Result<i64> {
        let sql = format!("SELECT coalesce(max(id), 0) FROM {table}");
        self.connection.query_row(&sql, [], |row| row.get(0)).doing("read", &self.path)
    }

    /// The new key, active before anything is sealed under it; or the one of an interrupted run.
    fn begin_rekey(&mut self, fresh: bool) -> Result<(u32, bool)> {
        let keyring = Arc::clone(self.sealer.keyring());
        // The database's lock is the lock of the key file, too: two rotations must not write over each other.
        let transaction = schema::begin(&mut self.connection, &self.path)?;
        keyring.refresh()?;
        let under_way = schema::meta(&transaction, &self.path, REKEY)?
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_be_bytes)
            .filter(|key| !fresh && *key == keyring.active());
        let (key, resumed) = match under_way {
            Some(key) => (key, true),
            None => (keyring.rotate()?, false),
        };
        schema::set_meta(&transaction, &self.path, REKEY, &key.to_be_bytes())?;
        schema::set_key_check(&transaction, &self.path, &self.sealer)?;
        transaction.commit().doing("write", &self.path)?;
        Ok((key, resumed))
    }

    fn rekey_table(
        &mut self,
        table: Table,
        end: i64,
        work: &mut Work,
        report: &mut RekeyReport,
        watch: Watch<'_>,
    ) -> Result<()> {
        while work.last[table.index()] < end {
            let began = Instant::now();
            let transaction = schema::begin(&mut self.connection, &self.path)?;
            let sql = format!(
                "SELECT id, at, sealed, sha256 FROM {table} WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT {STEP_ROWS}"
            );
            let bounds = (work.last[table.index()], end);
            let rows = reader::read_rows(&transaction, &self.path, table, &sql, bounds)?;
            let Some(last) = rows.last().map(|row| row.id) else { break };
            for row in &rows {
                work.seen += 1;
                if Sealer::key_of(&row.sealed) == Ok(report.key) && row.is_intact() {
                    continue;
                }
                if reseal(&transaction, &self.path, (&self.sealer, &self.sealer), row)? {
                    report.rows += 1;
                } else if report.damaged.len() < NAMED_ROWS {
                    report.damaged.push((table, row.id));
                }
            }
            transaction.commit().doing("write", &self.path)?;
            work.last[table.index()] = last;
            if watch(Progress { done: work.seen, total: Some(work.total.max(work.seen)) }).is_break() {
                return Err(StoreError::Stopped);
            }
            pause(began);
        }
        work.last[table.index()] = work.last[table.index()].max(end);
        Ok(())
    }

    /// Retires the keys that nothing needs; `false` if rows came meanwhile that are not under the new key.
    fn finish_rekey(
        &mut self,
        last: &[i64; Table::ALL.len()],
        needed: NeededKey<'_>,
        report: &mut RekeyReport,
    ) -> Result<bool> {
        let keyring = Arc::clone(self.sealer.keyring());
        // Without a transaction: no row is sealed under an old key after the rotation was seen, so this can only shrink.
        let (mut in_rows, mut elsewhere) = (Vec::new(), Vec::new());
        for info in keyring.list().iter().filter(|info| info.id != report.key) {
            if self.uses_key(info.id)? {
                in_rows.push(info.id);
            } else if needed(info.id) {
                elsewhere.push(info.id);
            }
        }
        let transaction = schema::begin(&mut self.connection, &self.path)?;
        for table in Table::ALL {
            let sql = format!("SELECT 1 FROM {table} WHERE id > ?1 AND substr(sealed, 2, 4) <> ?2 LIMIT 1");
            let parameters = (last[table.index()], &report.key.to_be_bytes()[..]);
            let late =
                transaction.prepare_cached(&sql).and_then(|mut s| s.exists(parameters)).doing("read", &self.path)?;
            if late {
                return Ok(false);
            }
        }
        for info in keyring.list() {
            if info.id == report.key {
                continue;
            }
            if in_rows.contains(&info.id) {
                report.kept.push(info.id);
            } else if elsewhere.contains(&info.id) {
                report.needed.push(info.id);
            } else {
                keyring.retire(info.id)?;
                report.retired.push(info.id);
            }
        }
        if report.needed.is_empty() {
            transaction.execute("DELETE FROM meta WHERE key=?1", [REKEY]).doing("write", &self.path)?;
        }
        transaction.commit().doing("write", &self.path)?;
        Ok(true)
    }

    fn uses_key(&self, key: u32) -> Result<bool> {
        for table in Table::ALL {
            let sql = format!("SELECT 1 FROM {table} WHERE substr(sealed, 2, 4) = ?1 LIMIT 1");
            let mut statement = self.connection.prepare_cached(&sql).doing("read", &self.path)?;
            if statement.exists([&key.to_be_bytes()[..]]).doing("read", &self.path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn count_rows(&self) -> Result<u64> {
        count_rows(&self.connection, &self.path)
    }
}

/// How many rows all tables have.
pub(crate) fn count_rows(connection: &Connection, path: &Path) -> Result<u64> {
    let mut total = 0;
    for table in Table::ALL {
        let sql = format!("SELECT count(*) FROM {table}");
        let rows: i64 = connection.query_row(&sql, [], |row| row.get(0)).doing("read", path)?;
        total += u64::try_from(rows).unwrap_or(0);
    }
    Ok(total)
}

/// Opens one row with one sealer and seals it in its place with another; `false` if it does not open.
pub(crate) fn reseal(
    connection: &Connection,
    path: &Path,
    (from, to): (&Sealer, &Sealer),
    row: &SealedRow,
) -> Result<bool> {
    let Ok(plain) = row.open(from) else { return Ok(false) };
    let sealed = SealedRow::seal(to, row.table, row.id, row.at, &plain).map_err(|source| StoreError::Row {
        table: row.table,
        id: row.id,
        source,
    })?;
    let sql = format!("UPDATE {} SET sealed=?1, sha256=?2 WHERE id=?3", row.table);
    let mut statement = connection.prepare_cached(&sql).doing("write", path)?;
    statement.execute((&sealed.sealed[..], &sealed.sha256[..], row.id)).doing("write", path)?;
    Ok(true)
}

fn pause(began: Instant) {
    std::thread::sleep((began.elapsed() * 2).max(PAUSE).min(Duration::from_secs(1)));
}

//! The one writer: takes batches from the queue, seals them, commits them, and does its chores in between.

use crate::clock::{Clock, Doubt};
use crate::delivered::Delivered;
use crate::error::{Doing as _, Result, StoreError};
use crate::queue::{Pending, Queue, Work};
use crate::retention::{Step, Sweep, Vacuum};
use crate::table::SealedRow;
use crate::{Policy, Table, schema};
use picket_seal::Sealer;
use rusqlite::Connection;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often retention looks.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// What the writer's thread owns.
pub(crate) struct Writer {
    pub(crate) connection: Connection,
    pub(crate) path: PathBuf,
    pub(crate) sealer: Arc<Sealer>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) policy: Arc<Mutex<Policy>>,
    pub(crate) clock: Arc<dyn Clock>,
    /// The id that the next row of each table gets.
    pub(crate) next: [i64; Table::ALL.len()],
    /// Which events the last runs brought.
    pub(crate) delivered: Delivered,
    pub(crate) doubt: Doubt,
}

/// Tells those who wait that nothing will come any more, however the thread ends.
struct Farewell(Arc<Queue>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// The id that the next row of each table gets.
pub(crate) fn next_ids(connection: &Connection, path: &std::path::Path) -> Result<[i64; Table::ALL.len()]> {
    let mut next = [1; Table::ALL.len()];
    for table in Table::ALL {
        let sql = format!("SELECT coalesce(max(id), 0) FROM {table}");
        let highest: i64 = connection.query_row(&sql, [], |row| row.get(0)).doing("read", path)?;
        next[table.index()] = highest.max(schema::high(connection, path, table)?) + 1;
    }
    Ok(next)
}

/// The time of the newest row.
pub(crate) fn newest_ms(connection: &Connection, path: &std::path::Path) -> Result<Option<i64>> {
    let mut newest = None;
    for table in Table::ALL {
        // By id, not by time: a row from the future must not make every later time believable.
        let sql = format!("SELECT max(at) FROM (SELECT at FROM {table} ORDER BY id DESC LIMIT 1)");
        newest = newest.max(connection.query_row(&sql, [], |row| row.get::<_, Option<i64>>(0)).doing("read", path)?);
    }
    Ok(newest)
}

impl Writer {
    /// The thread: ends when the queue is closed and empty.
    pub(crate) fn run(mut self) {
        let _farewell = Farewell(Arc::clone(&self.queue));
        let mut swept = self.clock.steady();
        let mut sweep: Option<Sweep> = None;
        let mut failing = false;
        loop {
            let limit = SWEEP_EVERY.saturating_sub(self.clock.steady().saturating_sub(swept)).min(SWEEP_EVERY);
            match self.queue.next(sweep.is_some(), limit.max(Duration::from_millis(10))) {
                Work::Batch(batch) => {
                    let outcome = self.commit(&batch);
                    // Told when it begins and when it ends: what is logged becomes a row of the next batch, so that one
                    // warning would make another for as long as the disk is full.
                    match &outcome {
                        Err(error) if !failing => {
                            tracing::warn!(%error, "rows cannot be stored; they are counted as lost");
                        }
                        Ok(()) if failing => tracing::info!("rows are stored again"),
                        _ => {}
                    }
                    failing = outcome.is_err();
                    self.queue.settle(batch.len(), outcome);
                }
                Work::Idle { sweep: asked } => {
                    let due = self.clock.steady().saturating_sub(swept) >= SWEEP_EVERY;
                    if sweep.is_none() && (asked || due) {
                        sweep = Some(self.begin_sweep());
                        swept = self.clock.steady();
                    }
                }
                Work::End => break,
            }
            // One step after each batch as after each pause: a busy queue must not keep retention from its work.
            if let Some(current) = &mut sweep {
                let step = current.step(&mut self.connection, &self.path);
                if !self.note(step) {
                    sweep = None;
                }
            }
        }
        // The next start need not read the log; a failure costs nothing but time.
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }

    fn begin_sweep(&mut self) -> Sweep {
        let policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = self.doubt.believes(&*self.clock).then(|| self.clock.wall_ms());
        self.queue.count(|counters| counters.clock_doubted = now.is_none());
        Sweep::new(policy, now, Vacuum::Spare)
    }

    /// Counts what a step did; says whether there is more to do.
    fn note(&self, step: Result<Step>) -> bool {
        match step {
            Ok(Step::Done) => {
                self.queue.count(|counters| counters.retention_error = None);
                false
            }
            Ok(Step::Vacuumed) => true,
            Ok(Step::Removed(_, rows)) => {
                self.queue.count(|counters| counters.rows_expired += rows);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "old rows could not be removed");
                self.queue.count(|counters| counters.retention_error = Some(error.to_string()));
                false
            }
        }
    }

    /// Writes all rows of the batch or none; what was brought before is not written again.
    fn commit(&mut self, batch: &[Pending]) -> Result<()> {
        let mut next = self.next;
        let (mut delivered, mut repeated) = (None, 0);
        let transaction = schema::begin(&mut self.connection, &self.path)?;
        // Within the transaction: `rekey` in another process retires a key in one of its own, so no row is ever sealed
        // under a key that is gone.
        let refreshed = self.sealer.keyring().refresh();
        match schema::key_check_key(&transaction, &self.path) {
            // It was rotated, and the new key cannot be read, or an older copy of the file lies there: what is sealed
            // under the old key might never open again.
            Ok(Some(key)) if key > self.sealer.keyring().active() => {
                return Err(StoreError::KeyMissing { path: self.path.clone(), key });
            }
            // A damaged record says nothing of a rotation, and the file that was read does.
            Err(error) if refreshed.is_err() || !error.is_damage() => return Err(error),
            _ => {}
        }
        self.queue.count(|counters| counters.key_error = refreshed.err().map(|error| error.to_string()));
        let mut statements: [Option<rusqlite::CachedStatement<'_>>; Table::ALL.len()] = Default::default();
        for row in batch {
            if let Some(origin) = row.origin
                && !delivered.get_or_insert_with(|| self.delivered.clone()).note(row.run, origin)
            {
                repeated += 1;
                continue;
            }
            let id = &mut next[row.table.index()];
            let sealed = SealedRow::seal(&self.sealer, row.table, *id, row.at, &row.plain)
                .map_err(|source| StoreError::Row { table: row.table, id: *id, source })?;
            let slot = &mut statements[row.table.index()];
            let statement = match slot {
                Some(statement) => statement,
                None => slot.insert(prepare_insert(&transaction, &self.path, row.table)?),
            };
            insert(statement, &self.path, &sealed)?;
            *id += 1;
        }
        drop(statements);
        if let Some(delivered) = &delivered {
            delivered.save(&transaction, &self.path)?;
        }
        transaction.commit().doing("write", &self.path)?;
        self.next = next;
        if let Some(delivered) = delivered {
            self.delivered = delivered;
            self.queue.count(|counters| counters.rows_repeated += repeated);
        }
        Ok(())
    }
}

/// The statement that inserts into `table`.
pub(crate) fn prepare_insert<'c>(
    connection: &'c Connection,
    path: &std::path::Path,
    table: Table,
) -> Result<rusqlite::CachedStatement<'c>> {
    let sql = format!("INSERT INTO {table}(id, at, sealed, sha256) VALUES(?1, ?2, ?3, ?4)");
    connection.prepare_cached(&sql).doing("write", path)
}

pub(crate) fn insert(
    statement: &mut rusqlite::CachedStatement<'_>,
    path: &std::path::Path,
    row: &SealedRow,
) -> Result<()> {
    statement.execute((row.id, row.at, &row.sealed[..], &row.sha256[..])).doing("write", path).map(drop)
}

/// Whether `table` has the row.
pub(crate) fn has(connection: &Connection, path: &std::path::Path, table: Table, id: i64) -> Result<bool> {
    let sql = format!("SELECT 1 FROM {table} WHERE id=?1");
    connection.prepare_cached(&sql).and_then(|mut statement| statement.exists([id])).doing("read", path)
}

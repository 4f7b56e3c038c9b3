//! SQLite as the nouns need it.

use super::connect::{Access, connect, create, known_schema, limit, migrate, real_path};
use super::ingest;
use super::readers::Readers;
use super::tx::{SqliteTx, wrong};
use super::writer::{Job, Message, Writer};
use crate::shared::{Engine, Prepared, Tx, params};
use crate::upkeep::{Backend, DbStats, Removed};
use crate::{DbError, IngestBatch, IngestOutcome, Options, Result, TenantId};
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// How many events are removed in one go: a transaction of some ten milliseconds.
const REMOVED_AT_ONCE: i64 = 5000;
/// How many free pages are given back in one go.
const VACUUM_PAGES: u32 = 2000;

/// A file of SQLite, open.
#[derive(Debug)]
pub(crate) struct Sqlite {
    path: PathBuf,
    writer: Mutex<Option<(Arc<Writer>, JoinHandle<()>)>>,
    readers: Arc<Readers>,
}

/// A function for the writer, and who waits for it.
struct Call<R, F> {
    operation: &'static str,
    work: F,
    result: Option<Result<R>>,
    reply: oneshot::Sender<Result<R>>,
}

impl<R: Send, F: Fn(&mut SqliteTx<'_>) -> Result<R> + Send> Job for Call<R, F> {
    fn operation(&self) -> &'static str {
        self.operation
    }

    fn run(&mut self, tx: &mut SqliteTx<'_>) -> bool {
        self.result.insert((self.work)(tx)).is_ok()
    }

    fn answer(self: Box<Self>, committed: Result<()>) {
        let result = match (committed, self.result) {
            (Ok(()), Some(result)) => result,
            (Err(error), Some(Ok(_)) | None) | (Err(_), Some(Err(error))) => Err(error),
            (Ok(()), None) => Err(DbError::Closed { operation: self.operation }),
        };
        // Whoever asked may have gone; what was done stays done.
        let _ = self.reply.send(result);
    }
}

impl Sqlite {
    /// Opens or makes the file. Blocks: to be called where waiting is allowed.
    pub(crate) fn open(path: &Path, options: &Options) -> Result<Self> {
        let path = real_path(path)?;
        create(&path)?;
        let mut connection = connect(&path, Access::Write)?;
        migrate(&mut connection, &path, options)?;
        limit(&connection, options.max_bytes)?;
        let readers = Arc::new(Readers::new(path.clone(), options.connections, options.statement));
        let (writer, thread) = Writer::start(connection, options.queue, options.even_closed)?;
        Ok(Self { path, writer: Mutex::new(Some((Arc::new(writer), thread))), readers })
    }

    fn writer(&self, operation: &'static str) -> Result<Arc<Writer>> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.as_ref().map(|(writer, _)| Arc::clone(writer)).ok_or(DbError::Closed { operation })
    }

    async fn call<R: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut SqliteTx<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Call { operation, work, result: None, reply });
        self.writer(operation)?.send(operation, Message::Job(job))?;
        answer.await.unwrap_or(Err(DbError::Closed { operation }))
    }

    /// Does something outside any transaction.
    async fn chore(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut rusqlite::Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let chore = Box::new(move |connection: &mut rusqlite::Connection| {
            let _ = reply.send(work(connection).map_err(|error| wrong(operation, &error)));
        });
        self.writer(operation)?.send(operation, Message::Chore(chore))?;
        answer.await.unwrap_or(Err(DbError::Closed { operation }))
    }
}

impl Engine for Sqlite {
    async fn write<R: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut dyn Tx) -> Result<R> + Send + Sync + 'static,
    ) -> Result<R> {
        self.call(operation, move |tx| work(tx)).await
    }

    async fn read<R: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut dyn Tx) -> Result<R> + Send + Sync + 'static,
    ) -> Result<R> {
        self.readers.read(operation, work).await
    }

    async fn ingest(&self, tenant: TenantId, batches: &[IngestBatch]) -> Result<Vec<IngestOutcome>> {
        let prepared: Vec<Prepared> = batches.iter().map(|batch| Prepared::of(tenant, batch)).collect();
        self.call("store events", move |tx| ingest::ingest(tx, tenant, &prepared)).await
    }

    fn backend(&self) -> Backend {
        Backend::Sqlite
    }

    async fn maintain(&self, _: Timestamp) -> Result<()> {
        self.chore("maintain the database", |connection| {
            // Each gives rows of its own, which say nothing that is wanted here.
            for sql in ["PRAGMA optimize", "PRAGMA wal_checkpoint(TRUNCATE)"] {
                connection.prepare(sql)?.query([])?.next()?;
            }
            let sql = format!("PRAGMA incremental_vacuum({VACUUM_PAGES})");
            let mut statement = connection.prepare(&sql)?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
            Ok(())
        })
        .await
    }

    async fn make_days(&self, _: &std::collections::BTreeSet<i32>) -> Result<()> {
        Ok(())
    }

    async fn remove_events(&self, tenant: TenantId, before: Timestamp) -> Result<Removed> {
        let events = self
            .write("remove old events", move |tx| {
                tx.execute(
                    "DELETE FROM events WHERE position IN (SELECT position FROM events WHERE tenant_id = $1 AND id < $2 \
                     ORDER BY id LIMIT $3)",
                    params![tenant, crate::events::id_floor(before), REMOVED_AT_ONCE],
                )
            })
            .await?;
        let more = events >= REMOVED_AT_ONCE.unsigned_abs();
        Ok(Removed { events, more, ..Removed::default() })
    }

    async fn measure(&self, tenant: TenantId) -> Result<DbStats> {
        let writer = self.writer("measure the database")?;
        let mut stats = self
            .readers
            .read("measure the database", move |tx| {
                let pages = tx.number("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", &[])?;
                // Positions are given in order and taken away from the oldest on. Each end by itself: SQLite reads the whole
                // table for both at once.
                let events = tx.number(
                    "SELECT (SELECT max(position) FROM events) - (SELECT min(position) FROM events) + 1",
                    &[],
                )?;
                let oldest =
                    tx.row("SELECT received_at FROM events WHERE tenant_id = $1 ORDER BY id LIMIT 1", params![tenant])?;
                Ok(DbStats {
                    size_bytes: u64::try_from(pages).unwrap_or_default(),
                    events: u64::try_from(events).unwrap_or_default(),
                    oldest_event: oldest.map(|row| row.time(0)).transpose()?,
                    ..DbStats::default()
                })
            })
            .await?;
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        stats.size_bytes += Path::new(&log).metadata().map_or(0, |meta| meta.len());
        stats.queued = writer.waiting();
        stats.connections = self.readers.idle() as u64 + 1;
        stats.schema = known_schema();
        Ok(stats)
    }

    async fn ping(&self) -> Result<()> {
        self.write("ask the database", |tx| tx.query("SELECT 1", &[]).map(drop)).await
    }

    async fn close(&self) {
        let taken = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.readers.close();
        if let Some((writer, thread)) = taken {
            drop(writer);
            // The thread ends when the last call that still holds the queue has sent what it had.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

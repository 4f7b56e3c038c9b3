//! PostgreSQL as the nouns need it.

use super::connect::{self, known_schema};
use super::partitions;
use super::tx::{Failure, PgTx, wrong};
use crate::shared::{Engine, Tx};
use crate::upkeep::{Backend, DbStats, Removed};
use crate::{DbError, IngestBatch, IngestOutcome, Options, Result, TenantId};
use deadpool_postgres::{Object, Pool, PoolError, TimeoutType};
use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use tokio::runtime::Handle;

/// How often a transaction is tried that lost against another one.
const ATTEMPTS: u32 = 8;
/// How many events are removed in one go where a partition is shared with other tenants.
const REMOVED_AT_ONCE: i64 = 5000;
/// How long the removal of a partition waits for those who read it: meanwhile everybody who wants to read or store events
/// waits behind it. So it is short, and tried again after a moment.
const DROP_PATIENCE: &str = "SET LOCAL lock_timeout = '300ms'";
const DROP_ATTEMPTS: u32 = 3;
const DROP_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// A server of PostgreSQL.
pub(crate) struct Postgres {
    pub(super) pool: Pool,
    /// The days whose partitions are known to be there.
    pub(super) days: Arc<Mutex<BTreeSet<Date>>>,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Nothing of the configuration: it has the password.
        f.debug_struct("Postgres").finish_non_exhaustive()
    }
}

impl Postgres {
    /// Connects, and brings the schema up to date.
    pub(crate) async fn open(url: &str, options: &Options) -> Result<Self> {
        Ok(Self { pool: connect::open(url, options).await?, days: Arc::default() })
    }

    /// A connection, its own for as long as it is held.
    pub(super) async fn client(&self, operation: &'static str) -> Result<Object> {
        self.pool.get().await.map_err(|error| match error {
            PoolError::Timeout(TimeoutType::Wait) => {
                DbError::Busy { operation, why: "all connections to the database are in use".into() }
            }
            PoolError::Closed => DbError::Closed { operation },
            PoolError::Backend(error) | PoolError::PostCreateHook(deadpool_postgres::HookError::Backend(error)) => {
                wrong(operation, &error).error
            }
            other => {
                DbError::Unavailable { operation, why: other.to_string(), retry: std::time::Duration::from_secs(1) }
            }
        })
    }

    /// Runs `work` in transactions that begin with `begin`, until one is committed or it makes no sense to go on.
    async fn transact<R: Send + 'static>(
        &self,
        operation: &'static str,
        begin: &'static str,
        work: impl Fn(&mut dyn Tx) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let client = self.client(operation).await?;
        let handle = Handle::current();
        let done = tokio::task::spawn_blocking(move || {
            let mut attempt = 1;
            loop {
                match try_once(&client, &handle, operation, begin, &work) {
                    Err(failure) if failure.again && attempt < ATTEMPTS => attempt += 1,
                    Err(failure) => return Err(told(client, failure)),
                    Ok(result) => return Ok(result),
                }
            }
        });
        done.await.map_err(|error| DbError::Io { operation, why: error.to_string() })?
    }
}

/// What is told of a failure. A connection that is of no use does not go back to the others.
pub(super) fn told(client: Object, failure: Failure) -> DbError {
    if failure.leave {
        drop(Object::take(client));
    }
    failure.error
}

/// One transaction; an error says whether it may succeed when it is tried again.
fn try_once<R>(
    client: &Object,
    handle: &Handle,
    operation: &'static str,
    begin: &str,
    work: &impl Fn(&mut dyn Tx) -> Result<R>,
) -> std::result::Result<R, Failure> {
    let run = |sql: &str| handle.block_on(client.batch_execute(sql)).map_err(|error| wrong(operation, &error));
    run(begin)?;
    let mut tx = PgTx { handle: handle.clone(), client, operation, failed: None };
    let result = work(&mut tx);
    match (result, tx.failed) {
        (Ok(result), None) => match run("COMMIT") {
            Ok(()) => Ok(result),
            Err(lost) => Err(lost),
        },
        (Ok(_), Some(failure)) => {
            let _ = run("ROLLBACK");
            Err(failure)
        }
        (Err(error), failed) => {
            let _ = run("ROLLBACK");
            let (again, leave) = failed.map_or((false, false), |failure| (failure.again, failure.leave));
            Err(Failure { error, again, leave })
        }
    }
}

impl Engine for Postgres {
    async fn write<R: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut dyn Tx) -> Result<R> + Send + Sync + 'static,
    ) -> Result<R> {
        // Rows that a decision rests on are locked; each statement then sees what was committed before it.
        self.transact(operation, "BEGIN ISOLATION LEVEL READ COMMITTED", work).await
    }

    async fn read<R: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut dyn Tx) -> Result<R> + Send + Sync + 'static,
    ) -> Result<R> {
        self.transact(operation, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", work).await
    }

    async fn ingest(&self, tenant: TenantId, batches: &[IngestBatch]) -> Result<Vec<IngestOutcome>> {
        self.store(tenant, batches).await
    }

    fn backend(&self) -> Backend {
        Backend::Postgres
    }

    async fn maintain(&self, now: Timestamp) -> Result<()> {
        let client = self.client("make partitions").await?;
        let tomorrow = now.checked_add(SignedDuration::from_hours(24)).unwrap_or(now);
        let days = [partitions::day(now), partitions::day(tomorrow)].into();
        partitions::make(&client, &days).await.map_err(|failure| told(client, failure))
    }

    async fn make_days(&self, days: &BTreeSet<i32>) -> Result<()> {
        let epoch = partitions::day(Timestamp::UNIX_EPOCH);
        let days: BTreeSet<Date> = days.iter().map(|day| epoch.saturating_add(jiff::Span::new().days(*day))).collect();
        let client = self.client("make partitions").await?;
        partitions::make(&client, &days).await.map_err(|failure| failure.error)
    }

    async fn remove_events(&self, tenant: TenantId, before: Timestamp) -> Result<Removed> {
        let operation = "remove old events";
        let doing = |error: tokio_postgres::Error| wrong(operation, &error).error;
        let client = self.client(operation).await?;
        let last = partitions::day(before);
        let old: Vec<_> = partitions::all(&client).await.map_err(doing)?;
        let old: Vec<_> = old.into_iter().filter(|(day, _)| *day < last).collect();
        let Some((day, rows)) = old.first().copied() else { return Ok(Removed::default()) };
        let name = partitions::name(day);
        let more = old.len() > 1;
        let others = format!("SELECT EXISTS (SELECT 1 FROM {name} WHERE tenant_id < $1 OR tenant_id > $1)");
        if client.query_one(&others, &[&tenant.0]).await.map_err(doing)?.get(0) {
            let sql = format!(
                "DELETE FROM {name} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {name} WHERE tenant_id = $1 LIMIT $2))"
            );
            let events = client.execute(&sql, &[&tenant.0, &REMOVED_AT_ONCE]).await.map_err(doing)?;
            return Ok(Removed { events, more: events > 0 || more, ..Removed::default() });
        }
        let drop = format!("BEGIN; {DROP_PATIENCE}; DROP TABLE {name}; COMMIT");
        let mut attempt = 1;
        while let Err(error) = client.batch_execute(&drop).await {
            let _ = client.batch_execute("ROLLBACK").await;
            let waited = error.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE);
            if !waited || attempt >= DROP_ATTEMPTS {
                return Err(doing(error));
            }
            attempt += 1;
            tokio::time::sleep(DROP_AGAIN).await;
        }
        self.days.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&day);
        Ok(Removed { events: rows, partitions: 1, more, ..Removed::default() })
    }

    async fn measure(&self, tenant: TenantId) -> Result<DbStats> {
        let operation = "measure the database";
        let doing = |error: tokio_postgres::Error| wrong(operation, &error).error;
        let client = self.client(operation).await?;
        let size: i64 =
            client.query_one("SELECT pg_database_size(current_database())", &[]).await.map_err(doing)?.get(0);
        let parts = partitions::all(&client).await.map_err(doing)?;
        let mut oldest = None;
        for (day, _) in &parts {
            let sql = format!(
                "SELECT (extract(epoch FROM received_at) * 1000000)::bigint FROM {} WHERE tenant_id = $1 ORDER BY id LIMIT 1",
                partitions::name(*day)
            );
            if let Some(row) = client.query_opt(&sql, &[&tenant.0]).await.map_err(doing)? {
                oldest = Timestamp::from_microsecond(row.get(0)).ok();
                break;
            }
        }
        let status = self.pool.status();
        Ok(DbStats {
            size_bytes: size.unsigned_abs(),
            events: parts.iter().map(|(_, rows)| rows).sum(),
            oldest_event: oldest,
            partitions: parts.len() as u64,
            queued: status.waiting as u64,
            connections: status.size as u64,
            schema: known_schema(),
            ..DbStats::default()
        })
    }

    async fn ping(&self) -> Result<()> {
        let client = self.client("ask the database").await?;
        let row =
            client.query_one("SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean", &[]);
        let row = row.await.map_err(|error| wrong("ask the database", &error).error)?;
        if row.get(0) {
            let why = "the server takes no writes: it is a standby".into();
            return Err(DbError::Unavailable {
                operation: "ask the database",
                why,
                retry: std::time::Duration::from_secs(1),
            });
        }
        Ok(())
    }

    async fn close(&self) {
        self.pool.close();
    }
}

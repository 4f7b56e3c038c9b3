//! The nouns over SQL that both databases understand: written once, so that they behave alike.
//!
//! A statement has `$1`, `$2` … for its parameters, and between `/*pg` and `pg*/` what only PostgreSQL gets: to SQLite
//! that is a comment. What is locked there with `FOR UPDATE` needs no lock in SQLite, which has one writer.

mod agents;
mod audit;
mod blocks;
mod cases;
mod certificates;
mod configs;
mod cursor;
mod deliveries;
mod enrolment;
mod events;
mod findings;
mod idempotency;
mod ingest;
mod judge;
mod permissions;
mod ranges;
mod retention;
mod rules;
mod select;
mod sessions;
mod settings;
mod signing;
mod tail;
mod tenants;
mod tokens;
mod users;
mod value;

pub(crate) use ingest::{Prepared, Sifted, number};
pub(crate) use ranges::Ranges;
pub(crate) use retention::{OldRows, remove_rows};
pub(crate) use value::{Cell, Row, Tx, Value, params};

use crate::upkeep::{Backend, DbStats, Removed, Retention};
use crate::{Database, IngestBatch, IngestOutcome, Result, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

/// A database as the nouns need it.
pub(crate) trait Engine: std::fmt::Debug + Send + Sync + 'static {
    /// Runs `work` in a transaction that may write, to its end even if nobody waits for it any more. It may be run again
    /// when the database asks for that.
    fn write<R: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut dyn Tx) -> Result<R> + Send + Sync + 'static,
    ) -> impl Future<Output = Result<R>> + Send;

    /// Runs `work` on one consistent view of the data.
    fn read<R: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut dyn Tx) -> Result<R> + Send + Sync + 'static,
    ) -> impl Future<Output = Result<R>> + Send;

    /// [`crate::Events::ingest`].
    fn ingest(
        &self,
        tenant: TenantId,
        batches: &[IngestBatch],
    ) -> impl Future<Output = Result<Vec<IngestOutcome>>> + Send;

    /// [`crate::Upkeep::backend`].
    fn backend(&self) -> Backend;

    /// [`crate::Upkeep::maintain`].
    fn maintain(&self, now: Timestamp) -> impl Future<Output = Result<()>> + Send;

    /// Makes room for events received on these days (since 1970, UTC).
    fn make_days(&self, days: &std::collections::BTreeSet<i32>) -> impl Future<Output = Result<()>> + Send;

    /// Removes a bounded part of the events received before a time.
    fn remove_events(&self, tenant: TenantId, before: Timestamp) -> impl Future<Output = Result<Removed>> + Send;

    /// What only the database itself knows of [`DbStats`].
    fn measure(&self, tenant: TenantId) -> impl Future<Output = Result<DbStats>> + Send;

    /// [`crate::Upkeep::ping`].
    fn ping(&self) -> impl Future<Output = Result<()>> + Send;

    /// [`crate::Upkeep::close`].
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// The nouns on a database.
#[derive(Debug)]
pub(crate) struct Store<E> {
    pub(crate) engine: E,
}

impl<E: Engine> Database for Store<E> {}

#[async_trait]
impl<E: Engine> crate::Upkeep for Store<E> {
    fn backend(&self) -> Backend {
        self.engine.backend()
    }

    async fn ping(&self) -> Result<()> {
        self.engine.ping().await
    }

    async fn maintain(&self, now: Timestamp) -> Result<()> {
        self.engine.maintain(now).await
    }

    async fn remove_old(&self, tenant: TenantId, retention: &Retention) -> Result<Removed> {
        let mut removed = Removed::default();
        let mut failed = None;
        for kind in OldRows::ALL {
            let asked = retention.clone();
            let rows = self.engine.write("remove old rows", move |tx| remove_rows(tx, tenant, kind, &asked)).await;
            match rows {
                Ok(rows) => removed.add(rows),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(before) = retention.events_before {
            match self.engine.remove_events(tenant, before).await {
                Ok(events) => removed.add(events),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        // What cannot go keeps nothing else from going: it is told of once the rest is gone.
        match failed {
            Some(error) if !removed.more => Err(error),
            _ => Ok(removed),
        }
    }

    async fn stats(&self, tenant: TenantId) -> Result<DbStats> {
        let own = self.engine.measure(tenant).await?;
        let counted = self.engine.read("count rows", move |tx| retention::count_rows(tx, tenant)).await?;
        Ok(DbStats {
            agents: counted.agents,
            findings: counted.findings,
            streams: counted.streams,
            deliveries_waiting: counted.deliveries_waiting,
            ..own
        })
    }

    async fn close(&self) {
        self.engine.close().await;
    }
}

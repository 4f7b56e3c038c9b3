//! Upkeep: what keeps a database healthy and small, and what there is to measure.

use crate::basics::words;
use crate::{Result, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

words! {
    /// Which database it is.
    Backend {
        /// Embedded.
        Sqlite = "sqlite",
        /// A server.
        Postgres = "postgres",
    }
}

/// What may go: whatever is older than its time; none keeps everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retention {
    /// The hub's time now.
    pub now: Timestamp,
    /// Events received before. PostgreSQL drops whole days only.
    pub events_before: Option<Timestamp>,
    /// Resolved findings last changed before, with their evidence and history. One that is in a case stays.
    pub findings_before: Option<Timestamp>,
    /// Deliveries that are done or failed, made before.
    pub deliveries_before: Option<Timestamp>,
    /// Enrolment tokens and uses that ended before. Sessions, idempotency keys and blocks go when they end.
    pub enrolment_before: Option<Timestamp>,
}

/// What went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Events; for whole partitions what the server estimates.
    pub events: u64,
    /// Partitions of events.
    pub partitions: u64,
    /// Findings.
    pub findings: u64,
    /// Deliveries.
    pub deliveries: u64,
    /// Tokens and their uses.
    pub enrolment: u64,
    /// Sessions, idempotency keys, blocks.
    pub ended: u64,
    /// There is more to remove: call again.
    pub more: bool,
}

impl Removed {
    /// Adds what went besides.
    pub(crate) fn add(&mut self, other: Self) {
        self.events += other.events;
        self.partitions += other.partitions;
        self.findings += other.findings;
        self.deliveries += other.deliveries;
        self.enrolment += other.enrolment;
        self.ended += other.ended;
        self.more |= other.more;
    }
}

/// What there is to measure. Numbers of rows may be estimates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DbStats {
    /// Bytes of everything on the disk.
    pub size_bytes: u64,
    /// Events that are here.
    pub events: u64,
    /// When the oldest of them was received.
    pub oldest_event: Option<Timestamp>,
    /// Agents that are not retired.
    pub agents: u64,
    /// Findings that are here.
    pub findings: u64,
    /// Streams that something came of.
    pub streams: u64,
    /// Deliveries that wait.
    pub deliveries_waiting: u64,
    /// Requests that wait for the writer (SQLite) or for a connection (PostgreSQL), all tenants.
    pub queued: u64,
    /// Connections that are open, all tenants.
    pub connections: u64,
    /// Partitions of events (PostgreSQL).
    pub partitions: u64,
    /// The schema's version.
    pub schema: i64,
}

/// What keeps a database healthy.
#[async_trait]
pub trait Upkeep {
    /// Which database it is.
    fn backend(&self) -> Backend;

    /// Whether it answers and could be written to; cheap enough for a probe.
    async fn ping(&self) -> Result<()>;

    /// What is to be done now and then, at least every hour: partitions for today and tomorrow, the write-ahead log taken
    /// over, statistics for the planner.
    async fn maintain(&self, now: Timestamp) -> Result<()>;

    /// Removes a bounded part of what may go; to be called until nothing is left ([`Removed::more`]). Each kind goes by
    /// itself.
    ///
    /// # Errors
    /// What kept one kind from going, once there is no more of the others.
    async fn remove_old(&self, tenant: TenantId, retention: &Retention) -> Result<Removed>;

    /// What there is to measure.
    async fn stats(&self, tenant: TenantId) -> Result<DbStats>;

    /// Ends: waits for what is under way, and closes files and connections. Calls after it fail with
    /// [`crate::DbError::Closed`].
    async fn close(&self);
}

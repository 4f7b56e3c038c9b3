//! What the hub keeps: SQLite or PostgreSQL behind one interface.
//!
//! [`Database`] is all of it; each noun has a trait and its types in a module of its own. No clock is read here: times,
//! ids and limits are parameters. Times are kept to the microsecond. Every call names the tenant whose data it is about.
//!
//! Text from outside may hold anything: U+0000, which PostgreSQL has no place for, becomes U+FFFD in both databases.

mod agents;
mod audit;
mod basics;
mod blocks;
mod cases;
mod certificates;
mod configs;
mod deliveries;
mod enrolment;
mod error;
mod event_data;
mod events;
mod findings;
mod idempotency;
mod judge;
mod options;
mod permissions;
mod portable;
mod position;
mod postgres;
mod rules;
mod sessions;
mod settings;
mod shared;
mod signing;
mod sqlite;
mod tenants;
mod tokens;
mod upkeep;
mod users;

pub use agents::{Agent, AgentBoot, AgentFilter, AgentReport, AgentSeen, AgentStatus, AgentUpdate};
pub use agents::{Agents, CERTIFICATES_IN_USE, CONFIG_STATUSES, NewAgent, RENEWALS_ASKED, SeenOutcome};
pub use audit::{Audit, AuditEntry, AuditFilter, AuditHead, NewAuditEntry};
pub use basics::{Cursor, Hidden, PAGE_MAX, Page, PageRequest, Revision, Sha256, TenantId};
pub use blocks::{Block, BlockSubject, Blocks};
pub use cases::{Case, CaseFilter, CaseState, CaseUpdate, Cases, NewCase};
pub use certificates::{Certificate, Certificates, NewCertificate, Revocation, Revoked};
pub use configs::{Assignment, ConfigTarget, ConfigVersion, Configs, wanted_version};
pub use deliveries::{Deliveries, Delivery, DeliveryState, NewDelivery};
pub use enrolment::{EnrolOutcome, EnrolRequest, EnrolToken, Enrolled, Enrolment, EnrolmentState};
pub use enrolment::{Hidden32, Network, NewEnrolToken, REPLAY_WINDOW};
pub use error::{DbError, Result};
pub use event_data::EventData;
pub use events::{
    AgentBook, DATA_MAX_DEPTH, EVENT_MAX_WEIGHT, EVENT_MIN_TIME, EventFilter, Events, INGEST_MAX_EVENTS, IngestBatch,
    IngestOutcome, NewEvent,
};
pub use events::{
    SeqRange, Shard, StoredEvent, StreamBook, TAIL_MAX_BYTES, TAIL_MAX_EVENTS, TYPE_MAX_BYTES, Tail, Totals, event_id,
};
pub use findings::{Entity, Finding, FindingCount, FindingFilter, FindingState, FindingTail, FindingUpdate};
pub use findings::{Findings, History, KeptEvidence, NewState, Severity};
pub use idempotency::{Idempotency, IdempotencyKeys, IdempotentRequest, KeptResponse};
pub use judge::{EVIDENCE_MAX, Effect, Evidence, FindingChange, FindingOutcome, Judge, JudgeCommit, Judged};
pub use judge::{Lease, Progress, finding_id};
pub use options::{Location, Options};
pub use permissions::{Grant, Permission, Permissions};
pub use portable::{BackupHeader, BackupTotals, BackupWriter, Closed, Migration, Moved, OnRows, Portable, Restore};
pub use portable::{Restored, RevocationRecord, RevokedWhat, Sink, Source, Verified};
pub use portable::{abort_migration, migrate, restore, taken_back, verify};
pub use position::Position;
pub use rules::{NewRule, Rule, RuleFilter, RuleOrigin, RuleVersion, Rules, SUSPENDED_RULES};
pub use sessions::{Session, Sessions};
pub use settings::{SETTING_MAX_BYTES, Setting, Settings};
pub use signing::{SigningKey, SigningKeys};
pub use tenants::{Tenant, Tenants};
pub use tokens::{ApiToken, ApiTokens};
pub use upkeep::{Backend, DbStats, Removed, Retention, Upkeep};
pub use users::{NewUser, User, UserStatus, UserUpdate, Users};

/// Everything that the hub keeps, shared between all who need it: `Arc<dyn Database>`.
pub trait Database:
    Tenants
    + Settings
    + Agents
    + Certificates
    + Enrolment
    + Users
    + Sessions
    + ApiTokens
    + Permissions
    + SigningKeys
    + Events
    + Judge
    + Rules
    + Findings
    + Cases
    + Deliveries
    + Audit
    + IdempotencyKeys
    + Blocks
    + Configs
    + Upkeep
    + Portable
    + std::fmt::Debug
    + Send
    + Sync
{
}

/// Opens a database: `sqlite:<path>` or a path, or `postgres://…`. The schema is brought up to date.
///
/// # Errors
/// [`DbError::Newer`] for a database of a later version; [`DbError::Shut`] for one whose data moved; [`DbError::Corrupt`], [`DbError::Unavailable`] and
/// [`DbError::Io`] when it cannot be opened.
pub async fn open(location: &str, options: &Options) -> Result<std::sync::Arc<dyn Database>> {
    let even_closed = options.even_closed;
    match Location::parse(location)? {
        Location::Sqlite(path) => {
            let options = options.clone();
            let opening = tokio::task::spawn_blocking(move || sqlite::Sqlite::open(&path, &options));
            let opened = opening
                .await
                .map_err(|error| DbError::Io { operation: "open the database", why: error.to_string() })?;
            serving(shared::Store { engine: opened? }, even_closed).await
        }
        Location::Postgres(url) => {
            let engine = postgres::Postgres::open(&url, options).await?;
            serving(shared::Store { engine }, even_closed).await
        }
    }
}

/// A database that was opened, unless it is closed.
async fn serving<E: shared::Engine>(
    store: shared::Store<E>,
    even_closed: bool,
) -> Result<std::sync::Arc<dyn Database>> {
    if !even_closed && let Some(why) = store.closed().await? {
        store.close().await;
        return Err(DbError::Shut { operation: "open the database", why: why.to_string() });
    }
    Ok(std::sync::Arc::new(store))
}

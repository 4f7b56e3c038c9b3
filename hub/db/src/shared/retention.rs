//! Removing what is too old, and counting what is there, over SQL. Events are each database's own business.

use super::{Tx, params};
use crate::{DbStats, Removed, Result, Retention, TenantId};
use jiff::Timestamp;

/// How many rows of a kind are removed in one go.
const CHUNK: i64 = 500;

/// What is removed in a transaction of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OldRows {
    Findings,
    Deliveries,
    Enrolment,
    Sessions,
    Idempotency,
    Blocks,
}

impl OldRows {
    pub(crate) const ALL: [Self; 6] =
        [Self::Findings, Self::Deliveries, Self::Enrolment, Self::Sessions, Self::Idempotency, Self::Blocks];

    /// Before which time they may go.
    fn before(self, retention: &Retention) -> Option<Timestamp> {
        match self {
            Self::Findings => retention.findings_before,
            Self::Deliveries => retention.deliveries_before,
            Self::Enrolment => retention.enrolment_before,
            Self::Sessions | Self::Idempotency | Self::Blocks => Some(retention.now),
        }
    }

    fn sql(self) -> &'static str {
        match self {
            Self::Findings => {
                "DELETE FROM findings WHERE tenant_id = $1 AND id IN (SELECT f.id FROM findings f WHERE f.tenant_id = $1 \
                 AND f.state = 'resolved' AND f.updated_at < $2 AND NOT EXISTS (SELECT 1 FROM case_findings c \
                 WHERE c.tenant_id = f.tenant_id AND c.finding_id = f.id) LIMIT $3)"
            }
            Self::Deliveries => {
                "DELETE FROM deliveries WHERE tenant_id = $1 AND id IN (SELECT id FROM deliveries WHERE tenant_id = $1 \
                 AND state <> 'waiting' AND created_at < $2 ORDER BY created_at LIMIT $3)"
            }
            Self::Enrolment => {
                "DELETE FROM enrol_tokens WHERE tenant_id = $1 AND id IN (SELECT id FROM enrol_tokens \
                 WHERE tenant_id = $1 AND (expires_at < $2 OR revoked_at < $2) LIMIT $3)"
            }
            Self::Sessions => {
                "DELETE FROM sessions WHERE tenant_id = $1 AND id_hash IN (SELECT id_hash FROM sessions \
                 WHERE tenant_id = $1 AND expires_at <= $2 LIMIT $3)"
            }
            Self::Idempotency => {
                "DELETE FROM idempotency WHERE tenant_id = $1 AND (principal, key) IN (SELECT principal, key \
                 FROM idempotency WHERE tenant_id = $1 AND expires_at <= $2 LIMIT $3)"
            }
            Self::Blocks => {
                "DELETE FROM blocks WHERE tenant_id = $1 AND (kind, value) IN (SELECT kind, value FROM blocks \
                 WHERE tenant_id = $1 AND until <= $2 LIMIT $3)"
            }
        }
    }
}

/// Removes a bounded part of one kind of what may go.
pub(crate) fn remove_rows(tx: &mut dyn Tx, tenant: TenantId, kind: OldRows, retention: &Retention) -> Result<Removed> {
    let mut removed = Removed::default();
    let Some(before) = kind.before(retention) else { return Ok(removed) };
    let rows = tx.execute(kind.sql(), params![tenant, before, CHUNK])?;
    match kind {
        OldRows::Findings => removed.findings = rows,
        OldRows::Deliveries => removed.deliveries = rows,
        OldRows::Enrolment => removed.enrolment = rows,
        OldRows::Sessions | OldRows::Idempotency | OldRows::Blocks => removed.ended = rows,
    }
    removed.more = i64::try_from(rows).unwrap_or(CHUNK) >= CHUNK;
    Ok(removed)
}

/// Counts what is cheap to count.
pub(super) fn count_rows(tx: &mut dyn Tx, tenant: TenantId) -> Result<DbStats> {
    let mut count =
        |sql: &str| -> Result<u64> { Ok(u64::try_from(tx.number(sql, params![tenant])?).unwrap_or_default()) };
    Ok(DbStats {
        agents: count("SELECT count(*) FROM agents WHERE tenant_id = $1 AND status <> 'retired'")?,
        findings: count("SELECT count(*) FROM findings WHERE tenant_id = $1")?,
        streams: count("SELECT count(*) FROM streams WHERE tenant_id = $1")?,
        deliveries_waiting: count("SELECT count(*) FROM deliveries WHERE tenant_id = $1 AND state = 'waiting'")?,
        ..DbStats::default()
    })
}

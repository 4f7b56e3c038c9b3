//! Removing what is too old, and counting what is there, over SQL. Events are each database's own business.

use super::{Tx, params};
use crate::{DbStats, Removed, Result, Retention, TenantId};

/// How many rows of a kind are removed in one go.
const CHUNK: i64 = 500;

/// Removes a bounded part of what may go of everything but events.
pub(crate) fn remove_rows(tx: &mut dyn Tx, tenant: TenantId, retention: &Retention) -> Result<Removed> {
    let mut removed = Removed::default();
    let mut full = false;
    let mut remove = |tx: &mut dyn Tx, sql: &str, before: jiff::Timestamp| -> Result<u64> {
        let rows = tx.execute(sql, params![tenant, before, CHUNK])?;
        full |= i64::try_from(rows).unwrap_or(CHUNK) >= CHUNK;
        Ok(rows)
    };
    if let Some(before) = retention.findings_before {
        removed.findings = remove(
            tx,
            "DELETE FROM findings WHERE tenant_id = $1 AND id IN (SELECT f.id FROM findings f WHERE f.tenant_id = $1 \
             AND f.state = 'resolved' AND f.updated_at < $2 AND NOT EXISTS (SELECT 1 FROM case_findings c \
             WHERE c.tenant_id = f.tenant_id AND c.finding_id = f.id) LIMIT $3)",
            before,
        )?;
    }
    if let Some(before) = retention.deliveries_before {
        removed.deliveries = remove(
            tx,
            "DELETE FROM deliveries WHERE tenant_id = $1 AND id IN (SELECT id FROM deliveries WHERE tenant_id = $1 \
             AND state <> 'waiting' AND created_at < $2 ORDER BY created_at LIMIT $3)",
            before,
        )?;
    }
    if let Some(before) = retention.enrolment_before {
        removed.enrolment = remove(
            tx,
            "DELETE FROM enrol_tokens WHERE tenant_id = $1 AND id IN (SELECT id FROM enrol_tokens WHERE tenant_id = $1 \
             AND (expires_at < $2 OR revoked_at < $2) LIMIT $3)",
            before,
        )?;
    }
    for sql in [
        "DELETE FROM sessions WHERE tenant_id = $1 AND id_hash IN (SELECT id_hash FROM sessions WHERE tenant_id = $1 \
         AND expires_at <= $2 LIMIT $3)",
        "DELETE FROM idempotency WHERE tenant_id = $1 AND (principal, key) IN (SELECT principal, key FROM idempotency \
         WHERE tenant_id = $1 AND expires_at <= $2 LIMIT $3)",
        "DELETE FROM blocks WHERE tenant_id = $1 AND (kind, value) IN (SELECT kind, value FROM blocks \
         WHERE tenant_id = $1 AND until <= $2 LIMIT $3)",
    ] {
        removed.ended += remove(tx, sql, retention.now)?;
    }
    removed.more = full;
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

//! The audit log over SQL.

use super::cursor::{Key, Order};
use super::select::{Select, newest};
use super::{Engine, Row, Store, Tx, params};
use crate::{Audit, AuditEntry, AuditFilter, AuditHead, NewAuditEntry, PAGE_MAX, Page, PageRequest, Result, TenantId};
use async_trait::async_trait;

const COLUMNS: &str = "seq, previous, at, actor, action, object, record, hash";
const LATEST: Order = newest("audit", &[("seq", Key::Int)]);

fn entry(row: &Row) -> Result<AuditEntry> {
    Ok(AuditEntry {
        seq: row.int(0)?,
        previous: row.hash(1)?,
        entry: NewAuditEntry {
            at: row.time(2)?,
            actor: row.text(3)?,
            action: row.text(4)?,
            object: row.text(5)?,
            record: row.text(6)?,
            hash: row.hash(7)?,
        },
    })
}

fn head(tx: &mut dyn Tx, tenant: TenantId) -> Result<AuditHead> {
    let sql = "SELECT seq, hash FROM audit WHERE tenant_id = $1 ORDER BY seq DESC LIMIT 1";
    Ok(match tx.row(sql, params![tenant])? {
        Some(row) => AuditHead { seq: row.int(0)?, hash: row.hash(1)? },
        None => AuditHead::default(),
    })
}

fn append(tx: &mut dyn Tx, tenant: TenantId, expected: &AuditHead, new: &[NewAuditEntry]) -> Result<AuditHead> {
    let mut last = head(tx, tenant)?;
    if last != *expected {
        return Err(tx.conflict("the audit log"));
    }
    for one in new {
        if one.record.contains('\0') {
            return Err(tx.invalid("an entry of the audit log has no U+0000 in it"));
        }
        // Two that append at once reach for the same number, and one of them gets it.
        let made = tx.changes(
            "INSERT INTO audit (tenant_id, seq, at, actor, action, object, record, previous, hash) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
            params![
                tenant,
                last.seq + 1,
                one.at,
                &one.actor,
                &one.action,
                &one.object,
                &one.record,
                last.hash,
                one.hash,
            ],
        )?;
        if !made {
            return Err(tx.conflict("the audit log"));
        }
        last = AuditHead { seq: last.seq + 1, hash: one.hash };
    }
    Ok(last)
}

#[async_trait]
impl<E: Engine> Audit for Store<E> {
    async fn audit_head(&self, tenant: TenantId) -> Result<AuditHead> {
        self.engine.read("read the end of the audit log", move |tx| head(tx, tenant)).await
    }

    async fn audit_append(
        &self,
        tenant: TenantId,
        expected: &AuditHead,
        entries: &[NewAuditEntry],
    ) -> Result<AuditHead> {
        let (expected, entries) = (*expected, entries.to_vec());
        self.engine.write("append to the audit log", move |tx| append(tx, tenant, &expected, &entries)).await
    }

    async fn audit_entries(
        &self,
        tenant: TenantId,
        filter: &AuditFilter,
        page: &PageRequest,
    ) -> Result<Page<AuditEntry>> {
        let (filter, page) = (filter.clone(), page.clone());
        self.engine
            .read("list the audit log", move |tx| {
                let mut select = Select::new(COLUMNS, "audit", tenant);
                select
                    .when_some("actor = ?", filter.actor.as_ref())
                    .when_some("action = ?", filter.action.as_ref())
                    .when_some("object = ?", filter.object.as_ref())
                    .when_some("at >= ?", filter.since)
                    .when_some("at < ?", filter.until);
                select.page(tx, &LATEST, &page, entry)
            })
            .await
    }

    async fn audit_scan(&self, tenant: TenantId, after: i64, limit: u32) -> Result<Vec<AuditEntry>> {
        self.engine
            .read("read the audit log", move |tx| {
                let sql =
                    format!("SELECT {COLUMNS} FROM audit WHERE tenant_id = $1 AND seq > $2 ORDER BY seq LIMIT $3");
                tx.query(&sql, params![tenant, after, limit.clamp(1, PAGE_MAX)])?.iter().map(entry).collect()
            })
            .await
    }
}

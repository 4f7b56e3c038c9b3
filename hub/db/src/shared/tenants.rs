//! Tenants over SQL.

use super::{Engine, Row, Store, params};
use crate::{Result, Tenant, TenantId, Tenants};
use async_trait::async_trait;
use jiff::Timestamp;

fn tenant(row: &Row) -> Result<Tenant> {
    let id = i32::try_from(row.int(0)?).unwrap_or_default();
    Ok(Tenant { id: TenantId(id), name: row.text(1)?, created_at: row.time(2)? })
}

#[async_trait]
impl<E: Engine> Tenants for Store<E> {
    async fn ensure_default_tenant(&self, now: Timestamp) -> Result<Tenant> {
        self.engine
            .write("make the default tenant", move |tx| {
                tx.execute(
                    "INSERT INTO tenants (tenant_id, name, created_at) VALUES ($1, 'default', $2) ON CONFLICT DO NOTHING",
                    params![TenantId::DEFAULT, now],
                )?;
                let row = tx.row(
                    "SELECT tenant_id, name, created_at FROM tenants WHERE tenant_id = $1",
                    params![TenantId::DEFAULT],
                )?;
                tenant(&row.ok_or_else(|| tx.not_found("default tenant"))?)
            })
            .await
    }

    async fn create_tenant(&self, name: &str, now: Timestamp) -> Result<Tenant> {
        let name = name.to_owned();
        self.engine
            .write("make a tenant", move |tx| {
                // Rare enough for one at a time: a number is never given twice.
                let next = tx.number("SELECT coalesce(max(tenant_id), 0) + 1 FROM tenants", params![])?;
                let row = tx.row(
                    "INSERT INTO tenants (tenant_id, name, created_at) VALUES ($1, $2, $3) \
                     ON CONFLICT DO NOTHING RETURNING tenant_id, name, created_at",
                    params![next, &name, now],
                )?;
                tenant(&row.ok_or_else(|| tx.conflict(format!("tenant {name}")))?)
            })
            .await
    }

    async fn tenants(&self) -> Result<Vec<Tenant>> {
        self.engine
            .read("list tenants", |tx| {
                let rows = tx.query("SELECT tenant_id, name, created_at FROM tenants ORDER BY tenant_id", params![])?;
                rows.iter().map(tenant).collect()
            })
            .await
    }
}

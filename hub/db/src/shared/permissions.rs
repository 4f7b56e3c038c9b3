//! Permissions over SQL.

use super::cursor::{Key, Order};
use super::select::{Select, by};
use super::{Engine, Row, Store, params};
use crate::{Grant, PAGE_MAX, Page, PageRequest, Permission, Permissions, Result, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

const ORDER: Order = by("grants", &[("principal", Key::Text), ("action", Key::Text), ("tag", Key::Text)]);

fn permission(row: &Row) -> Result<Permission> {
    // In the table no tag is an empty one: a key has no NULL in it.
    let tag = Some(row.text(2)?).filter(|tag| !tag.is_empty());
    Ok(Permission { principal: row.text(0)?, action: row.text(1)?, tag })
}

fn grant(row: &Row) -> Result<Grant> {
    Ok(Grant { permission: permission(row)?, granted_at: row.time(3)?, granted_by: row.text(4)? })
}

#[async_trait]
impl<E: Engine> Permissions for Store<E> {
    async fn grant(&self, tenant: TenantId, permission: &Permission, by: &str, now: Timestamp) -> Result<bool> {
        let (new, by) = (permission.clone(), by.to_owned());
        self.engine
            .write("grant a permission", move |tx| {
                if new.principal.is_empty() || new.action.is_empty() || new.tag.as_deref() == Some("") {
                    return Err(tx.invalid("a permission names who and what, and its tag is not empty"));
                }
                tx.changes(
                    "INSERT INTO permissions (tenant_id, principal, action, tag, granted_at, granted_by) \
                     VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
                    params![tenant, &new.principal, &new.action, new.tag.as_deref().unwrap_or_default(), now, &by],
                )
            })
            .await
    }

    async fn revoke(&self, tenant: TenantId, permission: &Permission) -> Result<bool> {
        let old = permission.clone();
        self.engine
            .write("revoke a permission", move |tx| {
                tx.changes(
                    "DELETE FROM permissions WHERE tenant_id = $1 AND principal = $2 AND action = $3 AND tag = $4",
                    params![tenant, &old.principal, &old.action, old.tag.as_deref().unwrap_or_default()],
                )
            })
            .await
    }

    async fn permissions_of(&self, tenant: TenantId, principal: &str) -> Result<Vec<Permission>> {
        let principal = principal.to_owned();
        self.engine
            .read("read permissions", move |tx| {
                let rows = tx.query(
                    "SELECT principal, action, tag FROM permissions WHERE tenant_id = $1 AND principal = $2 \
                     ORDER BY action, tag LIMIT $3",
                    params![tenant, &principal, PAGE_MAX],
                )?;
                rows.iter().map(permission).collect()
            })
            .await
    }

    async fn grants(&self, tenant: TenantId, page: &PageRequest) -> Result<Page<Grant>> {
        let page = page.clone();
        self.engine
            .read("list permissions", move |tx| {
                let select = Select::new("principal, action, tag, granted_at, granted_by", "permissions", tenant);
                select.page(tx, &ORDER, &page, grant)
            })
            .await
    }
}

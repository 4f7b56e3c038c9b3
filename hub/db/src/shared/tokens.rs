//! API tokens over SQL.

use super::cursor::{Key, Order};
use super::select::{Select, newest};
use super::{Engine, Row, Store, params};
use crate::{ApiToken, ApiTokens, Hidden, Page, PageRequest, Result, Sha256, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

const COLUMNS: &str = "id, hash, name, principal, created_at, created_by, expires_at, last_used, revoked_at";
const NEWEST: Order = newest("api_tokens", &[("created_at", Key::Time), ("id", Key::Uuid)]);

fn token(row: &Row) -> Result<ApiToken> {
    Ok(ApiToken {
        id: row.uuid(0)?,
        hash: Hidden(row.hash(1)?),
        name: row.text(2)?,
        principal: row.text(3)?,
        created_at: row.time(4)?,
        created_by: row.text(5)?,
        expires_at: row.opt_time(6)?,
        last_used: row.opt_time(7)?,
        revoked_at: row.opt_time(8)?,
    })
}

#[async_trait]
impl<E: Engine> ApiTokens for Store<E> {
    async fn create_api_token(&self, tenant: TenantId, token: &ApiToken) -> Result<()> {
        let new = token.clone();
        self.engine
            .write("make an API token", move |tx| {
                let made = tx.changes(
                    "INSERT INTO api_tokens (tenant_id, id, hash, name, principal, created_at, created_by, expires_at) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
                    params![
                        tenant,
                        new.id,
                        new.hash.0,
                        &new.name,
                        &new.principal,
                        new.created_at,
                        &new.created_by,
                        new.expires_at,
                    ],
                )?;
                if made { Ok(()) } else { Err(tx.conflict(format!("API token {}", new.id))) }
            })
            .await
    }

    async fn api_token_by_hash(&self, tenant: TenantId, hash: &Sha256) -> Result<Option<ApiToken>> {
        let hash = *hash;
        self.engine
            .read("find an API token", move |tx| {
                let sql = format!("SELECT {COLUMNS} FROM api_tokens WHERE tenant_id = $1 AND hash = $2");
                tx.row(&sql, params![tenant, hash])?.as_ref().map(token).transpose()
            })
            .await
    }

    async fn api_token(&self, tenant: TenantId, id: Uuid) -> Result<Option<ApiToken>> {
        self.engine
            .read("find an API token", move |tx| {
                let sql = format!("SELECT {COLUMNS} FROM api_tokens WHERE tenant_id = $1 AND id = $2");
                tx.row(&sql, params![tenant, id])?.as_ref().map(token).transpose()
            })
            .await
    }

    async fn api_tokens(
        &self,
        tenant: TenantId,
        principal: Option<&str>,
        page: &PageRequest,
    ) -> Result<Page<ApiToken>> {
        let (principal, page) = (principal.map(str::to_owned), page.clone());
        self.engine
            .read("list API tokens", move |tx| {
                let mut select = Select::new(COLUMNS, "api_tokens", tenant);
                select.when_some("principal = ?", principal.as_ref());
                select.page(tx, &NEWEST, &page, token)
            })
            .await
    }

    async fn api_tokens_used(&self, tenant: TenantId, used: &[(Uuid, Timestamp)]) -> Result<()> {
        let mut used = used.to_vec();
        // In one order, so that two of these never wait for each other in a circle.
        used.sort_unstable();
        self.engine
            .write("note the use of API tokens", move |tx| {
                for (id, at) in &used {
                    tx.execute(
                        "UPDATE api_tokens SET last_used = $3 \
                         WHERE tenant_id = $1 AND id = $2 AND (last_used IS NULL OR last_used < $3)",
                        params![tenant, *id, *at],
                    )?;
                }
                Ok(())
            })
            .await
    }

    async fn revoke_api_token(&self, tenant: TenantId, id: Uuid, now: Timestamp) -> Result<bool> {
        self.engine
            .write("revoke an API token", move |tx| {
                let done = tx.changes(
                    "UPDATE api_tokens SET revoked_at = $3 WHERE tenant_id = $1 AND id = $2 AND revoked_at IS NULL",
                    params![tenant, id, now],
                )?;
                let there = "SELECT 1 FROM api_tokens WHERE tenant_id = $1 AND id = $2";
                if !done && tx.row(there, params![tenant, id])?.is_none() {
                    return Err(tx.not_found(format!("API token {id}")));
                }
                Ok(done)
            })
            .await
    }
}

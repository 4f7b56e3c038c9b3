//! Sessions over SQL.

use super::{Engine, Row, Store, params};
use crate::{Hidden, PAGE_MAX, Result, Session, Sessions, Sha256, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

const COLUMNS: &str = "id_hash, user_id, csrf_hash, address, user_agent, created_at, last_used, expires_at";

fn session(row: &Row) -> Result<Session> {
    Ok(Session {
        id_hash: Hidden(row.hash(0)?),
        user: row.uuid(1)?,
        csrf_hash: Hidden(row.hash(2)?),
        address: row.text(3)?,
        user_agent: row.text(4)?,
        created_at: row.time(5)?,
        last_used: row.time(6)?,
        expires_at: row.time(7)?,
    })
}

#[async_trait]
impl<E: Engine> Sessions for Store<E> {
    async fn create_session(&self, tenant: TenantId, session: &Session) -> Result<()> {
        let new = session.clone();
        self.engine
            .write("begin a session", move |tx| {
                let user = "SELECT 1 FROM users WHERE tenant_id = $1 AND id = $2 /*pg FOR SHARE pg*/";
                if tx.row(user, params![tenant, new.user])?.is_none() {
                    return Err(tx.not_found(format!("user {}", new.user)));
                }
                let made = tx.changes(
                    "INSERT INTO sessions (tenant_id, id_hash, user_id, csrf_hash, address, user_agent, created_at, \
                     last_used, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
                    params![
                        tenant,
                        new.id_hash.0,
                        new.user,
                        new.csrf_hash.0,
                        &new.address,
                        &new.user_agent,
                        new.created_at,
                        new.last_used,
                        new.expires_at,
                    ],
                )?;
                if made { Ok(()) } else { Err(tx.conflict("a session")) }
            })
            .await
    }

    async fn session(&self, tenant: TenantId, id_hash: &Sha256, now: Timestamp) -> Result<Option<Session>> {
        let id_hash = *id_hash;
        self.engine
            .read("read a session", move |tx| {
                let sql =
                    format!("SELECT {COLUMNS} FROM sessions WHERE tenant_id = $1 AND id_hash = $2 AND expires_at > $3");
                tx.row(&sql, params![tenant, id_hash, now])?.as_ref().map(session).transpose()
            })
            .await
    }

    async fn touch_session(
        &self,
        tenant: TenantId,
        id_hash: &Sha256,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool> {
        let id_hash = *id_hash;
        self.engine
            .write("note the use of a session", move |tx| {
                tx.changes(
                    "UPDATE sessions SET last_used = $3, expires_at = $4 \
                     WHERE tenant_id = $1 AND id_hash = $2 AND expires_at > $3",
                    params![tenant, id_hash, now, expires_at],
                )
            })
            .await
    }

    async fn sessions_of(&self, tenant: TenantId, user: Uuid, now: Timestamp) -> Result<Vec<Session>> {
        self.engine
            .read("list sessions", move |tx| {
                let sql = format!(
                    "SELECT {COLUMNS} FROM sessions WHERE tenant_id = $1 AND user_id = $2 AND expires_at > $3 \
                     ORDER BY created_at DESC, id_hash LIMIT $4"
                );
                tx.query(&sql, params![tenant, user, now, PAGE_MAX])?.iter().map(session).collect()
            })
            .await
    }

    async fn delete_session(&self, tenant: TenantId, id_hash: &Sha256) -> Result<bool> {
        let id_hash = *id_hash;
        self.engine
            .write("end a session", move |tx| {
                tx.changes("DELETE FROM sessions WHERE tenant_id = $1 AND id_hash = $2", params![tenant, id_hash])
            })
            .await
    }

    async fn delete_sessions_of(&self, tenant: TenantId, user: Uuid, except: Option<&Sha256>) -> Result<u64> {
        // No SHA-256 is empty: without an exception nothing is left out.
        let except = except.map_or_else(Vec::new, |hash| hash.to_vec());
        self.engine
            .write("end all sessions of a user", move |tx| {
                tx.execute(
                    "DELETE FROM sessions WHERE tenant_id = $1 AND user_id = $2 AND id_hash <> $3",
                    params![tenant, user, &except],
                )
            })
            .await
    }
}

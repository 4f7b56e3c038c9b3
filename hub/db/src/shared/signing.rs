//! Signing keys over SQL.

use super::{Engine, Row, Store, params};
use crate::{Hidden, Result, SigningKey, SigningKeys, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

fn key(row: &Row) -> Result<SigningKey> {
    Ok(SigningKey {
        kid: row.text(0)?,
        purpose: row.text(1)?,
        public: row.bytes(2)?,
        sealed: Hidden(row.bytes(3)?),
        created_at: row.time(4)?,
        retires_at: row.opt_time(5)?,
    })
}

#[async_trait]
impl<E: Engine> SigningKeys for Store<E> {
    async fn add_signing_key(
        &self,
        tenant: TenantId,
        key: &SigningKey,
        retire_others: Option<Timestamp>,
    ) -> Result<()> {
        let new = key.clone();
        self.engine
            .write("add a signing key", move |tx| {
                if let Some(end) = retire_others {
                    tx.execute(
                        "UPDATE signing_keys SET retires_at = $3 \
                         WHERE tenant_id = $1 AND purpose = $2 AND retires_at IS NULL",
                        params![tenant, &new.purpose, end],
                    )?;
                }
                let made =
                    tx.changes(
                        "INSERT INTO signing_keys (tenant_id, kid, purpose, public, sealed, created_at, retires_at) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
                        params![
                            tenant,
                            &new.kid,
                            &new.purpose,
                            &new.public,
                            &new.sealed.0,
                            new.created_at,
                            new.retires_at,
                        ],
                    )?;
                if made { Ok(()) } else { Err(tx.conflict(format!("signing key {}", new.kid))) }
            })
            .await
    }

    async fn signing_keys(&self, tenant: TenantId, purpose: &str) -> Result<Vec<SigningKey>> {
        let purpose = purpose.to_owned();
        self.engine
            .read("read signing keys", move |tx| {
                let rows = tx.query(
                    "SELECT kid, purpose, public, sealed, created_at, retires_at FROM signing_keys \
                     WHERE tenant_id = $1 AND purpose = $2 ORDER BY created_at DESC, kid LIMIT 100",
                    params![tenant, &purpose],
                )?;
                rows.iter().map(key).collect()
            })
            .await
    }

    async fn delete_signing_keys(&self, tenant: TenantId, before: Timestamp) -> Result<u64> {
        self.engine
            .write("remove old signing keys", move |tx| {
                tx.execute("DELETE FROM signing_keys WHERE tenant_id = $1 AND retires_at < $2", params![tenant, before])
            })
            .await
    }
}

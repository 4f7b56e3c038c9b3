//! Settings over SQL.

use super::{Engine, Row, Store, Value, params};
use crate::{DbError, PAGE_MAX, Result, Revision, SETTING_MAX_BYTES, Setting, Settings, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

const COLUMNS: &str = "key, value, revision, updated_at";

fn setting(row: &Row) -> Result<Setting> {
    Ok(Setting { key: row.text(0)?, value: row.bytes(1)?, revision: row.int(2)?, updated_at: row.time(3)? })
}

#[async_trait]
impl<E: Engine> Settings for Store<E> {
    async fn setting(&self, tenant: TenantId, key: &str) -> Result<Option<Setting>> {
        let key = key.to_owned();
        self.engine
            .read("read a setting", move |tx| {
                let sql = format!("SELECT {COLUMNS} FROM settings WHERE tenant_id = $1 AND key = $2");
                tx.row(&sql, params![tenant, &key])?.as_ref().map(setting).transpose()
            })
            .await
    }

    async fn settings(&self, tenant: TenantId, prefix: &str) -> Result<Vec<Setting>> {
        let prefix = prefix.to_owned();
        self.engine
            .read("list settings", move |tx| {
                let sql = format!(
                    "SELECT {COLUMNS} FROM settings WHERE tenant_id = $1 AND key >= $2 AND key < $3 ORDER BY key LIMIT $4"
                );
                // No character comes after U+10FFFF.
                let end = format!("{prefix}\u{10ffff}");
                let rows = tx.query(&sql, params![tenant, &prefix, end, PAGE_MAX])?;
                rows.iter().map(setting).collect()
            })
            .await
    }

    async fn put_setting(
        &self,
        tenant: TenantId,
        key: &str,
        value: &[u8],
        expected: Option<Revision>,
        now: Timestamp,
    ) -> Result<Revision> {
        if value.len() > SETTING_MAX_BYTES {
            return Err(DbError::invalid("write a setting", format!("it is longer than {SETTING_MAX_BYTES} bytes")));
        }
        let (key, value) = (key.to_owned(), value.to_owned());
        self.engine
            .write("write a setting", move |tx| {
                let p: &[Value] = params![tenant, &key, &value, now];
                let row = match expected {
                    None => tx.row(
                        "INSERT INTO settings (tenant_id, key, value, revision, updated_at) VALUES ($1, $2, $3, 1, $4) \
                         ON CONFLICT (tenant_id, key) DO UPDATE SET value = excluded.value, \
                         revision = settings.revision + 1, updated_at = excluded.updated_at RETURNING revision",
                        p,
                    )?,
                    Some(0) => tx.row(
                        "INSERT INTO settings (tenant_id, key, value, revision, updated_at) VALUES ($1, $2, $3, 1, $4) \
                         ON CONFLICT DO NOTHING RETURNING revision",
                        p,
                    )?,
                    Some(expected) => tx.row(
                        "UPDATE settings SET value = $3, revision = revision + 1, updated_at = $4 \
                         WHERE tenant_id = $1 AND key = $2 AND revision = $5 RETURNING revision",
                        params![tenant, &key, &value, now, expected],
                    )?,
                };
                row.ok_or_else(|| tx.conflict(format!("the setting {key}")))?.int(0)
            })
            .await
    }

    async fn delete_setting(&self, tenant: TenantId, key: &str) -> Result<bool> {
        let key = key.to_owned();
        self.engine
            .write("remove a setting", move |tx| {
                tx.changes("DELETE FROM settings WHERE tenant_id = $1 AND key = $2", params![tenant, &key])
            })
            .await
    }
}

//! What was taken back stays taken back, whatever a backup says: what a restore must hold to.
//!
//! It is known from two places: the database that is replaced, as far as it can be read, and the record that a hub keeps
//! beside its keys. Both only ever take away. What was issued since the backup is carried over from the former database,
//! so that no machine loses its identity to a restore.

use super::export::{quoted, values};
use super::tables;
use crate::shared::{Row, Tx, Value, params};
use crate::{DbError, Result, TenantId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RevokedWhat {
    /// A certificate.
    Certificate {
        /// Its serial number, in hexadecimal digits.
        serial: String,
        /// Why, as in RFC 5280 §5.3.1.
        reason: String,
    },
    /// An agent, with all its certificates.
    Agent {
        /// Which.
        id: Uuid,
    },
    /// An API token.
    ApiToken {
        /// Which.
        id: Uuid,
    },
    /// A user was disabled or removed.
    User {
        /// Which.
        id: Uuid,
    },
    /// A user's password was changed: the one before holds no more.
    Password {
        /// Whose.
        user: Uuid,
    },
    /// A permission.
    Grant {
        /// Whose.
        principal: String,
        /// For what.
        action: String,
        /// On agents with this tag only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tag: Option<String>,
    },
}

/// Something that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationRecord {
    /// Of which tenant.
    pub tenant: i32,
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: String,
    /// What.
    #[serde(flatten)]
    pub what: RevokedWhat,
}

impl RevocationRecord {
    /// Whether it says something that a backup of `taken` may contradict. Certificates, agents and API tokens never come
    /// back; people, passwords and permissions may have come back before the backup.
    pub fn speaks_against(&self, taken: Timestamp) -> bool {
        match self.what {
            RevokedWhat::Certificate { .. } | RevokedWhat::Agent { .. } | RevokedWhat::ApiToken { .. } => true,
            RevokedWhat::User { .. } | RevokedWhat::Password { .. } | RevokedWhat::Grant { .. } => self.at >= taken,
        }
    }
}

/// What must hold after a restore.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    pub(crate) revoked: Vec<RevocationRecord>,
    /// Rows that the backup cannot have, by table.
    pub(crate) since: Vec<(&'static str, Vec<Vec<Value>>)>,
}

fn record(row: &Row, what: RevokedWhat) -> Result<RevocationRecord> {
    let tenant = i32::try_from(row.int(0)?).unwrap_or_default();
    let by = row.opt_text(2)?.unwrap_or_default();
    Ok(RevocationRecord { tenant, at: row.opt_time(1)?.unwrap_or_default(), by, what })
}

/// What a database that is about to be replaced says. `taken` is when the backup was.
pub(super) fn standing(tx: &mut dyn Tx, taken: Timestamp) -> Result<Standing> {
    let mut standing = Standing::default();
    let rows = tx.query(
        "SELECT tenant_id, revoked_at, revoked_by, serial, revoked_reason FROM certificates WHERE revoked_at IS NOT NULL",
        &[],
    )?;
    for row in &rows {
        let what = RevokedWhat::Certificate { serial: row.text(3)?, reason: row.opt_text(4)?.unwrap_or_default() };
        standing.revoked.push(record(row, what)?);
    }
    let rows = tx.query("SELECT tenant_id, retired_at, '', id FROM agents WHERE status = 'retired'", &[])?;
    for row in &rows {
        standing.revoked.push(record(row, RevokedWhat::Agent { id: row.uuid(3)? })?);
    }
    let rows =
        tx.query("SELECT tenant_id, revoked_at, created_by, id FROM api_tokens WHERE revoked_at IS NOT NULL", &[])?;
    for row in &rows {
        standing.revoked.push(record(row, RevokedWhat::ApiToken { id: row.uuid(3)? })?);
    }
    let rows = tx.query("SELECT tenant_id, updated_at, '', id FROM users WHERE status = 'disabled'", &[])?;
    for row in &rows {
        standing.revoked.push(record(row, RevokedWhat::User { id: row.uuid(3)? })?);
    }
    // Agents first: their tags refer to them.
    for (name, condition) in [
        ("agents", "created_at > $1"),
        (
            "agent_tags",
            "EXISTS (SELECT 1 FROM agents a WHERE a.tenant_id = agent_tags.tenant_id AND a.id = agent_tags.agent_id \
             AND a.created_at > $1)",
        ),
        ("certificates", "issued_at > $1"),
    ] {
        let table = tables::find(name).ok_or_else(|| DbError::invalid("restore", "a table is missing"))?;
        standing.since.push((table.name, values(tx, table, condition, params![taken])?));
    }
    Ok(standing)
}

/// Takes back what was taken back.
pub(super) fn apply(tx: &mut dyn Tx, standing: &Standing) -> Result<()> {
    for (name, rows) in &standing.since {
        let table = tables::find(name).ok_or_else(|| DbError::invalid("restore", "a table is missing"))?;
        let places = (1..=table.columns.len()).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ");
        let columns = quoted(table.columns.iter().map(|(column, _)| *column));
        let sql = format!("INSERT INTO {name} ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING");
        for row in rows {
            tx.execute(&sql, row)?;
        }
    }
    for record in &standing.revoked {
        take_back(tx, record)?;
    }
    Ok(())
}

fn take_back(tx: &mut dyn Tx, record: &RevocationRecord) -> Result<()> {
    let (tenant, at) = (TenantId(record.tenant), record.at);
    match &record.what {
        RevokedWhat::Certificate { serial, reason } => tx.execute(
            "UPDATE certificates SET revoked_at = $3, revoked_reason = $4, revoked_by = $5 \
             WHERE tenant_id = $1 AND serial = $2 AND revoked_at IS NULL",
            params![tenant, serial, at, reason, &record.by],
        )?,
        RevokedWhat::Agent { id } => {
            tx.execute(
                "UPDATE certificates SET revoked_at = $3, revoked_reason = 'cessationOfOperation', revoked_by = $4 \
                 WHERE tenant_id = $1 AND agent_id = $2 AND revoked_at IS NULL",
                params![tenant, *id, at, &record.by],
            )?;
            tx.execute(
                "UPDATE agents SET status = 'retired', retired_at = $3, updated_at = $3, revision = revision + 1 \
                 WHERE tenant_id = $1 AND id = $2 AND status <> 'retired'",
                params![tenant, *id, at],
            )?
        }
        RevokedWhat::ApiToken { id } => tx.execute(
            "UPDATE api_tokens SET revoked_at = $3 WHERE tenant_id = $1 AND id = $2 AND revoked_at IS NULL",
            params![tenant, *id, at],
        )?,
        RevokedWhat::User { id } => tx.execute(
            "UPDATE users SET status = 'disabled', updated_at = $3, revision = revision + 1 \
             WHERE tenant_id = $1 AND id = $2 AND status <> 'disabled'",
            params![tenant, *id, at],
        )?,
        RevokedWhat::Password { user } => tx.execute(
            "UPDATE users SET password = NULL, updated_at = $3, revision = revision + 1 \
             WHERE tenant_id = $1 AND id = $2 AND password IS NOT NULL",
            params![tenant, *user, at],
        )?,
        RevokedWhat::Grant { principal, action, tag } => tx.execute(
            "DELETE FROM permissions WHERE tenant_id = $1 AND principal = $2 AND action = $3 AND tag = $4 \
             AND granted_at <= $5",
            params![tenant, principal, action, tag.clone().unwrap_or_default(), at],
        )?,
    };
    Ok(())
}

//! What was taken back stays taken back, whatever a backup says: what a restore must hold to.
//!
//! It is known from two places: the database that is replaced, as far as it can be read, and the record that a hub
//! keeps beside its keys. Both only ever take away; but a password that was changed since is taken over as it is now.
//! What was issued since the backup is carried over from the former database, so that no machine loses its identity to a
//! restore.
//!
//! Both are written before the thing is done, and neither says that it failed or was undone. The former database does,
//! of people: who may sign in there, and a permission that is there, stay what the backup makes of them. It says nothing
//! of what it was not told of, as one does that is older than the record.

use super::export::{quoted, values};
use super::tables;
use crate::shared::{Row, Tx, Value, params};
use crate::{DbError, Result, TenantId, UserStatus};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// By how much the record beside the keys may be later than the audit log's entry of the same, which is written first.
const BEHIND: SignedDuration = SignedDuration::from_mins(1);

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
    /// Passwords that hold in place of those of the backup.
    passwords: Vec<Password>,
    /// What the former database has of people.
    former: Former,
}

/// What the database that is replaced has of people; nothing where it cannot be read.
#[derive(Debug, Clone, Default)]
struct Former {
    /// Until when it was told of anything, by tenant.
    told_until: BTreeMap<i32, Timestamp>,
    /// Who may sign in.
    active: BTreeSet<(i32, Uuid)>,
    /// What everybody signs in with.
    passwords: BTreeMap<(i32, Uuid), Password>,
    /// Permissions: whose, for what, and on which tag, which is empty for everywhere.
    grants: BTreeSet<(i32, String, String, String)>,
}

impl Former {
    /// Whether it was told of what a record says, and has it all the same: it failed, or was undone.
    fn contradicts(&self, record: &RevocationRecord) -> bool {
        let tenant = record.tenant;
        let was_told = self.told_until.get(&tenant).is_some_and(|until| record.at.duration_since(*until) <= BEHIND);
        was_told
            && match &record.what {
                RevokedWhat::Certificate { .. } | RevokedWhat::Agent { .. } | RevokedWhat::ApiToken { .. } => false,
                RevokedWhat::User { id } => self.active.contains(&(tenant, *id)),
                RevokedWhat::Password { user } => self.passwords.contains_key(&(tenant, *user)),
                RevokedWhat::Grant { principal, action, tag } => {
                    let tag = tag.clone().unwrap_or_default();
                    self.grants.contains(&(tenant, principal.clone(), action.clone(), tag))
                }
            }
    }
}

impl Standing {
    /// With what the record beside the keys says, and without what says nothing against a backup of `taken` or is
    /// contradicted by the former database. Where that one has a password, it is the one that holds.
    pub(super) fn settled(mut self, recorded: &[RevocationRecord], taken: Timestamp) -> Self {
        self.revoked.extend(recorded.iter().cloned());
        self.revoked.retain(|record| record.speaks_against(taken));
        let former = std::mem::take(&mut self.former);
        let mut changed = BTreeSet::new();
        self.revoked.retain(|record| {
            let stays = !former.contradicts(record);
            if let RevokedWhat::Password { user } = record.what
                && !stays
            {
                changed.insert((record.tenant, user));
            }
            stays
        });
        // Not of people that the backup may know better: one that is restored may be younger than what it replaces.
        let holds = |key: &(i32, Uuid), kept: &Password| kept.at > taken || changed.contains(key);
        let holding = former.passwords.into_iter().filter(|(key, kept)| holds(key, kept));
        self.passwords = holding.map(|(_, kept)| kept).collect();
        self
    }
}

/// What a user signs in with, as the database that was replaced knew it. Hashes: they never reach a log.
#[derive(Clone)]
pub(crate) struct Password {
    tenant: TenantId,
    user: Uuid,
    hash: Option<String>,
    must_change: bool,
    at: Timestamp,
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Password").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What an entry of the audit log takes back for good; pure. The words are those of the hub's audit log.
pub fn taken_back(action: &str, object: &str, details: &serde_json::Value) -> Option<RevokedWhat> {
    let id = || object.parse().ok();
    let user = || object.strip_prefix("user:")?.parse().ok();
    match action {
        "agents.retire" => id().map(|id| RevokedWhat::Agent { id }),
        "api_tokens.revoke" => id().map(|id| RevokedWhat::ApiToken { id }),
        "users.status" if details["status"] == "disabled" => user().map(|id| RevokedWhat::User { id }),
        "users.delete" => user().map(|id| RevokedWhat::User { id }),
        "users.password" => user().map(|user| RevokedWhat::Password { user }),
        "permissions.revoke" => Some(RevokedWhat::Grant {
            principal: object.to_owned(),
            action: details["action"].as_str()?.to_owned(),
            tag: details["tag"].as_str().map(str::to_owned),
        }),
        _ => None,
    }
}

/// The details of an entry: its record is a signed text, which is the entry in JSON.
fn details(record: &str) -> serde_json::Value {
    let signed: serde_json::Value = serde_json::from_str(record).unwrap_or_default();
    let entry = signed["payload"].as_str().and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    // What somebody meddled with may be anything.
    entry.and_then(|mut entry| entry.get_mut("details").map(serde_json::Value::take)).unwrap_or_default()
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
    // What is gone leaves no row that says so, but an entry of the audit log: whichever replica wrote it.
    let rows = tx.query(
        "SELECT tenant_id, at, actor, action, object, record FROM audit WHERE at >= $1 \
         AND action IN ('users.delete', 'users.password', 'permissions.revoke') ORDER BY tenant_id, seq",
        params![taken],
    )?;
    for row in &rows {
        if let Some(what) = taken_back(&row.text(3)?, &row.text(4)?, &details(&row.text(5)?)) {
            standing.revoked.push(record(row, what)?);
        }
    }
    people(tx, &mut standing)?;
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

/// What the database that is about to be replaced says of people.
fn people(tx: &mut dyn Tx, standing: &mut Standing) -> Result<()> {
    let former = &mut standing.former;
    let tenant = |row: &Row| Ok::<_, DbError>(i32::try_from(row.int(0)?).unwrap_or_default());
    let rows = tx.query("SELECT tenant_id, updated_at, '', id, status, password, must_change FROM users", &[])?;
    for row in &rows {
        let (tenant, user) = (tenant(row)?, row.uuid(3)?);
        if row.text(4)? == UserStatus::Active.as_str() {
            former.active.insert((tenant, user));
        } else {
            standing.revoked.push(record(row, RevokedWhat::User { id: user })?);
        }
        let password = Password {
            tenant: TenantId(tenant),
            user,
            hash: row.opt_text(5)?,
            must_change: row.bool(6)?,
            at: row.opt_time(1)?.unwrap_or_default(),
        };
        former.passwords.insert((tenant, user), password);
    }
    for row in &tx.query("SELECT tenant_id, principal, action, tag FROM permissions", &[])? {
        former.grants.insert((tenant(row)?, row.text(1)?, row.text(2)?, row.text(3)?));
    }
    for row in &tx.query("SELECT tenant_id, max(at) FROM audit GROUP BY tenant_id", &[])? {
        former.told_until.insert(tenant(row)?, row.time(1)?);
    }
    Ok(())
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
    for kept in &standing.passwords {
        tx.execute(
            "UPDATE users SET password = $3, must_change = $4, updated_at = $5, revision = revision + 1 \
             WHERE tenant_id = $1 AND id = $2 AND password IS DISTINCT FROM $3",
            params![kept.tenant, kept.user, kept.hash.as_ref(), kept.must_change, kept.at],
        )?;
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

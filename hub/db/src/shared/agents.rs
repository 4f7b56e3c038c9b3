//! Agents over SQL.

use super::cursor::{Key, Order};
use super::select::{Select, by};
use super::{Engine, Row, Store, Tx, params};
use crate::{
    Agent, AgentBoot, AgentFilter, AgentReport, AgentSeen, AgentStatus, AgentUpdate, Agents, CERTIFICATES_IN_USE,
    CONFIG_STATUSES, NewAgent, Page, PageRequest, RENEWALS_ASKED, Result, Revision, SeenOutcome, TenantId,
};
use async_trait::async_trait;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The seed's limits of these columns.
const NAME_MAX: usize = 255;
const KIND_MAX: usize = 50;

const COLUMNS: &str = "id, name, type, status, tags, config, revision, created_at, updated_at, retired_at, last_seen, \
    version, health, ledger, update_state, config_hash, address, certificate_expires_at, first_boot_id, boot_id, key_hash";
const BY_NAME: Order = by("agents", &[("name", Key::Text), ("id", Key::Uuid)]);

fn agent(row: &Row) -> Result<Agent> {
    Ok(Agent {
        id: row.uuid(0)?,
        name: row.text(1)?,
        kind: row.text(2)?,
        status: row.word(3, AgentStatus::from_word)?,
        tags: row.words(4)?,
        config: row.json(5)?,
        revision: row.int(6)?,
        created_at: row.time(7)?,
        updated_at: row.time(8)?,
        retired_at: row.opt_time(9)?,
        report: AgentReport {
            last_seen: row.opt_time(10)?,
            version: row.opt_text(11)?,
            health: row.opt_json(12)?,
            ledger: row.opt_json(13)?,
            update: row.opt_json(14)?,
            config_hash: row.opt_text(15)?,
            address: row.opt_text(16)?,
            certificate_expires_at: row.opt_time(17)?,
            first_boot_id: row.opt_uuid(18)?,
            boot_id: row.opt_uuid(19)?,
            key_hash: row.opt_hash(20)?,
        },
    })
}

fn check(tx: &dyn Tx, name: Option<&str>, kind: Option<&str>) -> Result<()> {
    if name.is_some_and(|name| name.is_empty() || name.len() > NAME_MAX) {
        return Err(tx.invalid(format!("an agent's name has 1 to {NAME_MAX} bytes")));
    }
    if kind.is_some_and(|kind| kind.len() > KIND_MAX) {
        return Err(tx.invalid(format!("an agent's type has at most {KIND_MAX} bytes")));
    }
    Ok(())
}

/// Reads an agent; with its row locked if it is to be changed.
pub(super) fn find(tx: &mut dyn Tx, tenant: TenantId, id: Uuid, lock: bool) -> Result<Option<Agent>> {
    // Not against those who only refer to it: a new stream of the agent need not wait.
    let lock = if lock { "/*pg FOR NO KEY UPDATE pg*/" } else { "" };
    let sql = format!("SELECT {COLUMNS} FROM agents WHERE tenant_id = $1 AND id = $2 {lock}");
    tx.row(&sql, params![tenant, id])?.as_ref().map(agent).transpose()
}

fn set_tags(tx: &mut dyn Tx, tenant: TenantId, id: Uuid, tags: &BTreeSet<String>) -> Result<()> {
    tx.execute("DELETE FROM agent_tags WHERE tenant_id = $1 AND agent_id = $2", params![tenant, id])?;
    for tag in tags {
        tx.execute(
            "INSERT INTO agent_tags (tenant_id, tag, agent_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            params![tenant, tag, id],
        )?;
    }
    Ok(())
}

/// Makes an agent; says whether the id was free.
pub(super) fn create(tx: &mut dyn Tx, tenant: TenantId, new: &NewAgent, now: Timestamp) -> Result<bool> {
    check(tx, Some(&new.name), Some(&new.kind))?;
    let made = tx.changes(
        "INSERT INTO agents (tenant_id, id, name, type, status, tags, config, revision, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, 'enrolled', $5, $6, 1, $7, $7) ON CONFLICT DO NOTHING",
        params![tenant, new.id, &new.name, &new.kind, &new.tags, &new.config, now],
    )?;
    if made {
        set_tags(tx, tenant, new.id, &new.tags)?;
    }
    Ok(made)
}

fn update(
    tx: &mut dyn Tx,
    tenant: TenantId,
    id: Uuid,
    revision: Revision,
    update: &AgentUpdate,
    now: Timestamp,
) -> Result<Agent> {
    check(tx, update.name.as_deref(), update.kind.as_deref())?;
    let current = find(tx, tenant, id, true)?.ok_or_else(|| tx.not_found(format!("agent {id}")))?;
    if current.revision != revision {
        return Err(tx.conflict(format!("agent {id}")));
    }
    let tags = update.tags.as_ref().unwrap_or(&current.tags);
    tx.execute(
        "UPDATE agents SET name = $3, type = $4, tags = $5, config = $6, revision = revision + 1, updated_at = $7 \
         WHERE tenant_id = $1 AND id = $2",
        params![
            tenant,
            id,
            update.name.as_ref().unwrap_or(&current.name),
            update.kind.as_ref().unwrap_or(&current.kind),
            tags,
            update.config.as_ref().unwrap_or(&current.config),
            now,
        ],
    )?;
    if update.tags.is_some() {
        set_tags(tx, tenant, id, tags)?;
    }
    find(tx, tenant, id, false)?.ok_or_else(|| tx.not_found(format!("agent {id}")))
}

/// Notes that the agent changed to a boot id; says whether it had it before.
fn begin_boot(tx: &mut dyn Tx, tenant: TenantId, boot: Uuid, seen: &AgentSeen) -> Result<bool> {
    let times = tx.number(
        "INSERT INTO agent_boots (tenant_id, agent_id, boot_id, first_seen, last_began, times, address, key_hash) \
         VALUES ($1, $2, $3, $4, $4, 1, $5, $6) ON CONFLICT (tenant_id, agent_id, boot_id) \
         DO UPDATE SET last_began = excluded.last_began, times = agent_boots.times + 1 RETURNING times",
        params![tenant, seen.agent, boot, seen.at, seen.address.as_ref(), seen.key_hash],
    )?;
    Ok(times > 1)
}

fn note(tx: &mut dyn Tx, tenant: TenantId, seen: &AgentSeen) -> Result<SeenOutcome> {
    let row = tx.row(
        "SELECT status, boot_id, key_hash, last_seen FROM agents WHERE tenant_id = $1 AND id = $2 /*pg FOR NO KEY UPDATE pg*/",
        params![tenant, seen.agent],
    )?;
    let Some(row) = row else { return Ok(SeenOutcome::Unknown) };
    let was = row.word(0, AgentStatus::from_word)?;
    if was == AgentStatus::Retired {
        return Ok(SeenOutcome::Retired);
    }
    let (boot, key, last) = (row.opt_uuid(1)?, row.opt_hash(2)?, row.opt_time(3)?);
    let nothing = SeenOutcome::Noted { was, previous_boot: None, boot_returned: false, previous_key: None };
    if last.is_some_and(|last| last > seen.at) {
        return Ok(nothing);
    }
    let previous_boot = boot.filter(|boot| seen.boot_id.is_some_and(|new| new != *boot));
    let boot_returned = match seen.boot_id {
        Some(new) if boot != Some(new) => begin_boot(tx, tenant, new, seen)?,
        _ => false,
    };
    let previous_key = key.filter(|key| seen.key_hash.is_some_and(|new| new != *key));
    tx.execute(
        "UPDATE agents SET last_seen = $3, status = 'online', boot_id = coalesce($4, boot_id), \
         first_boot_id = coalesce(first_boot_id, $4), version = coalesce($5, version), health = coalesce($6, health), \
         ledger = coalesce($7, ledger), update_state = coalesce($8, update_state), \
         config_hash = coalesce($9, config_hash), address = coalesce($10, address), \
         certificate_expires_at = coalesce($11, certificate_expires_at), key_hash = coalesce($12, key_hash) \
         WHERE tenant_id = $1 AND id = $2",
        params![
            tenant,
            seen.agent,
            seen.at,
            seen.boot_id,
            seen.version.as_ref(),
            seen.health.as_ref(),
            seen.ledger.as_ref(),
            seen.update.as_ref(),
            seen.config_hash.as_ref(),
            seen.address.as_ref(),
            seen.certificate_expires_at,
            seen.key_hash,
        ],
    )?;
    Ok(SeenOutcome::Noted { was, previous_boot, boot_returned, previous_key })
}

/// Notes all in the order of their agents, so that two of these never wait for each other in a circle.
fn note_all(tx: &mut dyn Tx, tenant: TenantId, seen: &[AgentSeen]) -> Result<Vec<SeenOutcome>> {
    let mut order: Vec<usize> = (0..seen.len()).collect();
    order.sort_by_key(|index| (seen[*index].agent, seen[*index].at));
    let mut outcomes = vec![SeenOutcome::Unknown; seen.len()];
    for index in order {
        outcomes[index] = note(tx, tenant, &seen[index])?;
    }
    Ok(outcomes)
}

fn list(tx: &mut dyn Tx, tenant: TenantId, filter: &AgentFilter, page: &PageRequest) -> Result<Page<Agent>> {
    let mut select = Select::new(COLUMNS, "agents", tenant);
    select
        .when_some("status = ?", filter.status.map(AgentStatus::as_str))
        .when_some("type = ?", filter.kind.as_ref())
        .when_some("version = ?", filter.version.as_ref())
        .when_some(
            "EXISTS (SELECT 1 FROM agent_tags t WHERE t.tenant_id = agents.tenant_id AND t.tag = ? AND t.agent_id = agents.id)",
            filter.tag.as_ref(),
        );
    select.within("agents.id", filter.within.as_ref());
    if let Some(prefix) = &filter.name_prefix {
        select.when("name >= ?", prefix).when("name < ?", format!("{prefix}\u{10ffff}"));
    }
    select.page(tx, &BY_NAME, page, agent)
}

#[async_trait]
impl<E: Engine> Agents for Store<E> {
    async fn create_agent(&self, tenant: TenantId, agent: &NewAgent, now: Timestamp) -> Result<Agent> {
        let agent = agent.clone();
        self.engine
            .write("make an agent", move |tx| {
                if !create(tx, tenant, &agent, now)? {
                    return Err(tx.conflict(format!("agent {}", agent.id)));
                }
                find(tx, tenant, agent.id, false)?.ok_or_else(|| tx.not_found(format!("agent {}", agent.id)))
            })
            .await
    }

    async fn agent(&self, tenant: TenantId, id: Uuid) -> Result<Option<Agent>> {
        self.engine.read("read an agent", move |tx| find(tx, tenant, id, false)).await
    }

    async fn agents(&self, tenant: TenantId, filter: &AgentFilter, page: &PageRequest) -> Result<Page<Agent>> {
        let (filter, page) = (filter.clone(), page.clone());
        self.engine.read("list agents", move |tx| list(tx, tenant, &filter, &page)).await
    }

    async fn update_agent(
        &self,
        tenant: TenantId,
        id: Uuid,
        revision: Revision,
        changes: &AgentUpdate,
        now: Timestamp,
    ) -> Result<Agent> {
        let changes = changes.clone();
        self.engine.write("change an agent", move |tx| update(tx, tenant, id, revision, &changes, now)).await
    }

    async fn retire_agent(&self, tenant: TenantId, id: Uuid, by: &str, now: Timestamp) -> Result<Agent> {
        let revocation = crate::Revocation { at: now, reason: "cessationOfOperation".into(), by: by.to_owned() };
        self.engine
            .write("retire an agent", move |tx| {
                tx.execute(
                    "UPDATE agents SET status = 'retired', retired_at = $3, updated_at = $3, revision = revision + 1 \
                     WHERE tenant_id = $1 AND id = $2 AND status <> 'retired'",
                    params![tenant, id, now],
                )?;
                super::certificates::revoke_all(tx, tenant, id, &revocation)?;
                find(tx, tenant, id, false)?.ok_or_else(|| tx.not_found(format!("agent {id}")))
            })
            .await
    }

    async fn delete_agent(&self, tenant: TenantId, id: Uuid) -> Result<()> {
        self.engine
            .write("remove an agent", move |tx| {
                let found = find(tx, tenant, id, true)?.ok_or_else(|| tx.not_found(format!("agent {id}")))?;
                if found.status != AgentStatus::Retired {
                    return Err(tx.invalid(format!("agent {id} is not retired; retire it first")));
                }
                for kept in [CERTIFICATES_IN_USE, CONFIG_STATUSES, RENEWALS_ASKED] {
                    let sql = "DELETE FROM settings WHERE tenant_id = $1 AND key = $2";
                    tx.execute(sql, params![tenant, format!("{kept}{id}")])?;
                }
                tx.execute("DELETE FROM agents WHERE tenant_id = $1 AND id = $2", params![tenant, id]).map(drop)
            })
            .await
    }

    async fn agents_seen(&self, tenant: TenantId, seen: &[AgentSeen]) -> Result<Vec<SeenOutcome>> {
        let seen = seen.to_vec();
        self.engine.write("note heartbeats", move |tx| note_all(tx, tenant, &seen)).await
    }

    async fn agents_silent(&self, tenant: TenantId, before: Timestamp, limit: u32) -> Result<Vec<Uuid>> {
        self.engine
            .write("mark silent agents", move |tx| {
                let rows = tx.query(
                    "UPDATE agents SET status = 'offline' WHERE tenant_id = $1 AND id IN (SELECT id FROM agents \
                     WHERE tenant_id = $1 AND status = 'online' AND last_seen < $2 ORDER BY id LIMIT $3 \
                     /*pg FOR UPDATE pg*/) RETURNING id",
                    params![tenant, before, limit],
                )?;
                rows.iter().map(|row| row.uuid(0)).collect()
            })
            .await
    }

    async fn agent_counts(&self, tenant: TenantId) -> Result<BTreeMap<AgentStatus, u64>> {
        self.engine
            .read("count agents", move |tx| {
                let rows = tx.query(
                    "SELECT status, count(*) FROM agents WHERE tenant_id = $1 GROUP BY status",
                    params![tenant],
                )?;
                rows.iter().map(|row| Ok((row.word(0, AgentStatus::from_word)?, row.count(1)?))).collect()
            })
            .await
    }

    async fn agent_boots(&self, tenant: TenantId, id: Uuid) -> Result<Vec<AgentBoot>> {
        self.engine
            .read("list an agent's boots", move |tx| {
                let rows = tx.query(
                    "SELECT boot_id, first_seen, last_began, times, address, key_hash FROM agent_boots \
                     WHERE tenant_id = $1 AND agent_id = $2 ORDER BY last_began DESC, boot_id LIMIT 100",
                    params![tenant, id],
                )?;
                rows.iter().map(boot).collect()
            })
            .await
    }
}

fn boot(row: &Row) -> Result<AgentBoot> {
    Ok(AgentBoot {
        boot_id: row.uuid(0)?,
        first_seen: row.time(1)?,
        last_began: row.time(2)?,
        times: row.small(3)?,
        address: row.opt_text(4)?,
        key_hash: row.opt_hash(5)?,
    })
}

//! Configurations over SQL.

use super::cursor::{Key, Order};
use super::select::{Select, newest};
use super::{Engine, Row, Store, Tx, agents, params};
use crate::{Assignment, ConfigTarget, ConfigVersion, Configs, Page, PageRequest, Result, TenantId, wanted_version};
use async_trait::async_trait;
use uuid::Uuid;

const COLUMNS: &str = "version, document, sha256, comment, created_at, created_by";
const LATEST: Order = newest("configs", &[("version", Key::Int)]);
const ASSIGNMENTS_MAX: i64 = 10_000;

fn config(row: &Row) -> Result<ConfigVersion> {
    Ok(ConfigVersion {
        version: row.int(0)?,
        document: row.json(1)?,
        sha256: row.text(2)?,
        comment: row.text(3)?,
        created_at: row.time(4)?,
        created_by: row.text(5)?,
    })
}

fn target_parts(target: &ConfigTarget) -> (&'static str, String) {
    match target {
        ConfigTarget::All => ("all", String::new()),
        ConfigTarget::Tag(tag) => ("tag", tag.clone()),
        ConfigTarget::Agent(id) => ("agent", id.to_string()),
    }
}

fn assignment(row: &Row) -> Result<Assignment> {
    let value = row.text(1)?;
    let target = row.word(0, |kind| match kind {
        "all" => Some(ConfigTarget::All),
        "tag" => Some(ConfigTarget::Tag(value.clone())),
        "agent" => value.parse().ok().map(ConfigTarget::Agent),
        _ => None,
    })?;
    Ok(Assignment {
        target,
        version: row.int(2)?,
        priority: i32::try_from(row.int(3)?).unwrap_or_default(),
        updated_at: row.time(4)?,
        updated_by: row.text(5)?,
    })
}

fn find(tx: &mut dyn Tx, tenant: TenantId, version: i64) -> Result<Option<ConfigVersion>> {
    let sql = format!("SELECT {COLUMNS} FROM configs WHERE tenant_id = $1 AND version = $2");
    tx.row(&sql, params![tenant, version])?.as_ref().map(config).transpose()
}

fn assignments(tx: &mut dyn Tx, tenant: TenantId) -> Result<Vec<Assignment>> {
    let rows = tx.query(
        "SELECT kind, value, version, priority, updated_at, updated_by FROM config_targets WHERE tenant_id = $1 \
         ORDER BY kind, value LIMIT $2",
        params![tenant, ASSIGNMENTS_MAX],
    )?;
    rows.iter().map(assignment).collect()
}

#[async_trait]
impl<E: Engine> Configs for Store<E> {
    async fn create_config(&self, tenant: TenantId, new: &ConfigVersion) -> Result<ConfigVersion> {
        let new = new.clone();
        self.engine
            .write("make a configuration", move |tx| {
                let version = tx.count_up(tenant, "configs")?;
                let sql = format!(
                    "INSERT INTO configs (tenant_id, version, document, sha256, comment, created_at, created_by) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {COLUMNS}"
                );
                let values = params![
                    tenant,
                    version,
                    &new.document,
                    &new.sha256,
                    &new.comment,
                    new.created_at,
                    &new.created_by,
                ];
                config(&tx.row(&sql, values)?.ok_or_else(|| tx.not_found("configuration"))?)
            })
            .await
    }

    async fn config(&self, tenant: TenantId, version: i64) -> Result<Option<ConfigVersion>> {
        self.engine.read("read a configuration", move |tx| find(tx, tenant, version)).await
    }

    async fn configs(&self, tenant: TenantId, page: &PageRequest) -> Result<Page<ConfigVersion>> {
        let page = page.clone();
        self.engine
            .read("list configurations", move |tx| {
                Select::new(COLUMNS, "configs", tenant).page(tx, &LATEST, &page, config)
            })
            .await
    }

    async fn assign_config(&self, tenant: TenantId, new: &Assignment) -> Result<()> {
        let new = new.clone();
        self.engine
            .write("assign a configuration", move |tx| {
                if find(tx, tenant, new.version)?.is_none() {
                    return Err(tx.not_found(format!("configuration {}", new.version)));
                }
                let (kind, value) = target_parts(&new.target);
                tx.execute(
                    "INSERT INTO config_targets (tenant_id, kind, value, version, priority, updated_at, updated_by) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (tenant_id, kind, value) DO UPDATE SET \
                     version = excluded.version, priority = excluded.priority, updated_at = excluded.updated_at, \
                     updated_by = excluded.updated_by",
                    params![tenant, kind, value, new.version, new.priority, new.updated_at, &new.updated_by],
                )
                .map(drop)
            })
            .await
    }

    async fn unassign_config(&self, tenant: TenantId, target: &ConfigTarget) -> Result<bool> {
        let (kind, value) = target_parts(target);
        self.engine
            .write("take a configuration back", move |tx| {
                tx.changes(
                    "DELETE FROM config_targets WHERE tenant_id = $1 AND kind = $2 AND value = $3",
                    params![tenant, kind, &value],
                )
            })
            .await
    }

    async fn assignments(&self, tenant: TenantId) -> Result<Vec<Assignment>> {
        self.engine.read("list who has which configuration", move |tx| assignments(tx, tenant)).await
    }

    async fn wanted_config(&self, tenant: TenantId, agent: Uuid) -> Result<Option<ConfigVersion>> {
        self.engine
            .read("find an agent's configuration", move |tx| {
                let Some(found) = agents::find(tx, tenant, agent, false)? else { return Ok(None) };
                match wanted_version(&assignments(tx, tenant)?, agent, &found.tags) {
                    Some(version) => find(tx, tenant, version),
                    None => Ok(None),
                }
            })
            .await
    }
}

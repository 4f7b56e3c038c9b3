//! Rules over SQL.

use super::cursor::{Key, Order};
use super::select::{Select, by, newest};
use super::{Engine, Row, Store, Tx, params};
use crate::{
    NewRule, Page, PageRequest, Result, Revision, Rule, RuleFilter, RuleOrigin, RuleVersion, Rules, SUSPENDED_RULES,
    TenantId,
};
use async_trait::async_trait;
use jiff::Timestamp;

const COLUMNS: &str =
    "id, version, title, level, logsource, source, origin, enabled, revision, created_at, updated_at, updated_by";
const BY_ID: Order = by("rules", &[("id", Key::Text)]);
const LATEST: Order = newest("rule_versions", &[("version", Key::Int)]);
/// The counter of [`Rules::rules_revision`].
const COUNTER: &str = "rules";

fn rule(row: &Row) -> Result<Rule> {
    Ok(Rule {
        id: row.text(0)?,
        version: row.int(1)?,
        title: row.text(2)?,
        level: row.text(3)?,
        logsource: row.text(4)?,
        source: row.text(5)?,
        origin: row.word(6, RuleOrigin::from_word)?,
        enabled: row.bool(7)?,
        revision: row.int(8)?,
        created_at: row.time(9)?,
        updated_at: row.time(10)?,
        updated_by: row.text(11)?,
    })
}

/// A rule, and whether it is a removed one whose place is kept.
fn find(tx: &mut dyn Tx, tenant: TenantId, id: &str, lock: bool) -> Result<Option<(Rule, bool)>> {
    let lock = if lock { "/*pg FOR UPDATE pg*/" } else { "" };
    let sql = format!("SELECT {COLUMNS}, deleted FROM rules WHERE tenant_id = $1 AND id = $2 {lock}");
    Ok(match tx.row(&sql, params![tenant, id])? {
        Some(row) => Some((rule(&row)?, row.bool(12)?)),
        None => None,
    })
}

fn live(tx: &mut dyn Tx, tenant: TenantId, id: &str) -> Result<Option<Rule>> {
    Ok(find(tx, tenant, id, false)?.and_then(|(rule, deleted)| (!deleted).then_some(rule)))
}

fn put(
    tx: &mut dyn Tx,
    tenant: TenantId,
    new: &NewRule,
    expected: Option<Revision>,
    by: &str,
    now: Timestamp,
) -> Result<Rule> {
    // Every change of a rule waits here for the one before it, so that two that make the same rule meet.
    let number = tx.count_up(tenant, COUNTER)?;
    let current = find(tx, tenant, &new.id, true)?;
    let kept = current.as_ref().filter(|(_, deleted)| !deleted).map(|(rule, _)| rule);
    if expected.is_some_and(|expected| expected != kept.map_or(0, |rule| rule.revision)) {
        return Err(tx.conflict(format!("rule {}", new.id)));
    }
    let enabled = new.enabled.unwrap_or(kept.is_none_or(|rule| rule.enabled));
    if let Some(kept) = kept {
        let as_it_would_be = Rule {
            title: new.title.clone(),
            level: new.level.clone(),
            logsource: new.logsource.clone(),
            source: new.source.clone(),
            origin: new.origin,
            enabled,
            ..kept.clone()
        };
        if as_it_would_be == *kept {
            // Nothing changed: neither did the revision of all rules.
            tx.execute(
                "UPDATE counters SET value = $3 WHERE tenant_id = $1 AND name = $2",
                params![tenant, COUNTER, number - 1],
            )?;
            return Ok(as_it_would_be);
        }
    }
    let same_source = kept.is_some_and(|rule| rule.source == new.source);
    let version = match &current {
        Some((rule, _)) if same_source => rule.version,
        Some((rule, _)) => rule.version + 1,
        None => 1,
    };
    tx.execute(
        "INSERT INTO rules (tenant_id, id, version, title, level, logsource, source, origin, enabled, deleted, revision, \
         created_at, updated_at, updated_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1, $11, $11, $12) \
         ON CONFLICT (tenant_id, id) DO UPDATE SET version = excluded.version, title = excluded.title, \
         level = excluded.level, logsource = excluded.logsource, source = excluded.source, origin = excluded.origin, \
         enabled = excluded.enabled, deleted = excluded.deleted, revision = rules.revision + 1, \
         created_at = CASE WHEN rules.deleted = $10 THEN rules.created_at ELSE excluded.created_at END, \
         updated_at = excluded.updated_at, updated_by = excluded.updated_by",
        params![
            tenant,
            &new.id,
            version,
            &new.title,
            &new.level,
            &new.logsource,
            &new.source,
            new.origin.as_str(),
            enabled,
            false,
            now,
            by,
        ],
    )?;
    if !same_source {
        tx.execute(
            "INSERT INTO rule_versions (tenant_id, rule_id, version, source, created_at, created_by) \
             VALUES ($1, $2, $3, $4, $5, $6)",
            params![tenant, &new.id, version, &new.source, now, by],
        )?;
    }
    live(tx, tenant, &new.id)?.ok_or_else(|| tx.not_found(format!("rule {}", new.id)))
}

fn enable(
    tx: &mut dyn Tx,
    tenant: TenantId,
    id: &str,
    enabled: bool,
    expected: Option<Revision>,
    (by, now): (&str, Timestamp),
) -> Result<Rule> {
    tx.count_up(tenant, COUNTER)?;
    let current = find(tx, tenant, id, true)?.filter(|(_, deleted)| !deleted);
    let (current, _) = current.ok_or_else(|| tx.not_found(format!("rule {id}")))?;
    if expected.is_some_and(|expected| expected != current.revision) {
        return Err(tx.conflict(format!("rule {id}")));
    }
    tx.execute(
        "UPDATE rules SET enabled = $3, revision = revision + 1, updated_at = $4, updated_by = $5 \
         WHERE tenant_id = $1 AND id = $2",
        params![tenant, id, enabled, now, by],
    )?;
    live(tx, tenant, id)?.ok_or_else(|| tx.not_found(format!("rule {id}")))
}

#[async_trait]
impl<E: Engine> Rules for Store<E> {
    async fn put_rule(
        &self,
        tenant: TenantId,
        new: &NewRule,
        expected: Option<Revision>,
        by: &str,
        now: Timestamp,
    ) -> Result<Rule> {
        let (new, by) = (new.clone(), by.to_owned());
        self.engine.write("write a rule", move |tx| put(tx, tenant, &new, expected, &by, now)).await
    }

    async fn rule(&self, tenant: TenantId, id: &str) -> Result<Option<Rule>> {
        let id = id.to_owned();
        self.engine.read("read a rule", move |tx| live(tx, tenant, &id)).await
    }

    async fn rules(&self, tenant: TenantId, filter: &RuleFilter, page: &PageRequest) -> Result<Page<Rule>> {
        let (filter, page) = (filter.clone(), page.clone());
        self.engine
            .read("list rules", move |tx| {
                let mut select = Select::new(COLUMNS, "rules", tenant);
                select
                    .when("deleted = ?", false)
                    .when_some("origin = ?", filter.origin.map(RuleOrigin::as_str))
                    .when_some("enabled = ?", filter.enabled)
                    .when_some("logsource = ?", filter.logsource.as_ref());
                select.page(tx, &BY_ID, &page, rule)
            })
            .await
    }

    async fn enable_rule(
        &self,
        tenant: TenantId,
        id: &str,
        enabled: bool,
        expected: Option<Revision>,
        by: &str,
        now: Timestamp,
    ) -> Result<Rule> {
        let (id, by) = (id.to_owned(), by.to_owned());
        self.engine
            .write("enable or disable a rule", move |tx| enable(tx, tenant, &id, enabled, expected, (&by, now)))
            .await
    }

    async fn delete_rule(&self, tenant: TenantId, id: &str) -> Result<bool> {
        let id = id.to_owned();
        self.engine
            .write("remove a rule", move |tx| {
                let gone = tx.changes(
                    "UPDATE rules SET deleted = $3, source = '', revision = revision + 1 \
                     WHERE tenant_id = $1 AND id = $2 AND deleted <> $3",
                    params![tenant, &id, true],
                )?;
                if gone {
                    tx.execute(
                        "DELETE FROM rule_versions WHERE tenant_id = $1 AND rule_id = $2",
                        params![tenant, &id],
                    )?;
                    tx.execute(
                        "DELETE FROM settings WHERE tenant_id = $1 AND key = $2",
                        params![tenant, format!("{SUSPENDED_RULES}{id}")],
                    )?;
                    tx.count_up(tenant, COUNTER)?;
                }
                Ok(gone)
            })
            .await
    }

    async fn rule_versions(&self, tenant: TenantId, id: &str, page: &PageRequest) -> Result<Page<RuleVersion>> {
        let (id, page) = (id.to_owned(), page.clone());
        self.engine
            .read("list the versions of a rule", move |tx| {
                let mut select = Select::new("version, source, created_at, created_by", "rule_versions", tenant);
                select.when("rule_id = ?", &id);
                select.page(tx, &LATEST, &page, |row| {
                    Ok(RuleVersion {
                        version: row.int(0)?,
                        source: row.text(1)?,
                        created_at: row.time(2)?,
                        created_by: row.text(3)?,
                    })
                })
            })
            .await
    }

    async fn rules_revision(&self, tenant: TenantId) -> Result<Revision> {
        self.engine
            .read("read the revision of the rules", move |tx| {
                tx.number("SELECT value FROM counters WHERE tenant_id = $1 AND name = $2", params![tenant, COUNTER])
            })
            .await
    }
}

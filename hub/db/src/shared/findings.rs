//! Findings over SQL.

use super::cursor::{Key, Order};
use super::judge::Counted;
use super::select::{Select, by, newest};
use super::{Engine, Row, Store, Tx, deliveries, params};
use crate::{
    Backend, Entity, Finding, FindingCount, FindingFilter, FindingState, FindingTail, FindingUpdate, Findings, History,
    KeptEvidence, NewState, PAGE_MAX, Page, PageRequest, Position, Result, Revision, Severity, TenantId,
};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

/// The columns of [`finding`].
pub(super) const COLUMNS: &str = "id, rule_id, rule_version, dedupe_key, severity, title, description, entity_kind, \
    entity_value, agent_id, state, suppressed_until, assignee, timestamp, last_seen, event_count, event_id, details, \
    revision, created_at, updated_at, changed_xid, changed_position";
const HISTORY: &str = "number, at, by, action, old, new";

pub(super) const NEWEST: Order = newest("findings", &[("created_at", Key::Time), ("id", Key::Uuid)]);
const EVIDENCE: Order = by("evidence", &[("xid", Key::Int), ("position", Key::Int), ("event_id", Key::Uuid)]);
pub(super) const LATEST: Order = newest("history", &[("number", Key::Int)]);

/// A finding of a row of [`COLUMNS`].
pub(super) fn finding(row: &Row) -> Result<Finding> {
    let entity = match (row.opt_text(7)?, row.opt_text(8)?) {
        (Some(kind), Some(value)) => Some(Entity { kind, value }),
        _ => None,
    };
    Ok(Finding {
        id: row.uuid(0)?,
        rule: row.text(1)?,
        rule_version: row.int(2)?,
        dedupe_key: row.text(3)?,
        severity: row.word(4, Severity::from_word)?,
        title: row.text(5)?,
        description: row.text(6)?,
        entity,
        agent: row.opt_uuid(9)?,
        state: row.word(10, FindingState::from_word)?,
        suppressed_until: row.opt_time(11)?,
        assignee: row.opt_text(12)?,
        first_seen: row.time(13)?,
        last_seen: row.time(14)?,
        event_count: row.count(15)?,
        first_event: row.uuid(16)?,
        details: row.json(17)?,
        revision: row.int(18)?,
        created_at: row.time(19)?,
        updated_at: row.time(20)?,
        changed: row.position(21)?,
    })
}

fn find(tx: &mut dyn Tx, tenant: TenantId, id: Uuid, lock: bool) -> Result<Option<Finding>> {
    let lock = if lock { "/*pg FOR UPDATE pg*/" } else { "" };
    let sql = format!("SELECT {COLUMNS} FROM findings WHERE tenant_id = $1 AND id = $2 {lock}");
    tx.row(&sql, params![tenant, id])?.as_ref().map(finding).transpose()
}

/// The finding of this rule and key that is not resolved, and how far it is counted; locked.
pub(super) fn unresolved(
    tx: &mut dyn Tx,
    tenant: TenantId,
    rule: &str,
    key: &str,
) -> Result<Option<(Finding, Counted)>> {
    let sql = format!(
        "SELECT {COLUMNS}, kept, counted_xid, counted_position FROM findings WHERE tenant_id = $1 AND rule_id = $2 \
         AND dedupe_key = $3 AND state <> 'resolved' /*pg FOR UPDATE pg*/"
    );
    Ok(match tx.row(&sql, params![tenant, rule, key])? {
        Some(row) => Some((finding(&row)?, Counted { kept: row.small(23)?, to: row.position(24)? })),
        None => None,
    })
}

/// Adds to the history of a finding, whose row is locked.
#[expect(clippy::too_many_arguments, reason = "a row has as many columns")]
pub(super) fn note(
    tx: &mut dyn Tx,
    tenant: TenantId,
    id: Uuid,
    at: Timestamp,
    by: &str,
    action: &str,
    old: Option<&str>,
    new: Option<&str>,
) -> Result<()> {
    tx.execute(
        "INSERT INTO finding_history (tenant_id, finding_id, number, at, by, action, old, new) \
         SELECT $1, $2, coalesce(max(number), 0) + 1, $3, $4, $5, $6, $7 FROM finding_history \
         WHERE tenant_id = $1 AND finding_id = $2",
        params![tenant, id, at, by, action, old, new],
    )
    .map(drop)
}

/// A history's row.
pub(super) fn history(row: &Row) -> Result<History> {
    Ok(History {
        number: row.int(0)?,
        at: row.time(1)?,
        by: row.text(2)?,
        action: row.text(3)?,
        old: row.opt_text(4)?,
        new: row.opt_text(5)?,
    })
}

/// A page of a history: of `table`, whose `owner` column names whose it is.
pub(super) fn history_page(
    tx: &mut dyn Tx,
    tenant: TenantId,
    (table, owner): (&str, &str),
    id: Uuid,
    page: &PageRequest,
) -> Result<Page<History>> {
    let mut select = Select::new(HISTORY, table, tenant);
    select.when(&format!("{owner} = ?"), id);
    select.page(tx, &LATEST, page, history)
}

fn list(tx: &mut dyn Tx, tenant: TenantId, filter: &FindingFilter, page: &PageRequest) -> Result<Page<Finding>> {
    let mut select = Select::new(COLUMNS, "findings", tenant);
    select
        .when_some("state = ?", filter.state.map(FindingState::as_str))
        .when_some("severity = ?", filter.severity.map(Severity::as_str))
        .when_some("rule_id = ?", filter.rule.as_ref())
        .when_some("agent_id = ?", filter.agent)
        .when_some("entity_kind = ?", filter.entity.as_ref().map(|entity| &entity.kind))
        .when_some("entity_value = ?", filter.entity.as_ref().map(|entity| &entity.value))
        .when_some("assignee = ?", filter.assignee.as_ref())
        .when_some("created_at >= ?", filter.since)
        .when_some("created_at < ?", filter.until)
        .when_some("id IN (SELECT finding_id FROM finding_events WHERE tenant_id = $1 AND event_id = ?)", filter.event)
        .within("findings.agent_id", filter.within.as_ref());
    select.page(tx, &NEWEST, page, finding)
}

fn after(tx: &mut dyn Tx, tenant: TenantId, position: Position, limit: u32) -> Result<FindingTail> {
    let settled = match tx.backend() {
        Backend::Sqlite => "",
        Backend::Postgres => "AND changed_xid < pg_snapshot_xmin(pg_current_snapshot())",
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM findings WHERE tenant_id = $1 AND (changed_xid, changed_position) > ($2, $3) {settled} \
         ORDER BY changed_xid, changed_position LIMIT $4"
    );
    let values = params![tenant, position.transaction, position.row, limit.clamp(1, PAGE_MAX)];
    let findings = tx.query(&sql, values)?.iter().map(finding).collect::<Result<Vec<_>>>()?;
    let next = findings.last().map_or(position, |finding| finding.changed);
    Ok(FindingTail { findings, next })
}

fn change(
    tx: &mut dyn Tx,
    tenant: TenantId,
    id: Uuid,
    revision: Option<Revision>,
    update: &FindingUpdate,
    by: &str,
    now: Timestamp,
) -> Result<Finding> {
    let current = find(tx, tenant, id, true)?.ok_or_else(|| tx.not_found(format!("finding {id}")))?;
    if revision.is_some_and(|revision| revision != current.revision) {
        return Err(tx.conflict(format!("finding {id}")));
    }
    let (state, until) = match update.state {
        None => (current.state, current.suppressed_until),
        Some(NewState::Open) => (FindingState::Open, None),
        Some(NewState::Acknowledged) => (FindingState::Acknowledged, None),
        Some(NewState::Resolved) => (FindingState::Resolved, None),
        Some(NewState::Suppressed(until)) => (FindingState::Suppressed, until),
    };
    let assignee = update.assignee.as_ref().unwrap_or(&current.assignee);
    let changed = tx.next_change(tenant)?;
    tx.execute(
        "UPDATE findings SET state = $3, suppressed_until = $4, assignee = $5, revision = revision + 1, \
         updated_at = $6, changed_xid = $7, changed_position = $8 WHERE tenant_id = $1 AND id = $2",
        params![tenant, id, state.as_str(), until, assignee.as_ref(), now, changed.transaction, changed.row],
    )?;
    if (state, until) != (current.state, current.suppressed_until) {
        let new = match until {
            Some(until) => format!("{state} until {until}"),
            None => state.to_string(),
        };
        note(tx, tenant, id, now, by, "state", Some(current.state.as_str()), Some(&new))?;
    }
    if *assignee != current.assignee {
        note(tx, tenant, id, now, by, "assignee", current.assignee.as_deref(), assignee.as_deref())?;
    }
    if let Some(text) = &update.note {
        note(tx, tenant, id, now, by, "note", None, Some(text))?;
    }
    deliveries::enqueue(tx, tenant, &update.deliveries, now)?;
    find(tx, tenant, id, false)?.ok_or_else(|| tx.not_found(format!("finding {id}")))
}

#[async_trait]
impl<E: Engine> Findings for Store<E> {
    async fn finding(&self, tenant: TenantId, id: Uuid) -> Result<Option<Finding>> {
        self.engine.read("read a finding", move |tx| find(tx, tenant, id, false)).await
    }

    async fn findings(&self, tenant: TenantId, filter: &FindingFilter, page: &PageRequest) -> Result<Page<Finding>> {
        let (filter, page) = (filter.clone(), page.clone());
        self.engine.read("list findings", move |tx| list(tx, tenant, &filter, &page)).await
    }

    async fn findings_after(&self, tenant: TenantId, position: Position, limit: u32) -> Result<FindingTail> {
        self.engine.read("follow findings", move |tx| after(tx, tenant, position, limit)).await
    }

    async fn findings_horizon(&self, tenant: TenantId) -> Result<Position> {
        self.engine.read("find the end of the findings", move |tx| tx.change_horizon(tenant)).await
    }

    async fn evidence(&self, tenant: TenantId, finding: Uuid, page: &PageRequest) -> Result<Page<KeptEvidence>> {
        let page = page.clone();
        self.engine
            .read("read the evidence of a finding", move |tx| {
                let mut select = Select::new("event_id, xid, position", "finding_events", tenant);
                select.when("finding_id = ?", finding);
                select.page(tx, &EVIDENCE, &page, |row| {
                    Ok(KeptEvidence { event: row.uuid(0)?, position: row.position(1)? })
                })
            })
            .await
    }

    async fn change_finding(
        &self,
        tenant: TenantId,
        id: Uuid,
        revision: Option<Revision>,
        update: &FindingUpdate,
        by: &str,
        now: Timestamp,
    ) -> Result<Finding> {
        let (update, by) = (update.clone(), by.to_owned());
        self.engine.write("change a finding", move |tx| change(tx, tenant, id, revision, &update, &by, now)).await
    }

    async fn finding_history(&self, tenant: TenantId, id: Uuid, page: &PageRequest) -> Result<Page<History>> {
        let page = page.clone();
        self.engine
            .read("read the history of a finding", move |tx| {
                history_page(tx, tenant, ("finding_history", "finding_id"), id, &page)
            })
            .await
    }

    async fn finding_counts(&self, tenant: TenantId) -> Result<Vec<FindingCount>> {
        self.engine
            .read("count findings", move |tx| {
                let rows = tx.query(
                    "SELECT state, severity, count(*) FROM findings WHERE tenant_id = $1 GROUP BY state, severity \
                     ORDER BY state, severity",
                    params![tenant],
                )?;
                let count = |row: &Row| {
                    Ok(FindingCount {
                        state: row.word(0, FindingState::from_word)?,
                        severity: row.word(1, Severity::from_word)?,
                        findings: row.count(2)?,
                    })
                };
                rows.iter().map(count).collect()
            })
            .await
    }
}

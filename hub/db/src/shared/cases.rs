//! Cases over SQL.

use super::cursor::{Key, Order};
use super::select::{Select, newest};
use super::{Engine, Row, Store, Tx, deliveries, findings, params};
use crate::{
    Case, CaseFilter, CaseState, CaseUpdate, Cases, Finding, History, NewCase, PAGE_MAX, Page, PageRequest, Result,
    Revision, Severity, TenantId,
};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

const COLUMNS: &str = "id, number, title, description, state, severity, assignee, (SELECT count(*) FROM case_findings f \
    WHERE f.tenant_id = cases.tenant_id AND f.case_id = cases.id), revision, created_at, created_by, updated_at, closed_at";
const BY_NUMBER: Order = newest("cases", &[("number", Key::Int)]);

fn case(row: &Row) -> Result<Case> {
    Ok(Case {
        id: row.uuid(0)?,
        number: row.int(1)?,
        title: row.text(2)?,
        description: row.text(3)?,
        state: row.word(4, CaseState::from_word)?,
        severity: row.word(5, Severity::from_word)?,
        assignee: row.opt_text(6)?,
        findings: row.count(7)?,
        revision: row.int(8)?,
        created_at: row.time(9)?,
        created_by: row.text(10)?,
        updated_at: row.time(11)?,
        closed_at: row.opt_time(12)?,
    })
}

fn find(tx: &mut dyn Tx, tenant: TenantId, id: Uuid) -> Result<Option<Case>> {
    let sql = format!("SELECT {COLUMNS} FROM cases WHERE tenant_id = $1 AND id = $2");
    tx.row(&sql, params![tenant, id])?.as_ref().map(case).transpose()
}

/// Who does something to which case, and when.
struct Deed<'d> {
    tenant: TenantId,
    case: Uuid,
    by: &'d str,
    now: Timestamp,
}

impl Deed<'_> {
    fn note(&self, tx: &mut dyn Tx, action: &str, old: Option<&str>, new: Option<&str>) -> Result<()> {
        tx.execute(
            "INSERT INTO case_history (tenant_id, case_id, number, at, by, action, old, new) \
             SELECT $1, $2, coalesce(max(number), 0) + 1, $3, $4, $5, $6, $7 FROM case_history \
             WHERE tenant_id = $1 AND case_id = $2",
            params![self.tenant, self.case, self.now, self.by, action, old, new],
        )
        .map(drop)
    }

    fn add(&self, tx: &mut dyn Tx, finding: Uuid) -> Result<()> {
        let there = "SELECT 1 FROM findings WHERE tenant_id = $1 AND id = $2 /*pg FOR KEY SHARE pg*/";
        if tx.row(there, params![self.tenant, finding])?.is_none() {
            return Err(tx.not_found(format!("finding {finding}")));
        }
        let added = tx.changes(
            "INSERT INTO case_findings (tenant_id, case_id, finding_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            params![self.tenant, self.case, finding],
        )?;
        if added { self.note(tx, "finding_added", None, Some(&finding.to_string())) } else { Ok(()) }
    }

    fn remove(&self, tx: &mut dyn Tx, finding: Uuid) -> Result<()> {
        let removed = tx.changes(
            "DELETE FROM case_findings WHERE tenant_id = $1 AND case_id = $2 AND finding_id = $3",
            params![self.tenant, self.case, finding],
        )?;
        if removed { self.note(tx, "finding_removed", Some(&finding.to_string()), None) } else { Ok(()) }
    }

    fn create(&self, tx: &mut dyn Tx, new: &NewCase) -> Result<()> {
        let number = tx.count_up(self.tenant, "cases")?;
        let made = tx.changes(
            "INSERT INTO cases (tenant_id, id, number, title, description, state, severity, assignee, revision, \
             created_at, created_by, updated_at) VALUES ($1, $2, $3, $4, $5, 'open', $6, $7, 1, $8, $9, $8) \
             ON CONFLICT DO NOTHING",
            params![
                self.tenant,
                new.id,
                number,
                &new.title,
                &new.description,
                new.severity.as_str(),
                new.assignee.as_ref(),
                self.now,
                self.by,
            ],
        )?;
        if !made {
            return Err(tx.conflict(format!("case {}", new.id)));
        }
        self.note(tx, "created", None, None)?;
        new.findings.iter().try_for_each(|finding| self.add(tx, *finding))?;
        deliveries::enqueue(tx, self.tenant, &new.deliveries, self.now)
    }

    fn update(&self, tx: &mut dyn Tx, revision: Option<Revision>, update: &CaseUpdate) -> Result<()> {
        let missing = |tx: &mut dyn Tx| tx.not_found(format!("case {}", self.case));
        let lock = "SELECT 1 FROM cases WHERE tenant_id = $1 AND id = $2 /*pg FOR UPDATE pg*/";
        tx.row(lock, params![self.tenant, self.case])?.ok_or_else(|| missing(tx))?;
        let current = find(tx, self.tenant, self.case)?.ok_or_else(|| missing(tx))?;
        if revision.is_some_and(|revision| revision != current.revision) {
            return Err(tx.conflict(format!("case {}", self.case)));
        }
        let state = update.state.unwrap_or(current.state);
        let severity = update.severity.unwrap_or(current.severity);
        let assignee = update.assignee.as_ref().unwrap_or(&current.assignee);
        let closed = (state == CaseState::Closed).then(|| current.closed_at.unwrap_or(self.now));
        let title = update.title.as_ref().unwrap_or(&current.title);
        let description = update.description.as_ref().unwrap_or(&current.description);
        tx.execute(
            "UPDATE cases SET title = $3, description = $4, state = $5, severity = $6, assignee = $7, \
             revision = revision + 1, updated_at = $8, closed_at = $9 WHERE tenant_id = $1 AND id = $2",
            params![
                self.tenant,
                self.case,
                title,
                description,
                state.as_str(),
                severity.as_str(),
                assignee.as_ref(),
                self.now,
                closed,
            ],
        )?;
        let changes = [
            ("title", Some(current.title.as_str()), Some(title.as_str())),
            ("description", Some(current.description.as_str()), Some(description.as_str())),
            ("state", Some(current.state.as_str()), Some(state.as_str())),
            ("severity", Some(current.severity.as_str()), Some(severity.as_str())),
            ("assignee", current.assignee.as_deref(), assignee.as_deref()),
        ];
        for (action, old, new) in changes.into_iter().filter(|(_, old, new)| old != new) {
            self.note(tx, action, old, new)?;
        }
        if let Some(text) = &update.note {
            self.note(tx, "note", None, Some(text))?;
        }
        update.add.iter().try_for_each(|finding| self.add(tx, *finding))?;
        update.remove.iter().try_for_each(|finding| self.remove(tx, *finding))?;
        deliveries::enqueue(tx, self.tenant, &update.deliveries, self.now)
    }
}

#[async_trait]
impl<E: Engine> Cases for Store<E> {
    async fn create_case(&self, tenant: TenantId, new: &NewCase, by: &str, now: Timestamp) -> Result<Case> {
        let (new, by) = (new.clone(), by.to_owned());
        self.engine
            .write("make a case", move |tx| {
                if new.findings.len() > PAGE_MAX as usize {
                    return Err(tx.invalid(format!("a case is made with at most {PAGE_MAX} findings")));
                }
                Deed { tenant, case: new.id, by: &by, now }.create(tx, &new)?;
                find(tx, tenant, new.id)?.ok_or_else(|| tx.not_found(format!("case {}", new.id)))
            })
            .await
    }

    async fn case(&self, tenant: TenantId, id: Uuid) -> Result<Option<Case>> {
        self.engine.read("read a case", move |tx| find(tx, tenant, id)).await
    }

    async fn cases(&self, tenant: TenantId, filter: &CaseFilter, page: &PageRequest) -> Result<Page<Case>> {
        let (filter, page) = (filter.clone(), page.clone());
        self.engine
            .read("list cases", move |tx| {
                let mut select = Select::new(COLUMNS, "cases", tenant);
                select
                    .when_some("state = ?", filter.state.map(CaseState::as_str))
                    .when_some("severity = ?", filter.severity.map(Severity::as_str))
                    .when_some("assignee = ?", filter.assignee.as_ref())
                    .when_some(
                        "id IN (SELECT case_id FROM case_findings WHERE tenant_id = $1 AND finding_id = ?)",
                        filter.finding,
                    );
                select.page(tx, &BY_NUMBER, &page, case)
            })
            .await
    }

    async fn update_case(
        &self,
        tenant: TenantId,
        id: Uuid,
        revision: Option<Revision>,
        update: &CaseUpdate,
        by: &str,
        now: Timestamp,
    ) -> Result<Case> {
        let (update, by) = (update.clone(), by.to_owned());
        self.engine
            .write("change a case", move |tx| {
                Deed { tenant, case: id, by: &by, now }.update(tx, revision, &update)?;
                find(tx, tenant, id)?.ok_or_else(|| tx.not_found(format!("case {id}")))
            })
            .await
    }

    async fn case_findings(&self, tenant: TenantId, id: Uuid, page: &PageRequest) -> Result<Page<Finding>> {
        let page = page.clone();
        self.engine
            .read("list the findings of a case", move |tx| {
                let mut select = Select::new(findings::COLUMNS, "findings", tenant);
                select.when("id IN (SELECT finding_id FROM case_findings WHERE tenant_id = $1 AND case_id = ?)", id);
                select.page(tx, &findings::NEWEST, &page, findings::finding)
            })
            .await
    }

    async fn case_history(&self, tenant: TenantId, id: Uuid, page: &PageRequest) -> Result<Page<History>> {
        let page = page.clone();
        self.engine
            .read("read the history of a case", move |tx| {
                findings::history_page(tx, tenant, ("case_history", "case_id"), id, &page)
            })
            .await
    }
}

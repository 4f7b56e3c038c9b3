//! The judge's part over SQL: leases, cursors, and findings committed with the cursor.

use super::{Engine, Row, Store, Tx, Value, deliveries, findings, params};
use crate::{
    EVIDENCE_MAX, Effect, Evidence, Finding, FindingChange, FindingOutcome, FindingState, Judge, JudgeCommit, Judged,
    Lease, PAGE_MAX, Position, Progress, Result, TenantId, finding_id,
};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

fn lease(row: &Row) -> Result<Lease> {
    Ok(Lease { name: row.text(0)?, holder: row.text(1)?, epoch: row.int(2)?, expires_at: row.time(3)? })
}

fn progress(tx: &mut dyn Tx, tenant: TenantId, name: &str) -> Result<Progress> {
    let sql = "SELECT xid, position, state FROM progress WHERE tenant_id = $1 AND name = $2";
    Ok(match tx.row(sql, params![tenant, name])? {
        Some(row) => Progress { position: row.position(0)?, state: row.opt_bytes(2)? },
        None => Progress::default(),
    })
}

fn commit(tx: &mut dyn Tx, tenant: TenantId, lease: &Lease, commit: &JudgeCommit) -> Result<Judged> {
    if commit.to < commit.from {
        return Err(tx.invalid("the new position is before the old one"));
    }
    if commit.changes.iter().any(|change| change.evidence.is_empty()) {
        return Err(tx.invalid("a match without an event is none"));
    }
    let held = tx.row(
        "SELECT 1 FROM leases WHERE tenant_id = $1 AND name = $2 AND holder = $3 AND epoch = $4 /*pg FOR UPDATE pg*/",
        params![tenant, &lease.name, &lease.holder, lease.epoch],
    )?;
    if held.is_none() {
        return Err(tx.conflict(format!("the lease {}", lease.name)));
    }
    let at = progress(tx, tenant, &lease.name)?.position;
    if at == commit.to && commit.from != commit.to {
        return Ok(Judged { outcomes: Vec::new(), repeated: true });
    }
    if at != commit.from {
        return Err(tx.conflict(format!("the cursor of {}", lease.name)));
    }
    let mut outcomes = Vec::with_capacity(commit.changes.len());
    for change in &commit.changes {
        outcomes.push(apply(tx, tenant, change, commit.now)?);
    }
    tx.execute(
        "INSERT INTO progress (tenant_id, name, xid, position, state, updated_at) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (tenant_id, name) DO UPDATE SET xid = excluded.xid, position = excluded.position, \
         state = coalesce(excluded.state, progress.state), updated_at = excluded.updated_at",
        params![tenant, &lease.name, commit.to.transaction, commit.to.row, commit.state.as_ref(), commit.now,],
    )?;
    Ok(Judged { outcomes, repeated: false })
}

fn apply(tx: &mut dyn Tx, tenant: TenantId, change: &FindingChange, now: Timestamp) -> Result<FindingOutcome> {
    let mut evidence = change.evidence.clone();
    evidence.sort_by_key(|one| (one.position, one.event));
    evidence.dedup_by_key(|one| one.event);
    match findings::unresolved(tx, tenant, &change.rule, &change.dedupe_key)? {
        Some(current) => extend(tx, tenant, change, &evidence, current, now),
        None => begin(tx, tenant, change, &evidence, now),
    }
}

/// How far the evidence of a finding is counted.
pub(super) struct Counted {
    /// How many events are kept.
    pub(super) kept: u32,
    /// The highest position that was counted.
    pub(super) to: Position,
}

/// Counts events for a finding: those that are kept are told apart by their ids, those beyond by their position. Gives
/// how many there are that were not counted before.
fn count(tx: &mut dyn Tx, tenant: TenantId, id: Uuid, evidence: &[Evidence], counted: &mut Counted) -> Result<u64> {
    let mut added = 0;
    for one in evidence {
        let new = if counted.kept < EVIDENCE_MAX {
            let new = tx.changes(
                "INSERT INTO finding_events (tenant_id, finding_id, event_id, xid, position) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
                params![tenant, id, one.event, one.position.transaction, one.position.row],
            )?;
            counted.kept += u32::from(new);
            new
        } else {
            one.position > counted.to
        };
        added += u64::from(new);
        counted.to = counted.to.max(one.position);
    }
    Ok(added)
}

fn extend(
    tx: &mut dyn Tx,
    tenant: TenantId,
    change: &FindingChange,
    evidence: &[Evidence],
    (current, mut counted): (Finding, Counted),
    now: Timestamp,
) -> Result<FindingOutcome> {
    let id = current.id;
    let added = count(tx, tenant, id, evidence, &mut counted)?;
    if added == 0 {
        return Ok(FindingOutcome { finding: id, effect: Effect::Unchanged, added, revision: current.revision });
    }
    let over = current.suppressed_until.is_some_and(|until| until <= now);
    let effect = match current.state {
        FindingState::Suppressed if over => Effect::Reopened,
        FindingState::Suppressed => Effect::Silent,
        FindingState::Open | FindingState::Acknowledged | FindingState::Resolved => Effect::Extended,
    };
    let (state, until) = match effect {
        Effect::Reopened => (FindingState::Open, None),
        _ => (current.state, current.suppressed_until),
    };
    let (first, last) = span(evidence, now);
    let changed = tx.next_change(tenant)?;
    tx.execute(
        "UPDATE findings SET event_count = event_count + $3, kept = $4, counted_xid = $5, counted_position = $6, \
         timestamp = $7, last_seen = $8, severity = $9, state = $10, suppressed_until = $11, revision = revision + 1, \
         updated_at = $12, changed_xid = $13, changed_position = $14 WHERE tenant_id = $1 AND id = $2",
        params![
            tenant,
            id,
            added,
            counted.kept,
            counted.to.transaction,
            counted.to.row,
            current.first_seen.min(first),
            current.last_seen.max(last),
            current.severity.max(change.severity).as_str(),
            state.as_str(),
            until,
            now,
            changed.transaction,
            changed.row,
        ],
    )?;
    if effect == Effect::Reopened {
        findings::note(tx, tenant, id, now, "judge", "reopened", Some("suppressed"), Some("open"))?;
        deliveries::enqueue(tx, tenant, &change.deliveries, now)?;
    }
    Ok(FindingOutcome { finding: id, effect, added, revision: current.revision + 1 })
}

/// When the first and the last event were.
fn span(evidence: &[Evidence], now: Timestamp) -> (Timestamp, Timestamp) {
    let times = || evidence.iter().map(|one| one.at);
    (times().min().unwrap_or(now), times().max().unwrap_or(now))
}

/// The resolved finding of the same rule and key that an event was counted for, if any.
fn counted_before(tx: &mut dyn Tx, tenant: TenantId, change: &FindingChange, one: &Evidence) -> Result<Option<Row>> {
    tx.row(
        "SELECT f.id, f.revision FROM findings f WHERE f.tenant_id = $1 AND f.rule_id = $2 AND f.dedupe_key = $3 AND \
         (EXISTS (SELECT 1 FROM finding_events e WHERE e.tenant_id = $1 AND e.finding_id = f.id AND e.event_id = $4) \
         OR (f.kept >= $5 AND (f.counted_xid > $6 OR (f.counted_xid = $6 AND f.counted_position >= $7)))) \
         ORDER BY f.created_at DESC LIMIT 1",
        params![
            tenant,
            &change.rule,
            &change.dedupe_key,
            one.event,
            EVIDENCE_MAX,
            one.position.transaction,
            one.position.row,
        ],
    )
}

fn begin(
    tx: &mut dyn Tx,
    tenant: TenantId,
    change: &FindingChange,
    evidence: &[Evidence],
    now: Timestamp,
) -> Result<FindingOutcome> {
    // A match of events that a resolved finding is made of is that finding again, and changes nothing.
    let (mut begins, mut before) = (None, None);
    for one in evidence {
        match counted_before(tx, tenant, change, one)? {
            Some(row) => before = Some(row),
            None => {
                begins = Some(one);
                break;
            }
        }
    }
    let Some(begins) = begins else {
        let row = before.ok_or_else(|| tx.invalid("a match without an event is none"))?;
        let (finding, revision) = (row.uuid(0)?, row.int(1)?);
        return Ok(FindingOutcome { finding, effect: Effect::Unchanged, added: 0, revision });
    };
    let id = finding_id(tenant, &change.rule, &change.dedupe_key, begins.event);
    let (first, last) = span(evidence, now);
    let changed = tx.next_change(tenant)?;
    let values: &[Value] = params![
        tenant,
        id,
        begins.event,
        first,
        change.severity.as_str(),
        &change.description,
        &change.details,
        &change.rule,
        change.rule_version,
        &change.dedupe_key,
        &change.title,
        change.entity.as_ref().map(|entity| &entity.kind),
        change.entity.as_ref().map(|entity| &entity.value),
        change.agent,
        last,
        now,
        changed.transaction,
        changed.row,
    ];
    tx.execute(
        "INSERT INTO findings (tenant_id, id, event_id, timestamp, severity, description, details, rule_id, \
         rule_version, dedupe_key, title, entity_kind, entity_value, agent_id, state, last_seen, event_count, kept, \
         counted_xid, counted_position, revision, created_at, updated_at, changed_xid, changed_position) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 'open', $15, 0, 0, 0, 0, 1, $16, $16, \
         $17, $18)",
        values,
    )?;
    let mut counted = Counted { kept: 0, to: Position::START };
    let added = count(tx, tenant, id, evidence, &mut counted)?;
    tx.execute(
        "UPDATE findings SET event_count = $3, kept = $4, counted_xid = $5, counted_position = $6 \
         WHERE tenant_id = $1 AND id = $2",
        params![tenant, id, added, counted.kept, counted.to.transaction, counted.to.row],
    )?;
    findings::note(tx, tenant, id, now, "judge", "created", None, None)?;
    deliveries::enqueue(tx, tenant, &change.deliveries, now)?;
    Ok(FindingOutcome { finding: id, effect: Effect::New, added, revision: 1 })
}

#[async_trait]
impl<E: Engine> Judge for Store<E> {
    async fn acquire_lease(
        &self,
        tenant: TenantId,
        name: &str,
        holder: &str,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<Option<Lease>> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.engine
            .write("acquire a lease", move |tx| {
                let row = tx.row(
                    "INSERT INTO leases (tenant_id, name, holder, epoch, expires_at) VALUES ($1, $2, $3, 1, $5) \
                     ON CONFLICT (tenant_id, name) DO UPDATE SET holder = excluded.holder, epoch = leases.epoch + 1, \
                     expires_at = excluded.expires_at WHERE leases.expires_at <= $4 OR leases.holder = excluded.holder \
                     RETURNING name, holder, epoch, expires_at",
                    params![tenant, &name, &holder, now, expires_at],
                )?;
                row.as_ref().map(lease).transpose()
            })
            .await
    }

    async fn renew_lease(&self, tenant: TenantId, held: &Lease, expires_at: Timestamp) -> Result<Lease> {
        let held = held.clone();
        self.engine
            .write("renew a lease", move |tx| {
                let row = tx.row(
                    "UPDATE leases SET expires_at = $5 WHERE tenant_id = $1 AND name = $2 AND holder = $3 AND epoch = $4 \
                     RETURNING name, holder, epoch, expires_at",
                    params![tenant, &held.name, &held.holder, held.epoch, expires_at],
                )?;
                lease(&row.ok_or_else(|| tx.conflict(format!("the lease {}", held.name)))?)
            })
            .await
    }

    async fn release_lease(&self, tenant: TenantId, held: &Lease) -> Result<bool> {
        let held = held.clone();
        self.engine
            .write("release a lease", move |tx| {
                // The row stays, so that its epoch goes on growing. Nobody's name is empty.
                tx.changes(
                    "UPDATE leases SET expires_at = $5, holder = '' \
                     WHERE tenant_id = $1 AND name = $2 AND holder = $3 AND epoch = $4",
                    params![tenant, &held.name, &held.holder, held.epoch, Timestamp::UNIX_EPOCH],
                )
            })
            .await
    }

    async fn leases(&self, tenant: TenantId) -> Result<Vec<Lease>> {
        self.engine
            .read("list leases", move |tx| {
                let rows = tx.query(
                    "SELECT name, holder, epoch, expires_at FROM leases WHERE tenant_id = $1 ORDER BY name LIMIT $2",
                    params![tenant, PAGE_MAX],
                )?;
                rows.iter().map(lease).collect()
            })
            .await
    }

    async fn progress(&self, tenant: TenantId, name: &str) -> Result<Progress> {
        let name = name.to_owned();
        self.engine.read("read a cursor", move |tx| progress(tx, tenant, &name)).await
    }

    async fn commit_findings(&self, tenant: TenantId, lease: &Lease, changes: &JudgeCommit) -> Result<Judged> {
        let (lease, changes) = (lease.clone(), changes.clone());
        self.engine.write("commit findings", move |tx| commit(tx, tenant, &lease, &changes)).await
    }
}

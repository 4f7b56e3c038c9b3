//! `/api/v1/audit`, `/api/v1/blocks`, `/api/v1/hub`: the hub itself.

use super::{InPath, InQuery};
use crate::api::people::access::Caller;
use crate::api::people::guarded::Guarded;
use crate::api::people::page::{PageQuery, Paged};
use crate::app::people::principal::Action;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use picket_hub_db::{AuditEntry, AuditFilter, Block, BlockSubject, FindingState};
use picket_hub_rules::Shard;
use picket_protocol::hub::{ProblemCode, Signed};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

/// The routes. They concern the whole hub: a permission for a tag is none.
pub(in crate::api::people) fn routes(routes: Guarded) -> Guarded {
    routes
        .route(Action::AuditRead, routes!(audit))
        .route(Action::AuditRead, routes!(verify))
        .route(Action::HubRead, routes!(blocks))
        .route(Action::HubWrite, routes!(unblock))
        .route(Action::HubRead, routes!(status))
}

/// An entry of the audit log.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditEntry)]
struct EntryView {
    /// Its number, from 1 without holes.
    seq: i64,
    /// When.
    at: Timestamp,
    /// Who.
    actor: String,
    /// What they did.
    action: String,
    /// To what.
    object: String,
    /// What else is to be known.
    #[schema(value_type = Object)]
    details: Value,
}

impl From<AuditEntry> for EntryView {
    fn from(kept: AuditEntry) -> Self {
        let payload = serde_json::from_str::<Signed>(&kept.entry.record).map(|signed| signed.payload);
        let entry = payload.and_then(|payload| serde_json::from_str::<Value>(&payload)).unwrap_or_default();
        Self {
            seq: kept.seq,
            at: kept.entry.at,
            actor: kept.entry.actor,
            action: kept.entry.action,
            object: kept.entry.object,
            details: entry.get("details").cloned().unwrap_or_else(|| json!({})),
        }
    }
}

/// Which entries.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    /// Of this actor.
    actor: Option<String>,
    /// This action.
    action: Option<String>,
    /// Of this object.
    object: Option<String>,
    /// Then or later.
    since: Option<Timestamp>,
    /// Before.
    until: Option<Timestamp>,
}

/// The audit log, the latest entry first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "hub", params(PageQuery, AuditQuery),
    responses((status = 200, body = Paged<EntryView>)))]
async fn audit(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
    InQuery(query): InQuery<AuditQuery>,
) -> Outcome<Json<Paged<EntryView>>> {
    caller.everywhere()?;
    let AuditQuery { actor, action, object, since, until } = query;
    let filter = AuditFilter { actor, action, object, since, until };
    let found = hub.db.audit_entries(hub.tenant, &filter, &page.request()?).await?;
    Ok(Json(Paged::of(found, |entry| Some(entry.into()))))
}

/// How the chain of the audit log is.
#[derive(Serialize, ToSchema)]
struct ChainView {
    /// How many entries there are.
    entries: u64,
    /// The hash of the last one: to be kept elsewhere.
    head: String,
    /// What is wrong with it: the number of an entry, and words.
    problems: Vec<String>,
}

/// Reads the whole audit log, and says whether anything in it was changed.
#[utoipa::path(get, path = "/api/v1/audit/verify", tag = "hub", responses((status = 200, body = ChainView)))]
async fn verify(State(hub): State<Arc<Hub>>, Extension(caller): Extension<Caller>) -> Outcome<Json<ChainView>> {
    caller.everywhere()?;
    let report = hub.verify_audit().await?;
    let problems = report.problems.iter().map(|(seq, problem)| format!("entry {seq}: {problem}")).collect();
    Ok(Json(ChainView { entries: report.entries, head: report.head, problems }))
}

/// That somebody is turned away.
#[derive(Serialize, ToSchema)]
#[schema(as = Block)]
struct BlockView {
    /// `address` or `principal`.
    kind: String,
    /// Which.
    value: String,
    /// Until when; for good if absent.
    until: Option<Timestamp>,
    /// Why.
    reason: String,
    /// Since when.
    created_at: Timestamp,
}

impl From<Block> for BlockView {
    fn from(block: Block) -> Self {
        let (kind, value) = block.subject.parts();
        Self {
            kind: kind.to_owned(),
            value: value.to_owned(),
            until: block.until,
            reason: block.reason.clone(),
            created_at: block.created_at,
        }
    }
}

/// Who is turned away.
#[utoipa::path(get, path = "/api/v1/blocks", tag = "hub", params(PageQuery),
    responses((status = 200, body = Paged<BlockView>)))]
async fn blocks(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
) -> Outcome<Json<Paged<BlockView>>> {
    caller.everywhere()?;
    let found = hub.db.blocks(hub.tenant, hub.clock.now(), &page.request()?).await?;
    Ok(Json(Paged::of(found, |block| Some(block.into()))))
}

/// Lets somebody in again.
#[utoipa::path(delete, path = "/api/v1/blocks/{kind}/{value}", tag = "hub",
    params(("kind" = String, Path, description = "address or principal"), ("value" = String, Path)),
    responses((status = 204, description = "They are let in, now or before")))]
async fn unblock(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath((kind, value)): InPath<(String, String)>,
) -> Outcome<StatusCode> {
    caller.everywhere()?;
    let subject = match kind.as_str() {
        "address" => BlockSubject::Address(value),
        "principal" => BlockSubject::Principal(value),
        _ => return Err(Refusal::new(ProblemCode::NotFound, "a block is of an address or of a principal")),
    };
    hub.lift_block(&subject, caller.key()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How the hub is doing.
#[derive(Serialize, ToSchema)]
struct HubStatus {
    /// Its version.
    version: String,
    /// Where machines reach it.
    url: String,
    /// By which keys machines know it.
    pins: Vec<String>,
    /// When its certificate ends.
    certificate_expires_at: Timestamp,
    /// Which database keeps everything: `sqlite` or `postgres`.
    database: String,
    /// Bytes of everything in it.
    database_bytes: u64,
    /// Events in it; may be an estimate.
    events: u64,
    /// Agents by status.
    agents: BTreeMap<String, u64>,
    /// Agents that are connected to this very process.
    connected: u64,
    /// Findings that nobody resolved, by severity.
    findings: BTreeMap<String, u64>,
    /// Events that were stored since this process started.
    events_stored: u64,
    /// Events that came again.
    events_duplicate: u64,
    /// Batches that were sent away for want of room.
    batches_shed: u64,
    /// Batches that wait to be stored.
    batches_waiting: u64,
    /// Events judged since this process started, by kind.
    events_judged: BTreeMap<String, u64>,
    /// Who looks at live views.
    viewers: u64,
}

/// How the hub is doing.
#[utoipa::path(get, path = "/api/v1/hub", tag = "hub", responses((status = 200, body = HubStatus)))]
async fn status(State(hub): State<Arc<Hub>>, Extension(caller): Extension<Caller>) -> Outcome<Json<HubStatus>> {
    caller.everywhere()?;
    let stats = hub.db.stats(hub.tenant).await?;
    let agents = hub.db.agent_counts(hub.tenant).await?;
    let mut findings = BTreeMap::new();
    for count in hub.db.finding_counts(hub.tenant).await? {
        if count.state != FindingState::Resolved {
            *findings.entry(count.severity.as_str().to_owned()).or_default() += count.findings;
        }
    }
    let keys = hub.keys();
    let intake = hub.intake.counters();
    let judged = |shard: Shard| (shard.as_str().to_owned(), hub.judged.events[shard as usize].load(Ordering::Relaxed));
    Ok(Json(HubStatus {
        version: hub.build.version.to_string(),
        url: hub.public_url.clone(),
        pins: keys.pins().iter().map(ToString::to_string).collect(),
        certificate_expires_at: keys.hub.0.not_after,
        database: hub.db.backend().as_str().to_owned(),
        database_bytes: stats.size_bytes,
        events: stats.events,
        agents: agents.into_iter().map(|(status, count)| (status.as_str().to_owned(), count)).collect(),
        connected: hub.presence.count() as u64,
        findings,
        events_stored: intake.events.load(Ordering::Relaxed),
        events_duplicate: intake.duplicates.load(Ordering::Relaxed),
        batches_shed: intake.shed.load(Ordering::Relaxed),
        batches_waiting: hub.intake.waiting().0 as u64,
        events_judged: Shard::ALL.map(judged).into(),
        viewers: hub.viewers.open.load(Ordering::Relaxed),
    }))
}

//! `/api/v1/findings`: what the judge found, and what people do about it.

use super::events::EventView;
use super::{BODY_MAX, InPath, InQuery, Visible, absent, text, within};
use crate::api::body;
use crate::api::people::access::Caller;
use crate::api::people::guarded::Guarded;
use crate::api::people::page::{IfMatch, PageQuery, Paged, SealedList, Versioned, changed, expected};
use crate::api::people::words::{FindingStateWord, SeverityWord, Word};
use crate::app::deliveries::Subject;
use crate::app::people::principal::Action;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use picket_hub_db::{Entity, Finding, FindingFilter, FindingState, FindingUpdate, History, NewState};
use picket_protocol::hub::ProblemCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;
use uuid::Uuid;

/// The routes.
pub(in crate::api::people) fn routes(routes: Guarded) -> Guarded {
    routes
        .route(Action::FindingsRead, routes!(list))
        .route(Action::FindingsRead, routes!(show))
        .route(Action::FindingsWrite, routes!(update))
        .route(Action::FindingsRead, routes!(evidence))
        .route(Action::FindingsRead, routes!(history))
}

/// A finding.
#[derive(Serialize, ToSchema)]
#[schema(as = Finding)]
pub(crate) struct FindingView {
    /// Its id.
    pub(crate) id: Uuid,
    /// The event that began it.
    event_id: Uuid,
    /// When it was made.
    timestamp: Timestamp,
    /// How bad it is.
    severity: SeverityWord,
    /// What it is, in a line.
    title: String,
    /// The whole in words.
    description: String,
    /// Which rule.
    rule_id: String,
    /// Which version of it.
    rule_version: i64,
    /// On which agent.
    agent_id: Option<Uuid>,
    /// Whom or what it is about.
    entity: Option<EntityView>,
    /// Where it stands.
    state: FindingStateWord,
    /// Until when it is suppressed.
    suppressed_until: Option<Timestamp>,
    /// Who takes care of it.
    assignee: Option<String>,
    /// What makes matches of the rule this finding.
    dedupe_key: String,
    /// When the first event was.
    first_seen: Timestamp,
    /// When the last event was.
    last_seen: Timestamp,
    /// How many events there were.
    event_count: u64,
    /// What matched, and why.
    #[schema(value_type = Object)]
    details: Value,
    /// Which state of all this it is (the `ETag`).
    revision: i64,
    /// When anything of it changed last.
    updated_at: Timestamp,
}

/// Whom or what a finding is about.
#[derive(Serialize, ToSchema)]
#[schema(as = Entity)]
struct EntityView {
    /// What kind: `file`, `ip`, `agent`, `metric`, `group`.
    kind: String,
    /// Which.
    value: String,
}

impl From<Finding> for FindingView {
    fn from(finding: Finding) -> Self {
        Self {
            id: finding.id,
            event_id: finding.first_event,
            timestamp: finding.created_at,
            severity: Word(finding.severity),
            title: finding.title,
            description: finding.description,
            rule_id: finding.rule,
            rule_version: finding.rule_version,
            agent_id: finding.agent,
            entity: finding.entity.map(|Entity { kind, value }| EntityView { kind, value }),
            state: Word(finding.state),
            suppressed_until: finding.suppressed_until,
            assignee: finding.assignee,
            dedupe_key: finding.dedupe_key,
            first_seen: finding.first_seen,
            last_seen: finding.last_seen,
            event_count: finding.event_count,
            details: finding.details,
            revision: finding.revision,
            updated_at: finding.updated_at,
        }
    }
}

/// Which findings.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct FindingQuery {
    /// With this event among their evidence.
    event_id: Option<Uuid>,
    /// On this agent.
    agent_id: Option<Uuid>,
    /// Where they stand.
    #[param(inline)]
    state: Option<FindingStateWord>,
    /// As bad as this.
    #[param(inline)]
    severity: Option<SeverityWord>,
    /// Of this rule.
    rule_id: Option<String>,
    /// Of this assignee.
    assignee: Option<String>,
    /// About this, as `kind:value`.
    entity: Option<String>,
    /// Made then or later.
    since: Option<Timestamp>,
    /// Made before.
    until: Option<Timestamp>,
}

/// Findings, the newest first.
#[utoipa::path(get, path = "/api/v1/findings", tag = "findings", params(PageQuery, FindingQuery),
    responses((status = 200, body = Paged<FindingView>)))]
async fn list(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
    InQuery(query): InQuery<FindingQuery>,
) -> Outcome<Json<Paged<FindingView>>> {
    let entity = query.entity.as_deref().map(|text| {
        let (kind, value) = text.split_once(':').ok_or_else(|| {
            Refusal::new(ProblemCode::Invalid, "entity is a kind and a value, such as file:/etc/passwd")
        })?;
        Ok::<_, Refusal>(Entity { kind: kind.to_owned(), value: value.to_owned() })
    });
    let filter = FindingFilter {
        state: query.state.map(|word| word.0),
        severity: query.severity.map(|word| word.0),
        rule: query.rule_id,
        agent: query.agent_id,
        entity: entity.transpose()?,
        event: query.event_id,
        assignee: query.assignee,
        since: query.since,
        until: query.until,
        within: within(&caller),
    };
    let found = hub.db.findings(hub.tenant, &filter, &page.request()?).await?;
    Ok(Json(Paged::of(found, |finding| Some(finding.into()))))
}

/// One finding.
#[utoipa::path(get, path = "/api/v1/findings/{finding_id}", tag = "findings", params(("finding_id" = Uuid, Path)),
    responses((status = 200, body = FindingView), (status = 304, description = "The client has this version")))]
async fn show(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    headers: HeaderMap,
) -> Outcome<Response> {
    let finding = seen(&hub, &caller, id).await?;
    Ok(Versioned { revision: finding.revision, value: FindingView::from(finding) }.answer(&headers))
}

/// What somebody does about a finding; what is absent stays.
#[derive(Deserialize, ToSchema)]
#[schema(as = FindingChange)]
struct FindingBody {
    /// Where it stands from now on.
    state: Option<FindingStateWord>,
    /// Until when it is suppressed; for good unless it is said.
    suppressed_until: Option<Timestamp>,
    /// Who takes care of it; empty for nobody.
    #[schema(max_length = 255)]
    assignee: Option<String>,
    /// What there is to say.
    #[schema(min_length = 1, max_length = 10_000)]
    note: Option<String>,
}

/// Acknowledges, assigns, resolves, suppresses a finding, or adds a note.
#[utoipa::path(patch, path = "/api/v1/findings/{finding_id}", tag = "findings", request_body = FindingBody,
    params(("finding_id" = Uuid, Path), IfMatch),
    responses((status = 200, body = FindingView)))]
async fn update(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    request: Request,
) -> Outcome<Response> {
    let (parts, body) = request.into_parts();
    let asked: FindingBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let expected = expected(&parts.headers)?;
    let before = seen(&hub, &caller, id).await?;
    let now = hub.clock.now();
    let new_state = match asked.state.map(|word| word.0) {
        None => None,
        Some(FindingState::Open) => Some(NewState::Open),
        Some(FindingState::Acknowledged) => Some(NewState::Acknowledged),
        Some(FindingState::Resolved) => Some(NewState::Resolved),
        Some(FindingState::Suppressed) => {
            if asked.suppressed_until.is_some_and(|until| until <= now) {
                return Err(Refusal::new(ProblemCode::Invalid, "suppressed_until is in the past"));
            }
            Some(NewState::Suppressed(asked.suppressed_until))
        }
    };
    let assignee = asked.assignee.as_deref().map(assignee).transpose()?;
    let note = asked.note.map(|note| text("note", &note, 10_000)).transpose()?;
    if new_state.is_none() && assignee.is_none() && note.is_none() {
        return Err(Refusal::new(ProblemCode::Invalid, "say at least one of state, assignee and note"));
    }
    let details = json!({ "state": asked.state, "suppressed_until": asked.suppressed_until, "assignee": assignee });
    hub.audit(caller.key(), "findings.update", &id.to_string(), details).await?;
    let told = json!({
        "finding_id": id, "rule_id": before.rule, "severity": before.severity.as_str(), "title": before.title,
        "agent_id": before.agent, "state": asked.state.map_or(before.state, |word| word.0).as_str(),
        "assignee": assignee.as_ref().unwrap_or(&before.assignee), "note": note, "by": caller.principal.name,
    });
    let deliveries = hub.deliveries_of(Subject::Findings, before.severity, "finding.updated", &told).await?;
    let update = FindingUpdate { state: new_state, assignee, note, deliveries };
    let changed_finding = hub.db.change_finding(hub.tenant, id, expected, &update, &caller.principal.name, now).await;
    let finding = changed_finding.map_err(|error| changed(error.into()))?;
    hub.tell_findings_changed();
    Ok(Versioned { revision: finding.revision, value: FindingView::from(finding) }.into_response())
}

/// The events that speak for a finding.
#[derive(Serialize, ToSchema)]
#[schema(as = EvidencePage)]
struct EvidenceView {
    /// Those that one may see.
    items: Vec<EventView>,
    /// How many more of this page there are, of agents whose events one may not see.
    hidden: u64,
    /// Where the next page begins; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    next_cursor: Option<String>,
}

/// The events that speak for a finding, the first to be stored first. Those that retention took are left out; those of agents
/// whose events one may not read (`events.read`) are counted.
#[utoipa::path(get, path = "/api/v1/findings/{finding_id}/events", tag = "findings",
    params(("finding_id" = Uuid, Path), PageQuery), responses((status = 200, body = EvidenceView)))]
async fn evidence(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    InQuery(page): InQuery<PageQuery>,
) -> Outcome<Json<EvidenceView>> {
    seen(&hub, &caller, id).await?;
    // A cursor stands on the last row of its page, whoever may see that.
    let list = SealedList { sealer: &hub.sealer, name: format!("evidence {id} {}", caller.key()) };
    let kept = hub.db.evidence(hub.tenant, id, &page.request_of(&list)?).await?;
    let ids: Vec<Uuid> = kept.items.iter().map(|evidence| evidence.event).collect();
    let scope = caller.principal.scope(Action::EventsRead);
    let mut visible = Visible::of(&hub, scope.as_ref());
    let (mut items, mut hidden) = (Vec::new(), 0);
    for event in hub.db.events_by_id(hub.tenant, &ids).await? {
        if visible.agent(Some(event.agent)).await? {
            items.push(EventView::from(event));
        } else {
            hidden += 1;
        }
    }
    let next_cursor = kept.next.map(|cursor| list.seal(&cursor)).transpose()?;
    Ok(Json(EvidenceView { items, hidden, next_cursor }))
}

/// Something that happened to a finding or a case.
#[derive(Serialize, ToSchema)]
#[schema(as = History)]
pub(crate) struct HistoryView {
    /// Its number, from 1.
    number: i64,
    /// When.
    at: Timestamp,
    /// By whom.
    by: String,
    /// What: `created`, `state`, `assignee`, `note`, ….
    action: String,
    /// What it was before.
    old: Option<String>,
    /// What it is now, or what was said.
    new: Option<String>,
}

impl From<History> for HistoryView {
    fn from(entry: History) -> Self {
        let History { number, at, by, action, old, new } = entry;
        Self { number, at, by, action, old, new }
    }
}

/// What happened to a finding, the latest first.
#[utoipa::path(get, path = "/api/v1/findings/{finding_id}/history", tag = "findings",
    params(("finding_id" = Uuid, Path), PageQuery), responses((status = 200, body = Paged<HistoryView>)))]
async fn history(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    InQuery(page): InQuery<PageQuery>,
) -> Outcome<Json<Paged<HistoryView>>> {
    seen(&hub, &caller, id).await?;
    let found = hub.db.finding_history(hub.tenant, id, &page.request()?).await?;
    Ok(Json(Paged::of(found, |entry| Some(entry.into()))))
}

/// The finding, if the caller may see it.
async fn seen(hub: &Hub, caller: &Caller, id: Uuid) -> Outcome<Finding> {
    let finding = hub.db.finding(hub.tenant, id).await?.ok_or_else(|| absent("finding"))?;
    if Visible::new(hub, caller).agent(finding.agent).await? { Ok(finding) } else { Err(absent("finding")) }
}

/// Who takes care of something from now on; the empty name is nobody's.
pub(super) fn assignee(name: &str) -> Outcome<Option<String>> {
    if name.is_empty() { Ok(None) } else { text("assignee", name, 255).map(Some) }
}

//! `/api/v1/cases`: findings that belong together, and the work on them.

use super::findings::{FindingView, HistoryView, assignee};
use super::{BODY_MAX, InPath, InQuery, absent, text};
use crate::api::body;
use crate::api::people::access::Caller;
use crate::api::people::guarded::Guarded;
use crate::api::people::page::{IfMatch, PageQuery, Paged, Versioned, changed, expected};
use crate::api::people::words::{CaseStateWord, SeverityWord, Word};
use crate::app::deliveries::Subject;
use crate::app::people::principal::Action;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use picket_hub_db::{Case, CaseFilter, CaseUpdate, NewCase, Severity};
use picket_protocol::hub::ProblemCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;
use uuid::Uuid;

/// The most findings that are added or removed at once.
const MAX_FINDINGS: usize = 1000;

/// The routes. Cases are of the whole fleet: a permission for a tag shows none.
pub(in crate::api::people) fn routes(routes: Guarded) -> Guarded {
    routes
        .route(Action::CasesRead, routes!(list))
        .route(Action::CasesWrite, routes!(create))
        .route(Action::CasesRead, routes!(show))
        .route(Action::CasesWrite, routes!(update))
        .route(Action::CasesRead, routes!(findings))
        .route(Action::CasesRead, routes!(history))
}

/// A case.
#[derive(Serialize, ToSchema)]
#[schema(as = Case)]
struct CaseView {
    /// Its id.
    id: Uuid,
    /// Its number for people, from 1.
    number: i64,
    /// What it is, in a line.
    title: String,
    /// The whole in words.
    description: String,
    /// Where it stands.
    state: CaseStateWord,
    /// How bad it is.
    severity: SeverityWord,
    /// Who takes care of it.
    assignee: Option<String>,
    /// How many findings it has.
    findings: u64,
    /// Which state of all this it is (the `ETag`).
    revision: i64,
    /// When it was made.
    created_at: Timestamp,
    /// By whom.
    created_by: String,
    /// When it was changed last.
    updated_at: Timestamp,
    /// When it was closed.
    closed_at: Option<Timestamp>,
}

impl From<Case> for CaseView {
    fn from(case: Case) -> Self {
        Self {
            id: case.id,
            number: case.number,
            title: case.title,
            description: case.description,
            state: Word(case.state),
            severity: Word(case.severity),
            assignee: case.assignee,
            findings: case.findings,
            revision: case.revision,
            created_at: case.created_at,
            created_by: case.created_by,
            updated_at: case.updated_at,
            closed_at: case.closed_at,
        }
    }
}

/// Which cases.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct CaseQuery {
    /// Where they stand.
    #[param(inline)]
    state: Option<CaseStateWord>,
    /// As bad as this.
    #[param(inline)]
    severity: Option<SeverityWord>,
    /// Of this assignee.
    assignee: Option<String>,
    /// With this finding.
    finding_id: Option<Uuid>,
}

/// Cases, the highest number first.
#[utoipa::path(get, path = "/api/v1/cases", tag = "cases", params(PageQuery, CaseQuery),
    responses((status = 200, body = Paged<CaseView>)))]
async fn list(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
    InQuery(query): InQuery<CaseQuery>,
) -> Outcome<Json<Paged<CaseView>>> {
    caller.everywhere()?;
    let filter = CaseFilter {
        state: query.state.map(|word| word.0),
        severity: query.severity.map(|word| word.0),
        assignee: query.assignee,
        finding: query.finding_id,
    };
    let found = hub.db.cases(hub.tenant, &filter, &page.request()?).await?;
    Ok(Json(Paged::of(found, |case| Some(case.into()))))
}

/// A new case.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewCase)]
struct NewCaseBody {
    /// What it is, in a line.
    #[schema(min_length = 1, max_length = 255)]
    title: String,
    /// The whole in words.
    #[serde(default)]
    #[schema(max_length = 10_000)]
    description: String,
    /// How bad it is; `medium` unless it is said.
    #[serde(default = "medium")]
    severity: SeverityWord,
    /// Who takes care of it.
    #[schema(min_length = 1, max_length = 255)]
    assignee: Option<String>,
    /// Its first findings.
    #[serde(default)]
    #[schema(max_items = 1000)]
    findings: Vec<Uuid>,
}

fn medium() -> SeverityWord {
    Word(Severity::Medium)
}

/// Makes a case.
#[utoipa::path(post, path = "/api/v1/cases", tag = "cases", request_body = NewCaseBody,
    responses((status = 201, body = CaseView)))]
async fn create(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<Response> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: NewCaseBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let mut case = NewCase {
        id: Uuid::now_v7(),
        title: text("title", &asked.title, 255)?,
        description: words("description", asked.description)?,
        severity: asked.severity.0,
        assignee: asked.assignee.map(|name| text("assignee", &name, 255)).transpose()?,
        findings: few(asked.findings)?,
        deliveries: Vec::new(),
    };
    let details = json!({ "title": case.title, "findings": case.findings });
    let told = json!({
        "case_id": case.id, "title": case.title, "severity": case.severity.as_str(), "assignee": case.assignee,
        "findings": case.findings, "by": caller.principal.name,
    });
    case.deliveries = hub.deliveries_of(Subject::Cases, case.severity, "case.created", &told).await?;
    hub.audit(caller.key(), "cases.create", &case.id.to_string(), details).await?;
    let made = hub.db.create_case(hub.tenant, &case, &caller.principal.name, hub.clock.now()).await?;
    Ok((StatusCode::CREATED, Versioned { revision: made.revision, value: CaseView::from(made) }).into_response())
}

/// One case.
#[utoipa::path(get, path = "/api/v1/cases/{case_id}", tag = "cases", params(("case_id" = Uuid, Path)),
    responses((status = 200, body = CaseView), (status = 304, description = "The client has this version")))]
async fn show(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    headers: HeaderMap,
) -> Outcome<Response> {
    let case = known(&hub, &caller, id).await?;
    Ok(Versioned { revision: case.revision, value: CaseView::from(case) }.answer(&headers))
}

/// What is changed of a case; what is absent stays.
#[derive(Deserialize, ToSchema)]
#[schema(as = CaseChange)]
struct CaseBody {
    /// What it is, in a line.
    #[schema(min_length = 1, max_length = 255)]
    title: Option<String>,
    /// The whole in words.
    #[schema(max_length = 10_000)]
    description: Option<String>,
    /// Where it stands.
    state: Option<CaseStateWord>,
    /// How bad it is.
    severity: Option<SeverityWord>,
    /// Who takes care of it; empty for nobody.
    #[schema(max_length = 255)]
    assignee: Option<String>,
    /// What there is to say.
    #[schema(min_length = 1, max_length = 10_000)]
    note: Option<String>,
    /// Findings that belong to it, too.
    #[serde(default)]
    #[schema(max_items = 1000)]
    add: Vec<Uuid>,
    /// Findings that do not belong to it after all.
    #[serde(default)]
    #[schema(max_items = 1000)]
    remove: Vec<Uuid>,
}

/// Changes a case.
#[utoipa::path(patch, path = "/api/v1/cases/{case_id}", tag = "cases", request_body = CaseBody,
    params(("case_id" = Uuid, Path), IfMatch),
    responses((status = 200, body = CaseView)))]
async fn update(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    request: Request,
) -> Outcome<Response> {
    let (parts, body) = request.into_parts();
    let asked: CaseBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let expected = expected(&parts.headers)?;
    let before = known(&hub, &caller, id).await?;
    let mut update = CaseUpdate {
        title: asked.title.map(|title| text("title", &title, 255)).transpose()?,
        description: asked.description.map(|text| words("description", text)).transpose()?,
        state: asked.state.map(|word| word.0),
        severity: asked.severity.map(|word| word.0),
        assignee: asked.assignee.as_deref().map(assignee).transpose()?,
        note: asked.note.map(|note| text("note", &note, 10_000)).transpose()?,
        add: few(asked.add)?,
        remove: few(asked.remove)?,
        deliveries: Vec::new(),
    };
    let details = json!({ "title": update.title, "state": asked.state, "add": update.add, "remove": update.remove });
    hub.audit(caller.key(), "cases.update", &id.to_string(), details).await?;
    let by = &caller.principal.name;
    let severity = update.severity.unwrap_or(before.severity);
    let told = json!({
        "case_id": id, "number": before.number, "title": update.title.as_ref().unwrap_or(&before.title),
        "severity": severity.as_str(), "state": update.state.unwrap_or(before.state).as_str(),
        "assignee": update.assignee.as_ref().unwrap_or(&before.assignee), "added": update.add,
        "removed": update.remove, "note": update.note, "by": by,
    });
    update.deliveries = hub.deliveries_of(Subject::Cases, severity, "case.updated", &told).await?;
    let updated = hub.db.update_case(hub.tenant, id, expected, &update, by, hub.clock.now()).await;
    let case = updated.map_err(|error| changed(error.into()))?;
    Ok(Versioned { revision: case.revision, value: CaseView::from(case) }.into_response())
}

/// The findings of a case, the newest first.
#[utoipa::path(get, path = "/api/v1/cases/{case_id}/findings", tag = "cases", params(("case_id" = Uuid, Path), PageQuery),
    responses((status = 200, body = Paged<FindingView>)))]
async fn findings(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    InQuery(page): InQuery<PageQuery>,
) -> Outcome<Json<Paged<FindingView>>> {
    known(&hub, &caller, id).await?;
    let found = hub.db.case_findings(hub.tenant, id, &page.request()?).await?;
    Ok(Json(Paged::of(found, |finding| Some(finding.into()))))
}

/// What happened to a case, the latest first.
#[utoipa::path(get, path = "/api/v1/cases/{case_id}/history", tag = "cases", params(("case_id" = Uuid, Path), PageQuery),
    responses((status = 200, body = Paged<HistoryView>)))]
async fn history(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    InQuery(page): InQuery<PageQuery>,
) -> Outcome<Json<Paged<HistoryView>>> {
    known(&hub, &caller, id).await?;
    let found = hub.db.case_history(hub.tenant, id, &page.request()?).await?;
    Ok(Json(Paged::of(found, |entry| Some(entry.into()))))
}

async fn known(hub: &Hub, caller: &Caller, id: Uuid) -> Outcome<Case> {
    caller.everywhere()?;
    hub.db.case(hub.tenant, id).await?.ok_or_else(|| absent("case"))
}

/// A text that may be empty.
fn words(field: &str, value: String) -> Outcome<String> {
    if value.trim().is_empty() { Ok(value) } else { text(field, &value, 10_000) }
}

fn few(ids: Vec<Uuid>) -> Outcome<Vec<Uuid>> {
    if ids.len() <= MAX_FINDINGS {
        return Ok(ids);
    }
    Err(Refusal::new(ProblemCode::Invalid, format!("at most {MAX_FINDINGS} findings at once")))
}

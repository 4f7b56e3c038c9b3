//! `/api/v1/rules`: what the judge looks for.

use super::{InPath, InQuery, absent};
use crate::api::body;
use crate::api::people::access::Caller;
use crate::api::people::guarded::Guarded;
use crate::api::people::page::{IfMatch, PageQuery, Paged, Versioned, changed, expected};
use crate::api::people::words::{RuleOriginWord, Word};
use crate::app::people::principal::Action;
use crate::app::rules::{RuleSet, new_rule};
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{EventFilter, PageRequest, Rule, RuleFilter, RuleOrigin, RuleVersion, StoredEvent};
use picket_hub_rules::{DryRunLimits, EventView, Problem as RuleProblem, Product, Received, RuleHealth, RuleState};
use picket_protocol::hub::{FieldError, ProblemCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;
use uuid::Uuid;

/// The longest body with a rule, in bytes: its source, escaped.
const RULE_BODY_MAX: usize = 512 << 10;
/// Events that are read in one go for a dry run: each may be 64 KiB long, and some of these are in memory at once.
const DRY_RUN_PAGE: u32 = 200;
/// The most events that a dry run looks at.
const DRY_RUN_EVENTS: u64 = 50_000;
/// The longest that a dry run takes, the reading of its events included.
const DRY_RUN_TIME: Duration = Duration::from_secs(10);

/// The routes.
pub(in crate::api::people) fn routes(routes: Guarded) -> Guarded {
    routes
        .route(Action::RulesRead, routes!(list))
        .route(Action::RulesWrite, routes!(create))
        .route(Action::RulesRead, routes!(validate))
        .route(Action::RulesRead, routes!(dry_run))
        .route(Action::RulesRead, routes!(show))
        .route(Action::RulesWrite, routes!(update))
        .route(Action::RulesWrite, routes!(remove))
        .route(Action::RulesRead, routes!(versions))
        .route(Action::RulesWrite, routes!(resume))
}

/// A rule.
#[derive(Serialize, ToSchema)]
#[schema(as = Rule)]
struct RuleView {
    /// Its id: the Sigma `id`.
    id: String,
    /// Its latest version.
    version: i64,
    /// What it is called.
    title: String,
    /// How bad a match is.
    level: String,
    /// Its log source.
    logsource: String,
    /// Where it comes from.
    origin: RuleOriginWord,
    /// Whether it is judged by.
    enabled: bool,
    /// Its source: Sigma YAML.
    source: String,
    /// Whether it is asked: `active`, `suspended`, `unreached`; absent while it is disabled or refused.
    state: Option<String>,
    /// Why it is not, in words.
    why: Option<String>,
    /// What should be looked at in it, although it is in force.
    warnings: Vec<String>,
    /// How often it matched since this process started.
    matches: Option<u64>,
    /// What one evaluation takes, in nanoseconds: the mean of those that were measured.
    mean_nanos: Option<u64>,
    /// Which state of it this is (the `ETag`).
    revision: i64,
    /// When it was changed last.
    updated_at: Timestamp,
    /// By whom.
    updated_by: String,
}

/// How the rules are doing, taken once for all that are shown: to take it holds up who judges.
struct Doing<'h> {
    rules: &'h RuleSet,
    health: HashMap<String, RuleHealth>,
    refused: BTreeMap<String, Vec<RuleProblem>>,
}

impl<'h> Doing<'h> {
    fn of(hub: &'h Hub) -> Self {
        let rules = &hub.rules;
        let health = rules.health().into_iter().map(|health| (health.rule.id.to_string(), health)).collect();
        Self { rules, health, refused: rules.refused() }
    }

    fn view(&self, rule: Rule) -> RuleView {
        let health = self.health.get(&rule.id);
        let (state, why) = match health.map(|health| &health.state) {
            Some(RuleState::Active) => (Some("active"), None),
            Some(RuleState::Unreached) => (Some("unreached"), None),
            Some(RuleState::Suspended { why }) => {
                (Some("suspended"), Some(self.rules.suspended_because(&rule.id).unwrap_or_else(|| why.to_string())))
            }
            None => (None, self.refused.get(&rule.id).map(|problems| lines(problems).join("; "))),
        };
        let warnings = lines(&self.rules.warnings(&rule.id));
        RuleView {
            id: rule.id,
            version: rule.version,
            title: rule.title,
            level: rule.level,
            logsource: rule.logsource,
            origin: Word(rule.origin),
            enabled: rule.enabled,
            source: rule.source,
            state: state.map(str::to_owned),
            why,
            warnings,
            matches: health.map(|health| health.matches),
            mean_nanos: health.map(|health| health.mean_nanos),
            revision: rule.revision,
            updated_at: rule.updated_at,
            updated_by: rule.updated_by,
        }
    }
}

fn lines(problems: &[RuleProblem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

/// Which rules.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RuleQuery {
    /// From there.
    #[param(inline)]
    origin: Option<RuleOriginWord>,
    /// Judged by, or not.
    enabled: Option<bool>,
}

/// Rules, by id.
#[utoipa::path(get, path = "/api/v1/rules", tag = "rules", params(PageQuery, RuleQuery),
    responses((status = 200, body = Paged<RuleView>)))]
async fn list(
    State(hub): State<Arc<Hub>>,
    InQuery(page): InQuery<PageQuery>,
    InQuery(query): InQuery<RuleQuery>,
) -> Outcome<Json<Paged<RuleView>>> {
    let filter = RuleFilter { origin: query.origin.map(|word| word.0), enabled: query.enabled, logsource: None };
    let found = hub.db.rules(hub.tenant, &filter, &page.request()?).await?;
    let doing = Doing::of(&hub);
    Ok(Json(Paged::of(found, |rule| Some(doing.view(rule)))))
}

/// A rule as it is written.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewRule)]
struct RuleBody {
    /// Its source: Sigma YAML.
    #[schema(min_length = 1, max_length = 131_072)]
    source: String,
    /// Whether it is judged by.
    #[serde(default)]
    enabled: Option<bool>,
}

/// Adds a rule. It is in force within seconds.
#[utoipa::path(post, path = "/api/v1/rules", tag = "rules", request_body = RuleBody,
    responses((status = 201, body = RuleView)))]
async fn create(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<Response> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: RuleBody = body::json(&parts.headers, body, RULE_BODY_MAX).await?;
    let source = asked.source;
    let new = hub.rules.compile(move || new_rule(&source, RuleOrigin::Api)).await?;
    let mut new = new.map_err(refused)?;
    new.enabled = asked.enabled;
    hub.audit(caller.key(), "rules.create", &new.id, json!({ "title": new.title })).await?;
    let put = hub.db.put_rule(hub.tenant, &new, Some(0), &caller.principal.name, hub.clock.now()).await;
    let rule = put.map_err(|error| {
        if error.is_conflict() {
            return Refusal::new(ProblemCode::Conflict, "there is a rule with this id already; change that one");
        }
        error.into()
    })?;
    hub.rules_changed().await?;
    Ok((StatusCode::CREATED, Versioned { revision: rule.revision, value: Doing::of(&hub).view(rule) }).into_response())
}

/// One rule.
#[utoipa::path(get, path = "/api/v1/rules/{rule_id}", tag = "rules", params(("rule_id" = Uuid, Path)),
    responses((status = 200, body = RuleView), (status = 304, description = "The client has this version")))]
async fn show(State(hub): State<Arc<Hub>>, InPath(id): InPath<Uuid>, headers: HeaderMap) -> Outcome<Response> {
    let rule = known(&hub, id).await?;
    Ok(Versioned { revision: rule.revision, value: Doing::of(&hub).view(rule) }.answer(&headers))
}

/// Changes a rule: a new version if its source is another one.
#[utoipa::path(put, path = "/api/v1/rules/{rule_id}", tag = "rules", request_body = RuleBody,
    params(("rule_id" = Uuid, Path), IfMatch),
    responses((status = 200, body = RuleView)))]
async fn update(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    request: Request,
) -> Outcome<Response> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: RuleBody = body::json(&parts.headers, body, RULE_BODY_MAX).await?;
    let expected = expected(&parts.headers)?;
    let before = known(&hub, id).await?;
    let (source, origin) = (asked.source, before.origin);
    let new = hub.rules.compile(move || new_rule(&source, origin)).await?;
    let mut new = new.map_err(refused)?;
    if new.id != before.id {
        return Err(Refusal::new(ProblemCode::Invalid, "the source has another id; add it as a rule of its own"));
    }
    if before.origin != RuleOrigin::Api && new.source != before.source {
        let detail =
            format!("this rule comes from the {}: disable it here, or change it there", before.origin.as_str());
        return Err(Refusal::new(ProblemCode::Conflict, detail));
    }
    new.enabled = asked.enabled;
    let details = json!({ "title": new.title, "enabled": new.enabled });
    hub.audit(caller.key(), "rules.update", &before.id, details).await?;
    let put = hub.db.put_rule(hub.tenant, &new, expected, &caller.principal.name, hub.clock.now()).await;
    let rule = put.map_err(|error| changed(error.into()))?;
    hub.rules_changed().await?;
    Ok(Versioned { revision: rule.revision, value: Doing::of(&hub).view(rule) }.into_response())
}

/// Deletes a rule. Its findings stay. One of the pack, or of a file that a machine has, is disabled instead.
#[utoipa::path(delete, path = "/api/v1/rules/{rule_id}", tag = "rules", params(("rule_id" = Uuid, Path)),
    responses((status = 204, description = "It is gone")))]
async fn remove(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
) -> Outcome<StatusCode> {
    caller.everywhere()?;
    let rule = known(&hub, id).await?;
    let comes_back = match rule.origin {
        RuleOrigin::Api => false,
        RuleOrigin::Pack => true,
        RuleOrigin::File => hub.is_in_a_file(&rule.id).await?,
    };
    if comes_back {
        let detail =
            format!("this rule comes from the {} and would come back: disable it instead", rule.origin.as_str());
        return Err(Refusal::new(ProblemCode::Conflict, detail));
    }
    hub.audit(caller.key(), "rules.delete", &rule.id, json!({ "title": rule.title })).await?;
    hub.db.delete_rule(hub.tenant, &rule.id).await?;
    hub.rule_removed(&rule.id).await?;
    hub.rules_changed().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A version of a rule.
#[derive(Serialize, ToSchema)]
#[schema(as = RuleVersion)]
struct VersionView {
    /// Which.
    version: i64,
    /// The source then.
    source: String,
    /// When it was written.
    created_at: Timestamp,
    /// By whom.
    created_by: String,
}

/// The versions of a rule, the latest first.
#[utoipa::path(get, path = "/api/v1/rules/{rule_id}/versions", tag = "rules", params(("rule_id" = Uuid, Path), PageQuery),
    responses((status = 200, body = Paged<VersionView>)))]
async fn versions(
    State(hub): State<Arc<Hub>>,
    InPath(id): InPath<Uuid>,
    InQuery(page): InQuery<PageQuery>,
) -> Outcome<Json<Paged<VersionView>>> {
    let rule = known(&hub, id).await?;
    let found = hub.db.rule_versions(hub.tenant, &rule.id, &page.request()?).await?;
    let view = |kept: RuleVersion| {
        let RuleVersion { version, source, created_at, created_by } = kept;
        Some(VersionView { version, source, created_at, created_by })
    };
    Ok(Json(Paged::of(found, view)))
}

/// Asks a suspended rule again.
#[utoipa::path(post, path = "/api/v1/rules/{rule_id}/resume", tag = "rules", params(("rule_id" = Uuid, Path)),
    responses((status = 200, body = RuleView)))]
async fn resume(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
) -> Outcome<Json<RuleView>> {
    caller.everywhere()?;
    let rule = known(&hub, id).await?;
    hub.audit(caller.key(), "rules.resume", &rule.id, json!({})).await?;
    hub.resume_rule(&rule).await?;
    Ok(Json(Doing::of(&hub).view(rule)))
}

/// A source to be looked at.
#[derive(Deserialize, ToSchema)]
struct SourceBody {
    /// Sigma YAML.
    source: String,
}

/// What there is to say of a source.
#[derive(Serialize, ToSchema)]
struct ValidationView {
    /// Whether it can be used.
    usable: bool,
    /// What is wrong with it, or should be looked at.
    problems: Vec<RuleProblemView>,
}

/// One thing that is wrong with a source.
#[derive(Serialize, ToSchema)]
#[schema(as = RuleProblem)]
struct RuleProblemView {
    /// `error` or `warning`.
    severity: String,
    /// A stable word for it.
    code: String,
    /// The line, from 1, where it is known.
    line: Option<u32>,
    /// The column, from 1, where it is known.
    column: Option<u32>,
    /// What is wrong.
    what: String,
    /// What to do.
    help: String,
}

impl From<RuleProblem> for RuleProblemView {
    fn from(problem: RuleProblem) -> Self {
        let severity = match problem.severity {
            picket_hub_rules::Severity::Error => "error",
            picket_hub_rules::Severity::Warning => "warning",
        };
        Self {
            severity: severity.to_owned(),
            code: problem.code,
            line: problem.place.map(|place| place.line),
            column: problem.place.map(|place| place.column),
            what: problem.what,
            help: problem.help,
        }
    }
}

/// Says everything that is wrong with a source.
#[utoipa::path(post, path = "/api/v1/rules/validate", tag = "rules", request_body = SourceBody,
    responses((status = 200, body = ValidationView)))]
async fn validate(State(hub): State<Arc<Hub>>, request: Request) -> Outcome<Json<ValidationView>> {
    let (parts, body) = request.into_parts();
    let asked: SourceBody = body::json(&parts.headers, body, RULE_BODY_MAX).await?;
    let validation = hub.rules.compile(move || picket_hub_rules::validate(&asked.source)).await?;
    let usable = validation.is_usable();
    Ok(Json(ValidationView { usable, problems: validation.problems.into_iter().map(Into::into).collect() }))
}

/// A source, and the events to try it on.
#[derive(Deserialize, ToSchema)]
struct DryRunBody {
    /// Sigma YAML.
    #[schema(min_length = 1, max_length = 131_072)]
    source: String,
    /// Events of the last so many hours.
    #[serde(default = "a_day")]
    #[schema(minimum = 1, maximum = 8760, default = 24)]
    hours: u32,
}

fn a_day() -> u32 {
    24
}

/// Tries a source on stored events, away from the rules in force: at most 50,000 events and ten seconds.
#[utoipa::path(post, path = "/api/v1/rules/dry-run", tag = "rules", request_body = DryRunBody,
    responses((status = 200, description = "What it would have done", body = Object)))]
async fn dry_run(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<Json<Value>> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: DryRunBody = body::json(&parts.headers, body, RULE_BODY_MAX).await?;
    if !(1..=8760).contains(&asked.hours) {
        return Err(Refusal::new(ProblemCode::Invalid, "hours is between 1 and 8760"));
    }
    let turn = hub.rules.turn_to_try()?;
    let deadline = Instant::now() + DRY_RUN_TIME;
    let since = hub.clock.now().checked_sub(SignedDuration::from_hours(i64::from(asked.hours))).ok();
    let filter = EventFilter { since, oldest_first: true, ..EventFilter::default() };
    let engine = Arc::clone(hub.rules.engine());
    let limits = DryRunLimits { events: DRY_RUN_EVENTS, matches: 100, time: DRY_RUN_TIME };
    // One page waits while another one is looked at and a third is read.
    let (pages, mut coming) = mpsc::channel::<Vec<StoredEvent>>(1);
    let running = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let mut views = std::iter::from_fn(|| coming.blocking_recv()).flatten().filter_map(|event| as_view(&event));
        engine.dry_run(&asked.source, &mut views, limits)
    });
    let all = show_events(&hub, &filter, pages, deadline).await;
    let ran = running.await;
    let ran = ran.map_err(|_| Refusal::new(ProblemCode::Internal, "the dry run failed; the hub's log says why"))?;
    let mut ran = ran.map_err(|validation| refused(validation.problems))?;
    ran.cut_short |= !all?;
    Ok(Json(serde_json::to_value(ran).unwrap_or_default()))
}

fn as_view(event: &StoredEvent) -> Option<EventView> {
    let received = Received { id: event.id, agent: event.agent, at: event.received_at, product: Product::Linux };
    EventView::parse(received, crate::app::judge::text(event).as_bytes()).ok()
}

/// Reads events page by page for somebody who looks at them, until there are no more, nobody wants more, or the time is
/// over. Says whether it was not the time.
async fn show_events(
    hub: &Hub,
    filter: &EventFilter,
    pages: mpsc::Sender<Vec<StoredEvent>>,
    deadline: Instant,
) -> Outcome<bool> {
    let mut request = PageRequest::first(DRY_RUN_PAGE);
    loop {
        let Ok(page) = tokio::time::timeout_at(deadline, hub.db.events(hub.tenant, filter, &request)).await else {
            return Ok(false);
        };
        let page = page?;
        match tokio::time::timeout_at(deadline, pages.send(page.items)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(true),
            Err(_) => return Ok(false),
        }
        match page.next {
            Some(next) => request = PageRequest::after(next, DRY_RUN_PAGE),
            None => return Ok(true),
        }
    }
}

async fn known(hub: &Hub, id: Uuid) -> Outcome<Rule> {
    hub.db.rule(hub.tenant, &id.to_string()).await?.ok_or_else(|| absent("rule"))
}

/// A source that cannot be used, with everything that is wrong with it.
fn refused(problems: Vec<RuleProblem>) -> Refusal {
    let mut refusal = Refusal::new(ProblemCode::Invalid, "the rule cannot be used");
    refusal.0.errors = problems
        .into_iter()
        .map(|problem| {
            let path =
                problem.place.map_or_else(|| "/source".to_owned(), |at| format!("/source:{}:{}", at.line, at.column));
            FieldError { path, message: format!("{}; {}", problem.what, problem.help) }
        })
        .collect();
    refusal
}

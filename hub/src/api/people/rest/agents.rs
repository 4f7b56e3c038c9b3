//! `/api/v1/agents`: who is enrolled, and how each is.

use super::{BODY_MAX, InPath, InQuery, absent, text, within};
use crate::api::body;
use crate::api::people::access::Caller;
use crate::api::people::guarded::Guarded;
use crate::api::people::page::{IfMatch, PageQuery, Paged, Versioned, changed, expected, stale};
use crate::api::people::words::{AgentStatusWord, Word};
use crate::app::own_events::HUB_AGENT;
use crate::app::people::principal::{Action, Scope};
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use picket_hub_db::{Agent, AgentFilter, AgentStatus, AgentUpdate, Certificate, NewAgent};
use picket_pki::{AgentIdentity, CsrKey};
use picket_protocol::hub::{CertificateAnswer, ProblemCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use utoipa::openapi::schema::{Array, ArrayBuilder, ObjectBuilder, SchemaType, Type};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;
use uuid::Uuid;

/// The most tags of an agent.
const MAX_TAGS: usize = 64;
/// The largest settings of an agent's own, in bytes of JSON.
const MAX_CONFIG: usize = 64 << 10;

/// The routes.
pub(in crate::api::people) fn routes(routes: Guarded) -> Guarded {
    routes
        .route(Action::AgentsRead, routes!(list))
        .route(Action::AgentsWrite, routes!(create))
        .route(Action::AgentsRead, routes!(show))
        .route(Action::AgentsWrite, routes!(update))
        .route(Action::AgentsDelete, routes!(remove))
        .route(Action::AgentsRead, routes!(certificates))
        .route(Action::AgentsWrite, routes!(renew_certificate))
}

/// An agent.
#[derive(Serialize, ToSchema)]
#[schema(as = Agent)]
pub(crate) struct AgentView {
    /// Its id.
    id: Uuid,
    /// What people call it.
    name: String,
    /// What kind of machine or duty.
    #[serde(rename = "type")]
    kind: String,
    /// Where it stands.
    status: AgentStatusWord,
    /// What it is grouped by.
    tags: BTreeSet<String>,
    /// The operator's settings for it.
    #[schema(value_type = Object)]
    config: Value,
    /// When it enrolled.
    created_at: Timestamp,
    /// When an operator changed it last.
    updated_at: Timestamp,
    /// Which state of it this is (the `ETag`).
    revision: i64,
    /// When it was heard last.
    last_seen: Option<Timestamp>,
    /// Its version.
    version: Option<String>,
    /// Its health, as it told it.
    #[schema(value_type = Option<Object>)]
    health: Option<Value>,
    /// Where its updater stands.
    #[schema(value_type = Option<Object>)]
    update: Option<Value>,
    /// The SHA-256 of the configuration in force.
    config_sha256: Option<String>,
    /// From where it connects.
    address: Option<String>,
    /// When its certificate ends.
    certificate_expires_at: Option<Timestamp>,
}

impl From<Agent> for AgentView {
    fn from(agent: Agent) -> Self {
        Self {
            id: agent.id,
            name: agent.name,
            kind: agent.kind,
            status: Word(agent.status),
            tags: agent.tags,
            config: agent.config,
            created_at: agent.created_at,
            updated_at: agent.updated_at,
            revision: agent.revision,
            last_seen: agent.report.last_seen,
            version: agent.report.version,
            health: agent.report.health,
            update: agent.report.update,
            config_sha256: agent.report.config_hash,
            address: agent.report.address,
            certificate_expires_at: agent.report.certificate_expires_at,
        }
    }
}

/// Which agents.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct AgentQuery {
    /// Where they stand.
    #[param(inline)]
    status: Option<AgentStatusWord>,
    /// A tag that they have.
    tag: Option<String>,
    /// Their type.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// What their names begin with.
    name: Option<String>,
    /// Their version.
    version: Option<String>,
}

/// Agents, by name.
#[utoipa::path(get, path = "/api/v1/agents", tag = "agents", params(PageQuery, AgentQuery),
    responses((status = 200, body = Paged<AgentView>)))]
async fn list(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
    InQuery(query): InQuery<AgentQuery>,
) -> Outcome<Json<Paged<AgentView>>> {
    let filter = AgentFilter {
        status: query.status.map(|word| word.0),
        tag: query.tag,
        kind: query.kind,
        name_prefix: query.name,
        version: query.version,
        within: within(&caller),
    };
    let found = hub.db.agents(hub.tenant, &filter, &page.request()?).await?;
    Ok(Json(Paged::of(found, |agent| Some(agent.into()))))
}

/// A new agent.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewAgent)]
struct NewAgentBody {
    /// What people call it.
    #[schema(min_length = 1, max_length = 255)]
    name: String,
    /// What kind of machine or duty.
    #[serde(rename = "type", default = "server")]
    #[schema(min_length = 1, max_length = 50, default = "server")]
    kind: String,
    /// What it is grouped by.
    #[serde(default)]
    #[schema(schema_with = described_tags)]
    tags: Vec<String>,
    /// The operator's settings for it.
    #[serde(default = "nothing")]
    #[schema(value_type = Object)]
    config: Value,
    /// A certificate request (RFC 2986) in DER and base64: with it the agent gets its certificate at once, without a token.
    #[serde(default)]
    csr: Option<String>,
}

fn server() -> String {
    "server".to_owned()
}

fn nothing() -> Value {
    json!({})
}

/// An agent that was registered.
#[derive(Serialize, ToSchema)]
struct RegisteredAgent {
    /// The agent.
    agent: AgentView,
    /// Its certificate, if it asked for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    certificate: Option<CertificateAnswer>,
}

/// Registers an agent. With a certificate request it can connect at once; without one it is on the books only. Machines
/// enrol by themselves with a token.
#[utoipa::path(post, path = "/api/v1/agents", tag = "agents", request_body = NewAgentBody,
    responses((status = 201, body = RegisteredAgent)))]
async fn create(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<Response> {
    let (parts, body) = request.into_parts();
    let asked: NewAgentBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let tags = tags(asked.tags)?;
    if !caller.scope.holds(&tags) {
        return Err(Refusal::new(ProblemCode::Forbidden, "you may register agents with your own tags only"));
    }
    own_tags(&caller, &tags)?;
    let agent = NewAgent {
        id: Uuid::now_v7(),
        name: text("name", &asked.name, 255)?,
        kind: text("type", &asked.kind, 50)?,
        tags,
        config: config(asked.config)?,
    };
    let key = asked.csr.map(|csr| {
        let der = crate::decode(&csr).ok_or_else(|| Refusal::new(ProblemCode::CsrInvalid, "csr is not base64"))?;
        CsrKey::from_request(&der).map_err(|error| Refusal::new(ProblemCode::CsrInvalid, error.to_string()))
    });
    let key = key.transpose()?;
    let details = json!({ "name": agent.name, "type": agent.kind, "tags": agent.tags, "certificate": key.is_some() });
    hub.audit(caller.key(), "agents.create", &agent.id.to_string(), details).await?;
    let now = hub.clock.now();
    let made = hub.db.create_agent(hub.tenant, &agent, now).await?;
    hub.tell_agent_changed(agent.id);
    let certificate = match &key {
        Some(key) => {
            let identity = AgentIdentity { tenant: hub.tenant.0, agent: agent.id };
            let leaf = hub.keys().intermediate.agent(identity, key, now)?;
            hub.db.insert_certificate(hub.tenant, &hub.row(&leaf, agent.id, now)).await?;
            Some(hub.certificate_answer(leaf, now))
        }
        None => None,
    };
    let answer = RegisteredAgent { agent: made.into(), certificate };
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// One agent.
#[utoipa::path(get, path = "/api/v1/agents/{agent_id}", tag = "agents", params(("agent_id" = Uuid, Path)),
    responses((status = 200, body = AgentView), (status = 304, description = "The client has this version")))]
async fn show(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    headers: HeaderMap,
) -> Outcome<Response> {
    let agent = seen(&hub, &caller, id).await?;
    Ok(Versioned { revision: agent.revision, value: AgentView::from(agent) }.answer(&headers))
}

/// What an operator says of an agent.
#[derive(Deserialize, ToSchema)]
struct AgentBody {
    /// What people call it.
    #[schema(min_length = 1, max_length = 255)]
    name: String,
    /// What kind of machine or duty.
    #[serde(rename = "type")]
    #[schema(min_length = 1, max_length = 50)]
    kind: String,
    /// What it is grouped by.
    #[schema(schema_with = described_tags)]
    tags: Vec<String>,
    /// The operator's settings for it.
    #[schema(value_type = Object)]
    config: Value,
}

/// Changes an agent.
#[utoipa::path(put, path = "/api/v1/agents/{agent_id}", tag = "agents", request_body = AgentBody,
    params(("agent_id" = Uuid, Path), IfMatch),
    responses((status = 200, body = AgentView)))]
async fn update(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    request: Request,
) -> Outcome<Response> {
    let (parts, body) = request.into_parts();
    let asked: AgentBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let expected = expected(&parts.headers)?;
    let before = seen(&hub, &caller, id).await?;
    let new_tags = tags(asked.tags)?;
    if !caller.scope.holds(&new_tags) {
        return Err(Refusal::new(ProblemCode::Forbidden, "you may not take the agent out of your own reach"));
    }
    own_tags(&caller, before.tags.symmetric_difference(&new_tags))?;
    let update = AgentUpdate {
        name: Some(text("name", &asked.name, 255)?),
        kind: Some(text("type", &asked.kind, 50)?),
        tags: Some(new_tags),
        config: Some(config(asked.config)?),
    };
    let details = json!({ "name": update.name, "type": update.kind, "tags": update.tags });
    hub.audit(caller.key(), "agents.update", &id.to_string(), details).await?;
    // What is changed is what its tags were compared with.
    if expected.is_some_and(|expected| expected != before.revision) {
        return Err(stale());
    }
    let updated = hub.db.update_agent(hub.tenant, id, before.revision, &update, hub.clock.now()).await;
    let agent = updated.map_err(|error| changed(error.into()))?;
    hub.tell_agent_changed(id);
    Ok(Versioned { revision: agent.revision, value: AgentView::from(agent) }.into_response())
}

/// What becomes of an agent.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RemoveQuery {
    /// Forget it, too, if it is retired already.
    #[serde(default)]
    purge: bool,
}

/// Retires an agent: its certificates are revoked, and it is told so; what it reported stays.
#[utoipa::path(delete, path = "/api/v1/agents/{agent_id}", tag = "agents", params(("agent_id" = Uuid, Path), RemoveQuery),
    responses((status = 204, description = "It is retired, or forgotten")))]
async fn remove(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    InQuery(query): InQuery<RemoveQuery>,
) -> Outcome<StatusCode> {
    seen(&hub, &caller, id).await?;
    if id == HUB_AGENT {
        return Err(Refusal::new(ProblemCode::Conflict, "the hub itself is no agent that could be retired"));
    }
    let action = if query.purge { "agents.purge" } else { "agents.retire" };
    hub.audit(caller.key(), action, &id.to_string(), json!({})).await?;
    if query.purge {
        hub.db.delete_agent(hub.tenant, id).await?;
    } else {
        hub.retire(id, caller.key()).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A certificate of an agent's.
#[derive(Serialize, ToSchema)]
#[schema(as = Certificate)]
struct CertificateView {
    /// Its serial number in hexadecimal digits.
    serial: String,
    /// From when it holds.
    not_before: Timestamp,
    /// Until when it holds.
    not_after: Timestamp,
    /// When it was issued.
    issued_at: Timestamp,
    /// When a newer one took its place.
    superseded_at: Option<Timestamp>,
    /// When it was revoked.
    revoked_at: Option<Timestamp>,
    /// Why it was revoked.
    revocation_reason: Option<String>,
}

impl From<Certificate> for CertificateView {
    fn from(certificate: Certificate) -> Self {
        let issued = certificate.issued;
        Self {
            serial: issued.serial,
            not_before: issued.not_before,
            not_after: issued.not_after,
            issued_at: issued.issued_at,
            superseded_at: certificate.superseded_at,
            revoked_at: certificate.revoked.as_ref().map(|revoked| revoked.at),
            revocation_reason: certificate.revoked.map(|revoked| revoked.reason),
        }
    }
}

/// An agent's certificates, the newest first.
#[utoipa::path(get, path = "/api/v1/agents/{agent_id}/certificates", tag = "agents",
    params(("agent_id" = Uuid, Path), PageQuery), responses((status = 200, body = Paged<CertificateView>)))]
async fn certificates(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    InQuery(page): InQuery<PageQuery>,
) -> Outcome<Json<Paged<CertificateView>>> {
    seen(&hub, &caller, id).await?;
    let found = hub.db.certificates_of(hub.tenant, id, &page.request()?).await?;
    Ok(Json(Paged::of(found, |certificate| Some(certificate.into()))))
}

/// Asks an agent to renew its certificate now.
#[utoipa::path(post, path = "/api/v1/agents/{agent_id}/renew-certificate", tag = "agents", params(("agent_id" = Uuid, Path)),
    responses((status = 202, description = "It is asked; the certificates show when it has")))]
async fn renew_certificate(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
) -> Outcome<StatusCode> {
    let agent = seen(&hub, &caller, id).await?;
    hub.audit(caller.key(), "agents.renew_certificate", &id.to_string(), json!({})).await?;
    let is_elsewhere = hub.replicas.is_shared() && agent.status == AgentStatus::Online;
    if hub.ask_for_renewal(id).await? || is_elsewhere {
        Ok(StatusCode::ACCEPTED)
    } else {
        Err(Refusal::new(ProblemCode::Conflict, "the agent is not connected; it renews by itself in time"))
    }
}

/// The agent, if the caller may see it.
pub(super) async fn seen(hub: &Hub, caller: &Caller, id: Uuid) -> Outcome<Agent> {
    let agent = hub.db.agent(hub.tenant, id).await?;
    agent.filter(|agent| caller.scope.holds(&agent.tags)).ok_or_else(|| absent("agent"))
}

/// Refuses to give or take tags that are not the caller's own: with a tag goes what others configured for it, and who sees
/// the agent.
pub(super) fn own_tags<'a>(caller: &Caller, changed: impl IntoIterator<Item = &'a String>) -> Outcome<()> {
    let Scope::Tags(own) = &caller.scope else { return Ok(()) };
    match changed.into_iter().find(|tag| !own.contains(*tag)) {
        None => Ok(()),
        Some(tag) => {
            let detail = format!("the tag {tag} is not yours to give or take; your permission is for other tags");
            Err(Refusal::new(ProblemCode::Forbidden, detail))
        }
    }
}

/// Tags as they are taken: few and short words.
pub(super) fn tags(tags: Vec<String>) -> Outcome<BTreeSet<String>> {
    if tags.len() > MAX_TAGS {
        return Err(Refusal::new(ProblemCode::Invalid, format!("at most {MAX_TAGS} tags are taken")));
    }
    tags.into_iter().map(tag).collect()
}

/// A tag as it is taken: a short word.
pub(super) fn tag(tag: String) -> Outcome<String> {
    let is_word =
        (1..=64).contains(&tag.len()) && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/=".contains(&b));
    let detail = "a tag has 1 to 64 ASCII letters, digits and -_.:/=";
    if is_word { Ok(tag) } else { Err(Refusal::new(ProblemCode::Invalid, detail)) }
}

/// How the API describes [`tags`].
pub(super) fn described_tags() -> Array {
    let word =
        ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).pattern(Some("^[A-Za-z0-9_.:/=-]{1,64}$"));
    ArrayBuilder::new().items(word).max_items(Some(MAX_TAGS)).build()
}

fn config(config: Value) -> Outcome<Value> {
    if config.is_object() && config.to_string().len() <= MAX_CONFIG {
        return Ok(config);
    }
    Err(Refusal::new(ProblemCode::Invalid, format!("config is a JSON object of at most {MAX_CONFIG} bytes")))
}

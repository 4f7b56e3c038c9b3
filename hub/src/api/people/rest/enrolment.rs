//! `/api/v1/enrolment`: tokens that let machines in, and who waits for approval.

use super::{BODY_MAX, InPath, InQuery, absent, within};
use crate::api::body;
use crate::api::people::access::Caller;
use crate::api::people::guarded::Guarded;
use crate::api::people::page::{PageQuery, Paged};
use crate::api::people::words::{EnrolmentStateWord, Word};
use crate::app::people::principal::Action;
use crate::app::tokens::TokenWish;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{EnrolToken, Enrolled};
use picket_protocol::hub::ProblemCode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;
use uuid::Uuid;

/// The routes.
pub(in crate::api::people) fn routes(routes: Guarded) -> Guarded {
    routes
        .route(Action::EnrolmentRead, routes!(list_tokens))
        .route(Action::EnrolmentWrite, routes!(create_token))
        .route(Action::EnrolmentWrite, routes!(revoke_token))
        .route(Action::EnrolmentRead, routes!(list_requests))
        .route(Action::EnrolmentWrite, routes!(approve))
        .route(Action::EnrolmentWrite, routes!(deny))
}

/// A token, without its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = EnrolmentToken)]
struct TokenView {
    /// Its id.
    id: Uuid,
    /// What it is for.
    label: String,
    /// The tags of who enrols with it.
    tags: BTreeSet<String>,
    /// How often it may be used.
    max_uses: u32,
    /// How often it was used.
    uses: u32,
    /// Who uses it waits for approval.
    needs_approval: bool,
    /// From where it may be used; empty means from everywhere.
    networks: Vec<String>,
    /// When it was made.
    created_at: Timestamp,
    /// By whom.
    created_by: String,
    /// Until when it may be used.
    expires_at: Timestamp,
    /// For how many seconds it may still be used; 0 when it may not.
    seconds_left: u64,
    /// When it was revoked.
    revoked_at: Option<Timestamp>,
}

fn view(token: EnrolToken, now: Timestamp) -> TokenView {
    let is_usable = token.revoked_at.is_none() && token.uses < token.max_uses;
    let left = u64::try_from(token.expires_at.duration_since(now).as_secs()).unwrap_or(0);
    TokenView {
        id: token.id,
        label: token.label,
        tags: token.tags,
        max_uses: token.max_uses,
        uses: token.uses,
        needs_approval: token.needs_approval,
        networks: token.allowed.iter().map(ToString::to_string).collect(),
        created_at: token.created_at,
        created_by: token.created_by,
        expires_at: token.expires_at,
        seconds_left: if is_usable { left } else { 0 },
        revoked_at: token.revoked_at,
    }
}

/// Tokens, the newest first.
#[utoipa::path(get, path = "/api/v1/enrolment/tokens", tag = "enrolment", params(PageQuery),
    responses((status = 200, body = Paged<TokenView>)))]
async fn list_tokens(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
) -> Outcome<Json<Paged<TokenView>>> {
    let now = hub.clock.now();
    let found = hub.db.enrol_tokens(hub.tenant, within(&caller).as_ref(), &page.request()?).await?;
    Ok(Json(Paged::of(found, |token| Some(view(token, now)))))
}

/// What a token is to be like.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewEnrolmentToken)]
struct TokenBody {
    /// For how many seconds it may be used.
    #[serde(default = "half_an_hour")]
    #[schema(minimum = 1, maximum = 86_400, default = 1800)]
    ttl_seconds: u32,
    /// How often it may be used.
    #[serde(default = "once")]
    #[schema(minimum = 1, maximum = 10_000, default = 1)]
    max_uses: u32,
    /// The tags of who enrols with it.
    #[serde(default)]
    #[schema(schema_with = super::agents::described_tags)]
    tags: Vec<String>,
    /// What it is for.
    #[serde(default)]
    #[schema(max_length = 255)]
    label: String,
    /// Who uses it waits for approval.
    #[serde(default)]
    approval: bool,
    /// From which networks it may be used.
    #[serde(default)]
    networks: Vec<String>,
}

fn half_an_hour() -> u32 {
    1800
}

fn once() -> u32 {
    1
}

/// A token that was made, with its secret: shown this once.
#[derive(Serialize, ToSchema)]
struct MadeToken {
    /// The whole token, to be handed to the machine.
    token: String,
    /// What it is like.
    details: TokenView,
}

/// Makes a token.
#[utoipa::path(post, path = "/api/v1/enrolment/tokens", tag = "enrolment", request_body = TokenBody,
    responses((status = 201, body = MadeToken)))]
async fn create_token(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<Response> {
    let (parts, body) = request.into_parts();
    let asked: TokenBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let tags = super::agents::tags(asked.tags)?;
    if !caller.scope.holds(&tags) {
        return Err(Refusal::new(ProblemCode::Forbidden, "you may make tokens with your own tags only"));
    }
    super::agents::own_tags(&caller, &tags)?;
    if asked.label.chars().count() > 255 || asked.label.chars().any(char::is_control) {
        return Err(Refusal::new(ProblemCode::Invalid, "label has at most 255 characters, and no control characters"));
    }
    let networks = asked.networks.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>()?;
    let wish = TokenWish {
        ttl: SignedDuration::from_secs(i64::from(asked.ttl_seconds)),
        max_uses: asked.max_uses,
        tags,
        label: asked.label,
        approval: asked.approval,
        networks,
    };
    let (kept, token) = hub.create_token(wish, caller.key()).await?;
    let made = MadeToken { token: token.to_string(), details: view(kept, hub.clock.now()) };
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Revokes a token. Who has enrolled with it stays.
#[utoipa::path(delete, path = "/api/v1/enrolment/tokens/{token_id}", tag = "enrolment", params(("token_id" = Uuid, Path)),
    responses((status = 204, description = "It is revoked")))]
async fn revoke_token(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
) -> Outcome<StatusCode> {
    let token = hub.db.enrol_token(hub.tenant, id).await?;
    token.filter(|token| caller.scope.holds(&token.tags)).ok_or_else(|| absent("token"))?;
    hub.revoke_token(id, caller.key()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A machine that used a token.
#[derive(Serialize, ToSchema)]
#[schema(as = EnrolmentRequest)]
struct RequestView {
    /// Its id.
    id: Uuid,
    /// With which token.
    token_id: Uuid,
    /// Where it stands.
    state: EnrolmentStateWord,
    /// The agent that it became.
    agent_id: Option<Uuid>,
    /// What the machine calls itself.
    name: String,
    /// What kind of machine or duty.
    #[serde(rename = "type")]
    kind: String,
    /// From where it asked.
    address: String,
    /// Its key's fingerprint: the machine shows the same.
    fingerprint: String,
    /// When it asked first.
    asked_at: Timestamp,
    /// When it was decided.
    decided_at: Option<Timestamp>,
    /// By whom.
    decided_by: Option<String>,
}

impl From<Enrolled> for RequestView {
    fn from(request: Enrolled) -> Self {
        Self {
            id: request.id,
            token_id: request.token,
            state: Word(request.state),
            agent_id: request.agent,
            name: request.name,
            kind: request.kind,
            address: request.address,
            fingerprint: picket_pki::SpkiPin::from_bytes(request.key_hash).to_string(),
            asked_at: request.asked_at,
            decided_at: request.decided_at,
            decided_by: request.decided_by,
        }
    }
}

/// Which requests.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RequestQuery {
    /// In this state.
    #[param(inline)]
    state: Option<EnrolmentStateWord>,
}

/// Machines that used a token, the newest first.
#[utoipa::path(get, path = "/api/v1/enrolment/requests", tag = "enrolment", params(PageQuery, RequestQuery),
    responses((status = 200, body = Paged<RequestView>)))]
async fn list_requests(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
    InQuery(query): InQuery<RequestQuery>,
) -> Outcome<Json<Paged<RequestView>>> {
    caller.everywhere()?;
    let found = hub.db.enrolments(hub.tenant, query.state.map(|word| word.0), &page.request()?).await?;
    Ok(Json(Paged::of(found, |request| Some(request.into()))))
}

/// Lets a machine in that waits. Compare the fingerprint with the one that the machine shows.
#[utoipa::path(post, path = "/api/v1/enrolment/requests/{request_id}/approve", tag = "enrolment",
    params(("request_id" = Uuid, Path)), responses((status = 204, description = "It is let in when it asks again")))]
async fn approve(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
) -> Outcome<StatusCode> {
    caller.everywhere()?;
    hub.approve(id, caller.key()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Refuses a machine that waits.
#[utoipa::path(post, path = "/api/v1/enrolment/requests/{request_id}/deny", tag = "enrolment",
    params(("request_id" = Uuid, Path)), responses((status = 204, description = "It is refused")))]
async fn deny(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
) -> Outcome<StatusCode> {
    caller.everywhere()?;
    hub.deny(id, caller.key()).await?;
    Ok(StatusCode::NO_CONTENT)
}

//! `/api/v1/webhooks` and `/api/v1/deliveries`: others that are told of findings and cases.

use super::{BODY_MAX, InPath, InQuery, absent, text};
use crate::api::body;
use crate::api::people::access::Caller;
use crate::api::people::guarded::Guarded;
use crate::api::people::page::{IfMatch, PageQuery, Paged, Versioned, changed, expected};
use crate::api::people::words::{DeliveryStateWord, SeverityWord, Word};
use crate::app::deliveries::{Subject, Webhook, Wish};
use crate::app::people::principal::Action;
use crate::refusal::Outcome;
use crate::state::Hub;
use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use picket_hub_db::{Delivery, Revision, Severity};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;
use uuid::Uuid;
use zeroize::Zeroizing;

/// The longest address, in characters.
const MAX_URL: usize = 2048;

/// The routes. They concern the whole fleet: a permission for a tag is none.
pub(in crate::api::people) fn routes(routes: Guarded) -> Guarded {
    routes
        .route(Action::WebhooksRead, routes!(list))
        .route(Action::WebhooksWrite, routes!(create))
        .route(Action::WebhooksRead, routes!(show))
        .route(Action::WebhooksWrite, routes!(update))
        .route(Action::WebhooksWrite, routes!(remove))
        .route(Action::WebhooksRead, routes!(deliveries))
        .route(Action::WebhooksWrite, routes!(redeliver))
}

/// A web hook, without its address and its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = Webhook)]
struct WebhookView {
    /// Its id.
    id: Uuid,
    /// What people call it.
    name: String,
    /// Whom it tells: scheme and host. Who knows the rest may post there, so it is not shown.
    host: String,
    /// What it tells of.
    subjects: BTreeSet<Subject>,
    /// How bad it has to be.
    min_severity: SeverityWord,
    /// Whether it tells.
    enabled: bool,
    /// When it was made.
    created_at: Timestamp,
    /// By whom.
    created_by: String,
    /// Which state of it this is (the `ETag`).
    revision: i64,
}

fn view((webhook, revision): (Webhook, Revision)) -> WebhookView {
    WebhookView {
        id: webhook.id,
        name: webhook.name,
        host: webhook.host,
        subjects: webhook.subjects,
        min_severity: Word(webhook.min_severity),
        enabled: webhook.enabled,
        created_at: webhook.created_at,
        created_by: webhook.created_by,
        revision,
    }
}

/// All web hooks, the oldest first: at most 100.
#[utoipa::path(get, path = "/api/v1/webhooks", tag = "webhooks", responses((status = 200, body = Paged<WebhookView>)))]
async fn list(State(hub): State<Arc<Hub>>, Extension(caller): Extension<Caller>) -> Outcome<Json<Paged<WebhookView>>> {
    caller.everywhere()?;
    Ok(Json(Paged { items: hub.webhooks().await?.into_iter().map(view).collect(), next_cursor: None }))
}

/// What a web hook is to be like.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewWebhook)]
struct WebhookBody {
    /// What people call it.
    #[schema(min_length = 1, max_length = 255)]
    name: String,
    /// Where it posts: https, or http to the hub's own machine. It may be an address of an inner network: who may make web
    /// hooks decides what the hub talks to. Left out of a change, it stays.
    #[schema(min_length = 1, max_length = 2048)]
    url: Option<String>,
    /// What it tells of.
    subjects: Vec<Subject>,
    /// How bad it has to be; `informational`, everything, unless it is said.
    #[serde(default = "everything")]
    min_severity: SeverityWord,
    /// Whether it tells; it does unless it is said.
    #[serde(default = "yes")]
    enabled: bool,
}

fn everything() -> SeverityWord {
    Word(Severity::Informational)
}

fn yes() -> bool {
    true
}

impl WebhookBody {
    fn wish(self) -> Outcome<Wish> {
        let url = self.url.map(Zeroizing::new);
        Ok(Wish {
            name: text("name", &self.name, 255)?,
            url: url.map(|url| text("url", &url, MAX_URL).map(Zeroizing::new)).transpose()?,
            subjects: self.subjects.into_iter().collect(),
            min_severity: self.min_severity.0,
            enabled: self.enabled,
        })
    }
}

/// A web hook that was made, with the secret that its posts are signed with: shown this once.
#[derive(Serialize, ToSchema)]
struct MadeWebhook {
    /// The secret (Standard Webhooks: `whsec_` and base64).
    secret: String,
    /// What it is like.
    details: WebhookView,
}

/// Makes a web hook. Its posts are signed as Standard Webhooks describes: HMAC-SHA256 over `id.timestamp.body`.
#[utoipa::path(post, path = "/api/v1/webhooks", tag = "webhooks", request_body = WebhookBody,
    responses((status = 201, body = MadeWebhook)))]
async fn create(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<Response> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: WebhookBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let (webhook, revision, secret) = hub.create_webhook(asked.wish()?, caller.key()).await?;
    let made = MadeWebhook { secret: secret.to_string(), details: view((webhook, revision)) };
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// One web hook.
#[utoipa::path(get, path = "/api/v1/webhooks/{webhook_id}", tag = "webhooks", params(("webhook_id" = Uuid, Path)),
    responses((status = 200, body = WebhookView), (status = 304, description = "The client has this version")))]
async fn show(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    headers: HeaderMap,
) -> Outcome<Response> {
    let found = known(&hub, &caller, id).await?;
    Ok(Versioned { revision: found.1, value: view(found) }.answer(&headers))
}

/// Changes a web hook; its secret stays.
#[utoipa::path(put, path = "/api/v1/webhooks/{webhook_id}", tag = "webhooks", request_body = WebhookBody,
    params(("webhook_id" = Uuid, Path), IfMatch), responses((status = 200, body = WebhookView)))]
async fn update(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    request: Request,
) -> Outcome<Response> {
    let (parts, body) = request.into_parts();
    let asked: WebhookBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let expected = expected(&parts.headers)?;
    let (webhook, revision) = known(&hub, &caller, id).await?;
    let changing = hub.change_webhook(webhook, asked.wish()?, expected.unwrap_or(revision), caller.key()).await;
    let found = changing.map_err(changed)?;
    Ok(Versioned { revision: found.1, value: view(found) }.into_response())
}

/// Removes a web hook; what it still had to tell is given up.
#[utoipa::path(delete, path = "/api/v1/webhooks/{webhook_id}", tag = "webhooks", params(("webhook_id" = Uuid, Path)),
    responses((status = 204, description = "It is gone")))]
async fn remove(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
) -> Outcome<StatusCode> {
    let (webhook, _) = known(&hub, &caller, id).await?;
    hub.delete_webhook(&webhook, caller.key()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Something that is or was to be told.
#[derive(Serialize, ToSchema)]
#[schema(as = Delivery)]
struct DeliveryView {
    /// Its id: the header `webhook-id` of its posts.
    id: Uuid,
    /// Which web hook.
    webhook_id: String,
    /// Where it stands: `failed` was given up, and is sent again if somebody asks for it.
    state: DeliveryStateWord,
    /// How often it was tried.
    attempts: u32,
    /// When it is tried next, or when it came to its end.
    due: Timestamp,
    /// What went wrong last.
    last_error: Option<String>,
    /// When it was queued.
    created_at: Timestamp,
    /// What is told.
    #[schema(value_type = Object)]
    payload: Value,
}

impl From<Delivery> for DeliveryView {
    fn from(kept: Delivery) -> Self {
        Self {
            id: kept.delivery.id,
            webhook_id: kept.delivery.target,
            state: Word(kept.state),
            attempts: kept.attempts,
            due: kept.delivery.due,
            last_error: kept.last_error,
            created_at: kept.created_at,
            payload: kept.delivery.payload,
        }
    }
}

/// Which deliveries.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct DeliveryQuery {
    /// In this state.
    #[param(inline)]
    state: Option<DeliveryStateWord>,
}

/// What was or is to be told, the newest first.
#[utoipa::path(get, path = "/api/v1/deliveries", tag = "webhooks", params(PageQuery, DeliveryQuery),
    responses((status = 200, body = Paged<DeliveryView>)))]
async fn deliveries(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
    InQuery(query): InQuery<DeliveryQuery>,
) -> Outcome<Json<Paged<DeliveryView>>> {
    caller.everywhere()?;
    let found = hub.db.deliveries(hub.tenant, query.state.map(|word| word.0), &page.request()?).await?;
    Ok(Json(Paged::of(found, |delivery| Some(delivery.into()))))
}

/// Tells again what was given up, or taken already.
#[utoipa::path(post, path = "/api/v1/deliveries/{delivery_id}/redeliver", tag = "webhooks",
    params(("delivery_id" = Uuid, Path)), responses((status = 202, description = "It is queued")))]
async fn redeliver(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
) -> Outcome<StatusCode> {
    caller.everywhere()?;
    hub.audit(caller.key(), "deliveries.redeliver", &id.to_string(), json!({})).await?;
    if hub.db.redeliver(hub.tenant, id, hub.clock.now()).await? {
        Ok(StatusCode::ACCEPTED)
    } else {
        Err(absent("delivery that came to its end"))
    }
}

async fn known(hub: &Hub, caller: &Caller, id: Uuid) -> Outcome<(Webhook, Revision)> {
    caller.everywhere()?;
    hub.webhook(id).await?.ok_or_else(|| absent("web hook"))
}

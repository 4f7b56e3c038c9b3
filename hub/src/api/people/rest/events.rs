//! `/api/v1/events`: what agents reported.

use super::{BODY_MAX, InPath, InQuery, Visible, absent, text, within};
use crate::api::body;
use crate::api::people::access::Caller;
use crate::api::people::guarded::Guarded;
use crate::api::people::page::{PageQuery, Paged};
use crate::api::people::words::{ClassWord, Word};
use crate::app::batch::Streams;
use crate::app::people::principal::Action;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use picket_hub_db::{EventFilter, NewEvent, StoredEvent, event_id};
use picket_protocol::event::Priority;
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
        .route(Action::EventsRead, routes!(list))
        .route(Action::EventsWrite, routes!(create))
        .route(Action::EventsRead, routes!(show))
}

/// An event.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub(crate) struct EventView {
    /// Its id.
    pub(crate) id: Uuid,
    /// Whose it is.
    pub(crate) agent_id: Uuid,
    /// When it happened, by the agent's clock.
    pub(crate) timestamp: Timestamp,
    /// When the hub got it.
    pub(crate) received_at: Timestamp,
    /// Its type: `file`, `network`, `alert`, `gap`, `config`, ….
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// How much it matters that it is kept.
    pub(crate) class: ClassWord,
    /// Of which boot.
    pub(crate) boot_id: Uuid,
    /// Its number there.
    pub(crate) seq: u64,
    /// What happened.
    #[schema(value_type = Object)]
    pub(crate) data: Value,
}

impl From<StoredEvent> for EventView {
    fn from(event: StoredEvent) -> Self {
        Self {
            id: event.id,
            agent_id: event.agent,
            timestamp: event.timestamp,
            received_at: event.received_at,
            kind: event.kind,
            class: Word(event.class),
            boot_id: event.boot_id,
            seq: event.seq,
            // What is stored was looked at when it came; a number too large for this reader shows as text.
            data: serde_json::from_str(&event.data).unwrap_or(Value::String(event.data)),
        }
    }
}

/// Which events.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct EventQuery {
    /// Of this agent.
    agent_id: Option<Uuid>,
    /// Of this type.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Of this class.
    #[param(inline)]
    class: Option<ClassWord>,
    /// Received then or later.
    since: Option<Timestamp>,
    /// Received before.
    until: Option<Timestamp>,
}

/// Events, the newest first.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", params(PageQuery, EventQuery),
    responses((status = 200, body = Paged<EventView>)))]
async fn list(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
    InQuery(query): InQuery<EventQuery>,
) -> Outcome<Json<Paged<EventView>>> {
    let filter = EventFilter {
        agent: query.agent_id,
        kind: query.kind,
        class: query.class.map(|word| word.0),
        since: query.since,
        until: query.until,
        within: within(&caller),
        oldest_first: false,
    };
    let found = hub.db.events(hub.tenant, &filter, &page.request()?).await?;
    Ok(Json(Paged::of(found, |event| Some(event.into()))))
}

/// One event.
#[utoipa::path(get, path = "/api/v1/events/{event_id}", tag = "events", params(("event_id" = Uuid, Path)),
    responses((status = 200, body = EventView)))]
async fn show(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
) -> Outcome<Json<EventView>> {
    let event = hub.db.event(hub.tenant, id).await?.ok_or_else(|| absent("event"))?;
    if Visible::new(&hub, &caller).agent(Some(event.agent)).await? {
        Ok(Json(event.into()))
    } else {
        Err(absent("event"))
    }
}

/// An event that a program submits for an agent.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewEvent)]
struct NewEventBody {
    /// Whose it is.
    agent_id: Uuid,
    /// Its type.
    #[serde(rename = "type")]
    #[schema(min_length = 1, max_length = 50)]
    kind: String,
    /// When it happened; now unless it is said.
    timestamp: Option<Timestamp>,
    /// How much it matters that it is kept; `normal` unless it is said.
    #[serde(default = "normal")]
    class: ClassWord,
    /// What happened: an object.
    #[schema(value_type = Object)]
    data: Value,
}

fn normal() -> ClassWord {
    Word(Priority::Normal)
}

/// Submits an event. It goes the way of all events: it is stored, judged and shown.
#[utoipa::path(post, path = "/api/v1/events", tag = "events", request_body = NewEventBody,
    responses((status = 201, body = EventView)))]
async fn create(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<Response> {
    let (parts, body) = request.into_parts();
    let asked: NewEventBody = body::json(&parts.headers, body, BODY_MAX).await?;
    if !Visible::new(&hub, &caller).agent(Some(asked.agent_id)).await? {
        return Err(absent("agent"));
    }
    let kind = text("type", &asked.kind, 50)?;
    let class = asked.class.0;
    let now = hub.clock.now();
    let timestamp = asked.timestamp.unwrap_or(now);
    let Value::Object(mut data) = asked.data else {
        return Err(Refusal::new(ProblemCode::Invalid, "data is a JSON object"));
    };
    // As in all events, the details say when.
    data.insert("timestamp".to_owned(), json!(timestamp));
    let (boot_id, seq) = hub.own_stream.next();
    let data = Value::Object(data).to_string().into();
    let event = NewEvent { seq, kind, class, timestamp, weight: 1, gap: 0, data };
    event.check()?;
    let id = event_id(hub.tenant, asked.agent_id, boot_id, seq, now);
    let room = hub.intake.reserve(event.data.len())?;
    let details = json!({ "event_id": id, "type": event.kind });
    hub.audit(caller.key(), "events.create", &asked.agent_id.to_string(), details).await?;
    let streams = Streams::from([(boot_id, vec![event])]);
    hub.intake.store(asked.agent_id, streams, now, room).await.map_err(|refusal| match refusal.code() {
        ProblemCode::UnknownAgent => absent("agent"),
        _ => refusal,
    })?;
    let stored = hub.db.event(hub.tenant, id).await?.ok_or_else(|| absent("event"))?;
    Ok((StatusCode::CREATED, Json(EventView::from(stored))).into_response())
}

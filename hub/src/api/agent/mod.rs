//! What agents ask of the hub, over the listener that asks for client certificates.

mod socket;

use super::{body, websocket};
use crate::app::batch;
use crate::app::identity::{KnownAgent, Purpose};
use crate::app::people::abuse::counted_as;
use crate::refusal::{Outcome, Refusal};
use crate::server::Peer;
use crate::state::Hub;
use crate::watch::measured;
use crate::wire::common_version;
use axum::extract::{Extension, Request, State};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use picket_protocol::event::EVENT_MAX_BYTES;
use picket_protocol::hub::{
    CERTIFICATE_PATH, CertificateAnswer, CertificateRequest, DOCUMENT_MAX_BYTES, ENROL_PATH, EVENTS_MEDIA_TYPE,
    EVENTS_PATH, EnrolAnswer, EnrolRequest, EventsAnswer, FRAME_MAX_BYTES, ProblemCode, RAW_BYTES_HEADER, SOCKET_PATH,
    WHOAMI_PATH, WIRE, WIRE_HEADER, WhoAmI,
};
use std::sync::Arc;

/// The routes for agents.
pub fn router(hub: Arc<Hub>) -> Router {
    Router::new()
        .route(ENROL_PATH, post(enrol))
        .route(CERTIFICATE_PATH, post(renew))
        .route(EVENTS_PATH, post(events))
        .route(WHOAMI_PATH, get(whoami))
        .route(SOCKET_PATH, get(socket))
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_that_method)
        .layer(from_fn(speaks_our_wire))
        .layer(from_fn_with_state("agent_api", super::cause::correlated))
        .layer(from_fn_with_state((hub.watched.requests.clone(), "agents"), measured))
        .with_state(hub)
}

async fn nothing_here() -> Refusal {
    Refusal::new(ProblemCode::NotFound, "agents are heard here; people and their API have another port (listen.api)")
}

async fn not_that_method() -> Refusal {
    Refusal::new(ProblemCode::MethodNotAllowed, "this path is asked with another method")
}

/// Refuses a wire that this hub does not speak, and says which version an answer is in.
async fn speaks_our_wire(request: Request, next: Next) -> Result<Response, Refusal> {
    // What is no text is no range of versions either.
    let said = request.headers().get(WIRE_HEADER).map(|value| value.to_str().unwrap_or_default());
    let version = common_version(said)?;
    let mut response = next.run(request).await;
    response.headers_mut().insert(WIRE_HEADER, HeaderValue::from(version));
    Ok(response)
}

async fn enrol(
    State(hub): State<Arc<Hub>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Outcome<Json<EnrolAnswer>> {
    hub.enrolments_each.admit(&counted_as(peer.ip()))?;
    hub.enrolments.admit()?;
    let (parts, body) = request.into_parts();
    let asked: EnrolRequest = body::json(&parts.headers, body, DOCUMENT_MAX_BYTES).await?;
    hub.enrol(&asked, peer.ip()).await.map(Json)
}

async fn renew(
    State(hub): State<Arc<Hub>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Outcome<Json<CertificateAnswer>> {
    let agent = hub.agent_behind(peer.certificate.as_ref(), Purpose::Renew).await?;
    hub.renewals_each.admit(&agent.id)?;
    let (parts, body) = request.into_parts();
    let asked: CertificateRequest = body::json(&parts.headers, body, DOCUMENT_MAX_BYTES).await?;
    hub.renew(&agent, &asked).await.map(Json)
}

async fn events(
    State(hub): State<Arc<Hub>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Outcome<Json<EventsAnswer>> {
    let agent = hub.agent_behind(peer.certificate.as_ref(), Purpose::Work).await?;
    let (parts, body) = request.into_parts();
    if parts.headers.get(CONTENT_TYPE).is_none_or(|value| value != EVENTS_MEDIA_TYPE) {
        let detail = format!("events are {EVENTS_MEDIA_TYPE} (header Content-Type)");
        return Err(Refusal::new(ProblemCode::UnsupportedMediaType, detail));
    }
    let raw_bytes = parts.headers.get(RAW_BYTES_HEADER).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let raw_bytes = raw_bytes.ok_or_else(|| {
        Refusal::new(ProblemCode::Invalid, format!("the header {RAW_BYTES_HEADER} must say how many bytes there are"))
    })?;
    batch::check_size(raw_bytes)?;
    let _turn = hub.batch_turn(agent.id)?;
    // Before the first byte of the body: what has no room is not read.
    let room = hub.intake.reserve(raw_bytes)?;
    // zstd makes nothing larger than this (zstd.h, ZSTD_COMPRESSBOUND).
    let packed =
        body::bytes(body, raw_bytes + raw_bytes / 256 + 64).await.map_err(|refusal| slow(refusal, raw_bytes))?;
    hub.take_batch(agent.id, &packed, raw_bytes, room).await.map(Json)
}

/// A body that breaks off or takes too long says nothing of the events in it: `invalid` would cost them. Over a slow line
/// smaller batches arrive; a single event comes again as it is.
fn slow(refusal: Refusal, raw_bytes: usize) -> Refusal {
    match refusal.code() {
        ProblemCode::Invalid if raw_bytes > 2 * EVENT_MAX_BYTES => {
            Refusal::new(ProblemCode::TooLarge, refusal.to_string())
        }
        ProblemCode::Invalid => {
            Refusal::new(ProblemCode::Overloaded, refusal.to_string()).after(std::time::Duration::from_secs(30))
        }
        _ => refusal,
    }
}

async fn whoami(State(hub): State<Arc<Hub>>, Extension(peer): Extension<Peer>) -> Json<WhoAmI> {
    let known = hub.agent_behind(peer.certificate.as_ref(), Purpose::Work).await;
    let (agent_id, authorized, refusal) = match known {
        Ok(agent) => (Some(agent.id), true, None),
        Err(refusal) => (None, false, Some(*refusal.0)),
    };
    Json(WhoAmI {
        agent_id,
        authorized,
        refusal,
        certificate_expires: peer.certificate.as_ref().map(|certificate| certificate.not_after),
        hub_version: hub.build.version.clone(),
        hub_time: hub.clock.now(),
        wire: WIRE,
        address: peer.ip().to_string(),
    })
}

async fn socket(State(hub): State<Arc<Hub>>, Extension(peer): Extension<Peer>, request: Request) -> Outcome<Response> {
    let agent: KnownAgent = hub.agent_behind(peer.certificate.as_ref(), Purpose::Work).await?;
    hub.connects.admit()?;
    let tasks = hub.tasks.clone();
    websocket::upgrade(request, &tasks, FRAME_MAX_BYTES, move |stream| socket::serve(hub, agent, peer.ip(), stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_does_not_arrive_costs_no_event() {
        let broken = Refusal::new(ProblemCode::Invalid, "the body did not arrive within 30 s");
        assert_eq!(slow(broken.clone(), 4 << 20).code(), ProblemCode::TooLarge, "smaller batches may");
        assert_eq!(slow(broken, 2000).code(), ProblemCode::Overloaded, "one event is not given up");
    }
}

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
use axum::extract::{Extension, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use picket_protocol::hub::{
    CERTIFICATE_PATH, CertificateAnswer, CertificateRequest, DOCUMENT_MAX_BYTES, ENROL_PATH, EVENTS_MEDIA_TYPE,
    EVENTS_PATH, EnrolAnswer, EnrolRequest, EventsAnswer, FRAME_MAX_BYTES, MAX_BATCH_BYTES, ProblemCode,
    RAW_BYTES_HEADER, SOCKET_PATH, WHOAMI_PATH, WIRE, WIRE_HEADER, WhoAmI,
};
use picket_protocol::versions::VersionRange;
use std::sync::Arc;
use std::time::Duration;

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
    let version = common_version(request.headers())?;
    let mut response = next.run(request).await;
    response.headers_mut().insert(WIRE_HEADER, HeaderValue::from(version));
    Ok(response)
}

/// The version that both sides know; a request that says nothing is in the oldest.
fn common_version(headers: &HeaderMap) -> Outcome<u32> {
    let Some(header) = headers.get(WIRE_HEADER) else { return Ok(WIRE.oldest) };
    let theirs = header.to_str().ok().and_then(|text| text.parse::<VersionRange>().ok());
    let theirs = theirs.ok_or_else(|| {
        Refusal::new(
            ProblemCode::WireUnsupported,
            format!("the header {WIRE_HEADER} is no range of versions, such as 1-2"),
        )
    })?;
    WIRE.common(theirs).ok_or_else(|| {
        let (behind, which) = if theirs.newest < WIRE.oldest { ("agent", theirs) } else { ("hub", WIRE) };
        let detail = format!(
            "this hub speaks versions {WIRE} of the protocol and the agent {theirs}: update the {behind}, which is behind ({which})"
        );
        Refusal::new(ProblemCode::WireUnsupported, detail)
    })
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
    if raw_bytes > MAX_BATCH_BYTES {
        let detail = format!("a batch of {raw_bytes} bytes is larger than the {MAX_BATCH_BYTES} that are taken");
        return Err(Refusal::new(ProblemCode::TooLarge, detail));
    }
    // One agent that sends slowly, or in many pieces at once, cannot take the room of all.
    let _turn = hub.batches_each.take(agent.id).ok_or_else(|| {
        let detail = "as many batches of this agent are on their way as may be; send one after the other";
        Refusal::new(ProblemCode::Overloaded, detail).after(Duration::from_secs(1))
    })?;
    // Before the first byte of the body: what has no room is not read.
    let room = hub.intake.reserve(raw_bytes)?;
    // zstd makes nothing larger than this (zstd.h, ZSTD_COMPRESSBOUND).
    let packed = body::bytes(body, raw_bytes + raw_bytes / 256 + 64).await?;
    let streams = batch::read(&packed, raw_bytes)?;
    drop(packed);
    let now = hub.clock.now();
    let stored = hub.intake.store(agent.id, streams, now, room).await?;
    Ok(Json(EventsAnswer { stored: stored.new, duplicates: stored.duplicates, hub_time: hub.clock.now() }))
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
    fn versions_that_have_none_in_common_say_who_is_behind() {
        let version = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(WIRE_HEADER, HeaderValue::from_static(text));
            common_version(&headers)
        };
        assert_eq!(common_version(&HeaderMap::new()), Ok(WIRE.oldest));
        assert_eq!(version("1-7"), Ok(WIRE.newest), "an agent of a later version that still knows this one");
        let refusal = version("8-9").unwrap_err();
        assert_eq!(refusal.code(), ProblemCode::WireUnsupported);
        assert!(refusal.to_string().contains("update the hub"), "{refusal}");
        assert!(version("x").is_err());
    }
}

//! A POST that may be sent twice: its answer is kept under the key that it came with.

use super::access::Caller;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use http_body_util::BodyExt as _;
use jiff::SignedDuration;
use picket_hub_db::{Idempotency, IdempotentRequest, KeptResponse};
use picket_protocol::hub::ProblemCode;
use sha2::{Digest as _, Sha256};
use std::time::Duration;

/// The header with the key (draft-ietf-httpapi-idempotency-key-header).
pub(crate) const HEADER: &str = "idempotency-key";
/// The header, for the description.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "it describes; once() reads")]
pub(crate) struct IdempotencyKey {
    /// The request may be sent again under the same key within a day: it is done once.
    #[param(rename = "Idempotency-Key", pattern = "^[!-~]{1,255}$")]
    idempotency_key: Option<String>,
}

/// For how long an answer is kept.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// After which time a request that nobody finished may be done by another one.
const LOCKED: SignedDuration = SignedDuration::from_secs(60);
/// The longest answer that is kept, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Does `work` once for each key of each principal; sent again, the request gets the answer that it got.
///
/// # Errors
/// `conflict` while it is being done; `idempotency_mismatch` when the key came with another request.
pub(crate) async fn once<F: Future<Output = Outcome<Response>>>(
    hub: &Hub,
    caller: &Caller,
    headers: &HeaderMap,
    what: &str,
    body: &[u8],
    work: F,
) -> Outcome<Response> {
    let Some(key) = headers.get(HEADER) else { return work.await };
    let key =
        key.to_str().ok().filter(|key| (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()));
    let key = key
        .ok_or_else(|| Refusal::new(ProblemCode::Invalid, format!("{HEADER} has 1 to 255 visible ASCII characters")))?;
    let now = hub.clock.now();
    let later = |by| now.checked_add(by).unwrap_or(now);
    let request = IdempotentRequest {
        principal: caller.key().to_owned(),
        key: key.to_owned(),
        request_hash: Sha256::new().chain_update(what).chain_update([0]).chain_update(body).finalize().into(),
        now,
        locked_until: later(LOCKED),
        expires_at: later(KEPT),
    };
    let attempt = match hub.db.begin_request(hub.tenant, &request).await? {
        Idempotency::New(attempt) => attempt,
        Idempotency::Replay(kept) => return Ok(replay(kept)),
        Idempotency::InProgress => {
            let detail = "a request with this key is being done; ask again in a moment";
            return Err(Refusal::new(ProblemCode::Conflict, detail).after(Duration::from_secs(1)));
        }
        Idempotency::Mismatch => {
            let detail = "this key came with another request before; take a new key for a new request";
            return Err(Refusal::new(ProblemCode::IdempotencyMismatch, detail));
        }
    };
    match work.await {
        Ok(response) => keep(hub, &request, attempt, response).await,
        Err(refusal) => {
            // Nothing was done: it may be sent again.
            hub.db.abandon_request(hub.tenant, &request.principal, &request.key, attempt).await?;
            Err(refusal)
        }
    }
}

async fn keep(hub: &Hub, request: &IdempotentRequest, attempt: i64, response: Response) -> Outcome<Response> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    if body.len() <= MAX_ANSWER {
        let kept: serde_json::Map<String, serde_json::Value> = parts
            .headers
            .iter()
            .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.into())))
            .collect();
        let response = KeptResponse { status: parts.status.as_u16(), headers: kept.into(), body: body.to_vec() };
        hub.db.finish_request(hub.tenant, &request.principal, &request.key, attempt, &response).await?;
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn replay(kept: KeptResponse) -> Response {
    let mut response = Response::new(Body::from(kept.body));
    *response.status_mut() = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    for (name, value) in kept.headers.as_object().into_iter().flatten() {
        let name = HeaderName::from_bytes(name.as_bytes());
        let value = value.as_str().and_then(|value| HeaderValue::from_str(value).ok());
        if let (Ok(name), Some(value)) = (name, value) {
            headers.insert(name, value);
        }
    }
    headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
    response
}

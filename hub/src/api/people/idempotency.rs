//! A POST that may be sent twice: its answer is kept under the key that it came with.
//!
//! Every POST that needs a permission takes the header. Answers are kept sealed: some of them hold a secret that is shown
//! once, of which the database otherwise has a hash only.

use super::access::Caller;
use crate::api::body;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;
use jiff::SignedDuration;
use picket_hub_db::{Idempotency, IdempotentRequest, KeptResponse};
use picket_protocol::hub::ProblemCode;
use picket_seal::{OVERHEAD, Place};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
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
/// The longest request that can have a key, in bytes: no route takes a longer one.
const MAX_REQUEST: usize = super::rest::BODY_MAX;
/// The longest answer that is kept, in bytes: sealed, it fits its column.
const MAX_ANSWER: usize = (1 << 20) - OVERHEAD;

/// Lets a request through once for each key of each principal; sent again, it gets the answer that it got.
///
/// # Errors
/// `conflict` while it is being done, or when it was done and its answer is not there any more; `idempotency_mismatch` when
/// the key came with another request.
pub(super) async fn once(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Outcome<Response> {
    let key = request.headers().get(HEADER).filter(|_| request.method() == Method::POST);
    let Some(key) = key else { return Ok(next.run(request).await) };
    let key =
        key.to_str().ok().filter(|key| (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()));
    let key = key
        .ok_or_else(|| Refusal::new(ProblemCode::Invalid, format!("{HEADER} has 1 to 255 visible ASCII characters")))?
        .to_owned();
    let (parts, body) = request.into_parts();
    let bytes = body::bytes(body, MAX_REQUEST).await?;
    let what = Sha256::new().chain_update(parts.uri.to_string()).chain_update([0]).chain_update(&bytes);
    let now = hub.clock.now();
    let later = |by| now.checked_add(by).unwrap_or(now);
    let asked = IdempotentRequest {
        principal: caller.key().to_owned(),
        key,
        request_hash: what.finalize().into(),
        now,
        locked_until: later(LOCKED),
        expires_at: later(KEPT),
    };
    let attempt = match hub.db.begin_request(hub.tenant, &asked).await? {
        Idempotency::New(attempt) => attempt,
        Idempotency::Replay(kept) => return replay(&hub, &asked, &kept),
        Idempotency::InProgress => {
            let detail = "a request with this key is being done; ask again in a moment";
            return Err(Refusal::new(ProblemCode::Conflict, detail).after(Duration::from_secs(1)));
        }
        Idempotency::Mismatch => {
            let detail = "this key came with another request before; take a new key for a new request";
            return Err(Refusal::new(ProblemCode::IdempotencyMismatch, detail));
        }
    };
    // From here on nobody who hangs up may end it (`lasting`): what was done and not yet noted would be done again.
    let response = next.run(Request::from_parts(parts, Body::from(bytes))).await;
    finished(&hub, &asked, attempt, response).await
}

/// Keeps an answer; forgets a request that came to nothing, so that it may be sent again.
async fn finished(hub: &Hub, asked: &IdempotentRequest, attempt: i64, response: Response) -> Outcome<Response> {
    let IdempotentRequest { principal, key, .. } = asked;
    if response.status().is_client_error() || response.status().is_server_error() {
        hub.db.abandon_request(hub.tenant, principal, key, attempt).await?;
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let headers: serde_json::Map<String, serde_json::Value> = parts
        .headers
        .iter()
        .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.into())))
        .collect();
    let context = context(asked);
    let sealed = if body.len() <= MAX_ANSWER { hub.sealer.seal(place(&context), &body).ok() } else { None };
    // What cannot be kept leaves a note that it was done, which no key opens.
    let body_kept = sealed.unwrap_or_default();
    let kept = KeptResponse { status: parts.status.as_u16(), headers: headers.into(), body: body_kept };
    hub.db.finish_request(hub.tenant, principal, key, attempt, &kept).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

/// Whose answer it is, and to what: it opens nowhere else.
fn context(asked: &IdempotentRequest) -> Vec<u8> {
    [asked.principal.as_bytes(), b"\n", asked.key.as_bytes(), b"\n", &asked.request_hash].concat()
}

fn place(context: &[u8]) -> Place<'_> {
    Place { table: "idempotency", row: 0, context }
}

fn replay(hub: &Hub, asked: &IdempotentRequest, kept: &KeptResponse) -> Outcome<Response> {
    let body = hub.sealer.open(place(&context(asked)), &kept.body).map_err(|_| {
        let detail = "this was done already, and its answer cannot be given again: look for what it made; a secret is \
                      shown once, so revoke that and make another under a new key";
        Refusal::new(ProblemCode::Conflict, detail)
    })?;
    let mut response = Response::new(Body::from(body));
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
    Ok(response)
}

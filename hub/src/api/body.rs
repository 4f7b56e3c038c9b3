//! Bodies of requests: bounded, and read into what they should be.

use crate::refusal::{Outcome, Refusal};
use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use picket_protocol::hub::ProblemCode;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// How long a body may take to arrive: 4 MiB at 150 kB/s.
const BODY_LIMIT: Duration = Duration::from_secs(30);

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// `too_large` as soon as there is more; `invalid` when it breaks off or takes too long.
pub(crate) async fn bytes(body: Body, limit: usize) -> Outcome<Bytes> {
    let collected = tokio::time::timeout(BODY_LIMIT, Limited::new(body, limit).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let detail = format!("the body is longer than the {limit} bytes that are taken here");
            Err(Refusal::new(ProblemCode::TooLarge, detail))
        }
        Ok(Err(_)) => Err(Refusal::new(ProblemCode::Invalid, "the body broke off")),
        Err(_) => {
            let detail = format!("the body did not arrive within {} s", BODY_LIMIT.as_secs());
            Err(Refusal::new(ProblemCode::Invalid, detail))
        }
    }
}

/// Reads a JSON document of at most `limit` bytes.
///
/// # Errors
/// `unsupported_media_type`; `invalid` with the place where it is wrong.
pub(crate) async fn json<T: DeserializeOwned>(headers: &HeaderMap, body: Body, limit: usize) -> Outcome<T> {
    read(&json_bytes(headers, body, limit).await?)
}

/// Takes the bytes of a JSON document, for those who need them, too.
///
/// # Errors
/// As [`json`].
pub(crate) async fn json_bytes(headers: &HeaderMap, body: Body, limit: usize) -> Outcome<Bytes> {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let detail = "the body must be application/json (header Content-Type)";
        return Err(Refusal::new(ProblemCode::UnsupportedMediaType, detail));
    }
    bytes(body, limit).await
}

/// Reads what [`json_bytes`] took.
///
/// # Errors
/// `invalid` with the place where it is wrong.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Outcome<T> {
    serde_json::from_slice(bytes).map_err(|error| Refusal::new(ProblemCode::Invalid, format!("the body: {error}")))
}

//! Bodies of requests: bounded, and read into what they should be.

use crate::refusal::{Outcome, Refusal};
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_TYPE, EXPECT};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use picket_protocol::hub::ProblemCode;
use serde::de::DeserializeOwned;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// How long a body may take to arrive: 4 MiB at 150 kB/s.
const BODY_LIMIT: Duration = Duration::from_secs(30);

/// How much of a body that is too long is read on and forgotten: who is still sending when the connection is closed does
/// not get to read why (RFC 9112 §9.6).
const READ_ON: usize = 4 << 20;

/// How long that may take.
const READ_ON_LIMIT: Duration = Duration::from_secs(2);

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// `too_large` when there is more; `invalid` when it breaks off or takes too long.
pub(crate) async fn bytes(body: Body, limit: usize) -> Outcome<Bytes> {
    in_time(collect(body, limit)).await?
}

/// Reads as long as a body may take.
///
/// # Errors
/// `invalid` when it takes longer.
pub(crate) async fn in_time<T>(reading: impl Future<Output = T>) -> Outcome<T> {
    tokio::time::timeout(BODY_LIMIT, reading).await.map_err(|_| {
        let detail = format!("the body did not arrive within {} s", BODY_LIMIT.as_secs());
        Refusal::new(ProblemCode::Invalid, detail)
    })
}

async fn collect(mut body: Body, limit: usize) -> Outcome<Bytes> {
    let mut kept = BytesMut::new();
    let mut length = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::new(ProblemCode::Invalid, "the body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        length = length.saturating_add(data.len());
        if length <= limit {
            kept.extend_from_slice(&data);
        } else if length > limit.saturating_add(READ_ON) {
            break;
        }
    }
    if length > limit {
        let detail = format!("the body is longer than the {limit} bytes that are taken here");
        return Err(Refusal::new(ProblemCode::TooLarge, detail));
    }
    Ok(kept.freeze())
}

/// Reads a JSON document of at most `limit` bytes.
///
/// # Errors
/// `unsupported_media_type`; `invalid` with the place where it is wrong.
pub(crate) async fn json<T: DeserializeOwned>(headers: &HeaderMap, body: Body, limit: usize) -> Outcome<T> {
    read(&json_bytes(headers, body, limit).await?)
}

/// Whether these say that the body is JSON, with whatever parameters (RFC 9110 §8.3.1).
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// Takes the bytes of a JSON document, for those who need them, too.
///
/// # Errors
/// As [`json`].
pub(crate) async fn json_bytes(headers: &HeaderMap, body: Body, limit: usize) -> Outcome<Bytes> {
    if !is_json(headers) {
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

/// A body that is lent out: what is not read of it can be read by who lent it.
struct Lent(Arc<Mutex<Body>>);

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

/// Reads on what a refused request still sends, within bounds: an answer that comes before the end of the body would be lost
/// with the connection (RFC 9112 §9.6).
pub(crate) async fn read_on(request: Request, next: Next) -> Response {
    // Who asks first whether to send (RFC 9110 §10.1.1) hears the answer instead.
    if request.body().is_end_stream() || request.headers().contains_key(EXPECT) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = Arc::new(Mutex::new(body));
    let lent = Body::new(Lent(Arc::clone(&body)));
    let response = next.run(Request::from_parts(parts, lent)).await;
    let mut rest = Lent(body);
    let mut length = 0;
    let reading = async {
        while !rest.is_end_stream() && length < READ_ON {
            match rest.frame().await {
                Some(Ok(frame)) => length += frame.data_ref().map_or(0, Bytes::len),
                _ => break,
            }
        }
    };
    let _ = tokio::time::timeout(READ_ON_LIMIT, reading).await;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_refused_request_still_sends_is_read() {
        use tower::ServiceExt as _;
        let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        let chunks = std::iter::repeat_with(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 64 << 10]))
        });
        let body = Body::from_stream(futures_util::stream::iter(chunks.take(10)));
        let router = axum::Router::new().fallback(|| async { "no" }).layer(axum::middleware::from_fn(read_on));
        router.oneshot(Request::new(body)).await.unwrap();
        assert_eq!(sent.load(std::sync::atomic::Ordering::Relaxed), 10);
    }

    #[tokio::test]
    async fn a_body_is_taken_up_to_its_limit_and_read_on_for_a_while_so_that_the_answer_is_heard() {
        let chunks = |sizes: &'static [usize]| {
            let stream = sizes.iter().map(|size| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; *size])));
            Body::from_stream(futures_util::stream::iter(stream))
        };
        assert_eq!(bytes(chunks(&[3, 4]), 7).await.unwrap().len(), 7);
        assert_eq!(bytes(chunks(&[3, 5]), 7).await.unwrap_err().code(), ProblemCode::TooLarge);
        // No end of it is waited for: what is read on has a limit, too.
        let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 64 << 10])));
        assert_eq!(bytes(Body::from_stream(endless), 7).await.unwrap_err().code(), ProblemCode::TooLarge);
    }
}

//! Problems as the API describes them, and the correlation id of each request.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use picket_protocol::trace::{CORRELATION_HEADER, TRACEPARENT_HEADER, TraceContext};
use serde::Serialize;
use tracing::{Instrument as _, Span};
use utoipa::ToSchema;

/// What went wrong (RFC 9457). `code` is what a program decides by.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemView {
    /// `urn:picket:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in words.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// This very case in words, with what to do.
    pub detail: String,
    /// What a program decides by.
    pub code: String,
    /// After how many seconds to ask again.
    #[schema(nullable = false)]
    pub retry_after: Option<u64>,
    /// The hub's time.
    #[schema(nullable = false)]
    pub hub_time: Option<jiff::Timestamp>,
    /// Under which correlation id this is in the hub's log.
    #[schema(nullable = false)]
    pub correlation_id: Option<String>,
    /// Which parts of the request are wrong.
    #[schema(nullable = false)]
    pub errors: Option<Vec<FieldErrorView>>,
}

/// One part of a request that is wrong.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FieldError)]
pub struct FieldErrorView {
    /// Where: a JSON pointer, or the name of a parameter.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

/// Answers within the cause that the request names, or a new one, and says which that was.
pub(super) async fn correlated(request: Request, next: Next) -> Response {
    let (span, id) = cause(&request);
    let mut response = next.run(request).instrument(span).await;
    if let Some(id) = id {
        response.headers_mut().insert(CORRELATION_HEADER_LOWER, id);
    }
    response
}

/// The span of a request, and its correlation id as a header.
fn cause(request: &Request) -> (Span, Option<HeaderValue>) {
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let cause = TraceContext::from_headers(text(CORRELATION_HEADER), text(TRACEPARENT_HEADER));
    let id = cause.correlation_id.as_str();
    let span = tracing::info_span!(
        "request",
        operation = "hub_api",
        correlation_id = id,
        trace = %cause.parent,
        method = %request.method(),
        path = request.uri().path()
    );
    picket_telemetry::adopt(&span, &cause);
    (span, HeaderValue::from_str(id).ok())
}

/// [`CORRELATION_HEADER`], as header names are kept.
const CORRELATION_HEADER_LOWER: &str = "x-correlation-id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_spellings_are_one_header() {
        assert!(CORRELATION_HEADER.eq_ignore_ascii_case(CORRELATION_HEADER_LOWER));
    }
}

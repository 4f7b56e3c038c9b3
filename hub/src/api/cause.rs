//! For which cause something is asked: the span of each request in the hub's log, and its correlation id.

use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use picket_protocol::trace::{CORRELATION_HEADER, TRACEPARENT_HEADER, TraceContext};
use tracing::{Instrument as _, Span};

/// [`CORRELATION_HEADER`], as header names are kept.
const CORRELATION_HEADER_LOWER: &str = "x-correlation-id";

/// Answers within the cause that the request names, or a new one, and says which that was. `operation` is what the log calls
/// it.
pub(super) async fn correlated(State(operation): State<&'static str>, request: Request, next: Next) -> Response {
    let (span, id) = asked(operation, &request);
    let mut response = next.run(request).instrument(span).await;
    if let Some(id) = id {
        response.headers_mut().insert(CORRELATION_HEADER_LOWER, id);
    }
    response
}

/// The span of a request, and its correlation id as a header.
fn asked(operation: &'static str, request: &Request) -> (Span, Option<HeaderValue>) {
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let cause = TraceContext::from_headers(text(CORRELATION_HEADER), text(TRACEPARENT_HEADER));
    let id = cause.correlation_id.as_str();
    let span = tracing::info_span!(
        "request",
        operation,
        correlation_id = id,
        trace = %cause.parent,
        method = %request.method(),
        path = request.uri().path()
    );
    picket_telemetry::adopt(&span, &cause);
    (span, HeaderValue::from_str(id).ok())
}

/// The span of what is asked over the bus, with what stands in its headers.
pub(crate) fn relayed(header: impl Fn(&str) -> Option<String>) -> Span {
    let (id, parent) = (header(CORRELATION_HEADER), header(TRACEPARENT_HEADER));
    let cause = TraceContext::from_headers(id.as_deref(), parent.as_deref());
    let span = tracing::info_span!(
        "request",
        operation = "relay",
        correlation_id = cause.correlation_id.as_str(),
        trace = %cause.parent
    );
    picket_telemetry::adopt(&span, &cause);
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_spellings_are_one_header() {
        assert!(CORRELATION_HEADER.eq_ignore_ascii_case(CORRELATION_HEADER_LOWER));
    }
}

//! Which cause a request belongs to, and how long its answer took.

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use picket_protocol::trace::{TRACEPARENT_HEADER, TraceContext};
use tracing::{Instrument, Span};

/// [`picket_protocol::trace::CORRELATION_HEADER`], as header names are kept.
const USUAL: &str = "x-correlation-id";

/// The header that the configuration names; the usual one where that is no header's name.
pub fn header(name: &str) -> HeaderName {
    HeaderName::from_bytes(name.as_bytes()).unwrap_or(HeaderName::from_static(USUAL))
}

/// Answers within the cause that the request names, or a new one, and says which that was.
pub(crate) async fn correlated(State(header): State<HeaderName>, request: Request, next: Next) -> Response {
    let (span, id) = cause(&header, &request);
    let mut response = next.run(request).instrument(span).await;
    if let Some(id) = id {
        response.headers_mut().insert(header, id);
    }
    response
}

/// The span of a request, and its correlation id as a header.
fn cause(header: &HeaderName, request: &Request) -> (Span, Option<HeaderValue>) {
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let cause = TraceContext::from_headers(text(header.as_str()), text(TRACEPARENT_HEADER));
    let id = cause.correlation_id.as_str();
    let span = tracing::info_span!(
        "request",
        operation = "local_api",
        correlation_id = id,
        trace = %cause.parent,
        path = request.uri().path()
    );
    picket_telemetry::adopt(&span, &cause);
    (span, HeaderValue::from_str(id).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_header_can_have_gives_the_usual_one() {
        assert_eq!(header("X-Request-ID").as_str(), "x-request-id");
        assert!(USUAL.eq_ignore_ascii_case(picket_protocol::trace::CORRELATION_HEADER));
        for wrong in ["", "two words", "ä"] {
            assert_eq!(header(wrong).as_str(), "x-correlation-id", "{wrong}");
        }
    }
}

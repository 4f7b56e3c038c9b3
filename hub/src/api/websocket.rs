//! `WebSockets` over hyper's upgrade: one version of tungstenite at both ends of the wire.

use crate::refusal::{Outcome, Refusal};
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use axum::http::{HeaderValue, Method, StatusCode, Version};
use axum::response::Response;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use picket_protocol::hub::ProblemCode;
use tokio_tungstenite::WebSocketStream;
use tokio_util::task::TaskTracker;
use tungstenite::protocol::{Role, WebSocketConfig};

/// A socket that was upgraded.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Answers a request for a WebSocket (RFC 6455 §4.2) and runs `serve` on it, as a task of `tasks`. No message may be longer
/// than `max_message` bytes.
///
/// # Errors
/// `invalid` when it is no such request.
pub(crate) fn upgrade<F, Fut>(
    mut request: Request,
    tasks: &TaskTracker,
    max_message: usize,
    serve: F,
) -> Outcome<Response>
where
    F: FnOnce(Socket) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let invalid = |detail: &str| Refusal::new(ProblemCode::Invalid, detail);
    let headers = request.headers();
    let has = |name, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
    };
    if request.method() != Method::GET || request.version() != Version::HTTP_11 {
        return Err(invalid("a WebSocket is asked for with GET over HTTP/1.1"));
    }
    if !has(UPGRADE, "websocket") || !has(CONNECTION, "upgrade") {
        return Err(invalid("this is a WebSocket: ask with Connection: upgrade and Upgrade: websocket"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(invalid("only version 13 of the WebSocket protocol is spoken (RFC 6455)"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| invalid("the header Sec-WebSocket-Key is missing"))?;
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let upgrading = hyper::upgrade::on(&mut request);
    // Ten thousand of these are open at a time: no buffer is larger than it has to be.
    let config = WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(max_message.saturating_mul(2).max(64 << 10))
        .max_message_size(Some(max_message))
        .max_frame_size(Some(max_message));
    tasks.spawn(async move {
        match upgrading.await {
            Ok(io) => {
                serve(WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, Some(config)).await).await;
            }
            Err(error) => tracing::debug!(%error, "a connection could not become a WebSocket"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok(response)
}

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

// Needs Autobahn's wstest, and that Python 2.7: `scripts/test websocket` says whether it is there.
#[cfg(test)]
#[cfg(feature = "autobahn")]
mod tests {
    use super::*;
    use axum::Router;
    use futures_util::{SinkExt as _, StreamExt as _};
    use hyper_util::rt::TokioExecutor;
    use hyper_util::server::conn::auto;
    use hyper_util::service::TowerToHyperService;
    use serde_json::{Value, json};
    use std::net::SocketAddr;
    use std::path::Path;
    use std::process::Command;
    use tokio::net::TcpListener;

    /// The longest message of Autobahn's: case 9.1.6.
    const LONGEST: usize = 16 << 20;

    /// Says again what it hears, as Autobahn's client wants it of a server.
    async fn echo(mut socket: Socket) {
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    }

    /// A server whose every path is a WebSocket that echoes.
    async fn echoing() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = |request: Request| async move { upgrade(request, &TaskTracker::new(), LONGEST, echo) };
        let router = Router::new().fallback(handler);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(router.clone());
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        address
    }

    /// How each case went, by Autobahn's own words.
    #[expect(clippy::disallowed_methods, reason = "tests look at files and processes directly")]
    fn judged(folder: &Path, spec: &Value) -> serde_json::Map<String, Value> {
        let file = folder.join("spec.json");
        std::fs::write(&file, spec.to_string()).unwrap();
        let ran = Command::new("wstest")
            .args(["--mode", "fuzzingclient", "--spec"])
            .arg(&file)
            .current_dir(folder)
            .output()
            .unwrap_or_else(|error| panic!("wstest, which `scripts/setup test` installs: {error}"));
        let report = std::fs::read(folder.join("reports/index.json"));
        let report = report.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&ran.stdout)));
        let report: Value = serde_json::from_slice(&report).unwrap();
        report["hub"].as_object().unwrap().clone()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn autobahn_finds_no_failure_in_our_websocket() {
        let address = echoing().await;
        let folder = tempfile::tempdir().unwrap();
        let spec = json!({
            "outdir": "reports",
            "servers": [{"agent": "hub", "url": format!("ws://{address}")}],
            "cases": ["*"],
            // Compression, which is not offered: beside secrets it tells of them (CRIME), and batches are packed already.
            "exclude-cases": ["12.*", "13.*"],
        });
        let cases = tokio::task::spawn_blocking(move || judged(folder.path(), &spec)).await.unwrap();
        assert!(cases.len() > 290, "{} cases", cases.len());
        let failed: Vec<String> = cases
            .iter()
            .filter(|(_, case)| {
                let is_fine = |key: &str| matches!(case[key].as_str(), Some("OK" | "NON-STRICT" | "INFORMATIONAL"));
                !is_fine("behavior") || !is_fine("behaviorClose")
            })
            .map(|(name, case)| format!("{name}: {} {}", case["behavior"], case["behaviorClose"]))
            .collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
}

//! The local server, on a thread of its own.

use super::Watched;
use crate::state::Hub;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use picket_localapi::{Server, correlation_header, exposition, json, told_to_stop};
use picket_protocol::trace::CORRELATION_HEADER;
use picket_telemetry::Metrics;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// How long the start waits for the port. A second is far more than a free one takes; a held one must not keep the hub from
/// serving its fleet.
const PORT_WAIT: Duration = Duration::from_secs(1);

/// The server, as its owner holds it.
pub(crate) struct LocalServer {
    thread: JoinHandle<()>,
    /// Where it listens, if it had its port at once.
    pub(crate) address: Option<SocketAddr>,
}

impl LocalServer {
    /// Starts it. It ends when `stop` turns true.
    ///
    /// # Errors
    /// Only when the system refuses a thread.
    pub(crate) fn start(hub: &Hub, watched: &Watched, stop: &watch::Receiver<bool>) -> std::io::Result<Self> {
        let metrics = Router::new().route("/metrics", get(metrics)).with_state(Arc::clone(&watched.metrics));
        let server = Server {
            name: "health",
            setting: "listen.health",
            address: hub.settings.listen.health.get(),
            router: watched.api(hub).router().merge(metrics),
            correlation: correlation_header(CORRELATION_HEADER),
        };
        let (stop, drain_limit) = (stop.clone(), hub.settings.drain_limit.get());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (bound, is_bound) = sync_channel(1);
        let serve = move || {
            runtime.block_on(async move {
                let mut told = stop.clone();
                let binding = server.bind_with_patience(|failure| {
                    if let Some(error) = failure {
                        tracing::error!("{error}");
                    }
                });
                tokio::select! {
                    server = binding => {
                        let _ = bound.try_send(server.address().ok());
                        server.serve(stop, drain_limit).await;
                    }
                    () = told_to_stop(&mut told) => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("picket-health".to_owned()).spawn(serve)?;
        Ok(Self { thread, address: is_bound.recv_timeout(PORT_WAIT).ok().flatten() })
    }

    /// Waits for its end, which the same word brings as everybody's.
    pub(crate) async fn ended(self) {
        let thread = self.thread;
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

async fn metrics(State(metrics): State<Arc<Metrics>>, headers: HeaderMap) -> Response {
    exposition(&metrics, &headers).unwrap_or_else(|| {
        let words = serde_json::json!({ "error": "there is no JSON form of the hub's metrics; ask for text/plain" });
        json(StatusCode::NOT_ACCEPTABLE, &words)
    })
}

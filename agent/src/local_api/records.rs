//! `/alerts`, `/summaries` and `/queue`: what the agent concluded, and what became of its events.

use crate::keep::Kept;
use crate::monitoring::Monitoring;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use picket_localapi::json;
use std::sync::Arc;

/// What these routes need.
#[derive(Clone)]
pub(crate) struct RecordsApi {
    /// Store and outbox.
    pub(crate) kept: Arc<Kept>,
    /// The monitor.
    pub(crate) monitoring: Arc<Monitoring>,
}

impl RecordsApi {
    /// The routes.
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/alerts", get(alerts))
            .route("/summaries", get(summaries))
            .route("/queue", get(queue))
            .with_state(self)
    }
}

async fn alerts(State(api): State<RecordsApi>) -> Response {
    json(StatusCode::OK, &api.monitoring.alerts())
}

async fn summaries(State(api): State<RecordsApi>) -> Response {
    json(StatusCode::OK, &api.monitoring.summaries())
}

async fn queue(State(api): State<RecordsApi>) -> Response {
    match api.kept.queue() {
        Some(report) => json(StatusCode::OK, &report),
        None => json(
            StatusCode::SERVICE_UNAVAILABLE,
            &serde_json::json!({ "error": "the event queue could not be opened; see /health" }),
        ),
    }
}

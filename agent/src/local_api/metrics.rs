//! `/metrics`, `/metrics.json` and `/system`.

use crate::collect::{DiskSample, Latest, MemorySample};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use picket_localapi::{exposition, json};
use picket_telemetry::Metrics;
use serde_json::{Value, json as value};
use std::sync::Arc;

/// What the metrics routes need.
#[derive(Clone)]
pub(crate) struct MetricsApi {
    /// The registry.
    pub(crate) metrics: Arc<Metrics>,
    /// The latest samples, for the JSON form.
    pub(crate) latest: Latest,
    /// The version that answers.
    pub(crate) agent_version: String,
}

impl MetricsApi {
    /// The routes of the metrics server.
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/metrics.json", get(metrics_json))
            .route("/system", get(system))
            .with_state(self)
    }
}

async fn metrics(State(api): State<MetricsApi>, headers: HeaderMap) -> Response {
    exposition(&api.metrics, &headers).unwrap_or_else(|| json_form(&api.latest))
}

async fn metrics_json(State(api): State<MetricsApi>) -> Response {
    json_form(&api.latest)
}

async fn system(State(api): State<MetricsApi>) -> Response {
    let Some(facts) = api.latest.facts(|facts| serde_json::to_value(facts)) else { return not_yet() };
    let mut facts = facts.unwrap_or_default();
    facts["agent_version"] = api.agent_version.into();
    json(StatusCode::OK, &facts)
}

fn not_yet() -> Response {
    json(StatusCode::SERVICE_UNAVAILABLE, &value!({ "error": "the first samples are being taken" }))
}

/// The JSON form: shares in use by short names, percent; then the latest sample of each group, whole.
fn json_form(latest: &Latest) -> Response {
    let round = |percent: f64| (percent * 10.0).round() / 10.0;
    let shares = [
        ("cpu", latest.cpu(|cpu| cpu.usage_percent)),
        ("memory", latest.memory(MemorySample::used_percent)),
        ("swap", latest.memory(MemorySample::swap_used_percent)),
        ("disk", latest.disk(DiskSample::used_percent)),
    ];
    // The machine is measured within a second; an answer without what everybody asks for would look like zeros.
    if latest.cpu(|_| ()).is_none() || latest.memory(|_| ()).is_none() {
        return not_yet();
    }
    let mut form: serde_json::Map<String, Value> =
        shares.into_iter().filter_map(|(name, percent)| Some((name.to_owned(), round(percent?).into()))).collect();
    form.insert("samples".to_owned(), latest.to_json());
    json(StatusCode::OK, &Value::Object(form))
}

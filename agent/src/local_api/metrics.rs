//! `/metrics`, `/metrics.json` and `/system`.

use super::json;
use crate::collect::{DiskSample, Latest, MemorySample};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use picket_telemetry::Metrics;
use picket_telemetry::metrics::{OPENMETRICS_CONTENT_TYPE, PROMETHEUS_CONTENT_TYPE};
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
    match preferred_form(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok())) {
        Form::Prometheus => {
            ([(header::CONTENT_TYPE, PROMETHEUS_CONTENT_TYPE)], api.metrics.prometheus()).into_response()
        }
        Form::OpenMetrics => {
            ([(header::CONTENT_TYPE, OPENMETRICS_CONTENT_TYPE)], api.metrics.openmetrics()).into_response()
        }
        Form::Json => json_form(&api.latest),
    }
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

/// The forms of `/metrics`.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    Prometheus,
    OpenMetrics,
    Json,
}

/// The first of the known forms that the client names; quality values do not matter between forms that say the same.
fn preferred_form(accept: Option<&str>) -> Form {
    for range in accept.unwrap_or_default().split(',') {
        match range.split(';').next().unwrap_or_default().trim() {
            "application/openmetrics-text" => return Form::OpenMetrics,
            "application/json" => return Form::Json,
            "text/plain" | "text/*" => return Form::Prometheus,
            _ => {}
        }
    }
    Form::Prometheus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_follows_what_the_client_accepts() {
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;q=0.3";
        assert_eq!(preferred_form(Some(prometheus_3)), Form::OpenMetrics);
        assert_eq!(preferred_form(Some("application/json")), Form::Json);
        assert_eq!(preferred_form(Some("text/html, */*")), Form::Prometheus);
        assert_eq!(preferred_form(None), Form::Prometheus);
    }
}

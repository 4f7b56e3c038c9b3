//! `/metrics` and `/system`.

use super::json;
use crate::collect::{DiskSample, Latest, NetworkSample, Sample, SystemFacts};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use picket_telemetry::Metrics;
use picket_telemetry::metrics::{OPENMETRICS_CONTENT_TYPE, PROMETHEUS_CONTENT_TYPE};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType::{self, Counter, Gauge};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::sync::Arc;

/// What the metrics routes need.
#[derive(Clone)]
pub(crate) struct MetricsApi {
    /// The registry.
    pub(crate) metrics: Arc<Metrics>,
    /// The latest sample, for the JSON form.
    pub(crate) latest: Latest,
    /// Facts of the machine.
    pub(crate) facts: Arc<SystemFacts>,
    /// The version that answers.
    pub(crate) agent_version: String,
}

impl MetricsApi {
    /// The routes of the metrics server.
    pub(crate) fn router(self) -> Router {
        Router::new().route("/metrics", get(metrics)).route("/system", get(system)).with_state(self)
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
        Form::Json => match api.latest.get() {
            Some(sample) => json(StatusCode::OK, &JsonMetrics::from(&sample)),
            None => json(
                StatusCode::SERVICE_UNAVAILABLE,
                &serde_json::json!({ "error": "the first sample is being taken" }),
            ),
        },
    }
}

async fn system(State(api): State<MetricsApi>) -> Response {
    let mut facts = serde_json::to_value(api.facts.as_ref()).unwrap_or_default();
    facts["agent_version"] = api.agent_version.into();
    json(StatusCode::OK, &facts)
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

/// The JSON form: percentages by short names, then the sample whole.
#[derive(serde::Serialize)]
struct JsonMetrics<'a> {
    /// CPU in use, percent.
    cpu: f64,
    /// Memory in use, percent.
    memory: f64,
    /// The fullest disk, percent.
    disk: f64,
    #[serde(flatten)]
    sample: &'a Sample,
}

impl<'a> From<&'a Sample> for JsonMetrics<'a> {
    fn from(sample: &'a Sample) -> Self {
        let round = |percent: f64| (percent * 10.0).round() / 10.0;
        Self {
            cpu: round(sample.cpu_percent),
            memory: round(sample.memory_percent()),
            disk: round(sample.disk_percent()),
            sample,
        }
    }
}

/// Turns the latest sample into metrics at each scrape.
#[derive(Debug)]
pub(crate) struct SystemCollector {
    /// The latest sample.
    pub(crate) latest: Latest,
}

impl Collector for SystemCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(sample) = self.latest.get() else { return Ok(()) };
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        gauge("system_cpu_usage_percent", "CPU time not idle, percent of all cores", None, sample.cpu_percent)?;
        gauge("system_load1", "Load average over one minute", None, sample.load[0])?;
        gauge("system_load5", "Load average over five minutes", None, sample.load[1])?;
        gauge("system_load15", "Load average over fifteen minutes", None, sample.load[2])?;
        let bytes = Some(&Unit::Bytes);
        gauge("system_memory_total", "Physical memory", bytes, sample.memory_total as f64)?;
        gauge("system_memory_used", "Memory not available to new programs", bytes, sample.memory_used as f64)?;
        gauge("system_swap_total", "Swap space", bytes, sample.swap_total as f64)?;
        gauge("system_swap_used", "Swap space in use", bytes, sample.swap_used as f64)?;

        let disks = |field: fn(&DiskSample) -> u64| {
            sample.disks.iter().map(move |disk| ([("mount", disk.mount.clone())], field(disk)))
        };
        let total = disks(|disk| disk.total);
        encode_each(&mut encoder, "system_disk_total", "Size of each writable file system", Gauge, total)?;
        let used = disks(|disk| disk.used);
        encode_each(&mut encoder, "system_disk_used", "Space not available to unprivileged writers", Gauge, used)?;

        let networks = |field: fn(&NetworkSample) -> u64| {
            sample.networks.iter().map(move |network| ([("interface", network.interface.clone())], field(network)))
        };
        let received = networks(|network| network.received);
        encode_each(&mut encoder, "system_network_received", "Bytes received by each interface", Counter, received)?;
        let sent = networks(|network| network.transmitted);
        encode_each(&mut encoder, "system_network_transmitted", "Bytes sent by each interface", Counter, sent)
    }
}

/// Encodes one metric in bytes with a sample for each labelled value.
fn encode_each(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    values: impl Iterator<Item = ([(&'static str, String); 1], u64)>,
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), kind)?;
    for (labels, value) in values {
        let sample = family.encode_family(&labels)?;
        match kind {
            MetricType::Counter => ConstCounter::new(value).encode(sample)?,
            _ => ConstGauge::new(value as f64).encode(sample)?,
        }
    }
    Ok(())
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

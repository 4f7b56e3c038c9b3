//! Durations of operations as Prometheus histograms, each of which appears when its operation first has.

use crate::metrics::Metrics;
use crate::operations::OperationRecord;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// The upper bounds of the buckets, in seconds: those of Prometheus' client libraries, and on to five minutes for what
/// runs long.
pub const BUCKETS: [f64; 15] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// The most label sets of one histogram; what is beyond is counted under `other`.
pub const MAX_LABEL_SETS: usize = 64;
/// The longest value of a label, in characters.
const MAX_VALUE: usize = 64;

/// An operation that has a histogram of its own beside `operation_duration_seconds`.
struct WellKnown {
    operation: &'static str,
    /// Without its unit.
    histogram: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
}

/// The operations with histograms of their own. Whoever writes such a span uses these names.
const WELL_KNOWN: [WellKnown; 4] = [
    WellKnown {
        operation: "heartbeat",
        histogram: "heartbeat_duration",
        help: "Time that heartbeats to the hub took",
        labels: &[],
    },
    WellKnown {
        operation: "job_execution",
        histogram: "job_execution_duration",
        help: "Time that jobs ran, by their type",
        labels: &["type"],
    },
    WellKnown {
        operation: "artifact_upload",
        histogram: "artifact_upload_duration",
        help: "Time that uploads of artifacts took",
        labels: &[],
    },
    WellKnown {
        operation: "api_request",
        histogram: "api_request_duration",
        help: "Time that requests to the hub took, by endpoint",
        labels: &["endpoint"],
    },
];

type LabelSet = Vec<(&'static str, String)>;

/// One histogram and the label sets it has.
struct Known {
    family: Family<LabelSet, Histogram, fn() -> Histogram>,
    seen: BTreeSet<LabelSet>,
}

/// A histogram of durations with [`BUCKETS`].
pub fn durations() -> Histogram {
    Histogram::new(BUCKETS)
}

/// The histograms of operations, in one registry.
pub struct OperationMetrics {
    metrics: Arc<Metrics>,
    known: Mutex<BTreeMap<&'static str, Known>>,
}

impl OperationMetrics {
    /// No histogram yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, known: Mutex::new(BTreeMap::new()) }
    }

    /// Counts an operation that is over.
    pub fn observe(&self, record: &OperationRecord) {
        let seconds = record.duration.as_secs_f64();
        let all = vec![("operation", record.name.clone()), ("success", record.success.to_string())];
        self.count("operation_duration", "Time that operations took, by name and success", all, seconds);
        for well_known in WELL_KNOWN.iter().filter(|known| known.operation == record.name) {
            let value = |label: &&'static str| {
                let found = record.labels.iter().find(|(name, _)| name == label);
                (*label, found.map_or_else(|| "unknown".to_owned(), |(_, value)| value.clone()))
            };
            let labels = well_known.labels.iter().map(value).collect();
            self.count(well_known.histogram, well_known.help, labels, seconds);
        }
    }

    fn count(&self, name: &'static str, help: &'static str, labels: LabelSet, seconds: f64) {
        let labels: LabelSet =
            labels.into_iter().map(|(name, value)| (name, value.chars().take(MAX_VALUE).collect())).collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry(name).or_insert_with(|| {
            let family = Family::new_with_constructor(durations as fn() -> Histogram);
            self.metrics.register_with_unit(name, help, Unit::Seconds, family.clone());
            Known { family, seen: BTreeSet::new() }
        });
        let room = known.seen.len() < MAX_LABEL_SETS || known.seen.contains(&labels);
        let labels = if room { labels } else { labels.into_iter().map(other).collect() };
        known.family.get_or_create(&labels).observe(seconds);
        if room {
            known.seen.insert(labels);
        }
    }
}

/// The label set of what is beyond the limit; success stays, it has two values.
fn other((name, value): (&'static str, String)) -> (&'static str, String) {
    if name == "success" { (name, value) } else { (name, "other".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn record(name: &str, labels: LabelSet) -> OperationRecord {
        OperationRecord {
            name: name.into(),
            duration: Duration::from_millis(20),
            success: true,
            error: None,
            labels,
            correlation_id: None,
        }
    }

    #[test]
    fn a_histogram_appears_with_its_first_operation_and_not_before() {
        let metrics = Arc::new(Metrics::new("jtnt_agent"));
        let operations = OperationMetrics::new(Arc::clone(&metrics));
        assert_eq!(metrics.prometheus(), "");
        operations.observe(&record("job_execution", vec![("type", "exec".into())]));
        let text = metrics.prometheus();
        for line in [
            "# HELP jtnt_agent_job_execution_duration_seconds Time that jobs ran, by their type.",
            "# TYPE jtnt_agent_job_execution_duration_seconds histogram",
            "jtnt_agent_job_execution_duration_seconds_bucket{le=\"0.025\",type=\"exec\"} 1",
            "jtnt_agent_job_execution_duration_seconds_count{type=\"exec\"} 1",
            "jtnt_agent_operation_duration_seconds_count{operation=\"job_execution\",success=\"true\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("heartbeat") && !text.contains("api_request"), "{text}");
    }

    #[test]
    fn the_names_are_those_that_were_asked_for() {
        let metrics = Arc::new(Metrics::new("jtnt_agent"));
        let operations = OperationMetrics::new(Arc::clone(&metrics));
        operations.observe(&record("heartbeat", vec![]));
        operations.observe(&record("artifact_upload", vec![]));
        operations.observe(&record("api_request", vec![("endpoint", "/api/v1/heartbeat".into())]));
        let text = metrics.prometheus();
        for name in [
            "jtnt_agent_heartbeat_duration_seconds_count 1",
            "jtnt_agent_artifact_upload_duration_seconds_count 1",
            "jtnt_agent_api_request_duration_seconds_count{endpoint=\"/api/v1/heartbeat\"} 1",
        ] {
            assert!(text.lines().any(|line| line == name), "{name} is not in\n{text}");
        }
    }

    #[test]
    fn label_sets_are_bounded() {
        let metrics = Arc::new(Metrics::new("p"));
        let operations = OperationMetrics::new(Arc::clone(&metrics));
        (0..1_000).for_each(|n| operations.observe(&record("api_request", vec![("endpoint", format!("/{n}"))])));
        let text = metrics.prometheus();
        let counts = text.lines().filter(|line| line.starts_with("p_api_request_duration_seconds_count")).count();
        assert_eq!(counts, MAX_LABEL_SETS + 1);
        assert!(text.contains("p_api_request_duration_seconds_count{endpoint=\"other\"} 936"), "{text}");
    }
}

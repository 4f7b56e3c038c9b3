//! The registry of metrics and its text forms.
//!
//! `prometheus-client` writes OpenMetrics 1.0. Prometheus' own text format (0.0.4), which `promtool check metrics` and
//! older scrapers read, differs in three points: a counter's `HELP` and `TYPE` lines carry the sample's name with
//! `_total`, there is no `UNIT` line and no `EOF` line, and `unknown` is called `untyped`. [`Metrics::prometheus`]
//! makes those changes line by line.

use prometheus_client::collector::Collector;
use prometheus_client::registry::{Registry, Unit};
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// The content type of [`Metrics::prometheus`].
pub const PROMETHEUS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The content type of [`Metrics::openmetrics`].
pub const OPENMETRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of one process, under one namespace.
pub struct Metrics {
    registry: Mutex<Registry>,
}

impl Metrics {
    /// An empty registry whose metric names begin with `namespace` and an underscore.
    pub fn new(namespace: &str) -> Self {
        Self { registry: Mutex::new(Registry::with_prefix(namespace)) }
    }

    /// Registers a metric. `help` is a sentence without its full stop, which the format adds.
    pub fn register(&self, name: &str, help: &str, metric: impl prometheus_client::registry::Metric) {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).register(name, help, metric);
    }

    /// Registers a metric with a unit, which becomes the end of its name (`_bytes`, `_seconds`).
    pub fn register_with_unit(
        &self,
        name: &str,
        help: &str,
        unit: Unit,
        metric: impl prometheus_client::registry::Metric,
    ) {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).register_with_unit(name, help, unit, metric);
    }

    /// Registers a collector: metrics that are made from a snapshot at each scrape.
    pub fn register_collector(&self, collector: impl Collector) {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).register_collector(Box::new(collector));
    }

    /// The metrics in OpenMetrics 1.0.
    pub fn openmetrics(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(
            &mut text,
            &self.registry.lock().unwrap_or_else(PoisonError::into_inner),
        );
        text
    }

    /// The metrics in Prometheus' text format 0.0.4.
    pub fn prometheus(&self) -> String {
        to_prometheus(&self.openmetrics())
    }
}

fn to_prometheus(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // Held back: only the TYPE line that follows tells whether the name needs its `_total`.
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let kind = if kind == "unknown" { "untyped" } else { kind };
            if let Some((_, text)) = help.take().filter(|(helped, _)| *helped == name) {
                let _ = writeln!(out, "# HELP {name}{suffix} {text}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            // A family of metrics without labels has an empty set of them, which is allowed and never written.
            match line.split_once('{') {
                Some((name, rest)) if rest.starts_with("} ") => out.extend([name, rest.trim_start_matches('}')]),
                _ => out.push_str(line),
            }
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    #[test]
    fn counters_are_named_as_prometheus_names_them() {
        let metrics = Metrics::new("picket_agent");
        let counter: Counter = Counter::default();
        counter.inc_by(3);
        metrics.register("update_attempts", "Updates tried", counter);
        let gauge: Gauge = Gauge::default();
        gauge.set(7);
        metrics.register_with_unit("memory_used", "Memory in use", Unit::Bytes, gauge);
        assert_eq!(
            metrics.prometheus(),
            "# HELP picket_agent_update_attempts_total Updates tried.\n\
             # TYPE picket_agent_update_attempts_total counter\n\
             picket_agent_update_attempts_total 3\n\
             # HELP picket_agent_memory_used_bytes Memory in use.\n\
             # TYPE picket_agent_memory_used_bytes gauge\n\
             picket_agent_memory_used_bytes 7\n"
        );
        assert!(metrics.openmetrics().ends_with("# EOF\n"));
    }
}

//! Alerts and their channels, as metrics at each scrape.

use crate::monitoring::{AlertReport, Monitoring};
use picket_protocol::event::AlertLevel;
use picket_telemetry::Scrape;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use std::fmt::Error;
use std::sync::Arc;

/// Turns what the monitor and the channels did into metrics.
pub(crate) struct AlertCollector {
    /// The monitor.
    pub(crate) monitoring: Arc<Monitoring>,
}

impl std::fmt::Debug for AlertCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AlertCollector")
    }
}

impl Collector for AlertCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        encode(&mut Scrape(encoder), &self.monitoring.alerts())
    }
}

fn encode(out: &mut Scrape<'_>, report: &AlertReport) -> Result<(), Error> {
    let open = |level| report.active.iter().filter(|alert| alert.level == level).count() as u64;
    let levels = [("warning", AlertLevel::Warning), ("critical", AlertLevel::Critical)];
    let levels = levels.map(|(word, level)| (vec![("level", word)], open(level)));
    out.family("alerts_open", "Alerts that are open", MetricType::Gauge, levels)?;

    let places: Vec<String> = report.channels.iter().map(|channel| channel.index.to_string()).collect();
    let deliveries = report.channels.iter().zip(&places).flat_map(|(channel, place)| {
        let outcomes = [("sent", channel.sent), ("failed", channel.failed), ("dropped", channel.dropped)];
        outcomes.map(|(outcome, count)| {
            (vec![("channel", place.as_str()), ("outcome", outcome), ("type", channel.kind)], count)
        })
    });
    let help = "Alert events by channel (its place in alerting.channels) and what became of them";
    out.family("alert_notifications", help, MetricType::Counter, deliveries)?;
    let failing = report.channels.iter().zip(&places);
    let failing =
        failing.map(|(channel, place)| (vec![("channel", place.as_str()), ("type", channel.kind)], channel.failing));
    let help = "Deliveries of a channel that failed since one succeeded";
    out.family("alert_channel_consecutive_failures", help, MetricType::Gauge, failing)?;
    let unusable = report.unusable.len() as f64;
    out.gauge("alert_channels_unusable", "Channels that cannot be used as they are configured", None, unusable)?;

    let counts = &report.counts;
    out.counter("monitor_samples", "Samples that the monitor took", counts.recorded)?;
    let refused = [
        ("not_finite", counts.refused_not_finite),
        ("too_long", counts.refused_too_long),
        ("too_many_series", counts.refused_series),
        ("too_many_alerts", counts.refused_alerts),
    ];
    let refused = refused.map(|(reason, count)| (vec![("reason", reason)], count));
    out.family("monitor_samples_refused", "Samples that the monitor refused, by reason", MetricType::Counter, refused)?;
    out.counter("monitor_groups_dropped", "Groups of samples that found the monitor's queue full", report.dropped)
}

//! Attempts to update, as a metric.

use crate::update_watch::UpdateAttempts;
use picket_telemetry::Scrape;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use std::fmt::Error;
use std::sync::Arc;

/// Turns the count of attempts into a metric.
#[derive(Debug)]
pub(crate) struct UpdateCollector {
    /// The attempts that the agent has seen.
    pub(crate) attempts: Arc<UpdateAttempts>,
}

impl Collector for UpdateCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let (success, error) = self.attempts.counts();
        let counts = [("success", success), ("error", error)].map(|(status, count)| (vec![("status", status)], count));
        let help = "Attempts to update that ended, by how; kept across restarts";
        Scrape(encoder).family("update_attempts", help, MetricType::Counter, counts)
    }
}

//! The way to the hub, as metrics at each scrape: under the names of the operations guide.

use crate::hub::state::{ROUND_TRIP_BOUNDS, RoundTrips, Snapshot, Standing};
use crate::hub::{Counts, HubWorks};
use picket_telemetry::Scrape;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::fmt::Error;
use std::sync::Arc;

/// Turns what the hub's thread knows into metrics.
pub(crate) struct HubCollector {
    /// The hub's thread.
    pub(crate) hub: Arc<HubWorks>,
}

impl std::fmt::Debug for HubCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HubCollector")
    }
}

impl Collector for HubCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        encode(&mut Scrape(encoder), &self.hub.state.snapshot(), &self.hub.certs.counts())
    }
}

fn encode(out: &mut Scrape<'_>, hub: &Snapshot, counts: &Counts) -> Result<(), Error> {
    let counter = MetricType::Counter;
    let outcomes = |success: u64, error: u64| {
        [("success", success), ("error", error)].map(|(status, count)| (vec![("status", status)], count))
    };
    let help = "Enrolments at a hub that were tried, by how they ended; kept across restarts";
    out.family("enrollment_attempts", help, counter, outcomes(counts.enrolled, counts.not_enrolled))?;
    let help = "Renewals of the certificate, by how they ended; kept across restarts";
    out.family("cert_rotation", help, counter, outcomes(counts.renewed, counts.not_renewed))?;
    if !matches!(hub.standing, Standing::Enrolled) {
        return Ok(());
    }
    let help = "Heartbeats, by whether the hub heard them";
    out.family("heartbeat", help, counter, outcomes(hub.heartbeats, hub.heartbeats_failed))?;
    let states = [("connected", hub.connected), ("disconnected", !hub.connected)];
    let states = states.map(|(status, holds)| (vec![("status", status)], u64::from(holds)));
    let help = "1 for the state that the connection with the hub is in";
    out.family("hub_connection_status", help, MetricType::Gauge, states)?;
    out.counter("hub_connections", "Connections with the hub that came about", hub.connects)?;
    let ends = hub.ends.iter().map(|(reason, count)| (vec![("reason", *reason)], *count));
    out.family("hub_disconnections", "Connections with the hub that ended, by reason", counter, ends)?;
    let configs = [("applied", hub.configs_taken), ("refused", hub.configs_refused)];
    let configs = configs.map(|(outcome, count)| (vec![("outcome", outcome)], count));
    out.family("hub_configurations", "Configurations that the hub gave, by what became of them", counter, configs)?;
    if let Some((_, at)) = hub.last_heard {
        let help = "When the hub heard the last heartbeat, in seconds since 1970";
        out.gauge("heartbeat_last_success_timestamp", help, None, at.as_second() as f64)?;
    }
    if let Some(certificate) = &hub.certificate {
        let help = "When the certificate ends, in seconds since 1970";
        out.gauge("cert_expiration_timestamp", help, None, certificate.not_after.as_second() as f64)?;
    }
    if let Some(ahead) = hub.clock_ahead_ms {
        let help = "How far the clock is ahead of the hub's";
        out.gauge("hub_clock_ahead", help, Some(&Unit::Seconds), ahead as f64 / 1000.0)?;
    }
    round_trips(out, &hub.round_trips)
}

fn round_trips(out: &mut Scrape<'_>, trips: &RoundTrips) -> Result<(), Error> {
    let help = "From a heartbeat until the hub had it stored";
    out.durations("heartbeat_duration", help, &ROUND_TRIP_BOUNDS, &trips.counts, trips.sum)
}

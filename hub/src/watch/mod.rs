//! How the hub is doing: its health, its metrics, and the local server that answers for both.
//!
//! | where | route | who may |
//! |---|---|---|
//! | `listen.health` (127.0.0.1:9092) | `/livez`, `/readyz`, `/health`, `/metrics` | whoever is on this machine |
//! | `listen.api` | `/livez`, `/readyz` | everybody: an orchestrator's probe |
//! | `listen.api` | `/health`, `/metrics` | who may `hub.read`: a Prometheus with a token |
//!
//! The local server has a thread and a runtime of its own: it answers when everything else is stuck, and says so.

mod checks;
mod collector;
mod requests;
mod server;

pub use checks::{Pulse, Seen};
pub use collector::HubCollector;
pub use requests::Requests;
pub(crate) use requests::measured;
pub(crate) use server::LocalServer;

pub(crate) use checks::run as look_after_health;

use crate::state::Hub;
use picket_localapi::{HealthApi, Readiness};
use picket_telemetry::{Health, Metrics};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::sync::Arc;
use std::time::Instant;

/// What all metrics of the hub begin with.
pub const NAMESPACE: &str = "picket_hub";

/// What of a hub is watched.
#[derive(Clone)]
pub struct Watched {
    /// The checks.
    pub health: Arc<Health>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Whether it serves.
    pub readiness: Readiness,
    /// When the process started.
    pub started: Instant,
    /// How long answers take.
    pub requests: Requests,
    /// Whether the event loop turns, and what was last seen of the database.
    pub pulse: Arc<Pulse>,
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            health: Arc::default(),
            metrics: Arc::new(Metrics::new(NAMESPACE)),
            readiness: Readiness::default(),
            started: Instant::now(),
            requests: Requests::default(),
            pulse: Arc::default(),
        }
    }
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("readiness", &self.readiness.word()).finish_non_exhaustive()
    }
}

impl Watched {
    /// Registers everything that there is to measure of `hub`.
    pub(crate) fn register(&self, hub: &Arc<Hub>) {
        let up = Family::<[(&str, String); 1], Gauge>::default();
        up.get_or_create(&[("version", hub.build.version.to_string())]).set(1);
        self.metrics.register("up", "1 while the hub runs, with its version", up);
        let start: Gauge = Gauge::default();
        start.set(hub.clock.now().as_second());
        self.metrics.register("start_time_seconds", "When the process started, in seconds since 1970", start);
        self.requests.register(&self.metrics);
        self.metrics.register(
            "processing_time_seconds",
            "Time that judging a run of events took",
            hub.judged.processing.clone(),
        );
        let help = "From when an event was received until the finding that it completes was stored";
        self.metrics.register("finding_delay_seconds", help, hub.judged.delay.clone());
        self.metrics.register_collector(HubCollector::new(hub));
        checks::register(hub);
    }

    /// What `/livez`, `/readyz` and `/health` need.
    pub(crate) fn api(&self, hub: &Hub) -> HealthApi {
        HealthApi {
            build: hub.build.clone(),
            agent_id: format!("hub-{}", hub.replica),
            started: self.started,
            health: Arc::clone(&self.health),
            readiness: self.readiness.clone(),
        }
    }
}

//! `/livez`, `/readyz` and `/health`: whether the process lives, whether it serves, and how it does.

use crate::json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use picket_protocol::{BuildInfo, LivezReport, OverallStatus};
use picket_telemetry::Health;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

/// What the health routes need.
#[derive(Clone)]
pub struct HealthApi {
    /// Which build answers.
    pub build: BuildInfo,
    /// Who answers: the agent's identity, or the hub's.
    pub agent_id: String,
    /// When the process started.
    pub started: Instant,
    /// The checks.
    pub health: Arc<Health>,
    /// Whether it serves.
    pub readiness: Readiness,
}

/// Whether the process serves: starting, ready, draining.
#[derive(Clone, Default)]
pub struct Readiness(Arc<AtomicU8>);

const READY: u8 = 1;
const DRAINING: u8 = 2;

impl Readiness {
    /// It serves from now on.
    pub fn ready(&self) {
        self.0.store(READY, Ordering::Relaxed);
    }

    /// It was told to stop.
    pub fn draining(&self) {
        self.0.store(DRAINING, Ordering::Relaxed);
    }

    /// The word for it: `starting`, `ready`, `draining`.
    pub fn word(&self) -> &'static str {
        match self.0.load(Ordering::Relaxed) {
            READY => "ready",
            DRAINING => "draining",
            _ => "starting",
        }
    }
}

impl HealthApi {
    /// The routes of the health server.
    pub fn router(self) -> Router {
        Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/health", get(health))
            .with_state(self)
    }

    /// `/livez` and `/readyz` alone: what an orchestrator may ask from elsewhere.
    pub fn probes(self) -> Router {
        Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).with_state(self)
    }

    /// The answer to `/health`.
    pub fn health(&self) -> Response {
        let report = self.health.report(&self.build, &self.agent_id, self.uptime());
        let status = match report.status {
            OverallStatus::Healthy => StatusCode::OK,
            OverallStatus::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
        };
        json(status, &report)
    }

    /// `/health` alone, for the metrics server.
    pub fn health_route(self) -> Router {
        Router::new().route("/health", get(health)).with_state(self)
    }

    fn uptime(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

async fn livez(State(api): State<HealthApi>) -> Response {
    let report = LivezReport {
        status: "alive".to_owned(),
        version: api.build.version.clone(),
        pid: std::process::id(),
        uptime_seconds: api.uptime(),
    };
    json(StatusCode::OK, &report)
}

async fn readyz(State(api): State<HealthApi>) -> Response {
    let word = api.readiness.word();
    let status = if word == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &serde_json::json!({ "status": word }))
}

async fn health(State(api): State<HealthApi>) -> Response {
    api.health()
}

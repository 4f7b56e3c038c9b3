//! The agent's life: `Config → build() → App → spawn() → drain on signal`.
//!
//! Three threads do the work. The *main* one runs the event loop: the metrics server, the watchdog's heartbeat, the
//! updater's published status. The *health* thread has a runtime of its own and serves `/livez`, `/readyz` and
//! `/health`, so that they answer when the main loop is stuck. The *collect* thread measures the machine and may block
//! on a dead disk without anybody waiting for it.

use crate::checks;
use crate::collect::{self, Latest, SystemFacts};
use crate::config::Config;
use crate::identity;
use crate::local_api::{HealthApi, MetricsApi, Readiness, Server, told_to_stop};
use crate::notify;
use picket_durable::{Lock, LockError};
use picket_protocol::update_status::{UPDATE_STATUS_MAX_BYTES, UpdateOutcome, UpdateStatus};
use picket_telemetry::{Finding, Health, Metrics};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How often the main loop shows that it turns.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How old the last turn may be: ten missed ones are no hiccup of a busy machine.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);
/// How often the updater's published status is read.
const UPDATE_STATUS_INTERVAL: Duration = Duration::from_secs(30);
/// From how many days before its expiry the release metadata warns.
const TRUST_WARN_DAYS: i64 = 14;

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Another agent of the same installation runs.
    #[error("another agent of this installation is running")]
    AlreadyRunning(#[source] LockError),
    /// Its lock's file cannot be opened.
    #[error("the state folder is not usable; `picket doctor` shows what is wrong with it")]
    Lock(#[source] LockError),
    /// Its state folder is missing or not writable.
    #[error("the state folder is not usable; `picket doctor` shows what is wrong with it")]
    State(#[from] picket_durable::Error),
    /// A thread or the event loop could not be had.
    #[error("cannot start the event loop")]
    Runtime(#[source] std::io::Error),
}

/// An agent that is built and holds its lock, but does nothing yet.
pub struct App {
    config: Config,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    latest: Latest,
    started: Instant,
    _lock: Lock,
}

/// A running agent.
pub struct Running {
    runtime: tokio::runtime::Runtime,
    app: App,
    stop: watch::Sender<bool>,
    readiness: Readiness,
    health_thread: JoinHandle<()>,
}

impl App {
    /// Takes the lock and sets up the registries.
    ///
    /// # Errors
    /// See [`BuildError`]. Nothing here looks at the network.
    pub fn build(config: Config) -> Result<Self, BuildError> {
        #[cfg(feature = "faults")]
        match crate::fault::built_in() {
            Some(crate::fault::Fault::Crash) => {
                return Err(BuildError::Runtime(std::io::Error::other(
                    "this build was made to crash (PICKET_BUILD_FAULT)",
                )));
            }
            Some(crate::fault::Fault::Hang) => crate::fault::stand_still(),
            _ => {}
        }
        let lock = Lock::acquire(&config.lock).map_err(|error| match error {
            LockError::Held { .. } => BuildError::AlreadyRunning(error),
            LockError::Io { .. } => BuildError::Lock(error),
        })?;
        note_state_format(&config)?;
        let app = Self {
            health: Arc::new(Health::default()),
            metrics: Arc::new(Metrics::new(&config.metrics.namespace)),
            latest: Latest::default(),
            started: Instant::now(),
            config,
            _lock: lock,
        };
        app.register();
        Ok(app)
    }

    fn register(&self) {
        let config = match self.config.config_warnings.as_slice() {
            [] => Finding::pass("every key is known and valid"),
            [one] => Finding::warn(one.clone()),
            [first, rest @ ..] => Finding::warn(format!("{first} (and {} more; see picket config check)", rest.len())),
        };
        self.health.set(checks::CONFIG, config);
        let (latest, interval, started) = (self.latest.clone(), self.config.collection_interval, self.started);
        self.health.probe(checks::COLLECTOR, move || collector_finding(&latest, interval, started));

        let up = prometheus_client::metrics::family::Family::<
            [(&'static str, String); 1],
            prometheus_client::metrics::gauge::Gauge,
        >::default();
        up.get_or_create(&[("version", self.config.build.version.to_string())]).set(1);
        self.metrics.register("up", "1 while the agent runs, with its version", up);
        let start_time: prometheus_client::metrics::gauge::Gauge = prometheus_client::metrics::gauge::Gauge::default();
        start_time.set(jiff::Timestamp::now().as_second());
        self.metrics.register("start_time_seconds", "When the process started, in seconds since 1970", start_time);
        self.metrics.register_collector(crate::local_api::SystemCollector { latest: self.latest.clone() });
    }

    /// Starts the threads and servers. Returns once the service manager has been told that the agent serves.
    ///
    /// # Errors
    /// Only when the system refuses a thread.
    pub fn spawn(self) -> Result<Running, BuildError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BuildError::Runtime)?;
        let (stop, stopped) = watch::channel(false);
        let readiness = Readiness::default();
        let api = HealthApi {
            build: self.config.build.clone(),
            agent_id: identity::agent_id(Path::new("/etc/machine-id")),
            started: self.started,
            health: Arc::clone(&self.health),
            readiness: readiness.clone(),
        };
        self.spawn_collector()?;
        let (bound, is_bound) = std::sync::mpsc::sync_channel(1);
        let health_thread = self.spawn_health(api.clone(), stopped.clone(), bound)?;
        self.spawn_main(&runtime, api, &stopped);

        readiness.ready();
        // A second is far more than a free port takes; a held one must not keep the agent from starting.
        let health_serves = is_bound.recv_timeout(Duration::from_secs(1)).is_ok();
        let address = self.config.health.listen.get();
        let status = if health_serves {
            format!("health on http://{address}/health")
        } else {
            "degraded: the health port is held".to_owned()
        };
        tracing::info!(version = %self.config.build.version, health = %address, metrics = %self.config.metrics.listen.get(), "the agent serves");
        notify::ready(&status);
        Ok(Running { runtime, app: self, stop, readiness, health_thread })
    }

    fn spawn_collector(&self) -> Result<(), BuildError> {
        let (latest, interval, health) =
            (self.latest.clone(), self.config.collection_interval, Arc::clone(&self.health));
        std::thread::Builder::new()
            .name("picket-collect".to_owned())
            .spawn(move || {
                collect::run(&latest, interval, |sample| health.set(checks::DISK_SPACE, sample.disk_finding()));
            })
            .map_err(BuildError::Runtime)?;
        Ok(())
    }

    fn spawn_health(
        &self,
        api: HealthApi,
        stopped: watch::Receiver<bool>,
        bound: std::sync::mpsc::SyncSender<()>,
    ) -> Result<JoinHandle<()>, BuildError> {
        let server = Server { name: "health", address: self.config.health.listen.get(), router: api.router() };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BuildError::Runtime)?;
        let drain_limit = self.config.drain_limit;
        std::thread::Builder::new()
            .name("picket-health".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    let mut stop = stopped.clone();
                    let binding = server.bind_with_patience(|failure| match failure {
                        Some(error) => {
                            tracing::error!("{error}");
                            notify::status(&format!("degraded: {error}"));
                        }
                        None => {
                            let _ = bound.try_send(());
                        }
                    });
                    tokio::select! {
                        server = binding => server.serve(stopped, drain_limit).await,
                        () = told_to_stop(&mut stop) => {}
                    }
                });
            })
            .map_err(BuildError::Runtime)
    }

    fn spawn_main(&self, runtime: &tokio::runtime::Runtime, api: HealthApi, stopped: &watch::Receiver<bool>) {
        let metrics = MetricsApi {
            metrics: Arc::clone(&self.metrics),
            latest: self.latest.clone(),
            facts: Arc::new(SystemFacts::gather()),
            agent_version: self.config.build.version.to_string(),
        };
        let server = Server {
            name: "metrics",
            address: self.config.metrics.listen.get(),
            router: metrics.router().merge(api.health_route()),
        };
        let (health, drain_limit, stop) = (Arc::clone(&self.health), self.config.drain_limit, stopped.clone());
        runtime.spawn(async move {
            let bound = server.bind_with_patience(|failure| match failure {
                Some(error) => health.set(checks::METRICS_SERVER, Finding::warn(error.to_string())),
                None => health.set(checks::METRICS_SERVER, Finding::pass("serving")),
            });
            bound.await.serve(stop, drain_limit).await;
        });
        runtime.spawn(heartbeat(&self.health));
        runtime.spawn(watch_update_status(Arc::clone(&self.health), self.config.update_status.clone()));
    }
}

impl Running {
    /// Runs until SIGTERM or SIGINT, then drains: stops accepting, lets open requests finish within the limit.
    ///
    /// # Errors
    /// Only when signals cannot be listened for.
    pub fn run_until_signal(self) -> Result<(), BuildError> {
        let Self { runtime, app, stop, readiness, health_thread } = self;
        #[cfg(feature = "faults")]
        match crate::fault::built_in() {
            Some(crate::fault::Fault::Stuck) => runtime.block_on(async { crate::fault::stand_still() }),
            Some(crate::fault::Fault::Flap) => {
                runtime.block_on(tokio::time::sleep(Duration::from_secs(1)));
                return Err(BuildError::Runtime(std::io::Error::other(
                    "this build was made to flap (PICKET_BUILD_FAULT)",
                )));
            }
            _ => {}
        }
        let reason = runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            Ok(tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            })
        });
        let reason = reason.map_err(BuildError::Runtime)?;
        tracing::info!(reason, limit = ?app.config.drain_limit, "draining");
        notify::stopping();
        readiness.draining();
        let began = Instant::now();
        let _ = stop.send(true);
        // The health thread ends when its own requests have; the main runtime's tasks get what is left of the limit.
        let _ = health_thread.join();
        runtime.shutdown_timeout(app.config.drain_limit.saturating_sub(began.elapsed()));
        tracing::info!(took = ?began.elapsed(), "stopped");
        Ok(())
    }
}

/// Notes which state format this version writes, for the updater of any version to read.
fn note_state_format(config: &Config) -> Result<(), picket_durable::Error> {
    let text = format!("{}\n", config.build.state_format.writes);
    let present = picket_durable::read_if_present(&config.state_format, 64)?;
    if present.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    picket_durable::write_atomic(&config.state_format, text.as_bytes(), 0o644)
}

fn collector_finding(latest: &Latest, interval: picket_config::Interval, started: Instant) -> Finding {
    #[cfg(feature = "faults")]
    if crate::fault::built_in() == Some(crate::fault::Fault::Unhealthy) {
        return Finding::fail("this build was made to be unhealthy (PICKET_BUILD_FAULT)");
    }
    latest.finding(interval, started)
}

/// Turns with the main loop: feeds the watchdog, and lets the health thread see how long the last turn is ago.
///
/// The check is there from the start, so that a loop that never turns at all is missed, too.
fn heartbeat(health: &Health) -> impl Future<Output = ()> + use<> {
    let epoch = Instant::now();
    let last_turn = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&last_turn);
    health.probe(checks::EVENT_LOOP, move || {
        let age = epoch.elapsed().saturating_sub(Duration::from_millis(seen.load(Ordering::Relaxed)));
        if age > HEARTBEAT_LIMIT {
            Finding::fail(format!("the event loop last turned {} s ago", age.as_secs()))
        } else {
            Finding::pass("turning")
        }
    });
    async move {
        let turn = notify::alive_interval().map_or(HEARTBEAT, |interval| interval.min(HEARTBEAT));
        loop {
            last_turn.store(u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
            if notify::alive_interval().is_some() {
                notify::alive();
            }
            tokio::time::sleep(turn).await;
        }
    }
}

/// Turns the updater's published status into health checks.
async fn watch_update_status(health: Arc<Health>, path: std::path::PathBuf) {
    loop {
        if let Some(status) = read_update_status(&path) {
            for (spec, finding) in update_findings(&status, jiff::Timestamp::now()) {
                health.set(spec, finding);
            }
        }
        tokio::time::sleep(UPDATE_STATUS_INTERVAL).await;
    }
}

fn read_update_status(path: &Path) -> Option<UpdateStatus> {
    let bytes = picket_durable::read_if_present(path, UPDATE_STATUS_MAX_BYTES).ok()??;
    serde_json::from_slice(&bytes).ok()
}

/// What the updater's status means for the agent's health.
fn update_findings(status: &UpdateStatus, now: jiff::Timestamp) -> Vec<(picket_telemetry::CheckSpec, Finding)> {
    let mut findings = Vec::new();
    if let Some(last) = &status.last {
        let text = format!("{} to {}: {}", last.from, last.to, last.reason);
        let finding = match last.outcome {
            UpdateOutcome::Committed => Finding::pass(text),
            UpdateOutcome::RolledBack | UpdateOutcome::Refused | UpdateOutcome::Interrupted => Finding::warn(text),
        };
        findings.push((checks::LAST_UPDATE, finding));
    }
    if let Some(trust) = &status.trust {
        let (role, expires) = trust.first();
        let days = expires.duration_since(now).as_secs() / 86_400;
        // The timestamp lives for two weeks by design and is renewed every day; it warns when it was not.
        let limit = if matches!(role, "timestamp" | "snapshot") { 3 } else { TRUST_WARN_DAYS };
        let finding = if expires < now {
            Finding::warn(format!("the release {role} metadata expired on {expires}; updates wait, the agent does not"))
        } else if days < limit {
            Finding::warn(format!("the release {role} metadata expires in {days} days"))
        } else {
            Finding::pass(format!("the release {role} metadata is valid until {expires}"))
        };
        findings.push((checks::UPDATE_TRUST, finding.figure("expires_in_days", days)));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::CheckStatus;
    use picket_protocol::update_status::TrustExpiry;

    #[test]
    fn expired_release_metadata_warns_and_never_fails() {
        let now: jiff::Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
        let finding = |root: &str| {
            let status = UpdateStatus {
                schema: 1,
                at: now,
                current: None,
                previous: None,
                running: None,
                last: None,
                available: None,
                last_check: None,
                trust: Some(TrustExpiry {
                    root: root.parse().unwrap(),
                    targets: None,
                    snapshot: None,
                    timestamp: None,
                }),
                pinned: None,
                held: vec![],
            };
            update_findings(&status, now).remove(0).1
        };
        assert_eq!(finding("2027-11-21T00:00:00Z").status, CheckStatus::Pass);
        assert_eq!(finding("2026-11-30T00:00:00Z").status, CheckStatus::Warn);
        let expired = finding("2026-11-20T00:00:00Z");
        assert_eq!(expired.status, CheckStatus::Warn);
        assert!(expired.message.contains("updates wait"), "{}", expired.message);
    }
}

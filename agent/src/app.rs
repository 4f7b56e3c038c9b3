//! The agent's life: `Config → build() → App → spawn() → drain on signal`.
//!
//! Four threads do the work. The *main* one runs the event loop: the metrics server, the watchdog's heartbeat, the
//! updater's published status. The *health* thread has a runtime of its own and serves `/livez`, `/readyz` and
//! `/health`, so that they answer when the main loop is stuck. The *collect* thread measures the machine; the *disks*
//! thread measures file systems, and may block on a dead one without anybody waiting for it.

use crate::checks;
use crate::collect::{Latest, Pace, Plan};
use crate::config::{Config, ProcessLog};
use crate::identity;
use crate::local_api::{
    AlertCollector, HubCollector, LedgerCollector, MetricsApi, RecordsApi, SystemCollector, UpdateCollector,
    WatchCollector,
};
use crate::notify;
use crate::reload::{CheckLayer, Load, Loaded};
use crate::update_watch::{UpdateAttempts, watch_update_status};
use crate::watchdog::Watch;
use crate::works::{Shared, Works};
use picket_durable::{Lock, LockError};
use picket_localapi::{HealthApi, Readiness, Server, correlation_header, told_to_stop};
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
    loaded: Loaded,
    load: Load,
    check: CheckLayer,
    log: ProcessLog,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    latest: Latest,
    pace: Pace,
    budget: Arc<Watch>,
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
    metrics_server: tokio::task::JoinHandle<()>,
    works: Works,
}

impl App {
    /// Takes the lock and sets up the registries. `check` says what would be wrong with a layer of the hub's.
    ///
    /// # Errors
    /// See [`BuildError`]. Nothing here looks at the network.
    pub fn build(loaded: Loaded, load: Load, check: CheckLayer, log: ProcessLog) -> Result<Self, BuildError> {
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
        let mut loaded = loaded;
        let config = &loaded.config;
        // An installation has made it; in a folder of one's own the agent needs no installation.
        picket_durable::create_dir(&config.state_dir, 0o700)?;
        let lock = Lock::acquire(&config.lock).map_err(|error| match error {
            LockError::Held { .. } => BuildError::AlreadyRunning(error),
            LockError::Io { .. } => BuildError::Lock(error),
        })?;
        note_state_format(config)?;
        let device_id = if config.device_id.is_empty() { agent_id() } else { config.device_id.clone() };
        name(&mut loaded.config, &device_id);
        // Whoever reads the configuration anew finds the same name in it: it changes at the next start only.
        let load: Load = Arc::new(move || {
            load().map(|mut loaded| {
                name(&mut loaded.config, &device_id);
                loaded
            })
        });
        let config = &loaded.config;
        let app = Self {
            health: Arc::new(Health::default()),
            metrics: Arc::new(Metrics::new(&config.metrics.namespace)),
            latest: Latest::default(),
            pace: Pace::new(Plan {
                settings: config.collect.clone(),
                default_interval: config.collection_interval,
                state_dir: config.state_dir.clone(),
            }),
            budget: Arc::new(Watch::new(config.limits.clone())),
            started: Instant::now(),
            loaded,
            load,
            check,
            log,
            _lock: lock,
        };
        app.register();
        Ok(app)
    }

    fn config(&self) -> &Config {
        &self.loaded.config
    }

    fn correlation(&self) -> axum::http::HeaderName {
        correlation_header(&self.config().correlation_header)
    }

    fn register(&self) {
        self.health.set(checks::CONFIG, checks::config_finding(&self.config().config_warnings));
        let (latest, pace, started) = (self.latest.clone(), self.pace.clone(), self.started);
        self.health.probe(checks::COLLECTOR, move || collector_finding(&latest, &pace, started));

        let up = prometheus_client::metrics::family::Family::<
            [(&'static str, String); 1],
            prometheus_client::metrics::gauge::Gauge,
        >::default();
        up.get_or_create(&[("version", self.config().build.version.to_string())]).set(1);
        self.metrics.register("up", "1 while the agent runs, with its version", up);
        let start_time: prometheus_client::metrics::gauge::Gauge = prometheus_client::metrics::gauge::Gauge::default();
        start_time.set(jiff::Timestamp::now().as_second());
        self.metrics.register("start_time_seconds", "When the process started, in seconds since 1970", start_time);
        let degradation = self.budget.degradation();
        self.metrics.register_collector(SystemCollector { latest: self.latest.clone(), degradation });
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
            build: self.config().build.clone(),
            agent_id: agent_id(),
            started: self.started,
            health: Arc::clone(&self.health),
            readiness: readiness.clone(),
        };
        let shared = Shared {
            health: Arc::clone(&self.health),
            metrics: Arc::clone(&self.metrics),
            latest: self.latest.clone(),
            pace: self.pace.clone(),
            budget: Arc::clone(&self.budget),
            started: self.started,
        };
        let works = Works::start(&shared, &self.loaded, (Arc::clone(&self.load), Arc::clone(&self.check)), &self.log)?;
        let (bound, is_bound) = std::sync::mpsc::sync_channel(1);
        let health_thread = self.spawn_health(api.clone(), stopped.clone(), bound)?;
        let metrics_server = self.spawn_main(&runtime, api, &works, &stopped);

        readiness.ready();
        // A second is far more than a free port takes; a held one must not keep the agent from starting.
        let health_serves = is_bound.recv_timeout(Duration::from_secs(1)).is_ok();
        let address = self.config().health.listen.get();
        let status = if health_serves {
            format!("health on http://{address}/health")
        } else {
            "degraded: the health port is held".to_owned()
        };
        tracing::info!(version = %self.config().build.version, health = %address, metrics = %self.config().metrics.listen.get(), "the agent serves");
        notify::ready(&status);
        Ok(Running { runtime, app: self, stop, readiness, health_thread, metrics_server, works })
    }

    fn spawn_health(
        &self,
        api: HealthApi,
        stopped: watch::Receiver<bool>,
        bound: std::sync::mpsc::SyncSender<()>,
    ) -> Result<JoinHandle<()>, BuildError> {
        let server = Server {
            name: "health",
            setting: "health.listen",
            address: self.config().health.listen.get(),
            router: api.router(),
            correlation: self.correlation(),
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BuildError::Runtime)?;
        let drain_limit = self.config().drain_limit;
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

    fn spawn_main(
        &self,
        runtime: &tokio::runtime::Runtime,
        api: HealthApi,
        works: &Works,
        stopped: &watch::Receiver<bool>,
    ) -> tokio::task::JoinHandle<()> {
        let metrics = MetricsApi {
            metrics: Arc::clone(&self.metrics),
            latest: self.latest.clone(),
            agent_version: self.config().build.version.to_string(),
        };
        let records = RecordsApi { kept: Arc::clone(&works.kept), monitoring: Arc::clone(&works.monitoring) };
        let ledger = LedgerCollector { kept: Arc::clone(&works.kept), pipeline: works.pipeline.clone() };
        self.metrics.register_collector(ledger);
        self.metrics.register_collector(AlertCollector { monitoring: Arc::clone(&works.monitoring) });
        self.metrics.register_collector(HubCollector { hub: Arc::clone(&works.hub) });
        if let Some(watching) = &works.watching {
            self.metrics.register_collector(WatchCollector { watching: Arc::clone(watching) });
        }
        let attempts = Arc::new(UpdateAttempts::open(&self.config().state_dir));
        self.metrics.register_collector(UpdateCollector { attempts: Arc::clone(&attempts) });
        let server = Server {
            name: "metrics",
            setting: "metrics.listen",
            address: self.config().metrics.listen.get(),
            router: metrics.router().merge(records.router()).merge(api.health_route()),
            correlation: self.correlation(),
        };
        let (health, drain_limit, stop) = (Arc::clone(&self.health), self.config().drain_limit, stopped.clone());
        let metrics_server = runtime.spawn(async move {
            let mut told = stop.clone();
            let binding = server.bind_with_patience(|failure| match failure {
                Some(error) => health.set(checks::METRICS_SERVER, Finding::warn(error.to_string())),
                None => health.set(checks::METRICS_SERVER, Finding::pass("serving")),
            });
            tokio::select! {
                server = binding => server.serve(stop, drain_limit).await,
                () = told_to_stop(&mut told) => {}
            }
        });
        runtime.spawn(heartbeat(&self.health));
        let status = self.config().update_status.clone();
        runtime.spawn(watch_update_status(Arc::clone(&self.health), attempts, status));
        metrics_server
    }
}

impl Running {
    /// Runs until SIGTERM or SIGINT, then drains: stops accepting, lets open requests finish within the limit.
    ///
    /// # Errors
    /// Only when signals cannot be listened for.
    pub fn run_until_signal(self) -> Result<(), BuildError> {
        let Self { runtime, app, stop, readiness, health_thread, metrics_server, works } = self;
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
            let mut hang_up = signal(SignalKind::hangup())?;
            loop {
                tokio::select! {
                    _ = terminate.recv() => return Ok("SIGTERM"),
                    _ = interrupt.recv() => return Ok("SIGINT"),
                    _ = hang_up.recv() => works.reload(),
                }
            }
        });
        let reason = reason.map_err(BuildError::Runtime)?;
        let drain_limit = app.loaded.config.drain_limit;
        tracing::info!(reason, limit = ?drain_limit, "draining");
        notify::stopping();
        readiness.draining();
        let began = Instant::now();
        let _ = stop.send(true);
        std::thread::scope(|scope| {
            // Requests turn only where somebody turns the main loop; the parts end meanwhile, on this thread.
            let serve = || runtime.block_on(async { tokio::time::timeout(drain_limit, metrics_server).await });
            let serving = std::thread::Builder::new().name("picket-drain".to_owned()).spawn_scoped(scope, serve);
            if let Err(error) = serving {
                tracing::warn!(%error, "requests to the metrics server are cut: the system gives no thread");
            }
            works.stop(drain_limit);
        });
        // The health thread ends when its own requests have; the main runtime's tasks get what is left of the limit.
        let _ = health_thread.join();
        runtime.shutdown_timeout(drain_limit.saturating_sub(began.elapsed()));
        tracing::info!(took = ?began.elapsed(), "stopped");
        Ok(())
    }
}

/// Gives a configuration the name that the agent started with.
fn name(config: &mut Config, device_id: &str) {
    device_id.clone_into(&mut config.device_id);
    device_id.clone_into(&mut config.monitor.device_id);
}

/// The agent's identity on a machine that no hub has named yet.
fn agent_id() -> String {
    identity::agent_id(Path::new("/etc/machine-id"))
}

/// Notes which state format this version writes, for the updater of any version to read.
///
/// A higher number stays: after a rollback the state is still in the newer version's form.
fn note_state_format(config: &Config) -> Result<(), picket_durable::Error> {
    let writes = config.build.state_format.writes;
    let present = picket_durable::read_if_present(&config.state_format, 64)?;
    let present = present.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse::<u32>().ok());
    if present.is_some_and(|present| present >= writes) {
        return Ok(());
    }
    picket_durable::write_atomic(&config.state_format, format!("{writes}\n").as_bytes(), 0o644)
}

fn collector_finding(latest: &Latest, pace: &Pace, started: Instant) -> Finding {
    #[cfg(feature = "faults")]
    if crate::fault::built_in() == Some(crate::fault::Fault::Unhealthy) {
        return Finding::fail("this build was made to be unhealthy (PICKET_BUILD_FAULT)");
    }
    latest.finding(|group| pace.interval(group), started)
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

//! What works all day behind the servers: collectors, monitor, watchers, the way of events, what is kept, and the
//! configuration that all of them follow.

use crate::app::BuildError;
use crate::checks;
use crate::collect::{Collectors, Group, Latest, OnSample, Pace, Sample, Taken};
use crate::communications::keep_attempts;
use crate::config::{Config, ProcessLog};
use crate::events::{Counters, Pipeline, PipelineConfig, Thrift};
use crate::hub::pushed::Effective;
use crate::hub::{HubWorks, Needs, Way};
use crate::keep::Kept;
use crate::monitoring::Monitoring;
use crate::reload::{
    Apply, Cause, Change, CheckLayer, InForce, KeyValue, Load, Loaded, Reloader, RestoreMark, changes, digest, files,
};
use crate::watch::{self, Watching};
use crate::watchdog::{Step, Watch};
use picket_protocol::event::{ConfigEvent, EventBody, Sink};
use picket_store::{Range, Table};
use picket_telemetry::{Finding, Health, LogControl, Metrics, OperationMetrics, OperationRecord};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How much of the drain limit deliveries may take.
const DELIVERY_DRAIN: Duration = Duration::from_secs(2);

/// What the parts share.
pub(crate) struct Shared {
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) latest: Latest,
    pub(crate) pace: Pace,
    pub(crate) budget: Arc<Watch>,
    pub(crate) started: Instant,
}

/// The parts, running.
pub(crate) struct Works {
    pub(crate) kept: Arc<Kept>,
    pub(crate) monitoring: Arc<Monitoring>,
    pub(crate) pipeline: Option<Arc<Pipeline>>,
    pub(crate) watching: Option<Arc<Watching>>,
    pub(crate) hub: Arc<HubWorks>,
    reloader: Reloader,
    collectors: Collectors,
}

impl Works {
    /// Starts all parts, in the order in which they need each other.
    pub(crate) fn start(
        shared: &Shared,
        loaded: &Loaded,
        (load, check): (Load, CheckLayer),
        log: &ProcessLog,
    ) -> Result<Self, BuildError> {
        let config = &loaded.config;
        let kept = Arc::new(Kept::open(config, &shared.health));
        let pipeline = match &kept.outbox {
            Some(outbox) => Some(Arc::new(
                Pipeline::start(pipeline_config(config), Arc::clone(outbox)).map_err(BuildError::Runtime)?,
            )),
            // Nobody could say what became of an event.
            None => None,
        };
        if let Some(pipeline) = &pipeline {
            let counters = Arc::clone(pipeline.counters());
            shared.health.probe(checks::EVENT_SINKS, move || sinks_finding(&counters));
        }
        let sink: Sink = match &pipeline {
            Some(pipeline) => pipeline.sink(),
            None => Arc::new(|_| {}),
        };
        let monitoring = Arc::new(
            Monitoring::start(config.monitor.clone(), Arc::clone(&sink), keep_attempts(&kept))
                .map_err(BuildError::Runtime)?,
        );
        let channels = Arc::clone(&monitoring);
        shared.health.probe(checks::ALERT_CHANNELS, move || channels.channel_finding());
        measure_operations(shared, &monitoring, log);
        keep_lines(&kept, log);
        let watching = match &pipeline {
            Some(pipeline) => {
                let watching = Arc::new(Watching::start(&config.watch, pipeline).map_err(BuildError::Runtime)?);
                watch::register(&shared.health, &watching);
                Some(watching)
            }
            None => None,
        };
        let collectors = start_collectors(shared, &kept, &monitoring, pipeline.as_ref(), watching.as_ref())?;
        note_start(&kept, loaded, &sink);
        let hub_slot: Arc<OnceLock<Arc<HubWorks>>> = Arc::default();
        let applier = Applier {
            hub: Arc::clone(&hub_slot),
            health: Arc::clone(&shared.health),
            pace: shared.pace.clone(),
            budget: Arc::clone(&shared.budget),
            kept: Arc::clone(&kept),
            monitoring: Arc::clone(&monitoring),
            pipeline: pipeline.clone(),
            watching: watching.clone(),
            sink,
            log: log.control.clone(),
            warnings: config.config_warnings.clone(),
            started: loaded.values.clone(),
            waiting: Vec::new(),
        };
        let effective = Effective { sha256: digest(&loaded.values), needs_restart: Vec::new() };
        let effective = Arc::new(Mutex::new(effective));
        let values = loaded.values.clone();
        let reloader = Reloader::start(&config.config_dir, values, load, Arc::clone(&effective), applier)
            .map_err(BuildError::Runtime)?;
        let hub = HubWorks::start(Needs {
            config: config.hub.clone(),
            build: config.build.clone(),
            update_status: config.update_status.clone(),
            health: Arc::clone(&shared.health),
            kept: Arc::clone(&kept),
            check,
            reload: reloader.asker(),
            effective,
            started: shared.started,
        });
        let hub = Arc::new(hub.map_err(BuildError::Runtime)?);
        let _ = hub_slot.set(Arc::clone(&hub));
        Ok(Self { kept, monitoring, pipeline, watching, hub, reloader, collectors })
    }

    /// Somebody asked for the configuration to be read anew.
    pub(crate) fn reload(&self) {
        self.reloader.signal();
    }

    /// Ends the parts, those that make events before those that keep them.
    pub(crate) fn stop(self, limit: Duration) {
        // It asks the reloader, and must not be waited on by it.
        self.hub.stop();
        self.reloader.stop();
        drop(self.collectors);
        if let Some(pipeline) = &self.pipeline {
            pipeline.stop_waiting();
        }
        if let Some(watching) = &self.watching {
            watching.stop();
        }
        self.monitoring.stop();
        if let Some(pipeline) = &self.pipeline {
            pipeline.stop();
        }
        let settled = self.kept.stop(limit.min(DELIVERY_DRAIN));
        if let Some(watching) = self.watching.filter(|_| settled) {
            watching.settled();
        }
    }
}

/// Whether the sinks beside the outbox take events.
fn sinks_finding(counters: &Counters) -> Finding {
    let ails = counters.sinks.all().into_iter().filter_map(|(name, tally)| Some(format!("{name}: {}", tally.ails()?)));
    let ails: Vec<String> = ails.collect();
    if ails.is_empty() { Finding::pass("every sink takes events") } else { Finding::warn(ails.join("; ")) }
}

/// The pipeline's part of a configuration.
fn pipeline_config(config: &Config) -> PipelineConfig {
    PipelineConfig {
        device_id: config.device_id.clone(),
        log_dir: config.log_dir.clone(),
        settings: config.events.clone(),
        resolve_names: config.watch.network.resolve_names,
    }
}

/// Lets the times of operations reach the histograms and the monitor.
fn measure_operations(shared: &Shared, monitoring: &Monitoring, log: &ProcessLog) {
    let histograms = OperationMetrics::new(Arc::clone(&shared.metrics));
    let feed = monitoring.feed_operations();
    log.listeners.take_operations(Box::new(move |record: &OperationRecord| {
        histograms.observe(record);
        feed(&record.name, record.duration, record.success);
    }));
}

/// Lets what the agent logs reach the store.
fn keep_lines(kept: &Arc<Kept>, log: &ProcessLog) {
    let Some(store) = kept.store.clone() else { return };
    log.listeners.take_lines(Box::new(move |line| {
        // A row that is refused is counted by the store. To log it would make another.
        let _ = store.append(Table::Logs, jiff::Timestamp::now(), line);
    }));
}

fn start_collectors(
    shared: &Shared,
    kept: &Arc<Kept>,
    monitoring: &Monitoring,
    pipeline: Option<&Arc<Pipeline>>,
    watching: Option<&Arc<Watching>>,
) -> Result<Collectors, BuildError> {
    let (health, budget, pace, started) =
        (Arc::clone(&shared.health), Arc::clone(&shared.budget), shared.pace.clone(), shared.started);
    let (kept, pipeline, feed) = (Arc::clone(kept), pipeline.cloned(), monitoring.feed());
    let watching = watching.cloned();
    let on_sample: OnSample = Arc::new(move |taken: &Arc<Taken>| {
        match &taken.sample {
            Sample::Disk(disk) => health.set(checks::DISK_SPACE, disk.finding()),
            Sample::Own(own) => {
                let verdict = budget.observe(started.elapsed(), own);
                pace.slow_down(verdict.step.interval_factor());
                if let Some(pipeline) = pipeline.as_ref().filter(|_| verdict.changed) {
                    pipeline.set_thrift(thrift(verdict.step));
                }
                health.set(checks::RESOURCES, verdict.finding());
                if let (Some(watching), Some(pipeline)) = (&watching, &pipeline) {
                    watching.try_again(&pipeline.sink());
                }
            }
            _ => {}
        }
        feed(taken);
        // The agent's look at itself is for its watchdog, every few seconds; it is no history worth a row.
        if taken.group() != Group::Own {
            kept.record(Table::Metrics, jiff::Timestamp::now(), taken.as_ref());
        }
    });
    Collectors::spawn(shared.pace.clone(), &shared.latest, &on_sample).map_err(BuildError::Runtime)
}

fn thrift(step: Step) -> Thrift {
    match step {
        Step::Normal | Step::Slow => Thrift::None,
        Step::Fold => Thrift::Fold,
        Step::Shed => Thrift::Shed,
    }
}

/// Notes the configuration that the agent starts with, unless it is the one it stopped with.
fn note_start(kept: &Kept, loaded: &Loaded, sink: &Sink) {
    let last = kept.store.as_ref().and_then(|store| store.reader().ok()).and_then(|reader| {
        // By id: a clock that was ahead must not make an old entry the newest.
        let newest = Range { newest_first: true, as_written: true, limit: Some(1), ..Range::default() };
        let row = reader.collect(Table::ConfigBackups, &newest).ok()?.pop()?;
        serde_json::from_slice::<InForce>(&row.payload).ok()
    });
    let changed = last.as_ref().map(|last| changes(&last.values, &loaded.values)).unwrap_or_default();
    if last.is_none() || !changed.is_empty() {
        note(kept, loaded, &changed, Cause::Start, sink);
    }
}

/// Notes a configuration that is in force from now on.
fn note(kept: &Kept, loaded: &Loaded, changed: &[Change], cause: Cause, sink: &Sink) {
    let at = jiff::Timestamp::now();
    let sha256 = digest(&loaded.values);
    let files = files(&loaded.files);
    let by = RestoreMark::take(&loaded.config.restore_mark, &files);
    let cause = if by.is_some() { Cause::Restore } else { cause };
    let record = InForce {
        at,
        cause,
        by,
        version: loaded.config.build.version.to_string(),
        sha256: sha256.clone(),
        values: loaded.values.clone(),
        files,
        changed: changed.to_vec(),
    };
    kept.record_durable(Table::ConfigBackups, at, &record);
    sink(EventBody::Config(ConfigEvent {
        timestamp: at,
        sha256,
        cause: cause.as_str().to_owned(),
        changed: changed.iter().map(|change| change.key.clone()).collect(),
        needs_restart: changed.iter().filter(|change| change.needs_restart).map(|change| change.key.clone()).collect(),
    }));
}

/// Hands a new configuration to all parts.
struct Applier {
    /// Started after the configuration is followed.
    hub: Arc<OnceLock<Arc<HubWorks>>>,
    health: Arc<Health>,
    pace: Pace,
    budget: Arc<Watch>,
    kept: Arc<Kept>,
    monitoring: Arc<Monitoring>,
    pipeline: Option<Arc<Pipeline>>,
    watching: Option<Arc<Watching>>,
    sink: Sink,
    log: LogControl,
    warnings: Vec<String>,
    /// What the agent started with.
    started: BTreeMap<String, KeyValue>,
    /// The keys that wait for the next start.
    waiting: Vec<String>,
}

impl Apply for Applier {
    fn apply(&mut self, loaded: &Loaded, changed: &[Change], cause: Cause) {
        let config = &loaded.config;
        let touched = |group: &str| changed.iter().any(|change| change.key.starts_with(group));
        self.pace.reload(config.collect.clone(), config.collection_interval);
        self.budget.reload(config.limits.clone());
        self.kept.configure(&config.keep);
        self.log.set_levels(&config.log);
        if let Some(hub) = self.hub.get().filter(|_| touched("uplink") || touched("network.")) {
            hub.configure(Way::of(&config.hub));
        }
        if ["thresholds", "alerting", "performance_monitoring", "smtp", "network."].iter().any(|group| touched(group)) {
            self.monitoring.configure(config.monitor.clone());
        }
        if let Some(pipeline) = &self.pipeline {
            pipeline.configure(pipeline_config(config));
            if let Some(watching) =
                self.watching.as_ref().filter(|_| touched("file_monitor") || touched("network_monitor"))
            {
                watching.configure(&config.watch, pipeline);
            }
        }
        note(&self.kept, loaded, changed, cause, &self.sink);
        self.warnings.clone_from(&config.config_warnings);
        let since_start = changes(&self.started, &loaded.values).into_iter();
        self.waiting = since_start.filter(|change| change.needs_restart).map(|change| change.key).collect();
        self.unchanged();
    }

    fn refuse(&mut self, problems: &[String]) {
        let first = problems.first().map_or("it cannot be read", String::as_str);
        let more = if problems.len() > 1 { format!(" (and {} more)", problems.len() - 1) } else { String::new() };
        let text = format!("the configuration on disk cannot be used; the one before stays in force: {first}{more}");
        self.health.set(checks::CONFIG, Finding::warn(text));
    }

    fn unchanged(&mut self) {
        let finding = if self.waiting.is_empty() {
            checks::config_finding(&self.warnings)
        } else {
            let keys = self.waiting.join(", ");
            Finding::warn(format!("takes effect at the next start (`picket service restart`): {keys}"))
        };
        self.health.set(checks::CONFIG, finding);
    }
}

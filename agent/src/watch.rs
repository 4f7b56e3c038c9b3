//! Watching files and connections: through the sensor process where there is one, in this process otherwise.
//!
//! Both ways are the same code behind the same sink. The sensor has the privilege to see more; without it the agent sees
//! what its user may see. `/health` says which (`files`, `network`), and a warning there says what would change it.

use crate::checks;
use crate::config::WatchConfig;
use crate::events::Pipeline;
use crate::keep::told;
use picket_filewatch::FileWatcher;
use picket_netwatch::NetWatcher;
use picket_protocol::event::{EventBody, GapEvent, GapReason, Sink};
use picket_protocol::{Sight, SightLevel};
use picket_sensorlink::{Backoff, ClientOptions, ClientStatus, Link, SensorClient};
use picket_telemetry::{CheckSpec, Finding, Health};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The mark that somebody watches and has not handed on everything.
const UNSETTLED: &str = "unsettled";

/// What watches for this agent.
pub(crate) struct Watching {
    mode: Mutex<Option<Mode>>,
    /// Held by whoever begins or ends watchers: two at a time would work on one baseline.
    changing: Mutex<()>,
    /// Where it says that this process watches, if it does.
    mark: Option<PathBuf>,
}

/// What those who watch counted: in this process, or on the way from the sensor.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    pub(crate) files: Option<picket_filewatch::Counters>,
    pub(crate) network: Option<picket_netwatch::Counters>,
    pub(crate) sensor: Option<ClientStatus>,
}

enum Mode {
    /// Another process, with the privilege to see more.
    Sensor(SensorClient),
    /// This process.
    Own(Box<Own>),
}

/// The watchers of this process. One that could not begin is tried again from time to time.
struct Own {
    config: WatchConfig,
    files: Result<FileWatcher, String>,
    network: Result<NetWatcher, String>,
    retry: Instant,
}

/// How often a watcher that could not begin is tried again.
const AGAIN: Duration = Duration::from_secs(60);

impl Watching {
    /// Begins to watch as `config` says.
    pub(crate) fn start(config: &WatchConfig, pipeline: &Arc<Pipeline>) -> std::io::Result<Self> {
        let mode = match &config.sensor {
            Some(sensor) => {
                let options = ClientOptions {
                    socket: sensor.socket.clone(),
                    mark: sensor.mark.clone(),
                    program: config.program.clone(),
                    backoff: Backoff::default(),
                };
                let deliver = pipeline.deliverer();
                Mode::Sensor(SensorClient::start(options, move |events| deliver(events).map_err(Into::into))?)
            }
            None => {
                tell_what_a_kill_took(config, &pipeline.sink());
                Mode::Own(Box::new(Own::start(config, &pipeline.sink())))
            }
        };
        let mark = config.sensor.is_none().then(|| config.state_dir.join(UNSETTLED));
        Ok(Self { mode: Mutex::new(Some(mode)), changing: Mutex::new(()), mark })
    }

    /// Watches as `config` says from now on. The sensor reads the same configuration by itself.
    pub(crate) fn configure(&self, config: &WatchConfig, pipeline: &Arc<Pipeline>) {
        let _changing = self.changing();
        let old = {
            let mut mode = self.mode();
            if matches!(*mode, Some(Mode::Own(_))) { mode.take() } else { return }
        };
        // The old one ends first: both would work on one baseline. Without the lock, for `/health` looks here meanwhile.
        end(old);
        let new = Own::start(config, &pipeline.sink());
        *self.mode() = Some(Mode::Own(Box::new(new)));
    }

    /// Tries watchers of this process again that could not begin, if it is time. To be called every few seconds.
    pub(crate) fn try_again(&self, sink: &Sink) {
        let _changing = self.changing();
        let (config, files, network) = match &mut *self.mode() {
            Some(Mode::Own(own)) if (own.files.is_err() || own.network.is_err()) && own.retry <= Instant::now() => {
                own.retry = Instant::now() + AGAIN;
                (own.config.clone(), own.files.is_err(), own.network.is_err())
            }
            _ => return,
        };
        // Without the lock, for `/health` looks here meanwhile.
        let files = files.then(|| start_files(&config, sink));
        let network = network.then(|| start_network(&config, sink));
        if let Some(Mode::Own(own)) = &mut *self.mode() {
            if let Some(files) = files {
                own.files = files;
            }
            if let Some(network) = network {
                own.network = network;
            }
        }
    }

    /// What was counted.
    pub(crate) fn watched(&self) -> Watched {
        match &*self.mode() {
            None => Watched::default(),
            Some(Mode::Sensor(client)) => Watched { sensor: Some(client.status()), ..Watched::default() },
            Some(Mode::Own(own)) => Watched {
                files: own.files.as_ref().ok().map(FileWatcher::counters),
                network: own.network.as_ref().ok().map(NetWatcher::counters),
                sensor: None,
            },
        }
    }

    /// How much is seen.
    pub(crate) fn sights(&self) -> Vec<Sight> {
        match &*self.mode() {
            None => Vec::new(),
            Some(Mode::Sensor(client)) => sensor_sights(client),
            Some(Mode::Own(own)) => {
                let files = own.files.as_ref().map_or_else(|error| blind("files", error), FileWatcher::sight);
                let network = own.network.as_ref().map_or_else(|error| blind("network", error), NetWatcher::sight);
                vec![files, network]
            }
        }
    }

    /// Ends it; what was seen has been handed on when this returns.
    pub(crate) fn stop(&self) {
        let _changing = self.changing();
        let mode = self.mode().take();
        end(mode);
    }

    /// Everything that was handed on is durable: nothing is missing when the next agent begins.
    pub(crate) fn settled(&self) {
        if let Some(mark) = &self.mark
            && let Err(error) = picket_durable::remove_if_present(mark)
        {
            tracing::debug!(%error, "the next start will tell of a gap that there is not");
        }
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mode(&self) -> MutexGuard<'_, Option<Mode>> {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the watchers of this process saw is in memory for a moment before it is in the books. A mark says that somebody
/// watched; whoever finds it at the start knows that the one before was killed with what it held.
fn tell_what_a_kill_took(config: &WatchConfig, sink: &Sink) {
    let mark = config.state_dir.join(UNSETTLED);
    if mark.exists() {
        sink(EventBody::Gap(GapEvent {
            timestamp: jiff::Timestamp::now(),
            reason: GapReason::ProcessLost,
            source: "agent".to_owned(),
            count: None,
            since: None,
            detail: "the agent before was killed with what it had seen and not yet stored".to_owned(),
        }));
    }
    let marked = picket_durable::create_dir(&config.state_dir, 0o700)
        .and_then(|_| picket_durable::write_atomic(&mark, b"", 0o600));
    if let Err(error) = marked {
        tracing::warn!(error = told(&error), "should this agent be killed, the next one will not know");
    }
}

fn end(mode: Option<Mode>) {
    match mode {
        None => {}
        Some(Mode::Sensor(client)) => client.stop(),
        Some(Mode::Own(own)) => {
            if let Ok(files) = own.files {
                files.stop();
            }
            if let Ok(network) = own.network {
                network.stop();
            }
        }
    }
}

impl Own {
    fn start(config: &WatchConfig, sink: &Sink) -> Self {
        let (files, network) = (start_files(config, sink), start_network(config, sink));
        Self { config: config.clone(), files, network, retry: Instant::now() + AGAIN }
    }
}

fn start_files(config: &WatchConfig, sink: &Sink) -> Result<FileWatcher, String> {
    let options = picket_filewatch::Options {
        settings: config.files.clone(),
        state_dir: config.state_dir.clone(),
        own: config.own.clone(),
        privileged: picket_filewatch::Privileged::Auto,
        ignore_self: true,
    };
    let started = picket_durable::create_dir(&config.state_dir, 0o700)
        .map_err(|error| told(&error))
        .and_then(|_| FileWatcher::start(options, Arc::clone(sink)).map_err(|error| told(&error)));
    started.inspect_err(|detail| tracing::error!(source = "files", detail, "nothing is watched; it is tried again"))
}

fn start_network(config: &WatchConfig, sink: &Sink) -> Result<NetWatcher, String> {
    let started = NetWatcher::start(&config.network.clone().into(), Arc::clone(sink)).map_err(|error| told(&error));
    started.inspect_err(|detail| tracing::error!(source = "network", detail, "nothing is watched; it is tried again"))
}

/// What a watcher that could not begin sees.
fn blind(source: &str, detail: &str) -> Sight {
    Sight { source: source.to_owned(), level: SightLevel::Blind, method: String::new(), detail: detail.to_owned() }
}

/// What the sensor sees; while it is away, nothing.
fn sensor_sights(client: &SensorClient) -> Vec<Sight> {
    let status = client.status();
    match status.link {
        Link::Connected { .. } => status.sights,
        Link::Waiting { since, reason } => {
            let reason = if reason.is_empty() { "not connected yet".to_owned() } else { reason };
            let detail = format!(
                "the sensor is away since {since} ({reason}); see `picket service status`. What happens meanwhile is kept \
                 by it, or found as a difference when it is back"
            );
            let sight = |source: &str| Sight {
                source: source.to_owned(),
                level: SightLevel::Blind,
                method: "sensor".to_owned(),
                detail: detail.clone(),
            };
            vec![sight("files"), sight("network")]
        }
    }
}

/// Lets `health` ask how much is seen.
pub(crate) fn register(health: &Health, watching: &Arc<Watching>) {
    for (spec, source) in [(checks::FILES, "files"), (checks::NETWORK, "network")] {
        let watching = Arc::clone(watching);
        health.probe(spec, move || {
            let sight = watching.sights().into_iter().find(|sight| sight.source == source);
            finding(spec, sight.as_ref())
        });
    }
}

fn finding(spec: CheckSpec, sight: Option<&Sight>) -> Finding {
    let Some(sight) = sight else { return Finding::warn(format!("nothing is known of {}", spec.code)) };
    let by = if sight.method.is_empty() { String::new() } else { format!(" by {}", sight.method) };
    let because = if sight.detail.is_empty() { String::new() } else { format!(": {}", sight.detail) };
    let finding = match sight.level {
        SightLevel::Full => Finding::pass(format!("seen{by}{because}")),
        SightLevel::Off => Finding::pass("not watched; nothing is configured"),
        SightLevel::Reduced => Finding::warn(format!("seen in part{by}{because}")),
        SightLevel::Blind => Finding::warn(format!("not seen{because}")),
    };
    finding
        .figure("level", serde_json::to_value(sight.level).unwrap_or_default())
        .figure("method", sight.method.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_filewatch::{FileMonitorSettings, WatchPath};
    use picket_netwatch::NetworkMonitorSettings;

    #[test]
    fn a_watcher_that_could_not_begin_begins_once_what_was_in_its_way_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("files");
        picket_durable::write_atomic(&state_dir, b"a file where a folder is wanted", 0o600).unwrap();
        let config = WatchConfig {
            files: FileMonitorSettings { paths: vec![WatchPath::new(dir.path()).unwrap()], ..Default::default() },
            network: NetworkMonitorSettings { enabled: false, ..Default::default() },
            state_dir: state_dir.clone(),
            own: Vec::new(),
            sensor: None,
            program: "test".into(),
        };
        let sink: Sink = Arc::new(|_| {});
        let own = Own::start(&config, &sink);
        let watching =
            Watching { mode: Mutex::new(Some(Mode::Own(Box::new(own)))), changing: Mutex::new(()), mark: None };
        let begun = |watching: &Watching| watching.watched().files.is_some();
        assert_eq!((begun(&watching), watching.sights()[0].level), (false, SightLevel::Blind));
        std::fs::remove_file(&state_dir).unwrap();
        watching.try_again(&sink);
        assert!(!begun(&watching), "not that soon");
        if let Some(Mode::Own(own)) = &mut *watching.mode() {
            own.retry = Instant::now();
        }
        watching.try_again(&sink);
        assert!(begun(&watching));
        watching.stop();
    }
}

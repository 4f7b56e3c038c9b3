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

/// The mark that somebody watches and has not handed on everything.
const UNSETTLED: &str = "unsettled";

/// What watches for this agent.
pub(crate) struct Watching {
    mode: Mutex<Option<Mode>>,
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
    Own { files: Option<FileWatcher>, network: Option<NetWatcher>, failures: Vec<Sight> },
}

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
                own(config, &pipeline.sink())
            }
        };
        let mark = config.sensor.is_none().then(|| config.state_dir.join(UNSETTLED));
        Ok(Self { mode: Mutex::new(Some(mode)), mark })
    }

    /// Watches as `config` says from now on. The sensor reads the same configuration by itself.
    pub(crate) fn configure(&self, config: &WatchConfig, pipeline: &Arc<Pipeline>) {
        let old = {
            let mut mode = self.mode();
            if matches!(*mode, Some(Mode::Own { .. })) { mode.take() } else { return }
        };
        // The old one ends first: both would work on one baseline. Without the lock, for `/health` looks here meanwhile.
        end(old);
        let new = own(config, &pipeline.sink());
        *self.mode() = Some(new);
    }

    /// What was counted.
    pub(crate) fn watched(&self) -> Watched {
        match &*self.mode() {
            None => Watched::default(),
            Some(Mode::Sensor(client)) => Watched { sensor: Some(client.status()), ..Watched::default() },
            Some(Mode::Own { files, network, .. }) => Watched {
                files: files.as_ref().map(FileWatcher::counters),
                network: network.as_ref().map(NetWatcher::counters),
                sensor: None,
            },
        }
    }

    /// How much is seen.
    pub(crate) fn sights(&self) -> Vec<Sight> {
        match &*self.mode() {
            None => Vec::new(),
            Some(Mode::Sensor(client)) => sensor_sights(client),
            Some(Mode::Own { files, network, failures }) => {
                let sights = files.iter().map(FileWatcher::sight).chain(network.iter().map(NetWatcher::sight));
                sights.chain(failures.iter().cloned()).collect()
            }
        }
    }

    /// Ends it; what was seen has been handed on when this returns.
    pub(crate) fn stop(&self) {
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
        Some(Mode::Own { files, network, .. }) => {
            if let Some(files) = files {
                files.stop();
            }
            if let Some(network) = network {
                network.stop();
            }
        }
    }
}

fn own(config: &WatchConfig, sink: &Sink) -> Mode {
    let mut failures = Vec::new();
    let mut blind = |source: &str, detail: String| {
        tracing::error!(source, detail, "nothing is watched");
        let (level, method) = (SightLevel::Blind, String::new());
        failures.push(Sight { source: source.to_owned(), level, method, detail });
    };
    let options = picket_filewatch::Options {
        settings: config.files.clone(),
        state_dir: config.state_dir.clone(),
        own: config.own.clone(),
        privileged: picket_filewatch::Privileged::Auto,
        ignore_self: true,
    };
    let files = picket_durable::create_dir(&config.state_dir, 0o700)
        .map_err(|error| told(&error))
        .and_then(|_| FileWatcher::start(options, Arc::clone(sink)).map_err(|error| told(&error)));
    let files = files.map_err(|error| blind("files", error)).ok();
    let network = NetWatcher::start(&config.network.clone().into(), Arc::clone(sink));
    let network = network.map_err(|error| blind("network", told(&error))).ok();
    Mode::Own { files, network, failures }
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

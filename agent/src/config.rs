//! What the agent needs to know to run.

use crate::collect::CollectSettings;
use crate::events::EventSettings;
use crate::hub::UplinkSettings;
use crate::watchdog::LimitSettings;
use picket_config::{Interval, LoopbackAddr};
use picket_filewatch::FileMonitorSettings;
use picket_monitor::{AlertingSettings, PerformanceSettings, SmtpSettings, Thresholds};
use picket_netwatch::NetworkMonitorSettings;
use picket_outbox::OutboxSettings;
use picket_protocol::BuildInfo;
use picket_store::DataSettings;
use picket_telemetry::{Listeners, LogControl, LogOptions, OperationRecord};
use picket_transport::{Network, ProxyChoice};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

picket_config::settings! {
    /// The health server.
    pub struct HealthSettings {
        /// Where `/livez`, `/readyz` and `/health` are served: an address of this machine only.
        pub listen: LoopbackAddr = LoopbackAddr::port(9091),
    }
}

picket_config::settings! {
    /// The metrics server.
    pub struct MetricsSettings {
        /// Where `/metrics`, `/metrics.json` and `/system` are served: an address of this machine only.
        pub listen: LoopbackAddr = LoopbackAddr::port(9090),
        /// What every metric's name begins with. `jtnt_agent` gives the names of the operations guide.
        pub namespace: String = "picket_agent".to_owned(),
    }
}

/// Everything resolved: what `agent run` starts with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which build this is.
    pub build: BuildInfo,
    /// The lock that keeps the agent single.
    pub lock: PathBuf,
    /// The agent's own state.
    pub state_dir: PathBuf,
    /// Where the format of that state is noted for the updater.
    pub state_format: PathBuf,
    /// Where the updater publishes its status.
    pub update_status: PathBuf,
    /// What is logged, and how.
    pub log: LogOptions,
    /// The header in which requests to the local servers bring a correlation id.
    pub correlation_header: String,
    /// The health server.
    pub health: HealthSettings,
    /// The metrics server.
    pub metrics: MetricsSettings,
    /// How often the machine is measured.
    pub collection_interval: Interval,
    /// What is measured, and what has an interval of its own.
    pub collect: CollectSettings,
    /// What the agent may use of its machine.
    pub limits: LimitSettings,
    /// How long open requests may take once the agent was told to stop.
    pub drain_limit: Duration,
    /// Who reports; empty is the agent's id.
    pub device_id: String,
    /// The folder of logs.
    pub log_dir: PathBuf,
    /// The folder whose files are the configuration.
    pub config_dir: PathBuf,
    /// Where `picket config restore` says who restored what.
    pub restore_mark: PathBuf,
    /// The way of events.
    pub events: EventSettings,
    /// What is kept.
    pub keep: KeepConfig,
    /// The hub.
    pub hub: HubConfig,
    /// What is watched.
    pub watch: WatchConfig,
    /// Thresholds, alerts, channels.
    pub monitor: MonitorConfig,
    /// What is wrong with the configuration, though not wrong enough to keep the agent from starting.
    pub config_warnings: Vec<String>,
}

/// The hub: where what is known of it lies, and how it is reached.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The folder of the identity.
    pub certs_dir: PathBuf,
    /// Where the configuration that the hub gave is kept.
    pub layer: PathBuf,
    /// Where the sensor sees it.
    pub published_layer: PathBuf,
    /// Where it is noted from which stream on the hub has everything.
    pub stream_note: PathBuf,
    /// How requests introduce themselves.
    pub user_agent: String,
    /// What an operator set.
    pub uplink: UplinkSettings,
    /// The proxy of all requests.
    pub proxy: ProxyChoice,
}

/// What is kept, and where.
#[derive(Debug, Clone)]
pub struct KeepConfig {
    /// The store's folder.
    pub store_dir: PathBuf,
    /// The key file of store and outbox.
    pub store_key: PathBuf,
    /// The outbox' folder.
    pub outbox_dir: PathBuf,
    /// How much is kept, for how long.
    pub data: DataSettings,
    /// The queue and its delivery.
    pub outbox: OutboxSettings,
}

/// What is watched, and by whom.
#[derive(Debug, Clone)]
pub struct WatchConfig {
    /// Files.
    pub files: FileMonitorSettings,
    /// Connections.
    pub network: NetworkMonitorSettings,
    /// Where the baseline of files lies while this process watches.
    pub state_dir: PathBuf,
    /// Files and folders that this process writes; they are not watched.
    pub own: Vec<PathBuf>,
    /// The sensor process, where there is one; without it, this process watches.
    pub sensor: Option<SensorLink>,
    /// The program's version.
    pub program: String,
}

/// The way to the sensor.
#[derive(Debug, Clone)]
pub struct SensorLink {
    /// Its socket.
    pub socket: PathBuf,
    /// Where it is noted how far the agent got.
    pub mark: PathBuf,
}

/// Thresholds, alerts and who hears of them.
#[derive(Debug, Clone)]
pub struct MonitorConfig {
    /// Who reports.
    pub device_id: String,
    /// The machine's name.
    pub hostname: String,
    /// How requests introduce themselves.
    pub user_agent: String,
    /// How web hooks are reached.
    pub network: Network,
    /// The folder where people leave acknowledgements.
    pub acks: PathBuf,
    /// Where the alerts that are open are kept for the agent that comes after.
    pub memory: PathBuf,
    /// The rings.
    pub performance: PerformanceSettings,
    /// The thresholds.
    pub thresholds: Thresholds,
    /// The channels.
    pub alerting: AlertingSettings,
    /// The mail server.
    pub smtp: SmtpSettings,
}

/// What hears the log of this process before there is an agent, and hands it to the agent once there is one.
#[derive(Clone, Default)]
pub struct ListenerSlot {
    operations: Arc<OnceLock<TakeOperation>>,
    lines: Arc<OnceLock<TakeLine>>,
}

type TakeOperation = Box<dyn Fn(&OperationRecord) + Send + Sync>;
type TakeLine = Box<dyn Fn(&str) + Send + Sync>;

impl ListenerSlot {
    /// For the log of this process. What it says before there is an agent is in the log and nowhere else.
    pub fn listeners(&self) -> Listeners {
        let (operations, lines) = (Arc::clone(&self.operations), Arc::clone(&self.lines));
        Listeners {
            operations: Some(Arc::new(move |record| {
                if let Some(take) = operations.get() {
                    take(record);
                }
            })),
            lines: Some(Arc::new(move |line| {
                if let Some(take) = lines.get() {
                    take(line);
                }
            })),
        }
    }

    // The first agent of a process is its only one.

    pub(crate) fn take_operations(&self, take: TakeOperation) {
        let _ = self.operations.set(take);
    }

    pub(crate) fn take_lines(&self, take: TakeLine) {
        let _ = self.lines.set(take);
    }
}

/// The log of this process, as the agent uses it.
#[derive(Clone)]
pub struct ProcessLog {
    /// What the agent hears of it.
    pub listeners: ListenerSlot,
    /// Its levels.
    pub control: LogControl,
}

//! From arguments, file and environment to one resolved answer: which installation, which configuration.

pub(crate) mod hub;
mod scope;

pub(crate) use scope::layout;

use crate::cli::ConfigArgs;
use crate::error::CommandError;
use crate::process::Process;
use picket_agent::hub::UplinkSettings;
use picket_agent::hub::pushed::Layer;
use picket_agent::reload::KeyValue;
use picket_agent::{CollectSettings, EventSettings, HealthSettings, LimitSettings, MetricsSettings};
use picket_config::{Effective, Gravity, Interval, Layers, Origin, Problem, Resolved};
use picket_filewatch::FileMonitorSettings;
use picket_layout::Layout;
use picket_monitor::channel::{self, Sender};
use picket_monitor::{AlertingSettings, PerformanceSettings, SmtpSettings, Threshold, Thresholds};
use picket_netwatch::NetworkMonitorSettings;
use picket_outbox::OutboxSettings;
use picket_store::DataSettings;
use picket_telemetry::{LogFormat, LogLevel, LogOptions, LoggingSettings, OtlpSettings};
use picket_transport::{Network, NetworkSettings};
use picket_update::UpdateSettings;
use std::collections::BTreeMap;
use std::path::Path;

picket_config::settings! {
    /// Picket's configuration.
    pub struct Settings {
        /// Who this machine is in its events; empty is the machine's id, hashed for this product.
        pub device_id: String = String::new(),
        /// How much is logged.
        pub log_level: LogLevel = LogLevel::Info,
        /// How much single components log: `update`, `agent.collect`, or a library such as `ureq`.
        pub log_levels: BTreeMap<String, LogLevel> = BTreeMap::new(),
        /// The form of the log: `auto` is the journal under systemd and text elsewhere.
        pub log_format: LogFormat = LogFormat::Auto,
        /// The log's keys in a group; what is set there is over `log_level`, `log_format` and `log_levels`.
        pub logging: LoggingSettings = LoggingSettings::default(),
        /// How often the machine is measured.
        pub collection_interval: Interval = Interval::seconds(60),
        /// What is measured, and what has an interval of its own.
        pub collect: CollectSettings = CollectSettings::default(),
        /// What the agent may use of its machine before it does less.
        pub limits: LimitSettings = LimitSettings::default(),
        /// How long open requests may take once the agent was told to stop.
        pub drain_limit: Interval = Interval::seconds(5),
        /// Watching files.
        pub file_monitor: FileMonitorSettings = FileMonitorSettings::default(),
        /// Watching connections.
        pub network_monitor: NetworkMonitorSettings = NetworkMonitorSettings::default(),
        /// The way events take.
        pub events: EventSettings = EventSettings::default(),
        /// How other machines are reached over HTTPS: release servers, web hooks, collectors and, through a proxy, the hub.
        pub network: NetworkSettings = NetworkSettings::default(),
        /// The queue of events and their delivery.
        pub outbox: OutboxSettings = OutboxSettings::default(),
        /// The way to the hub.
        pub uplink: UplinkSettings = UplinkSettings::default(),
        /// What is kept on the machine.
        pub data: DataSettings = DataSettings::default(),
        /// For how many days what the machine measured, logged and saw is kept; unset, each kind has its own time in `data.retention`.
        pub data_retention_days: Option<u32> = None,
        /// How samples are summed up.
        pub performance_monitoring: PerformanceSettings = PerformanceSettings::default(),
        /// From which values on a metric is an alert.
        pub thresholds: Thresholds = Thresholds::default(),
        /// Who hears of alerts.
        pub alerting: AlertingSettings = AlertingSettings::default(),
        /// The mail server for alerts.
        pub smtp: SmtpSettings = SmtpSettings::default(),
        /// The health server.
        pub health: HealthSettings = HealthSettings::default(),
        /// Spans of operations to a collector.
        pub otlp: OtlpSettings = OtlpSettings::default(),
        /// The metrics server.
        pub metrics: MetricsSettings = MetricsSettings::default(),
        /// Becoming the next version.
        pub update: UpdateSettings = UpdateSettings::default(),
    }
}

/// What a hub gave.
pub(crate) type HubSettings = BTreeMap<String, serde_json::Value>;

/// Reads the configuration of `layout`'s installation, whatever is wrong with it. What the hub gave and this version cannot
/// use is left out as a whole, with a warning: it must not keep the agent from starting.
pub(crate) fn read(layout: &Layout, process: &Process, args: &ConfigArgs) -> Resolved<Settings> {
    let Some(given) = hub_settings(layout).filter(|given| !given.is_empty()) else {
        return read_with(layout, process, args, &HubSettings::new());
    };
    let resolved = read_with(layout, process, args, &given);
    if !resolved.problems.has_errors() {
        return resolved;
    }
    let mut without = read_with(layout, process, args, &HubSettings::new());
    if !without.problems.has_errors() {
        let of_hub = |problem: &&Problem| problem.gravity == Gravity::Error;
        let why = resolved.problems.0.iter().find(of_hub).map(ToString::to_string).unwrap_or_default();
        let message = format!("what the hub gave is not in force: {why}");
        without.problems.0.push(Problem::new(&Origin::Hub, "", Gravity::Warning, message));
    }
    without
}

/// What the hub gave: from the agent's state, or from where the sensor and others see it.
fn hub_settings(layout: &Layout) -> Option<HubSettings> {
    let kept = Layer::read(&layout.hub_config());
    let denied = |error: &picket_durable::Error| error.source.kind() == std::io::ErrorKind::PermissionDenied;
    let layer = match kept {
        Err(error) if denied(&error) => Layer::read(&layout.hub_config_published()),
        kept => kept,
    };
    layer.ok().flatten().map(|layer| layer.settings)
}

/// What would be wrong with the configuration if the hub had given this.
pub(crate) fn check_hub_settings(
    layout: &Layout,
    process: &Process,
    args: &ConfigArgs,
    given: &HubSettings,
) -> Result<(), Vec<String>> {
    let problems = read_with(layout, process, args, given).problems.0;
    // A key that this version does not know is as good as refused: who gave it should hear of it.
    let bad = |problem: &&Problem| {
        problem.gravity == Gravity::Error || (problem.gravity == Gravity::Unknown && problem.origin == Origin::Hub)
    };
    let bad: Vec<String> = problems.iter().filter(bad).map(ToString::to_string).collect();
    if bad.is_empty() { Ok(()) } else { Err(bad) }
}

fn read_with(layout: &Layout, process: &Process, args: &ConfigArgs, given: &HubSettings) -> Resolved<Settings> {
    let layers = Layers::new::<Settings>();
    let layers = match &args.config {
        Some(file) => layers.file(file),
        None => layers.folder(layout.config_dir()),
    };
    let environment = process.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
    let mut layers = layers.hub(given).environment(environment);
    for (key, value) in &args.set {
        layers = layers.flag("--set", key, value);
    }
    if let Some(level) = &args.log_level {
        layers = layers.flag("--log-level", "log_level", level).flag("--log-level", "logging.level", level);
    }
    sound(layers.resolve())
}

/// What the files in `dir` alone say.
pub(crate) fn read_folder(dir: &Path) -> Resolved<Settings> {
    sound(Layers::new::<Settings>().folder(dir).resolve())
}

/// What files at these paths would say if they held these texts.
pub(crate) fn read_texts<'a>(files: impl Iterator<Item = (&'a Path, &'a str)>) -> Resolved<Settings> {
    sound(files.fold(Layers::new::<Settings>(), |layers, (path, text)| layers.text(path, text)).resolve())
}

/// Adds what no single value shows: thresholds that contradict themselves (they would raise no alert at all), an
/// export that this build cannot do, and a way to the hub that leads nowhere.
fn sound(mut resolved: Resolved<Settings>) -> Resolved<Settings> {
    if let Err(errors) = Threshold::all(&resolved.settings.thresholds) {
        let entry = resolved.effective().into_iter().find(|entry| entry.key == "thresholds");
        let origin = entry.map_or(Origin::Default, |entry| entry.origin);
        let problems = errors.iter().map(|error| Problem::new(&origin, "", Gravity::Error, error.to_string()));
        resolved.problems.0.extend(problems);
    }
    let settings = &resolved.settings;
    let proxy = settings.network.problem().map(|error| (error.key, error.reason));
    let problems = [settings.otlp.problem(), settings.uplink.problem(), proxy];
    for (key, reason) in problems.into_iter().flatten() {
        let entry = resolved.effective().into_iter().find(|entry| entry.key == key);
        let origin = entry.map_or(Origin::Default, |entry| entry.origin);
        resolved.problems.0.push(Problem::new(&origin, key, Gravity::Error, reason));
    }
    resolved
}

/// How other machines are reached by a process that has to go on in any case: without authorities that cannot be used,
/// fewer are believed.
pub(crate) fn network(settings: &Settings) -> Network {
    let without = |error| {
        tracing::warn!(%error, "only the machine's own authorities are believed");
        Network { proxy: settings.network.proxy(), ..Network::default() }
    };
    settings.network.resolve().unwrap_or_else(without)
}

/// What keeps authorities from being believed on this machine. It keeps nothing from starting: who asks a server through
/// them fails with the same words.
pub(crate) fn network_problem(resolved: &Resolved<Settings>) -> Option<Problem> {
    let error = resolved.settings.network.resolve().err().filter(|_| !resolved.problems.has_errors())?;
    let entry = resolved.effective().into_iter().find(|entry| entry.key == error.key);
    let origin = entry.map_or(Origin::Default, |entry| entry.origin);
    Some(Problem::new(&origin, error.key, Gravity::Warning, error.reason))
}

/// What keeps channels for alerts from reaching anybody. Their secrets are looked for, so that who may not read them is
/// told that. None of it keeps the agent from starting: what works is used.
pub(crate) fn channel_problems(resolved: &Resolved<Settings>, sender: &Sender) -> Vec<Problem> {
    let settings = &resolved.settings;
    let (_, errors) = channel::plan(&settings.alerting, &settings.smtp, sender);
    let effective = if errors.is_empty() { Vec::new() } else { resolved.effective() };
    let origin = |key: &str| effective.iter().find(|entry| entry.key == key).map(|entry| entry.origin.clone());
    let problem = |error: channel::ChannelError| {
        // What is missing was written nowhere; the list of channels is what asks for it.
        let written = origin(&error.key).filter(|origin| *origin != Origin::Default);
        let origin = written.or_else(|| origin("alerting.channels")).unwrap_or(Origin::Default);
        let message = format!("{}; alerts do not go out this way", error.reason);
        Problem::new(&origin, &error.key, Gravity::Warning, message)
    };
    errors.into_iter().map(problem).collect()
}

/// [`read`], refusing a configuration with errors; unknown keys are returned for the caller to tell.
pub(crate) fn resolve(
    layout: &Layout,
    process: &Process,
    args: &ConfigArgs,
) -> Result<(Settings, Vec<Problem>), CommandError> {
    let resolved = read(layout, process, args);
    if resolved.problems.has_errors() {
        return Err(CommandError::Config(resolved.problems.0));
    }
    let unknown = resolved.problems.0.into_iter().filter(|problem| problem.gravity == Gravity::Unknown);
    Ok((resolved.settings, unknown.collect()))
}

/// What is kept, and for how long, with the one key for all days taken into account.
pub(crate) fn data(settings: &Settings) -> DataSettings {
    let mut data = settings.data.clone();
    if let Some(days) = settings.data_retention_days {
        let days = Interval::days(u64::from(days));
        let retention = &mut data.retention;
        for keep in [&mut retention.metrics, &mut retention.logs, &mut retention.events] {
            *keep = days;
        }
    }
    data
}

/// Whether this version can use the configuration in `dir`.
pub(crate) fn check_folder(dir: &Path) -> Result<(), String> {
    let resolved = read_folder(dir);
    if resolved.problems.has_errors() {
        let problems: Vec<String> = resolved.problems.0.iter().map(ToString::to_string).collect();
        return Err(problems.join("; "));
    }
    Ok(())
}

/// Every key with its value and where it came from, for the record.
pub(crate) fn values(resolved: &Resolved<Settings>) -> BTreeMap<String, KeyValue> {
    let entry = |entry: Effective| (entry.key, KeyValue { value: entry.value, origin: entry.origin.to_string() });
    resolved.effective().into_iter().map(entry).collect()
}

/// How a long-running command logs.
pub(crate) fn log_options(settings: &Settings, process: &Process, identifier: &str) -> LogOptions {
    LogOptions {
        format: settings.log_format,
        level: settings.log_level,
        levels: settings.log_levels.clone(),
        identifier: identifier.to_owned(),
        under_journal: process.under_journal(),
        color: process.variable("NO_COLOR").is_none(),
    }
    .with(&settings.logging)
}

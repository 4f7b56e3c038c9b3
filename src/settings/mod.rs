//! From arguments, file and environment to one resolved answer: which installation, which configuration.

mod scope;

pub(crate) use scope::layout;

use crate::cli::ConfigArgs;
use crate::error::CommandError;
use crate::process::Process;
use picket_agent::{HealthSettings, MetricsSettings};
use picket_config::{Gravity, Interval, Layers, Problem, Resolved};
use picket_layout::Layout;
use picket_telemetry::{LogFormat, LogLevel, LogOptions};
use picket_update::UpdateSettings;
use std::collections::BTreeMap;
use std::path::Path;

picket_config::settings! {
    /// Picket's configuration.
    pub struct Settings {
        /// How much is logged.
        pub log_level: LogLevel = LogLevel::Info,
        /// How much single components log: `update`, `agent.collect`, or a library such as `ureq`.
        pub log_levels: BTreeMap<String, LogLevel> = BTreeMap::new(),
        /// The form of the log: `auto` is the journal under systemd and text elsewhere.
        pub log_format: LogFormat = LogFormat::Auto,
        /// How often the machine is measured.
        pub collection_interval: Interval = Interval::seconds(60),
        /// How long open requests may take once the agent was told to stop.
        pub drain_limit: Interval = Interval::seconds(5),
        /// The health server.
        pub health: HealthSettings = HealthSettings::default(),
        /// The metrics server.
        pub metrics: MetricsSettings = MetricsSettings::default(),
        /// Becoming the next version.
        pub update: UpdateSettings = UpdateSettings::default(),
    }
}

/// Reads the configuration of `layout`'s installation, whatever is wrong with it.
pub(crate) fn read(layout: &Layout, process: &Process, args: &ConfigArgs) -> Resolved<Settings> {
    let layers = Layers::new::<Settings>();
    let layers = match &args.config {
        Some(file) => layers.file(file),
        None => layers.folder(layout.config_dir()),
    };
    let environment = process.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
    let mut layers = layers.environment(environment);
    for (key, value) in &args.set {
        layers = layers.flag("--set", key, value);
    }
    if let Some(level) = &args.log_level {
        layers = layers.flag("--log-level", "log_level", level);
    }
    layers.resolve()
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

/// Whether this version can use the configuration in `dir`.
pub(crate) fn check_folder(dir: &Path) -> Result<(), String> {
    let resolved: Resolved<Settings> = Layers::new::<Settings>().folder(dir).resolve();
    if resolved.problems.has_errors() {
        let problems: Vec<String> = resolved.problems.0.iter().map(ToString::to_string).collect();
        return Err(problems.join("; "));
    }
    Ok(())
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
}

//! The hub's configuration: `hub.yaml` and `security_policies.yaml`, the environment under `PICKET_HUB_`, and options.

use crate::cli::HubConfigArgs;
use crate::error::CommandError;
use crate::process::Process;
use picket_config::{Gravity, Layers};
use picket_hub::config::HubSettings;
use picket_hub::security::SecurityPolicies;
use picket_layout::Layout;
use std::path::PathBuf;

/// The longest file with a database's address, in bytes.
const MAX_ADDRESS: u64 = 4096;

/// The hub's configuration, resolved.
pub(crate) struct HubConfig {
    /// The keys of `hub.yaml`.
    pub(crate) settings: HubSettings,
    /// The keys of `security_policies.yaml`.
    pub(crate) policies: SecurityPolicies,
    /// Where everything is kept.
    pub(crate) database: String,
    /// What is wrong, though not wrong enough to keep the hub from starting.
    pub(crate) warnings: Vec<String>,
}

/// The configuration file that is there.
pub(crate) fn file(layout: &Layout) -> Option<PathBuf> {
    let names =
        ["yaml", "yml", "json", "toml"].map(|extension| layout.config_dir().join("hub").with_extension(extension));
    names.into_iter().find(|path| path.exists())
}

/// Reads it.
pub(crate) fn resolve(layout: &Layout, process: &Process, args: &HubConfigArgs) -> Result<HubConfig, CommandError> {
    let mut layers = Layers::new::<HubSettings>();
    layers = match &args.config {
        Some(file) => layers.file(file),
        None => layers.folder_named(layout.config_dir(), "hub"),
    };
    let environment = process.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
    layers = layers.environment_under("PICKET_HUB_", environment);
    for (key, value) in &args.set {
        layers = layers.flag("--set", key, value);
    }
    let resolved = layers.resolve::<HubSettings>();
    let policies = Layers::new::<SecurityPolicies>()
        .folder_named(layout.config_dir(), "security_policies")
        .resolve::<SecurityPolicies>();
    let mut problems = resolved.problems;
    problems.0.extend(policies.problems.0);
    if problems.has_errors() {
        return Err(CommandError::HubConfig(problems.0));
    }
    let settings = resolved.settings;
    let database = if !settings.database_file.is_empty() {
        picket_durable::read_text(std::path::Path::new(&settings.database_file), MAX_ADDRESS)?.trim().to_owned()
    } else if settings.database.is_empty() {
        format!("sqlite:{}", layout.hub_dir().join("hub.db").display())
    } else {
        settings.database.reveal().to_owned()
    };
    let unknown = problems.0.iter().filter(|problem| problem.gravity == Gravity::Unknown);
    let warnings = unknown.map(ToString::to_string).collect();
    Ok(HubConfig { settings, policies: policies.settings, database, warnings })
}

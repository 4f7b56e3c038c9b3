//! What the agent needs to know to run.

use picket_config::{Interval, LoopbackAddr};
use picket_protocol::BuildInfo;
use std::path::PathBuf;
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
        /// Where `/metrics` and `/system` are served: an address of this machine only.
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
    /// The health server.
    pub health: HealthSettings,
    /// The metrics server.
    pub metrics: MetricsSettings,
    /// How often the machine is measured.
    pub collection_interval: Interval,
    /// How long open requests may take once the agent was told to stop.
    pub drain_limit: Duration,
    /// What is wrong with the configuration, though not wrong enough to keep the agent from starting.
    pub config_warnings: Vec<String>,
}

//! What the updater needs of the service manager: a port, filled in by the binary with the service room's registrar.

use picket_protocol::UnitText;
use semver::Version;
use serde::{Deserialize, Serialize};

/// Whatever the service manager's own error is.
pub type MachineError = Box<dyn std::error::Error + Send + Sync>;

/// The service manager, as the updater sees it.
pub trait Machine {
    /// What it knows of the agent.
    fn view(&self) -> Result<ServiceView, MachineError>;
    /// Starts the agent as the version on trial, until the next boot or [`Machine::end_trial`]; does not wait.
    fn begin_trial(&self, version: &Version, units: &[UnitText]) -> Result<(), MachineError>;
    /// Forgets the trial; the running process is left alone. Says whether there was one.
    fn end_trial(&self) -> Result<bool, MachineError>;
    /// Whether a trial is on.
    fn trial_is_on(&self) -> Result<bool, MachineError>;
    /// Restarts the agent; does not wait.
    fn restart(&self) -> Result<(), MachineError>;
    /// Stops the agent and waits.
    fn stop(&self) -> Result<(), MachineError>;
    /// Registers the units of the version that was committed.
    fn register(&self, units: &[UnitText]) -> Result<(), MachineError>;
    /// Why a trial could not work here, if so.
    fn trial_obstacle(&self) -> Result<Option<String>, MachineError>;
}

/// What the service manager knows of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// The state.
    pub state: ViewState,
    /// Changes with every start.
    pub run: String,
    /// Restarts by the manager since somebody last started it.
    pub restarts: u32,
    /// The manager's own words.
    pub detail: String,
}

/// The state of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ViewState {
    /// Not running, because somebody wanted it so or nobody started it.
    Stopped,
    /// Started, not ready yet.
    Starting,
    /// Ready.
    Running,
    /// Ended by itself, about to be started again.
    Restarting,
    /// Told to stop.
    Stopping,
    /// Ended by itself, for good.
    Failed,
}

impl ViewState {
    /// Whether somebody wants it to run.
    pub fn is_wanted(self) -> bool {
        !matches!(self, Self::Stopped | Self::Stopping)
    }
}

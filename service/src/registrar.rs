//! What every service manager can do for us.

use picket_layout::Role;
use picket_protocol::UnitText;
use semver::Version;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// A service manager, for one installation of Picket.
pub trait Registrar {
    /// What people call it: `systemd` or `supervisor`.
    fn kind(&self) -> &'static str;

    /// Writes the units and makes the manager read them; says whether anything changed. Running it again is harmless.
    fn register(&self, units: &[UnitText]) -> Result<bool, ServiceError>;

    /// Where [`Registrar::register`] writes a unit; `None` where the manager has no files.
    fn unit_path(&self, name: &str) -> Option<PathBuf>;

    /// Makes the manager start the service of a role, the updater's timer and the recovery at boot.
    fn enable(&self, role: Role) -> Result<(), ServiceError>;

    /// Stops everything, takes it out of the boot, and removes what [`Registrar::register`] wrote. Running it again, or
    /// on a machine where nothing was registered, is harmless.
    fn unregister(&self) -> Result<(), ServiceError>;

    /// Starts the services of every role and waits until the manager calls them started.
    fn start(&self) -> Result<(), ServiceError>;

    /// Starts the services of one role and waits until the manager calls them started.
    fn start_role(&self, role: Role) -> Result<(), ServiceError>;

    /// Stops the services of every role, and waits until they have stopped.
    fn stop(&self) -> Result<(), ServiceError>;

    /// Asks for a restart of the services of every role, and does not wait. A hub beside an agent is restarted only where it
    /// runs.
    fn restart(&self) -> Result<(), ServiceError>;

    /// What the manager knows of the agent; of the hub, where there is no agent.
    fn status(&self) -> Result<ServiceStatus, ServiceError>;

    /// Lays the trial's units over the registered ones until the next boot, and asks for a restart of the agent.
    fn begin_trial(&self, trial: &Trial) -> Result<(), ServiceError>;

    /// Removes what [`Registrar::begin_trial`] laid over; the running process is left alone. Says whether there was
    /// anything.
    fn end_trial(&self) -> Result<bool, ServiceError>;

    /// Whether a trial is laid over the registered units.
    fn trial_is_on(&self) -> Result<bool, ServiceError>;

    /// Starts the updater in a process that the manager owns, and does not wait for it.
    fn start_updater(&self) -> Result<(), ServiceError>;

    /// Whether the updater that the manager owns runs.
    fn updater_is_running(&self) -> Result<bool, ServiceError>;

    /// A reason why a trial could not work here, found before anything is touched: an administrator's own unit that
    /// would win over ours.
    fn trial_obstacle(&self) -> Result<Option<String>, ServiceError>;

    /// The command line that shows the agent's log.
    fn log_command(&self, query: &LogQuery) -> Vec<String>;
}

/// A version that is to be tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The version.
    pub version: Version,
    /// Its executable.
    pub exe: PathBuf,
    /// Its own unit texts, written for the `current` link.
    pub units: Vec<UnitText>,
}

/// What a service manager knows of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Which manager answers.
    pub manager: String,
    /// The state.
    pub state: ServiceState,
    /// Whether it is started at boot.
    pub enabled: bool,
    /// The main process.
    pub pid: Option<u32>,
    /// Restarts by the manager since somebody last started it.
    pub restarts: u32,
    /// Changes with every start, whoever asked for it.
    pub run: String,
    /// What the manager says in its own words, for people: `active (running)`, `failed (exit-code)`.
    pub detail: String,
    /// The sensor, where it is a process of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor: Option<SensorStatus>,
    /// The hub, where the machine is one beside being an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<Box<ServiceStatus>>,
}

/// What a service manager knows of the sensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SensorStatus {
    /// The state.
    pub state: ServiceState,
    /// The main process.
    pub pid: Option<u32>,
    /// Restarts by the manager since somebody last started it.
    pub restarts: u32,
    /// What the manager says in its own words.
    pub detail: String,
}

/// The state of the agent, as far as its manager knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// The manager does not know it.
    NotRegistered,
    /// It does not run, because somebody wanted it so or nobody started it.
    Stopped,
    /// It was started and is not ready yet.
    Starting,
    /// It is ready.
    Running,
    /// It ended by itself and will be started again.
    Restarting,
    /// It was told to stop and has not yet.
    Stopping,
    /// It ended by itself and is not started again.
    Failed,
}

impl ServiceState {
    /// The word shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotRegistered => "not registered",
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }

    /// Whether somebody wants it to run: it does, or the manager is at it, or it failed at it.
    pub fn is_wanted(self) -> bool {
        !matches!(self, Self::NotRegistered | Self::Stopped | Self::Stopping)
    }
}

/// Which part of the log to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    /// How many of the last lines.
    pub lines: u32,
    /// Whether to go on as new lines come.
    pub follow: bool,
}

/// A service manager that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Its tool could not be run.
    #[error("cannot run {program}")]
    Spawn {
        /// The tool.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// Its tool said no.
    #[error("{command} failed: {message}")]
    Command {
        /// The command line.
        command: String,
        /// What it printed.
        message: String,
    },
    /// A unit file could not be written or removed.
    #[error("cannot change a unit file")]
    File(#[from] picket_durable::Error),
    /// The supervisor does not run.
    #[error("the supervisor of this installation does not run; start it with `picket service start{options}`")]
    NoSupervisor {
        /// The options that select this installation, with a leading space.
        options: String,
    },
    /// The supervisor said no, or did not answer.
    #[error("the supervisor did not do it: {0}")]
    Supervisor(String),
    /// The supervisor runs an agent, and nothing else.
    #[error("the supervisor runs no hub; run it with `picket hub serve`, or install it under systemd")]
    NoHub,
    /// It took too long.
    #[error("{what} took longer than {seconds} s")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
    },
}

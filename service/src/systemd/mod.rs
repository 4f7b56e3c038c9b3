//! systemd, for the system and for one user.
//!
//! Our unit files lie in `/usr/local/lib/systemd/system`, which `/run/systemd/system` overrides and which an
//! administrator's `/etc/systemd/system/*.d` drop-ins extend whoever wrote the unit. service-manager starts and stops;
//! it can neither place unit files there, nor reload, nor restart, nor tell `failed` from `stopped`, so the rest is
//! `systemctl` directly.

mod show;
mod systemctl;
pub mod units;

use crate::registrar::{LogQuery, Registrar, ServiceError, ServiceState, ServiceStatus, Trial};
use picket_layout::Layout;
use picket_protocol::UnitText;
use service_manager::{ServiceLabel, ServiceManager, ServiceStartCtx, ServiceStopCtx, SystemdServiceManager};
use std::path::{Path, PathBuf};
use systemctl::Systemctl;

/// The agent's unit.
pub const AGENT: &str = "picket-agent.service";
/// The updater's unit.
pub const UPDATE: &str = "picket-update.service";
/// What starts the updater every day.
pub const UPDATE_TIMER: &str = "picket-update.timer";
/// What starts the updater when the agent wishes for it.
pub const UPDATE_PATH: &str = "picket-update.path";
/// What repairs an interrupted update before the agent starts.
pub const RECOVER: &str = "picket-recover.service";

/// Every unit we install.
pub const ALL: [&str; 5] = [AGENT, UPDATE, UPDATE_TIMER, UPDATE_PATH, RECOVER];
/// The ones that are started at boot.
const ENABLED: [&str; 4] = [RECOVER, AGENT, UPDATE_TIMER, UPDATE_PATH];

/// systemd as one installation's registrar.
#[derive(Debug)]
pub struct Systemd {
    systemctl: Systemctl,
    units: PathBuf,
    trial_units: PathBuf,
    /// The folder that a trial's unit text must name instead of [`Layout::current_link`].
    current: PathBuf,
    user: bool,
}

impl Systemd {
    /// The system's manager.
    pub fn system(layout: &Layout) -> Self {
        Self::new(layout, false)
    }

    /// The caller's own manager, if one runs.
    pub fn user(layout: &Layout) -> Option<Self> {
        let systemd = Self::new(layout, true);
        systemd.systemctl.run(&["show-environment"]).is_ok().then_some(systemd)
    }

    fn new(layout: &Layout, user: bool) -> Self {
        Self {
            systemctl: Systemctl { user },
            units: layout.unit_dir().to_owned(),
            trial_units: layout.trial_unit_dir().to_owned(),
            current: layout.current_link(),
            user,
        }
    }

    fn manager(&self) -> SystemdServiceManager {
        if self.user { SystemdServiceManager::user() } else { SystemdServiceManager::system() }
    }

    fn reload(&self) -> Result<(), ServiceError> {
        self.systemctl.run(&["daemon-reload"]).map(drop)
    }

    fn properties(&self, unit: &str) -> Result<show::Properties, ServiceError> {
        let mut arguments = vec!["show", unit];
        let wanted = show::WANTED.map(|name| format!("--property={name}"));
        arguments.extend(wanted.iter().map(String::as_str));
        Ok(show::parse(&self.systemctl.run(&arguments)?))
    }

    fn trial_path(&self) -> PathBuf {
        self.trial_units.join(AGENT)
    }
}

/// The agent's label: without qualifier and organization, service-manager's script name is the application itself.
fn agent_label() -> ServiceLabel {
    ServiceLabel { qualifier: None, organization: None, application: AGENT.trim_end_matches(".service").to_owned() }
}

fn from_service_manager(verb: &str, error: &std::io::Error) -> ServiceError {
    ServiceError::Command { command: format!("systemctl {verb} {AGENT}"), message: error.to_string() }
}

impl Registrar for Systemd {
    fn kind(&self) -> &'static str {
        "systemd"
    }

    fn register(&self, units: &[UnitText]) -> Result<bool, ServiceError> {
        picket_durable::create_dir(&self.units, 0o755)?;
        let mut changed = false;
        for unit in units.iter().filter(|unit| ALL.contains(&unit.name.as_str())) {
            changed |= write_if_changed(&self.units.join(&unit.name), &unit.text)?;
        }
        if changed {
            self.reload()?;
        }
        Ok(changed)
    }

    fn unit_path(&self, name: &str) -> Option<PathBuf> {
        Some(self.units.join(name))
    }

    fn enable(&self) -> Result<(), ServiceError> {
        self.systemctl.run(&[&["--quiet", "enable"], &ENABLED[..]].concat())?;
        self.systemctl.run(&["start", UPDATE_TIMER, UPDATE_PATH]).map(drop)
    }

    fn unregister(&self) -> Result<(), ServiceError> {
        self.end_trial()?;
        let known: Vec<&str> = ALL.into_iter().filter(|unit| self.units.join(unit).exists()).collect();
        if !known.is_empty() {
            self.systemctl.run(&[&["stop"], &known[..]].concat())?;
            self.systemctl.run(&[&["--quiet", "disable"], &known[..]].concat())?;
            // The file in which systemd keeps the timer's last time; systemd before 244 cannot be asked to remove it.
            let _ = self.systemctl.run(&["clean", "--what=state", UPDATE_TIMER]);
        }
        for unit in ALL {
            picket_durable::remove_if_present(&self.units.join(unit))?;
        }
        self.reload()?;
        // A unit that failed stays listed until it is forgotten; one that never did makes this say no.
        let _ = self.systemctl.run(&[&["reset-failed"], &ALL[..]].concat());
        Ok(())
    }

    fn start(&self) -> Result<(), ServiceError> {
        // A unit that failed too often refuses to start until its counter is cleared; whoever says start, means it.
        let _ = self.systemctl.run(&["reset-failed", AGENT]);
        let context = ServiceStartCtx { label: agent_label() };
        self.manager().start(context).map_err(|e| from_service_manager("start", &e))
    }

    fn stop(&self) -> Result<(), ServiceError> {
        let context = ServiceStopCtx { label: agent_label() };
        self.manager().stop(context).map_err(|e| from_service_manager("stop", &e))
    }

    fn restart(&self) -> Result<(), ServiceError> {
        let _ = self.systemctl.run(&["reset-failed", AGENT]);
        // At once, whatever it is ordered after: the recovery that brings the agent back is itself ordered before it.
        self.systemctl.run(&["--no-block", "--job-mode=ignore-dependencies", "restart", AGENT]).map(drop)
    }

    fn status(&self) -> Result<ServiceStatus, ServiceError> {
        Ok(self.properties(AGENT)?.status())
    }

    fn begin_trial(&self, trial: &Trial) -> Result<(), ServiceError> {
        let unit = trial.units.iter().find(|unit| unit.name == AGENT).ok_or_else(|| ServiceError::Command {
            command: format!("trial of {}", trial.version),
            message: format!("the version brings no {AGENT}"),
        })?;
        let dir = trial.exe.parent().unwrap_or(Path::new("/"));
        let text = units::for_trial(&unit.text, &self.current, dir, &trial.version);
        picket_durable::create_dir(&self.trial_units, 0o755)?;
        write_if_changed(&self.trial_path(), &text)?;
        self.reload()?;
        self.restart()
    }

    fn end_trial(&self) -> Result<bool, ServiceError> {
        if !self.trial_is_on()? {
            return Ok(false);
        }
        picket_durable::remove_if_present(&self.trial_path())?;
        // Also when the file was gone already: systemd goes by what it loaded.
        self.reload()?;
        Ok(true)
    }

    fn trial_is_on(&self) -> Result<bool, ServiceError> {
        let path = self.trial_path();
        Ok(std::fs::symlink_metadata(&path).is_ok() || Path::new(self.properties(AGENT)?.get("FragmentPath")) == path)
    }

    fn start_updater(&self) -> Result<(), ServiceError> {
        self.systemctl.run(&["--no-block", "start", UPDATE]).map(drop)
    }

    fn updater_is_running(&self) -> Result<bool, ServiceError> {
        let properties = self.properties(UPDATE)?;
        Ok(matches!(properties.get("ActiveState"), "activating" | "active" | "deactivating" | "reloading"))
    }

    fn trial_obstacle(&self) -> Result<Option<String>, ServiceError> {
        Ok(self.properties(AGENT)?.trial_obstacle(&self.units, &self.current.join(picket_layout::EXECUTABLE)))
    }

    fn log_command(&self, query: &LogQuery) -> Vec<String> {
        let mut command = vec!["journalctl".to_owned()];
        if self.user {
            command.push("--user".to_owned());
        }
        command.extend([format!("--unit={AGENT}"), format!("--lines={}", query.lines)]);
        command.push(if query.follow { "--follow" } else { "--no-pager" }.to_owned());
        command
    }
}

/// Writes `text` to `path` unless it is there already; says whether it wrote.
fn write_if_changed(path: &Path, text: &str) -> Result<bool, ServiceError> {
    let present = picket_durable::read_if_present(path, units::MAX_BYTES)?;
    if present.as_deref() == Some(text.as_bytes()) {
        return Ok(false);
    }
    picket_durable::write_atomic(path, text.as_bytes(), 0o644)?;
    Ok(true)
}

impl show::Properties {
    fn status(&self) -> ServiceStatus {
        let (active, sub) = (self.get("ActiveState"), self.get("SubState"));
        let state = match (self.get("LoadState"), active, sub) {
            ("not-found", "inactive", _) => ServiceState::NotRegistered,
            (_, "active" | "reloading", _) => ServiceState::Running,
            (_, "activating", "auto-restart") => ServiceState::Restarting,
            (_, "activating", _) => ServiceState::Starting,
            (_, "deactivating", _) => ServiceState::Stopping,
            (_, "failed", _) => ServiceState::Failed,
            _ => ServiceState::Stopped,
        };
        let detail = match (active, self.get("Result")) {
            ("failed", result) => format!("failed ({result})"),
            _ => format!("{active} ({sub})"),
        };
        ServiceStatus {
            manager: "systemd".to_owned(),
            state,
            enabled: matches!(self.get("UnitFileState"), "enabled" | "enabled-runtime"),
            pid: self.get("MainPID").parse().ok().filter(|pid| *pid != 0),
            restarts: self.get("NRestarts").parse().unwrap_or(0),
            run: self.get("InvocationID").to_owned(),
            detail,
        }
    }
}

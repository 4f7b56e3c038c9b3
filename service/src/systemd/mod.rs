//! systemd, for the system and for one user.
//!
//! Our unit files lie in `/usr/local/lib/systemd/system`, which `/run/systemd/system` overrides and which an
//! administrator's `/etc/systemd/system/*.d` drop-ins extend whoever wrote the unit. service-manager starts and stops;
//! it can neither place unit files there, nor reload, nor restart, nor tell `failed` from `stopped`, so the rest is
//! `systemctl` directly.

mod files;
mod show;
mod systemctl;
pub mod units;

use crate::registrar::{LogQuery, Registrar, SensorStatus, ServiceError, ServiceState, ServiceStatus, Trial};
use files::UnitFiles;
use picket_layout::Layout;
use picket_protocol::UnitText;
use service_manager::{ServiceLabel, ServiceManager, ServiceStartCtx, ServiceStopCtx, SystemdServiceManager};
use std::path::{Path, PathBuf};
use systemctl::Systemctl;

/// The agent's unit.
pub const AGENT: &str = "picket-agent.service";
/// The sensor's unit, in a system installation.
pub const SENSOR: &str = "picket-sensor.service";
/// The updater's unit.
pub const UPDATE: &str = "picket-update.service";
/// What starts the updater every day.
pub const UPDATE_TIMER: &str = "picket-update.timer";
/// What starts the updater when the agent wishes for it.
pub const UPDATE_PATH: &str = "picket-update.path";
/// What repairs an interrupted update before the agent starts.
pub const RECOVER: &str = "picket-recover.service";

/// Every unit we install.
pub const ALL: [&str; 6] = [AGENT, SENSOR, UPDATE, UPDATE_TIMER, UPDATE_PATH, RECOVER];
/// The ones that are started at boot. The sensor comes with the agent, which wants it.
const ENABLED: [&str; 4] = [RECOVER, AGENT, UPDATE_TIMER, UPDATE_PATH];

/// A restart at once, whatever the unit is ordered after: the recovery that brings the agent back is itself ordered
/// before it.
const AT_ONCE: [&str; 3] = ["--no-block", "--job-mode=ignore-dependencies", "restart"];

/// systemd as one installation's registrar.
#[derive(Debug)]
pub struct Systemd {
    systemctl: Systemctl,
    files: UnitFiles,
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
            files: UnitFiles {
                units: layout.unit_dir().to_owned(),
                trial_units: layout.trial_unit_dir().to_owned(),
                current: layout.current_link(),
            },
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

    /// Does something to a service beside the agent. The agent goes on without it, so a failure is told and no more: an
    /// administrator may have masked it.
    fn companion(&self, arguments: &[&str]) {
        if let Err(error) = self.systemctl.run(arguments) {
            tracing::warn!(%error, "a service beside the agent did not do as it was told");
        }
    }

    /// Stops the services beside the agent, the ones that lost their unit file with the end of a trial among them.
    fn stop_companions(&self) {
        let companions = self.files.companions();
        for name in &companions {
            self.companion(&["stop", name]);
        }
        if !companions.iter().any(|name| name == SENSOR) {
            self.stop_stray(SENSOR);
        }
    }

    /// Asks for a restart of the agent and of these services beside it.
    fn restart_with(&self, companions: &[String]) -> Result<(), ServiceError> {
        for name in companions {
            let _ = self.systemctl.run(&["reset-failed", name]);
            self.companion(&[&AT_ONCE[..], &[name]].concat());
        }
        let _ = self.systemctl.run(&["reset-failed", AGENT]);
        self.systemctl.run(&[&AT_ONCE[..], &[AGENT]].concat()).map(drop)
    }

    /// Stops a unit that runs without a file.
    fn stop_stray(&self, name: &str) {
        let runs = |properties: &show::Properties| !matches!(properties.get("ActiveState"), "inactive" | "failed" | "");
        if !self.user && self.properties(name).is_ok_and(|properties| runs(&properties)) {
            self.companion(&["stop", name]);
        }
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
        let mut changed = self.files.write(units)?;
        for name in self.files.surplus(units) {
            self.companion(&["stop", name]);
            self.companion(&["--quiet", "disable", name]);
            picket_durable::remove_if_present(&self.files.path(name))?;
            changed = true;
        }
        if changed {
            self.reload()?;
        }
        Ok(changed)
    }

    fn unit_path(&self, name: &str) -> Option<PathBuf> {
        Some(self.files.path(name))
    }

    fn enable(&self) -> Result<(), ServiceError> {
        self.systemctl.run(&[&["--quiet", "enable"], &ENABLED[..]].concat())?;
        self.systemctl.run(&["start", UPDATE_TIMER, UPDATE_PATH]).map(drop)
    }

    fn unregister(&self) -> Result<(), ServiceError> {
        self.end_trial()?;
        let known = self.files.registered();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        if !known.is_empty() {
            self.systemctl.run(&[&["stop"], &known[..]].concat())?;
            self.systemctl.run(&[&["--quiet", "disable"], &known[..]].concat())?;
            // The file in which systemd keeps the timer's last time; systemd before 244 cannot be asked to remove it.
            let _ = self.systemctl.run(&["clean", "--what=state", UPDATE_TIMER]);
        }
        self.stop_stray(SENSOR);
        for unit in &known {
            picket_durable::remove_if_present(&self.files.path(unit))?;
        }
        self.reload()?;
        // A unit that failed stays listed until it is forgotten; one that never did makes this say no, for all.
        for unit in known.into_iter().chain(ALL) {
            let _ = self.systemctl.run(&["reset-failed", unit]);
        }
        Ok(())
    }

    fn start(&self) -> Result<(), ServiceError> {
        // A unit that failed too often refuses to start until its counter is cleared; whoever says start, means it.
        let _ = self.systemctl.run(&["reset-failed", AGENT]);
        let context = ServiceStartCtx { label: agent_label() };
        let companions = self.files.companions();
        for name in &companions {
            let _ = self.systemctl.run(&["reset-failed", name]);
        }
        self.manager().start(context).map_err(|e| from_service_manager("start", &e))?;
        // The agent's own start brings them where it wants them; this one is for an agent that ran already.
        for name in &companions {
            self.companion(&["start", name]);
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), ServiceError> {
        // The sensor first, while there is an agent that takes what it still has.
        self.stop_companions();
        let context = ServiceStopCtx { label: agent_label() };
        self.manager().stop(context).map_err(|e| from_service_manager("stop", &e))
    }

    fn restart(&self) -> Result<(), ServiceError> {
        let companions = self.files.companions();
        if !companions.iter().any(|name| name == SENSOR) {
            self.stop_stray(SENSOR);
        }
        self.restart_with(&companions)
    }

    fn status(&self) -> Result<ServiceStatus, ServiceError> {
        let mut status = self.properties(AGENT)?.status();
        if self.files.companions().iter().any(|name| name == SENSOR) {
            let ServiceStatus { state, pid, restarts, detail, .. } = self.properties(SENSOR)?.status();
            status.sensor = Some(SensorStatus { state, pid, restarts, detail });
        }
        Ok(status)
    }

    fn begin_trial(&self, trial: &Trial) -> Result<(), ServiceError> {
        let without = self.files.lay(trial)?;
        self.reload()?;
        // What the version on trial does not know, it must not find running.
        for name in &without {
            self.companion(&["--no-block", "stop", name]);
        }
        let mut companions = self.files.companions();
        companions.retain(|name| !without.contains(name));
        self.restart_with(&companions)
    }

    fn end_trial(&self) -> Result<bool, ServiceError> {
        if !self.trial_is_on()? {
            return Ok(false);
        }
        self.files.lift()?;
        // Also when the file was gone already: systemd goes by what it loaded.
        self.reload()?;
        Ok(true)
    }

    fn trial_is_on(&self) -> Result<bool, ServiceError> {
        let path = self.files.trial_path(AGENT);
        Ok(!self.files.on_trial().is_empty() || Path::new(self.properties(AGENT)?.get("FragmentPath")) == path)
    }

    fn start_updater(&self) -> Result<(), ServiceError> {
        self.systemctl.run(&["--no-block", "start", UPDATE]).map(drop)
    }

    fn updater_is_running(&self) -> Result<bool, ServiceError> {
        let properties = self.properties(UPDATE)?;
        Ok(matches!(properties.get("ActiveState"), "activating" | "active" | "deactivating" | "reloading"))
    }

    fn trial_obstacle(&self) -> Result<Option<String>, ServiceError> {
        let exe = self.files.current.join(picket_layout::EXECUTABLE);
        Ok(self.properties(AGENT)?.trial_obstacle(&self.files.units, &exe))
    }

    fn log_command(&self, query: &LogQuery) -> Vec<String> {
        let mut command = vec!["journalctl".to_owned()];
        if self.user {
            command.push("--user".to_owned());
        }
        command.push(format!("--unit={AGENT}"));
        command.extend(self.files.companions().iter().map(|name| format!("--unit={name}")));
        command.push(format!("--lines={}", query.lines));
        command.push(if query.follow { "--follow" } else { "--no-pager" }.to_owned());
        command
    }
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
            sensor: None,
        }
    }
}

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
use picket_layout::{Layout, Role};
use picket_protocol::UnitText;
use service_manager::{ServiceLabel, ServiceManager, ServiceStartCtx, ServiceStopCtx, SystemdServiceManager};
use std::path::{Path, PathBuf};
use systemctl::Systemctl;

/// The agent's unit.
pub const AGENT: &str = "picket-agent.service";
/// The sensor's unit, in a system installation.
pub const SENSOR: &str = "picket-sensor.service";
/// The hub's unit, where the machine is a hub.
pub const HUB: &str = "picket-hub.service";
/// The updater's unit.
pub const UPDATE: &str = "picket-update.service";
/// What starts the updater every day.
pub const UPDATE_TIMER: &str = "picket-update.timer";
/// What looks, every ten minutes, whether a release that waited for its time has its turn.
pub const UPDATE_DUE_TIMER: &str = "picket-update-due.timer";
/// What that timer starts: it starts the updater if so. Without a release that waits, not even a process.
pub const UPDATE_DUE: &str = "picket-update-due.service";
/// What starts the updater when the agent wishes for it.
pub const UPDATE_PATH: &str = "picket-update.path";
/// What repairs an interrupted update before the agent starts.
pub const RECOVER: &str = "picket-recover.service";

/// Every unit we install.
pub const ALL: [&str; 9] =
    [AGENT, SENSOR, HUB, UPDATE, UPDATE_TIMER, UPDATE_DUE, UPDATE_DUE_TIMER, UPDATE_PATH, RECOVER];
/// What is started at boot beside the services. The sensor comes with the agent, which wants it.
const ENABLED: [&str; 4] = [RECOVER, UPDATE_TIMER, UPDATE_DUE_TIMER, UPDATE_PATH];

/// The unit of a role's service.
pub fn service_of(role: Role) -> &'static str {
    match role {
        Role::Agent => AGENT,
        Role::Hub => HUB,
    }
}

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
                first: if layout.roles().has(Role::Agent) { AGENT } else { HUB },
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

    /// Does something to a service beside the first one, which goes on without it, so a failure is told and no more: an
    /// administrator may have masked it.
    fn companion(&self, arguments: &[&str]) {
        if let Err(error) = self.systemctl.run(arguments) {
            tracing::warn!(%error, "a service beside the first one did not do as it was told");
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

    /// Asks for a restart of the first service and of these beside it.
    fn restart_with(&self, companions: &[String]) -> Result<(), ServiceError> {
        for name in companions {
            // A hub that somebody stopped is not started because its agent is; one that failed is tried again.
            if name == HUB && !self.properties(HUB)?.status().state.is_wanted() {
                continue;
            }
            let _ = self.systemctl.run(&["reset-failed", name]);
            self.companion(&[&AT_ONCE[..], &[name]].concat());
        }
        let first = self.files.first;
        let _ = self.systemctl.run(&["reset-failed", first]);
        self.systemctl.run(&[&AT_ONCE[..], &[first]].concat()).map(drop)
    }

    /// Stops a unit that runs without a file.
    fn stop_stray(&self, name: &str) {
        let runs = |properties: &show::Properties| !matches!(properties.get("ActiveState"), "inactive" | "failed" | "");
        if !self.user && self.properties(name).is_ok_and(|properties| runs(&properties)) {
            self.companion(&["stop", name]);
        }
    }
}

/// A unit's label: without qualifier and organization, service-manager's script name is the application itself.
fn label(unit: &str) -> ServiceLabel {
    ServiceLabel { qualifier: None, organization: None, application: unit.trim_end_matches(".service").to_owned() }
}

fn from_service_manager(verb: &str, unit: &str, error: &std::io::Error) -> ServiceError {
    ServiceError::Command { command: format!("systemctl {verb} {unit}"), message: error.to_string() }
}

impl Registrar for Systemd {
    fn kind(&self) -> &'static str {
        "systemd"
    }

    fn register(&self, units: &[UnitText]) -> Result<bool, ServiceError> {
        // An installation that looks for updates gets what a later version looks with; a first one is enabled as a whole.
        let looks_already = self.files.path(UPDATE_TIMER).exists();
        let fresh = looks_already && !self.files.path(UPDATE_DUE_TIMER).exists();
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
        if fresh && self.files.path(UPDATE_DUE_TIMER).exists() {
            // It wants the daily timer: where somebody stopped that, it does not start.
            self.companion(&["--quiet", "enable", UPDATE_DUE_TIMER]);
            self.companion(&["start", UPDATE_DUE_TIMER]);
        }
        Ok(changed)
    }

    fn unit_path(&self, name: &str) -> Option<PathBuf> {
        Some(self.files.path(name))
    }

    fn enable(&self, role: Role) -> Result<(), ServiceError> {
        // Only an agent wishes for updates.
        let known = ENABLED.into_iter().filter(|name| self.files.path(name).exists());
        let wanted: Vec<&str> = known.chain([service_of(role)]).collect();
        self.systemctl.run(&[&["--quiet", "enable"], &wanted[..]].concat())?;
        let started = wanted.into_iter().filter(|name| [UPDATE_TIMER, UPDATE_DUE_TIMER, UPDATE_PATH].contains(name));
        self.systemctl.run(&[&["start"], &started.collect::<Vec<_>>()[..]].concat()).map(drop)
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
        let first = self.files.first;
        let _ = self.systemctl.run(&["reset-failed", first]);
        let companions = self.files.companions();
        for name in &companions {
            let _ = self.systemctl.run(&["reset-failed", name]);
        }
        let context = ServiceStartCtx { label: label(first) };
        self.manager().start(context).map_err(|e| from_service_manager("start", first, &e))?;
        // The agent's own start brings the sensor where it wants it; this one is for an agent that ran already.
        for name in &companions {
            self.companion(&["start", name]);
        }
        Ok(())
    }

    fn start_role(&self, role: Role) -> Result<(), ServiceError> {
        let unit = service_of(role);
        let _ = self.systemctl.run(&["reset-failed", unit]);
        let context = ServiceStartCtx { label: label(unit) };
        self.manager().start(context).map_err(|e| from_service_manager("start", unit, &e))?;
        if role == Role::Agent && self.files.companions().iter().any(|name| name == SENSOR) {
            let _ = self.systemctl.run(&["reset-failed", SENSOR]);
            self.companion(&["start", SENSOR]);
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), ServiceError> {
        // The sensor first, while there is an agent that takes what it still has.
        self.stop_companions();
        let first = self.files.first;
        let context = ServiceStopCtx { label: label(first) };
        self.manager().stop(context).map_err(|e| from_service_manager("stop", first, &e))
    }

    fn restart(&self) -> Result<(), ServiceError> {
        let companions = self.files.companions();
        if !companions.iter().any(|name| name == SENSOR) {
            self.stop_stray(SENSOR);
        }
        self.restart_with(&companions)
    }

    fn status(&self) -> Result<ServiceStatus, ServiceError> {
        let mut status = self.properties(self.files.first)?.status();
        let companions = self.files.companions();
        if companions.iter().any(|name| name == SENSOR) {
            let ServiceStatus { state, pid, restarts, detail, .. } = self.properties(SENSOR)?.status();
            status.sensor = Some(SensorStatus { state, pid, restarts, detail });
        }
        if companions.iter().any(|name| name == HUB) {
            status.hub = Some(Box::new(self.properties(HUB)?.status()));
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
        let path = self.files.trial_path(self.files.first);
        Ok(!self.files.on_trial().is_empty()
            || Path::new(self.properties(self.files.first)?.get("FragmentPath")) == path)
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
        let first = self.files.first;
        Ok(self.properties(first)?.trial_obstacle(first, &self.files.units, &exe))
    }

    fn log_command(&self, query: &LogQuery) -> Vec<String> {
        let mut command = vec!["journalctl".to_owned()];
        if self.user {
            command.push("--user".to_owned());
        }
        command.push(format!("--unit={}", self.files.first));
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
            hub: None,
        }
    }
}

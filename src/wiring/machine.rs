//! The service manager as the updater sees it.

use picket_layout::Layout;
use picket_protocol::UnitText;
use picket_service::{Registrar, ServiceState, Trial};
use picket_update::machine::{Machine, MachineError, ServiceView, ViewState};
use semver::Version;

/// A registrar, seen through the updater's port.
pub(crate) struct MachineOf<'a> {
    /// The registrar.
    pub(crate) registrar: &'a dyn Registrar,
    /// The installation, for the paths of versions.
    pub(crate) layout: &'a Layout,
}

impl Machine for MachineOf<'_> {
    fn view(&self) -> Result<ServiceView, MachineError> {
        let status = self.registrar.status()?;
        let state = match status.state {
            ServiceState::NotRegistered | ServiceState::Stopped => ViewState::Stopped,
            ServiceState::Starting => ViewState::Starting,
            ServiceState::Running => ViewState::Running,
            ServiceState::Restarting => ViewState::Restarting,
            ServiceState::Stopping => ViewState::Stopping,
            ServiceState::Failed => ViewState::Failed,
        };
        Ok(ServiceView { state, run: status.run, restarts: status.restarts, detail: status.detail })
    }

    fn begin_trial(&self, version: &Version, units: &[UnitText]) -> Result<(), MachineError> {
        let exe = self.layout.version_exe(version);
        Ok(self.registrar.begin_trial(&Trial { version: version.clone(), exe, units: units.to_vec() })?)
    }

    fn end_trial(&self) -> Result<bool, MachineError> {
        Ok(self.registrar.end_trial()?)
    }

    fn trial_is_on(&self) -> Result<bool, MachineError> {
        Ok(self.registrar.trial_is_on()?)
    }

    fn restart(&self) -> Result<(), MachineError> {
        Ok(self.registrar.restart()?)
    }

    fn stop(&self) -> Result<(), MachineError> {
        Ok(self.registrar.stop()?)
    }

    fn register(&self, units: &[UnitText]) -> Result<(), MachineError> {
        self.registrar.register(units)?;
        Ok(())
    }

    fn trial_obstacle(&self) -> Result<Option<String>, MachineError> {
        Ok(self.registrar.trial_obstacle()?)
    }
}

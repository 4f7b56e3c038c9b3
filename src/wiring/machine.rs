//! The service manager as the updater sees it.

use picket_layout::Layout;
use picket_protocol::UnitText;
use picket_service::{Registrar, ServiceState, ServiceStatus, Trial};
use picket_update::machine::{Machine, MachineError, ServiceView, ViewState};
use semver::Version;
use std::cell::RefCell;

/// A registrar, seen through the updater's port.
pub(crate) struct MachineOf<'a> {
    registrar: &'a dyn Registrar,
    /// For the paths of versions.
    layout: &'a Layout,
    /// Whether a hub beside the agent is tried and judged, too.
    with_hub: bool,
    /// What both services were before they were asked to restart.
    before: RefCell<Option<[String; 2]>>,
}

impl<'a> MachineOf<'a> {
    /// Sees `registrar`. A hub beside an agent counts if somebody wants it to run now.
    pub(crate) fn new(registrar: &'a dyn Registrar, layout: &'a Layout) -> Self {
        let hub = registrar.status().ok().and_then(|status| status.hub);
        let with_hub = hub.is_some_and(|hub| hub.state.is_wanted());
        Self { registrar, layout, with_hub, before: RefCell::default() }
    }

    /// Whether a hub beside the agent counts.
    pub(crate) fn counts_hub(&self) -> bool {
        self.with_hub
    }

    fn both(&self) -> Result<(ServiceStatus, Option<Box<ServiceStatus>>), MachineError> {
        let mut status = self.registrar.status()?;
        let hub = status.hub.take().filter(|_| self.with_hub);
        Ok((status, hub))
    }

    fn remember(&self) {
        let runs = self.both().ok().and_then(|(agent, hub)| Some([agent.run, hub?.run]));
        self.before.replace(runs);
    }
}

/// One service as the gate sees it.
fn view(status: ServiceStatus) -> ServiceView {
    let state = match status.state {
        ServiceState::NotRegistered | ServiceState::Stopped => ViewState::Stopped,
        ServiceState::Starting => ViewState::Starting,
        ServiceState::Running => ViewState::Running,
        ServiceState::Restarting => ViewState::Restarting,
        ServiceState::Stopping => ViewState::Stopping,
        ServiceState::Failed => ViewState::Failed,
    };
    ServiceView { state, run: status.run, restarts: status.restarts, detail: status.detail }
}

/// Agent and hub as one: as good as the worse of them. `before` is what their runs were before they were asked to restart;
/// until both have, it is still the old run.
fn as_one(agent: ServiceView, hub: &ServiceView, before: Option<&[String; 2]>) -> ServiceView {
    let name = |runs: [&str; 2]| format!("{}+{}", runs[0], runs[1]);
    let half_way = before.filter(|[a, b]| *a == agent.run || *b == hub.run);
    let run = half_way.map_or_else(|| name([&agent.run, &hub.run]), |[a, b]| name([a, b]));
    let restarts = agent.restarts + hub.restarts;
    let bad = |view: &ServiceView| match view.state {
        ViewState::Failed => 5,
        ViewState::Restarting => 4,
        ViewState::Stopped => 3,
        ViewState::Stopping => 2,
        ViewState::Starting => 1,
        ViewState::Running => 0,
    };
    // An agent that somebody stopped keeps a scheduled update waiting, whatever its hub does.
    if !agent.state.is_wanted() {
        return ServiceView { run, ..agent };
    }
    if bad(hub) > bad(&agent) {
        return ServiceView { state: hub.state, run, restarts, detail: format!("the hub: {}", hub.detail) };
    }
    ServiceView { run, restarts, ..agent }
}

impl Machine for MachineOf<'_> {
    fn view(&self) -> Result<ServiceView, MachineError> {
        let (agent, hub) = self.both()?;
        let agent = view(agent);
        Ok(match hub {
            Some(hub) => as_one(agent, &view(*hub), self.before.borrow().as_ref()),
            None => agent,
        })
    }

    fn begin_trial(&self, version: &Version, units: &[UnitText]) -> Result<(), MachineError> {
        self.remember();
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
        self.remember();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(state: ViewState, run: &str) -> ServiceView {
        ServiceView { state, run: run.to_owned(), restarts: 0, detail: run.to_owned() }
    }

    #[test]
    fn agent_and_hub_are_as_good_as_the_worse_of_them() {
        let (running, failed) = (ViewState::Running, ViewState::Failed);
        let one = as_one(seen(running, "a"), &seen(failed, "h"), None);
        assert_eq!((one.state, one.run.as_str(), one.detail.as_str()), (failed, "a+h", "the hub: h"));
        let one = as_one(seen(ViewState::Starting, "a"), &seen(running, "h"), None);
        assert_eq!(one.state, ViewState::Starting);
        assert_eq!(as_one(seen(ViewState::Stopped, "a"), &seen(failed, "h"), None).state, ViewState::Stopped);
    }

    #[test]
    fn a_new_run_is_one_only_when_both_have_restarted() {
        let before = ["a".to_owned(), "h".to_owned()];
        let run = |agent: &str, hub: &str| {
            as_one(seen(ViewState::Running, agent), &seen(ViewState::Running, hub), Some(&before)).run
        };
        assert_eq!([run("a", "h"), run("b", "h"), run("a", "i")], ["a+h", "a+h", "a+h"]);
        assert_eq!(run("b", "i"), "b+i");
    }
}

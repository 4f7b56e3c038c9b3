//! Asking everything of an installation how it is: the agent, the hub, or both as one.

use crate::build;
use crate::process::Process;
use crate::settings;
use picket_layout::{Layout, Role};
use picket_protocol::{HealthReport, LivezReport, OverallStatus};
use picket_transport::UrlError;
use picket_update::gate::{HttpProbe, Probe};
use std::net::SocketAddr;

/// The agent, the hub, or both.
pub(crate) struct ServiceProbe {
    first: HttpProbe,
    hub: Option<HttpProbe>,
}

/// The health port of whatever answers at `address`.
pub(crate) fn at(address: SocketAddr) -> Result<HttpProbe, UrlError> {
    Ok(HttpProbe::new(format!("http://{address}").parse()?, &build::user_agent()))
}

/// The hub's health port, as its configuration has it; the default where that cannot be used.
pub(crate) fn of_hub(layout: &Layout, process: &Process) -> Result<HttpProbe, UrlError> {
    let resolved = settings::hub::resolve(layout, process, &crate::cli::HubConfigArgs::default());
    let settings = resolved.map(|config| config.settings).unwrap_or_default();
    at(settings.listen.health.get())
}

impl ServiceProbe {
    /// What a version is judged by in `layout`'s installation: the agent at `agent`, and the hub where that `counts`; the hub
    /// alone where there is no agent.
    pub(crate) fn new(layout: &Layout, process: &Process, agent: SocketAddr, counts: bool) -> Result<Self, UrlError> {
        if !layout.roles().has(Role::Agent) {
            return Ok(Self { first: of_hub(layout, process)?, hub: None });
        }
        let hub = if counts { Some(of_hub(layout, process)?) } else { None };
        Ok(Self { first: at(agent)?, hub })
    }
}

impl Probe for ServiceProbe {
    fn livez(&self) -> Option<LivezReport> {
        let first = self.first.livez()?;
        match &self.hub {
            None => Some(first),
            Some(hub) => agreeing(first, &hub.livez()?),
        }
    }

    fn health(&self) -> Option<HealthReport> {
        let first = self.first.health();
        match &self.hub {
            None => first,
            Some(hub) => together(first, hub.health()),
        }
    }
}

/// While they are of different versions, a trial has not begun or has not ended: nobody answers for both.
fn agreeing(first: LivezReport, hub: &LivezReport) -> Option<LivezReport> {
    (first.version == hub.version).then_some(first)
}

/// Both reports as one; the hub's checks under `hub.`.
fn together(first: Option<HealthReport>, hub: Option<HealthReport>) -> Option<HealthReport> {
    let (mut first, hub) = match (first, hub) {
        (Some(first), Some(hub)) => (first, hub),
        (one, other) => return one.or(other),
    };
    let sick = [&first, &hub].iter().any(|report| report.status == OverallStatus::Unhealthy);
    first.checks.extend(hub.checks.into_iter().map(|(name, check)| (format!("hub.{name}"), check)));
    if sick {
        first.status = OverallStatus::Unhealthy;
    }
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::CheckStatus;
    use semver::Version;
    use serde_json::json;

    fn alive(version: u64) -> LivezReport {
        let version = Version::new(version, 0, 0);
        LivezReport { status: "alive".into(), version, pid: 1, uptime_seconds: 0 }
    }

    fn report(status: &str, check: &str) -> HealthReport {
        serde_json::from_value(json!({
            "status": status, "timestamp": "2026-11-22T00:00:00Z", "version": "1.0.0", "agent_id": "x", "uptime": 1,
            "checks": {check: {"status": "fail", "message": "m"}},
        }))
        .unwrap()
    }

    #[test]
    fn a_version_answers_when_agent_and_hub_are_both_of_it() {
        assert!(agreeing(alive(1), &alive(2)).is_none() && agreeing(alive(2), &alive(1)).is_none());
        assert_eq!(agreeing(alive(2), &alive(2)).unwrap().version, Version::new(2, 0, 0));
    }

    #[test]
    fn the_hubs_checks_stand_beside_the_agents_under_a_name_of_their_own() {
        let both = together(Some(report("healthy", "disk")), Some(report("unhealthy", "disk"))).unwrap();
        assert_eq!(both.checks.keys().collect::<Vec<_>>(), ["disk", "hub.disk"]);
        assert_eq!((both.status, both.checks["hub.disk"].status), (OverallStatus::Unhealthy, CheckStatus::Fail));
        assert!(together(None, Some(report("healthy", "disk"))).is_some());
        assert!(together(None, None).is_none());
    }
}

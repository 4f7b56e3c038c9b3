//! What `picket doctor` says of the hub that this machine is.

use super::Context;
use super::doctor::Findings;
use crate::cli::HubConfigArgs;
use crate::error::CommandError;
use crate::settings::hub as settings;
use crate::wiring;
use jiff::Timestamp;
use picket_hub::authority::KeysFolder;
use picket_hub::config::HubSettings;
use picket_layout::HUB_USER;
use picket_pki::{Renewal, renewal};
use picket_protocol::CheckStatus;
use picket_service::{ServiceState, ServiceStatus};
use picket_update::gate::Probe as _;

/// The first port that a service without capabilities may listen on (`ip_unprivileged_port_start`, ip(7)).
const FIRST_OPEN_PORT: u16 = 1024;

/// The hub's service beside the agent's.
pub(super) fn service(hub: &ServiceStatus, findings: &mut Findings) {
    let what = format!("{} ({})", hub.detail, hub.manager);
    match hub.state {
        ServiceState::Running => findings.ok("hub_service", what),
        ServiceState::Starting | ServiceState::Stopping => {
            findings.warn("hub_service", what, "look again in a moment");
        }
        ServiceState::Stopped => findings.warn("hub_service", what, "`systemctl start picket-hub`"),
        ServiceState::NotRegistered => {
            findings.error("hub_service", "the service manager does not know it", "run `picket install` again");
        }
        ServiceState::Restarting | ServiceState::Failed => {
            findings.error("hub_service", what, "`journalctl --unit=picket-hub` shows why");
        }
    }
    if !hub.enabled && hub.state != ServiceState::NotRegistered {
        findings.warn("hub_boot", "the hub is not started at boot", "`systemctl enable picket-hub`");
    }
}

/// Its configuration, keys and health.
pub(super) fn look(context: &Context<'_>, findings: &mut Findings) {
    match settings::resolve(&context.layout, context.process, &HubConfigArgs::default()) {
        Ok(config) => {
            for warning in &config.warnings {
                findings.warn("hub_configuration", warning, "correct or remove the key");
            }
            if config.warnings.is_empty() {
                findings.ok("hub_configuration", "every key is known and valid");
            }
            ports(context, &config.settings, findings);
        }
        Err(CommandError::File(error)) if error.source.kind() == std::io::ErrorKind::PermissionDenied => {
            findings.warn("hub_configuration", "it can be seen by root only", "run `sudo picket doctor`");
        }
        Err(error) => {
            findings.error("hub_configuration", error.to_string(), "correct it, then `systemctl restart picket-hub`");
        }
    }
    keys(context, findings);
    health(context, findings);
}

/// A port that only root may listen on needs a word to the service manager.
fn ports(context: &Context<'_>, settings: &HubSettings, findings: &mut Findings) {
    if !context.layout.has_service_user() {
        return;
    }
    let named = [("listen.agents", settings.agents_address()), ("listen.api", settings.api_address())];
    for (key, address) in named {
        match address {
            Ok(address) if address.port() < FIRST_OPEN_PORT => findings.warn(
                "hub_ports",
                format!("{key} is below {FIRST_OPEN_PORT}, which the hub's user may not take by itself"),
                "`systemctl edit picket-hub` and add under [Service]: AmbientCapabilities=CAP_NET_BIND_SERVICE, \
                 CapabilityBoundingSet=CAP_NET_BIND_SERVICE, PrivateUsers=no",
            ),
            Ok(_) => {}
            Err(error) => findings.error("hub_ports", error.to_string(), "correct it in hub.yaml"),
        }
    }
}

fn keys(context: &Context<'_>, findings: &mut Findings) {
    let folder = KeysFolder::new(context.layout.hub_keys_dir());
    let loaded = wiring::as_owner_of(&context.layout.hub_dir(), || Ok(folder.load()));
    let keys = match loaded {
        Ok(Ok(keys)) => keys,
        Ok(Err(error)) => return findings.error("hub_keys", error.to_string(), "`picket hub init`, or a backup"),
        Err(CommandError::NotOwner(_)) => {
            return findings.warn("hub_keys", "they can be seen by root only", "run `sudo picket doctor`");
        }
        Err(error) => {
            let fix = format!("run `picket install` again: it makes the folder and gives it to {HUB_USER}");
            return findings.error("hub_keys", error.to_string(), fix);
        }
    };
    let until = keys.hub.0.not_after;
    match renewal(&keys.hub.0, Timestamp::now()) {
        // The hub renews it by itself, so one that is due was not running for long, or cannot.
        Renewal::Expired => findings.error("hub_certificate", format!("it expired at {until}"), "`picket hub init`"),
        Renewal::Due => findings.warn("hub_certificate", format!("until {until}; its renewal is due"), "start the hub"),
        Renewal::NotBefore(_) => findings.ok("hub_certificate", format!("until {until}")),
    }
    if folder.dir().join("root.key").exists() {
        let fix = "take root.key to a safe; it is needed for a new intermediate authority only";
        findings.warn("hub_root_key", "the root's key lies beside the others", fix);
    }
}

fn health(context: &Context<'_>, findings: &mut Findings) {
    let Some(report) = wiring::of_hub(&context.layout, context.process).ok().and_then(|probe| probe.health()) else {
        let fix = "`journalctl --unit=picket-hub`, and listen.health in hub.yaml";
        return findings.error("hub_health", "the hub does not answer on its health port", fix);
    };
    let mut well = true;
    for (code, check) in &report.checks {
        let message = format!("{code}: {}", check.message);
        let fix = "see the message; `journalctl --unit=picket-hub` may show more";
        match check.status {
            CheckStatus::Pass => continue,
            CheckStatus::Warn => findings.warn("hub_health", message, fix),
            CheckStatus::Fail => findings.error("hub_health", message, fix),
        }
        well = false;
    }
    if well {
        findings.ok("hub_health", format!("{} checks pass", report.checks.len()));
    }
}

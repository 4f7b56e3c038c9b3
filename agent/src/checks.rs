//! The health checks of the agent, each declared once.

use picket_protocol::{CheckScope, Severity};
use picket_telemetry::{CheckSpec, Finding};

/// The configuration was read, and every key in it means something.
pub(crate) const CONFIG: CheckSpec =
    CheckSpec { code: "config", title: "Configuration", severity: Severity::Medium, scope: CheckScope::Local };

/// The main event loop turns.
pub(crate) const EVENT_LOOP: CheckSpec =
    CheckSpec { code: "event_loop", title: "Event loop", severity: Severity::High, scope: CheckScope::Local };

/// The machine is measured at the interval asked for.
pub(crate) const COLLECTOR: CheckSpec =
    CheckSpec { code: "collector", title: "System metrics", severity: Severity::High, scope: CheckScope::Local };

/// The metrics server has its port.
pub(crate) const METRICS_SERVER: CheckSpec = CheckSpec {
    code: "metrics_server",
    title: "Metrics server",
    severity: Severity::Medium,
    scope: CheckScope::External,
};

/// There is room on the disks. The machine's trouble, not the version's.
pub(crate) const DISK_SPACE: CheckSpec =
    CheckSpec { code: "disk_space", title: "Disk space", severity: Severity::Medium, scope: CheckScope::External };

/// The last update ended well.
pub(crate) const LAST_UPDATE: CheckSpec =
    CheckSpec { code: "last_update", title: "Last update", severity: Severity::Low, scope: CheckScope::External };

/// The trusted release metadata is not about to expire.
pub(crate) const UPDATE_TRUST: CheckSpec = CheckSpec {
    code: "update_trust",
    title: "Release metadata",
    severity: Severity::Medium,
    scope: CheckScope::External,
};

/// The agent keeps to its budget of the machine. Not the version's fault alone: a first scan of a large machine is
/// work, too, and must not convict an update.
pub(crate) const RESOURCES: CheckSpec =
    CheckSpec { code: "resources", title: "Own resources", severity: Severity::Medium, scope: CheckScope::External };

/// Rows can be kept in the sealed store.
pub(crate) const STORE: CheckSpec =
    CheckSpec { code: "store", title: "Store", severity: Severity::High, scope: CheckScope::Local };

/// Events can be kept, and their books add up.
pub(crate) const OUTBOX: CheckSpec =
    CheckSpec { code: "outbox", title: "Event queue", severity: Severity::High, scope: CheckScope::Local };

/// How much is seen of files. What is not seen for want of privilege is not the version's fault.
pub(crate) const FILES: CheckSpec =
    CheckSpec { code: "files", title: "File events", severity: Severity::Medium, scope: CheckScope::External };

/// How much is seen of connections.
pub(crate) const NETWORK: CheckSpec =
    CheckSpec { code: "network", title: "Network events", severity: Severity::Medium, scope: CheckScope::External };

/// The sinks beside the outbox take events. What they lose, the outbox has.
pub(crate) const EVENT_SINKS: CheckSpec =
    CheckSpec { code: "event_sinks", title: "Event sinks", severity: Severity::Low, scope: CheckScope::External };

/// Alerts reach people. A mail server that is away is not the version's fault.
pub(crate) const ALERT_CHANNELS: CheckSpec = CheckSpec {
    code: "alert_channels",
    title: "Alert channels",
    severity: Severity::Medium,
    scope: CheckScope::External,
};

/// This machine is an agent of its hub, if it is to be one. Nothing that a new version of the program could be blamed for.
pub(crate) const ENROLLED: CheckSpec =
    CheckSpec { code: "enrolled", title: "Enrolment", severity: Severity::High, scope: CheckScope::External };

/// The certificate for the hub holds and is renewed in time.
pub(crate) const CERTIFICATES: CheckSpec =
    CheckSpec { code: "certificates", title: "Certificates", severity: Severity::High, scope: CheckScope::External };

/// The hub hears this machine. That it does not is no reason to go back to an older version.
pub(crate) const HUB_CONNECTION: CheckSpec =
    CheckSpec { code: "hub_connection", title: "Hub", severity: Severity::Medium, scope: CheckScope::External };

/// The finding of [`CONFIG`]: keys that nobody declared are warnings.
pub(crate) fn config_finding(warnings: &[String]) -> Finding {
    match warnings {
        [] => Finding::pass("every key is known and valid"),
        [one] => Finding::warn(one.clone()),
        [first, rest @ ..] => Finding::warn(format!("{first} (and {} more; see picket config check)", rest.len())),
    }
}

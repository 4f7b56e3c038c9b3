//! The health checks of the agent, each declared once.

use picket_protocol::{CheckScope, Severity};
use picket_telemetry::CheckSpec;

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

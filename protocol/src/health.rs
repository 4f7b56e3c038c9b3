//! What an agent says of its own health: `/livez` and `/health`.
//!
//! The updater of one version judges the agent of another by these documents, so they are part of the protocol. The
//! shape of [`HealthReport`] is the one of the operations guide's health endpoint: `status`, `timestamp`, `checks` by
//! code with `status` and `message`, `version`, `agent_id`.

use semver::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The answer of `GET /livez`: this process is alive and can still answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivezReport {
    /// Always `"alive"`.
    pub status: String,
    /// The version that answers.
    pub version: Version,
    /// The process id that answers.
    pub pid: u32,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
}

/// The answer of `GET /health`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HealthReport {
    /// `healthy` (HTTP 200) unless a check fails (`unhealthy`, HTTP 503).
    pub status: OverallStatus,
    /// When the report was made (RFC 3339, UTC).
    pub timestamp: jiff::Timestamp,
    /// The last result of each check, by its code.
    pub checks: BTreeMap<String, CheckReport>,
    /// The version that answers.
    pub version: Version,
    /// The agent's identity: the machine's id, hashed for this product.
    pub agent_id: String,
    /// Seconds since the process started.
    pub uptime: u64,
}

/// The last result of one check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Pass, warn or fail.
    pub status: CheckStatus,
    /// The result in words, with the figure it rests on.
    pub message: String,
    /// The check's title, for people.
    #[serde(default)]
    pub title: String,
    /// How bad a failure is.
    #[serde(default)]
    pub severity: Severity,
    /// Whether the machine itself answers for it, or something beyond it.
    #[serde(default)]
    pub scope: CheckScope,
    /// Figures of the check's own, for example `expires_in_days`.
    #[serde(flatten)]
    pub figures: BTreeMap<String, serde_json::Value>,
}

/// The result of a check. The order is from good to bad, so that `max` is "the worse".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// All is well.
    Pass,
    /// Works, but somebody should look.
    Warn,
    /// Does not work.
    Fail,
}

/// The sum of all checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverallStatus {
    /// No check fails.
    Healthy,
    /// At least one check fails.
    Unhealthy,
}

/// How bad it is when a check fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Low,
    /// Some of the agent's work does not happen.
    #[default]
    Medium,
    /// The agent does not do its work.
    High,
}

/// Who answers for a check. Only local checks can convict a new version: a network's or a hub's trouble is not its fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckScope {
    /// This machine and this process.
    #[default]
    Local,
    /// Something this machine only talks to.
    External,
}

impl CheckStatus {
    /// The word used in JSON and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_health_report_of_the_operations_guide_is_read_as_it_stands() {
        let guide = r#"{"status":"healthy","timestamp":"2025-12-16T10:30:00Z","checks":{
            "certificates":{"status":"pass","message":"certificate valid until 2026-12-16","expires_in_days":365},
            "disk_space":{"status":"warn","message":"disk space 95.2% used"}},
            "version":"3.0.0","agent_id":"agent-uuid","uptime":12345}"#;
        let report: HealthReport = serde_json::from_str(guide).unwrap();
        assert_eq!(report.checks["certificates"].figures["expires_in_days"], 365);
        assert_eq!(report.checks["disk_space"].status, CheckStatus::Warn);
        assert!(CheckStatus::Fail > CheckStatus::Warn && CheckStatus::Warn > CheckStatus::Pass);
    }
}

//! The registry of health checks.
//!
//! A check is a declared value ([`CheckSpec`]), not a piece of code that appears when it fails: its code, title,
//! severity and scope are the same in the log, the API and the documents. Its last [`Finding`] is stored by whoever
//! does the work; a probe is asked at the moment of the report and must not block, because health answers on its own
//! thread even when everything else is stuck.

use picket_protocol::{
    CheckReport, CheckScope, CheckStatus, HealthReport, OverallStatus, Severity, build_info::BuildInfo,
};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The declaration of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckSpec {
    /// The stable name, `disk_space`; the key in `/health`.
    pub code: &'static str,
    /// What it is about, for people.
    pub title: &'static str,
    /// How bad a failure is.
    pub severity: Severity,
    /// Whether the machine itself answers for it. Only local checks can convict a new version in its trial.
    pub scope: CheckScope,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Pass, warn or fail.
    pub status: CheckStatus,
    /// In words, with the figure it rests on.
    pub message: String,
    /// Figures of the check's own, by name.
    pub figures: BTreeMap<String, serde_json::Value>,
}

impl Finding {
    /// All is well.
    pub fn pass(message: impl Into<String>) -> Self {
        Self { status: CheckStatus::Pass, message: message.into(), figures: BTreeMap::new() }
    }

    /// Works, but somebody should look.
    pub fn warn(message: impl Into<String>) -> Self {
        Self { status: CheckStatus::Warn, ..Self::pass(message) }
    }

    /// Does not work.
    pub fn fail(message: impl Into<String>) -> Self {
        Self { status: CheckStatus::Fail, ..Self::pass(message) }
    }

    /// Adds a figure.
    #[must_use]
    pub fn figure(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.figures.insert(name.to_owned(), value.into());
        self
    }
}

enum Source {
    Stored(Finding),
    Probe(Box<dyn Fn() -> Finding + Send + Sync>),
}

/// All checks of one process.
#[derive(Default)]
pub struct Health {
    checks: Mutex<BTreeMap<&'static str, (CheckSpec, Source)>>,
}

impl Health {
    /// Stores the finding of a check; the first one also registers it. A change of status is logged once.
    pub fn set(&self, spec: CheckSpec, finding: Finding) {
        let mut checks = self.lock();
        let before = match checks.get(spec.code) {
            Some((_, Source::Stored(before))) => Some(before.status),
            _ => None,
        };
        if before.unwrap_or(CheckStatus::Pass) != finding.status {
            let (code, message) = (spec.code, &finding.message);
            match finding.status {
                CheckStatus::Pass => tracing::info!(check = code, "{message}"),
                CheckStatus::Warn => tracing::warn!(check = code, "{message}"),
                CheckStatus::Fail => tracing::error!(check = code, "{message}"),
            }
        }
        checks.insert(spec.code, (spec, Source::Stored(finding)));
    }

    /// Registers a check that is asked whenever a report is made. It must return at once.
    pub fn probe(&self, spec: CheckSpec, probe: impl Fn() -> Finding + Send + Sync + 'static) {
        self.lock().insert(spec.code, (spec, Source::Probe(Box::new(probe))));
    }

    /// The report of this moment.
    pub fn report(&self, build: &BuildInfo, agent_id: &str, uptime_seconds: u64) -> HealthReport {
        let checks: BTreeMap<String, CheckReport> = self
            .lock()
            .iter()
            .map(|(code, (spec, source))| ((*code).to_owned(), check_report(*spec, source)))
            .collect();
        let failing = checks.values().any(|check| check.status == CheckStatus::Fail);
        HealthReport {
            status: if failing { OverallStatus::Unhealthy } else { OverallStatus::Healthy },
            timestamp: now_to_the_second(),
            checks,
            version: build.version.clone(),
            agent_id: agent_id.to_owned(),
            uptime: uptime_seconds,
        }
    }

    // A panic elsewhere while the lock was held cannot leave half a finding behind, so poison is no reason to go mute.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, (CheckSpec, Source)>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_report(spec: CheckSpec, source: &Source) -> CheckReport {
    let finding = match source {
        Source::Stored(finding) => finding.clone(),
        Source::Probe(probe) => probe(),
    };
    CheckReport {
        status: finding.status,
        message: finding.message,
        title: spec.title.to_owned(),
        severity: spec.severity,
        scope: spec.scope,
        figures: finding.figures,
    }
}

fn now_to_the_second() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::StateFormat;
    use semver::Version;

    const DISK: CheckSpec =
        CheckSpec { code: "disk_space", title: "Disk space", severity: Severity::Medium, scope: CheckScope::Local };
    const LOOP: CheckSpec =
        CheckSpec { code: "event_loop", title: "Event loop", severity: Severity::High, scope: CheckScope::Local };

    fn report(health: &Health) -> HealthReport {
        let build = BuildInfo {
            version: Version::new(1, 0, 0),
            commit: "unknown".into(),
            target: "x86_64-unknown-linux-gnu".parse().unwrap(),
            built: "2026-11-21".into(),
            state_format: StateFormat { reads_from: 1, writes: 1 },
        };
        health.report(&build, "id", 3)
    }

    #[test]
    fn warnings_leave_the_agent_healthy_and_one_failure_does_not() {
        let health = Health::default();
        health.set(DISK, Finding::warn("disk space 95.0% used").figure("used_percent", 95.0));
        assert_eq!(report(&health).status, OverallStatus::Healthy);
        health.probe(LOOP, || Finding::fail("the event loop last turned 40 s ago"));
        let report = report(&health);
        assert_eq!(report.status, OverallStatus::Unhealthy);
        assert_eq!(report.checks["disk_space"].figures["used_percent"], 95.0);
        assert_eq!(report.checks["event_loop"].severity, Severity::High);
    }
}

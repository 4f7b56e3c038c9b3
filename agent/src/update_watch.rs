//! What the updater publishes, as the agent's health shows it and its metrics count it.

use crate::checks;
use crate::keep::told;
use picket_protocol::update_status::{UPDATE_STATUS_MAX_BYTES, UpdateOutcome, UpdateStatus};
use picket_telemetry::{Finding, Health};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often the updater's published status is read.
const UPDATE_STATUS_INTERVAL: Duration = Duration::from_secs(30);
/// From how many days before its expiry the release metadata warns.
const TRUST_WARN_DAYS: i64 = 14;

/// The largest file of counted attempts, in bytes.
const ATTEMPTS_MAX_BYTES: u64 = 4 << 10;

/// Counts the updates that ended. Every update restarts the agent, so that the count is kept on disk; what the updater
/// publishes is the last one only, and two that end while no agent runs are counted as one.
#[derive(Debug)]
pub(crate) struct UpdateAttempts {
    path: PathBuf,
    counted: Mutex<Counted>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Counted {
    /// The last update that was counted.
    last: String,
    success: u64,
    error: u64,
}

impl UpdateAttempts {
    /// Goes on where the agent before stood.
    pub(crate) fn open(state_dir: &Path) -> Self {
        let path = state_dir.join("update-attempts.json");
        let bytes = picket_durable::read_if_present(&path, ATTEMPTS_MAX_BYTES);
        let counted = bytes.map(|bytes| bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()));
        let counted = counted.unwrap_or_else(|error| {
            tracing::warn!(error = told(&error), "updates are counted from nothing again");
            None
        });
        Self { path, counted: Mutex::new(counted.unwrap_or_default()) }
    }

    /// Counts the last update, if it was not counted.
    fn see(&self, status: &UpdateStatus) {
        let Some(ended) = &status.last else { return };
        let mut counted = self.lock();
        if counted.last == ended.id {
            return;
        }
        counted.last.clone_from(&ended.id);
        match ended.outcome {
            UpdateOutcome::Committed => counted.success += 1,
            UpdateOutcome::RolledBack | UpdateOutcome::Refused | UpdateOutcome::Interrupted => counted.error += 1,
        }
        let written = picket_durable::write_json(&self.path, &*counted, 0o600);
        if let Err(error) = written {
            tracing::warn!(error = told(&error), "the next agent will count an update once more");
        }
    }

    /// Those that succeeded, and those that did not.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let counted = self.lock();
        (counted.success, counted.error)
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Turns the updater's published status into health checks.
pub(crate) async fn watch_update_status(health: Arc<Health>, attempts: Arc<UpdateAttempts>, path: PathBuf) {
    loop {
        if let Some(status) = read_update_status(&path) {
            attempts.see(&status);
            for (spec, finding) in update_findings(&status, jiff::Timestamp::now()) {
                health.set(spec, finding);
            }
        }
        tokio::time::sleep(UPDATE_STATUS_INTERVAL).await;
    }
}

fn read_update_status(path: &Path) -> Option<UpdateStatus> {
    let bytes = picket_durable::read_if_present(path, UPDATE_STATUS_MAX_BYTES).ok()??;
    serde_json::from_slice(&bytes).ok()
}

/// What the updater's status means for the agent's health.
fn update_findings(status: &UpdateStatus, now: jiff::Timestamp) -> Vec<(picket_telemetry::CheckSpec, Finding)> {
    let mut findings = Vec::new();
    if let Some(last) = &status.last {
        let text = format!("{} to {}: {}", last.from, last.to, last.reason);
        let finding = match last.outcome {
            UpdateOutcome::Committed => Finding::pass(text),
            UpdateOutcome::RolledBack | UpdateOutcome::Refused | UpdateOutcome::Interrupted => Finding::warn(text),
        };
        findings.push((checks::LAST_UPDATE, finding));
    }
    if let (Some(reason), Some(current)) = (&status.taken_back, &status.current) {
        // Over whatever the last update was: this is about the version that runs.
        let text = format!("the vendor took version {current}, which runs, back: {reason}; see `picket update status`");
        findings.retain(|(spec, _)| *spec != checks::LAST_UPDATE);
        findings.push((checks::LAST_UPDATE, Finding::warn(text)));
    }
    if let Some(trust) = &status.trust {
        let (role, expires) = trust.first();
        let days = expires.duration_since(now).as_secs() / 86_400;
        // The timestamp lives for two weeks by design and is renewed every day; it warns when it was not.
        let limit = if matches!(role, "timestamp" | "snapshot") { 3 } else { TRUST_WARN_DAYS };
        let finding = if expires < now {
            Finding::warn(format!("the release {role} metadata expired on {expires}; updates wait, the agent does not"))
        } else if days < limit {
            Finding::warn(format!("the release {role} metadata expires in {days} days"))
        } else {
            Finding::pass(format!("the release {role} metadata is valid until {expires}"))
        };
        findings.push((checks::UPDATE_TRUST, finding.figure("expires_in_days", days)));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::CheckStatus;
    use picket_protocol::update_status::{EndedUpdate, TrustExpiry};

    fn status(now: jiff::Timestamp) -> UpdateStatus {
        UpdateStatus {
            schema: 1,
            at: now,
            current: None,
            previous: None,
            running: None,
            last: None,
            available: None,
            last_check: None,
            trust: None,
            pinned: None,
            held: vec![],
            taken_back: None,
        }
    }

    #[test]
    fn each_update_is_counted_once_however_often_the_agent_starts() {
        let dir = tempfile::tempdir().unwrap();
        let ended = |id: &str, outcome| {
            let version = |text: &str| text.parse().unwrap();
            let (from, to, finished) = (version("1.0.0"), version("1.1.0"), jiff::Timestamp::UNIX_EPOCH);
            let last = EndedUpdate { id: id.into(), from, to, outcome, reason: String::new(), finished };
            UpdateStatus { last: Some(last), ..status(finished) }
        };
        let first = ended("a", UpdateOutcome::Committed);
        for _ in 0..2 {
            let attempts = UpdateAttempts::open(dir.path());
            attempts.see(&first);
            attempts.see(&first);
            assert_eq!(attempts.counts(), (1, 0));
        }
        let attempts = UpdateAttempts::open(dir.path());
        attempts.see(&status(jiff::Timestamp::UNIX_EPOCH));
        attempts.see(&ended("b", UpdateOutcome::RolledBack));
        attempts.see(&ended("c", UpdateOutcome::Refused));
        assert_eq!(UpdateAttempts::open(dir.path()).counts(), (1, 2));
    }

    #[test]
    fn a_version_that_the_vendor_took_back_warns_over_how_the_last_update_ended() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let version = |text: &str| text.parse().unwrap();
        let (from, to, outcome) = (version("1.0.0"), version("1.1.0"), UpdateOutcome::Committed);
        let last = EndedUpdate { id: "a".into(), from, to, outcome, reason: String::new(), finished: now };
        let taken_back = Some("it loses events".to_owned());
        let status = UpdateStatus { last: Some(last), current: Some(version("1.1.0")), taken_back, ..status(now) };
        let findings = update_findings(&status, now);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].1.status, CheckStatus::Warn);
        assert!(findings[0].1.message.contains("it loses events"), "{}", findings[0].1.message);
    }

    #[test]
    fn expired_release_metadata_warns_and_never_fails() {
        let now: jiff::Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
        let finding = |root: &str| {
            let trust = TrustExpiry { root: root.parse().unwrap(), targets: None, snapshot: None, timestamp: None };
            let status = UpdateStatus { trust: Some(trust), ..status(now) };
            update_findings(&status, now).remove(0).1
        };
        assert_eq!(finding("2027-11-21T00:00:00Z").status, CheckStatus::Pass);
        assert_eq!(finding("2026-11-30T00:00:00Z").status, CheckStatus::Warn);
        let expired = finding("2026-11-20T00:00:00Z");
        assert_eq!(expired.status, CheckStatus::Warn);
        assert!(expired.message.contains("updates wait"), "{}", expired.message);
    }
}

//! What the updater publishes, as the agent's health shows it and its metrics count it.

use crate::checks;
use crate::keep::told;
use picket_protocol::update_status::{TrustExpiry, UPDATE_STATUS_MAX_BYTES, UpdateOutcome, UpdateStatus};
use picket_telemetry::{Finding, Health};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often the updater's published status is read.
const UPDATE_STATUS_INTERVAL: Duration = Duration::from_secs(30);
/// From how many days before their expiry the root and the targets warn, each time more urgently: people renew them, with
/// keys that are kept offline.
const TRUST_WARN_DAYS: [i64; 3] = [30, 14, 7];
/// The same for the timestamp and the snapshot. They live for some weeks by design, and a schedule renews them every day:
/// so few days are left only where it did not run, or where this machine does not see what it does.
const SCHEDULED_WARN_DAYS: [i64; 1] = [3];

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
    findings.extend(status.trust.as_ref().map(|trust| (checks::UPDATE_TRUST, trust_finding(trust, now))));
    findings
}

/// What the expiry of the release metadata means: of all roles, the one that it is most urgent to renew speaks. It is not
/// always the one that expires first, since a fresh timestamp may well expire before a root that is nearly over.
fn trust_finding(trust: &TrustExpiry, now: jiff::Timestamp) -> Finding {
    let roles = [
        ("root", Some(trust.root), &TRUST_WARN_DAYS[..]),
        ("targets", trust.targets, &TRUST_WARN_DAYS),
        ("snapshot", trust.snapshot, &SCHEDULED_WARN_DAYS),
        ("timestamp", trust.timestamp, &SCHEDULED_WARN_DAYS),
    ];
    let judged = roles.into_iter().filter_map(|(role, expires, steps)| {
        let expires = expires?;
        let days = expires.duration_since(now).as_secs().div_euclid(86_400);
        // How many of its steps are over, and whether it is too late.
        let urgency = steps.iter().filter(|step| days < **step).count();
        let is_last = urgency == steps.len();
        Some((if expires < now { usize::MAX } else { urgency }, is_last, role, expires, days))
    });
    // The most urgent; among equals the one that expires first.
    let most = judged.max_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(b.3.cmp(&a.3)));
    let Some((urgency, is_last, role, expires, days)) = most else { return Finding::pass("nothing is trusted yet") };
    let scheduled = matches!(role, "snapshot" | "timestamp");
    let finding = match (urgency, is_last, scheduled) {
        (usize::MAX, _, _) => {
            Finding::warn(format!("the release {role} metadata expired on {expires}; updates wait, the agent does not"))
        }
        (0, _, _) => Finding::pass(format!("the release {role} metadata is valid until {expires}")),
        (_, _, true) => Finding::warn(format!(
            "the release {role} metadata expires in {days} days: the vendor's daily renewal did not reach this machine; \
             check update.releases, then ask the vendor"
        )),
        (_, true, false) => Finding::warn(format!(
            "the release {role} metadata expires in {days} days, and updates will stop: the vendor must renew it now"
        )),
        (1, false, false) => {
            Finding::warn(format!("the release {role} metadata expires in {days} days; the vendor should renew it"))
        }
        (_, false, false) => Finding::warn(format!(
            "the release {role} metadata expires in {days} days: ask the vendor when it will be renewed"
        )),
    };
    finding.figure("expires_in_days", days)
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::CheckStatus;
    use picket_protocol::update_status::EndedUpdate;

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

    /// What the health says where the roles have so many days left: root, targets, snapshot, timestamp.
    fn left(days: [i64; 4]) -> Finding {
        let now: jiff::Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
        let at = |days: i64| now + jiff::SignedDuration::from_hours(24 * days + 1);
        let [root, targets, snapshot, timestamp] = days.map(at);
        let trust = TrustExpiry { root, targets: Some(targets), snapshot: Some(snapshot), timestamp: Some(timestamp) };
        update_findings(&UpdateStatus { trust: Some(trust), ..status(now) }, now).remove(0).1
    }

    #[test]
    fn release_metadata_warns_thirty_fourteen_and_seven_days_before_it_expires() {
        let steps = [
            (30, CheckStatus::Pass, "valid until"),
            (29, CheckStatus::Warn, "in 29 days; the vendor should renew it"),
            (14, CheckStatus::Warn, "in 14 days; the vendor should renew it"),
            (13, CheckStatus::Warn, "in 13 days: ask the vendor"),
            (7, CheckStatus::Warn, "in 7 days: ask the vendor"),
            (6, CheckStatus::Warn, "in 6 days, and updates will stop: the vendor must renew it now"),
            (0, CheckStatus::Warn, "in 0 days, and updates will stop"),
            (-1, CheckStatus::Warn, "expired on"),
        ];
        for (days, expected, words) in steps {
            for (role, finding) in [("root", left([days, 100, 25, 12])), ("targets", left([100, days, 25, 12]))] {
                assert_eq!(finding.status, expected, "{role}, {days} days: {}", finding.message);
                assert!(finding.message.contains(words), "{role}, {days} days: {}", finding.message);
                let named = days >= 30 || finding.message.contains(&format!("the release {role} metadata"));
                assert!(named, "{}", finding.message);
                assert!(days >= 30 || finding.figures["expires_in_days"] == days, "{role}, {days} days");
            }
        }
    }

    #[test]
    fn a_root_that_is_nearly_over_is_not_hidden_by_a_timestamp_that_lives_for_two_weeks() {
        let finding = left([20, 100, 25, 13]);
        assert!(finding.message.contains("root metadata expires in 20 days"), "{}", finding.message);
        assert_eq!(left([100, 100, 25, 3]).status, CheckStatus::Pass, "renewed every day, as it should be");
        let finding = left([100, 100, 25, 2]);
        assert!(finding.message.contains("timestamp metadata expires in 2 days"), "{}", finding.message);
        assert!(finding.message.contains("daily renewal"), "{}", finding.message);
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
        for days in [[-1, 100, 100, 100], [5, 5, -3, -2], [-400, -400, -400, -400]] {
            let expired = left(days);
            assert_eq!(expired.status, CheckStatus::Warn);
            assert!(expired.message.contains("updates wait, the agent does not"), "{}", expired.message);
        }
    }
}

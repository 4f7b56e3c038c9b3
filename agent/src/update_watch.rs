//! What the updater publishes, as the agent's health shows it.

use crate::checks;
use picket_protocol::update_status::{UPDATE_STATUS_MAX_BYTES, UpdateOutcome, UpdateStatus};
use picket_telemetry::{Finding, Health};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often the updater's published status is read.
const UPDATE_STATUS_INTERVAL: Duration = Duration::from_secs(30);
/// From how many days before its expiry the release metadata warns.
const TRUST_WARN_DAYS: i64 = 14;

/// Turns the updater's published status into health checks.
pub(crate) async fn watch_update_status(health: Arc<Health>, path: std::path::PathBuf) {
    loop {
        if let Some(status) = read_update_status(&path) {
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
    use picket_protocol::update_status::TrustExpiry;

    #[test]
    fn expired_release_metadata_warns_and_never_fails() {
        let now: jiff::Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
        let finding = |root: &str| {
            let status = UpdateStatus {
                schema: 1,
                at: now,
                current: None,
                previous: None,
                running: None,
                last: None,
                available: None,
                last_check: None,
                trust: Some(TrustExpiry {
                    root: root.parse().unwrap(),
                    targets: None,
                    snapshot: None,
                    timestamp: None,
                }),
                pinned: None,
                held: vec![],
            };
            update_findings(&status, now).remove(0).1
        };
        assert_eq!(finding("2027-11-21T00:00:00Z").status, CheckStatus::Pass);
        assert_eq!(finding("2026-11-30T00:00:00Z").status, CheckStatus::Warn);
        let expired = finding("2026-11-20T00:00:00Z");
        assert_eq!(expired.status, CheckStatus::Warn);
        assert!(expired.message.contains("updates wait"), "{}", expired.message);
    }
}

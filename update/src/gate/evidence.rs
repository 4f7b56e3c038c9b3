//! What the gate saw, as it is kept: bounded, and readable by the versions before and after this one.

use crate::hooks::HookResult;
use crate::machine::{ServiceView, ViewState};
use picket_protocol::{CheckScope, CheckStatus, HealthReport};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Checks kept of one report, at most.
const MAX_CHECKS: usize = 128;
/// The longest name of a check, in characters.
const MAX_NAME: usize = 100;
/// The longest message of a check, in characters.
const MAX_MESSAGE: usize = 300;

/// One check of a health report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenCheck {
    /// Whether the machine itself answers for it: only such a check can convict a version.
    pub scope: CheckScope,
    /// Its result.
    pub status: CheckStatus,
    /// The result in words.
    #[serde(default)]
    pub message: String,
    /// Its figure `connected`, where it has one: whether something beyond this machine was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected: Option<bool>,
}

/// What the gate saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// How the new version's self-test was confined, and its result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_test: Option<String>,
    /// The service manager's view at the start of the trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_as: Option<ServiceView>,
    /// Its view at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_as: Option<ServiceView>,
    /// Milliseconds from the start to the first answer of the new version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_after_ms: Option<u64>,
    /// Milliseconds of trial in all: from its start to the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watched_ms: Option<u64>,
    /// How often the new version was seen to end by itself or to be started again.
    #[serde(default)]
    pub restarts: u32,
    /// Every check of the proven version just before the trial.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks_before: BTreeMap<String, SeenCheck>,
    /// Every check of the new version when it was last asked: at the decision.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks_after: BTreeMap<String, SeenCheck>,
    /// In journals of older versions only: the new version's local checks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<String, CheckStatus>,
    /// Whether the new version fetched and verified the release metadata (`ok`), and what happened if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_fetch: Option<String>,
    /// The same for the judge: when it last did in this update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge_fetch: Option<String>,
    /// Every hook that ran, in the order in which they did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookResult>,
}

/// The checks of a report, bounded: the new version may say what it likes.
pub(crate) fn seen_checks(report: &HealthReport) -> BTreeMap<String, SeenCheck> {
    let cut = |text: &str, most| text.chars().filter(|c| !c.is_control()).take(most).collect::<String>();
    let seen = report.checks.iter().take(MAX_CHECKS).map(|(name, check)| {
        let message = cut(&check.message, MAX_MESSAGE);
        let connected = check.figures.get("connected").and_then(serde_json::Value::as_bool);
        (cut(name, MAX_NAME), SeenCheck { scope: check.scope, status: check.status, message, connected })
    });
    seen.collect()
}

impl Evidence {
    /// Takes one look at the service, and counts a restart of the new version when it is one. What is seen of `old_run` is
    /// the proven version's.
    pub(crate) fn see_service(&mut self, now: &ServiceView, old_run: &str) {
        let last = self.ended_as.as_ref().filter(|last| last.run != old_run);
        let is_over = |view: &ServiceView| matches!(view.state, ViewState::Restarting | ViewState::Failed);
        let ended = is_over(now) && !last.is_some_and(|last| last.run == now.run && is_over(last));
        let started_again = last.is_some_and(|last| last.run != now.run && !is_over(last));
        if now.run != old_run && (ended || started_again) {
            self.restarts = self.restarts.saturating_add(1);
        }
        if now.run != old_run {
            self.restarts = self.restarts.max(now.restarts);
        }
        self.started_as.get_or_insert_with(|| now.clone());
        self.ended_as = Some(now.clone());
    }

    /// Gives up the words and keeps the facts, so that a journal that is too large is kept all the same.
    pub(crate) fn shorten(&mut self) {
        for check in self.checks_before.values_mut().chain(self.checks_after.values_mut()) {
            check.message.clear();
        }
        for hook in &mut self.hooks {
            hook.output.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(run: &str, state: ViewState, restarts: u32) -> ServiceView {
        ServiceView { state, run: run.into(), restarts, detail: String::new() }
    }

    #[test]
    fn restarts_are_those_of_the_new_version_and_each_counts_once() {
        use ViewState::{Failed, Restarting, Running, Starting, Stopping};
        let restarts = |looks: &[(&str, ViewState, u32)]| {
            let mut evidence = Evidence::default();
            looks.iter().for_each(|(run, state, count)| evidence.see_service(&view(run, *state, *count), "old"));
            evidence.restarts
        };
        let none = [("old", Running, 3), ("old", Stopping, 3), ("old", Restarting, 3), ("new", Starting, 0)];
        assert_eq!(restarts(&[&none[..], &[("new", Running, 0), ("new", Running, 0)]].concat()), 0);
        assert_eq!(restarts(&[("new", Running, 0), ("new", Restarting, 0), ("new", Restarting, 0)]), 1);
        assert_eq!(restarts(&[("new", Running, 0), ("new", Restarting, 0), ("newer", Running, 1)]), 1);
        assert_eq!(restarts(&[("new", Running, 0), ("newer", Running, 0)]), 1);
        assert_eq!(restarts(&[("new", Failed, 0)]), 1);
        assert_eq!(restarts(&[("new", Running, 4)]), 4);
    }

    #[test]
    fn what_a_version_says_of_itself_is_kept_in_bounds() {
        let check = serde_json::json!({ "status": "fail", "message": format!("\u{1b}{}", "m".repeat(9999)) });
        let checks: BTreeMap<String, _> =
            (0..500).map(|n| (format!("{n}{}", "c".repeat(500)), check.clone())).collect();
        let report: HealthReport = serde_json::from_value(serde_json::json!({
            "status": "unhealthy", "timestamp": "2026-11-22T00:00:00Z", "version": "1.0.0", "agent_id": "x", "uptime": 1,
            "checks": checks,
        }))
        .unwrap();
        let seen = seen_checks(&report);
        assert!(seen.len() <= MAX_CHECKS && seen.keys().all(|name| name.len() <= MAX_NAME));
        assert!(seen.values().all(|check| check.message == "m".repeat(MAX_MESSAGE)));
    }
}

//! Updates that ended, as people and programs read them: `picket update history`.
//!
//! Journals are the updater's own, and change with it; what is made of them here is a document with a schema number, for
//! scripts and for whoever gathers it from many machines. A journal of an older version has less in it and is shown all
//! the same.

use crate::gate::{Evidence, Fault, SeenCheck, Verdict};
use crate::hooks::HookResult;
use crate::journal::{Journal, Kind, Mark, Step};
use crate::state::describe_ended;
use picket_protocol::update_status::UpdateOutcome;
use picket_protocol::{CheckScope, CheckStatus};
use semver::Version;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The schema number of [`PastUpdate`]. Fields may come without a new one; none goes or changes its meaning.
pub const UPDATE_HISTORY_SCHEMA: u32 = 1;
/// The check by which an agent says whether its hub hears it; with the figure `connected` only where it has a hub.
const HUB_CHECK: &str = "hub_connection";

/// An update that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PastUpdate {
    /// See [`UPDATE_HISTORY_SCHEMA`].
    pub schema: u32,
    /// Its id: a UUID of version 7, so that they sort by time.
    pub id: String,
    /// Why it was made.
    pub kind: Kind,
    /// Who asked: `schedule`, `wish`, `repair`, or a person.
    pub asked_by: String,
    /// The version that was proven when it began.
    pub from: Version,
    /// The version it went to.
    pub to: Version,
    /// How it ended.
    pub outcome: UpdateOutcome,
    /// Whose fault it was, where it failed.
    pub fault: Option<Fault>,
    /// Why, in words.
    pub reason: String,
    /// When it began (RFC 3339, UTC).
    pub started: jiff::Timestamp,
    /// When it ended.
    pub finished: jiff::Timestamp,
    /// Its steps, in the order in which they were begun; one that a recovery began again is here again.
    pub phases: Vec<Phase>,
    /// What the decision rests on.
    pub evidence: Shown,
}

/// One step of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// The step.
    pub step: Step,
    /// When it was begun.
    pub began: jiff::Timestamp,
    /// How long it took, in milliseconds; `null` for a step that was not done.
    pub ms: Option<u64>,
}

/// What the decision rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The result of the new version's self-test and how it was confined.
    pub self_test: Option<String>,
    /// Milliseconds from the start of the trial to the new version's first answer.
    pub ready_after_ms: Option<u64>,
    /// Milliseconds from the start of the trial to the decision.
    pub watched_ms: Option<u64>,
    /// How often the new version was seen to end by itself or to be started again.
    pub restarts: u32,
    /// The service manager's words for the new version at the end of the trial.
    pub service: Option<String>,
    /// Every health check, before and after, by its name.
    pub checks: Vec<Compared>,
    /// Whether each could fetch and verify the release metadata.
    pub release_server: Reached,
    /// Whether each was heard by the hub; neither is known where no hub is spoken to.
    pub hub: Reached,
    /// Every hook that ran, in that order.
    pub hooks: Vec<HookResult>,
}

/// A health check of the proven version before the trial and of the new one at the decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Its name.
    pub name: String,
    /// Who answers for it; only a local one can convict a version.
    pub scope: CheckScope,
    /// Its result before; `null` where the proven version has no such check, or did not answer.
    pub before: Option<CheckStatus>,
    /// Its result at the decision; `null` where the new version has no such check, or never got to be asked.
    pub after: Option<CheckStatus>,
    /// Whether it spoke against the new version when that was last asked.
    pub worse: bool,
    /// What it said before.
    pub said_before: String,
    /// What it said at the decision.
    pub said_after: String,
}

/// Whether something was reached, by both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// By the proven version; `null` where it did not try.
    pub judge: Option<Reach>,
    /// By the new one; `null` where it did not try.
    pub candidate: Option<Reach>,
}

/// Whether something was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// Whether it was.
    pub reached: bool,
    /// What was seen, in words.
    pub detail: String,
}

impl PastUpdate {
    /// What a journal tells; `None` for one that has no outcome, which none in the history should be.
    pub fn of(journal: &Journal) -> Option<Self> {
        let ended = describe_ended(journal)?;
        let fault = match &journal.verdict {
            Some(Verdict::Fail { fault, .. }) => Some(*fault),
            _ => None,
        };
        Some(Self {
            schema: UPDATE_HISTORY_SCHEMA,
            id: ended.id,
            kind: journal.kind,
            asked_by: journal.trigger.clone(),
            from: ended.from,
            to: ended.to,
            outcome: ended.outcome,
            fault,
            reason: ended.reason,
            started: journal.started,
            finished: ended.finished,
            phases: phases(journal),
            evidence: Shown::of(journal),
        })
    }
}

/// The steps, with what each took by the monotonic clock.
fn phases(journal: &Journal) -> Vec<Phase> {
    let mut phases: Vec<Phase> = Vec::new();
    for entry in &journal.entries {
        match entry.mark {
            Mark::Began => phases.push(Phase { step: entry.step, began: entry.at, ms: None }),
            Mark::Done => {
                if let Some(phase) = phases.iter_mut().rfind(|phase| phase.step == entry.step) {
                    phase.ms = entry.took_ms;
                }
            }
        }
    }
    // A trial that failed ends in the revert, and its gate without a mark.
    if let Some(gate) = phases.iter_mut().rfind(|phase| phase.step == Step::Gate) {
        gate.ms = gate.ms.or(journal.evidence.watched_ms);
    }
    phases
}

impl Shown {
    fn of(journal: &Journal) -> Self {
        let evidence = &journal.evidence;
        let (before, after) = both(journal);
        let hub = |checks: &BTreeMap<String, SeenCheck>| {
            let check = checks.get(HUB_CHECK)?;
            Some(Reach { reached: check.connected?, detail: check.message.clone() })
        };
        let fetched = |told: &Option<String>| told.clone().map(|detail| Reach { reached: detail == "ok", detail });
        Self {
            self_test: evidence.self_test.clone(),
            ready_after_ms: evidence.ready_after_ms,
            watched_ms: evidence.watched_ms,
            restarts: evidence.restarts,
            service: evidence.ended_as.as_ref().map(|view| view.detail.clone()),
            hub: Reached { judge: hub(&before), candidate: hub(&after) },
            release_server: Reached {
                judge: fetched(&evidence.judge_fetch),
                candidate: fetched(&evidence.candidate_fetch),
            },
            checks: compare(&before, &after),
            hooks: evidence.hooks.clone(),
        }
    }

    /// The checks that spoke against the new version.
    pub fn worse(&self) -> impl Iterator<Item = &Compared> {
        self.checks.iter().filter(|check| check.worse)
    }
}

/// The checks before and after; of an older version's journal, the local ones without their words.
fn both(journal: &Journal) -> (BTreeMap<String, SeenCheck>, BTreeMap<String, SeenCheck>) {
    let local = |checks: &BTreeMap<String, CheckStatus>| {
        let seen = |status| SeenCheck { scope: CheckScope::Local, status, message: String::new(), connected: None };
        checks.iter().map(|(name, status)| (name.clone(), seen(*status))).collect()
    };
    let Evidence { checks_before, checks_after, checks, .. } = &journal.evidence;
    let before = if checks_before.is_empty() {
        journal.baseline.as_ref().map(|baseline| local(&baseline.checks)).unwrap_or_default()
    } else {
        checks_before.clone()
    };
    (before, if checks_after.is_empty() { local(checks) } else { checks_after.clone() })
}

fn compare(before: &BTreeMap<String, SeenCheck>, after: &BTreeMap<String, SeenCheck>) -> Vec<Compared> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let said = |check: Option<&SeenCheck>| check.map(|check| check.message.clone()).unwrap_or_default();
    let compared = names.into_iter().filter_map(|name| {
        let (was, is) = (before.get(name), after.get(name));
        let scope = is.or(was)?.scope;
        let (was_status, is_status) = (was.map(|check| check.status), is.map(|check| check.status));
        // As the judge has it: a check that is new may warn.
        let worse = scope == CheckScope::Local && is_status > Some(was_status.unwrap_or(CheckStatus::Warn));
        Some(Compared {
            name: name.clone(),
            scope,
            before: was_status,
            after: is_status,
            worse,
            said_before: said(was),
            said_after: said(is),
        })
    });
    compared.collect()
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |status: Option<CheckStatus>| status.map_or("absent", CheckStatus::as_str);
        write!(f, "{}: {} before, {} after", self.name, word(self.before), word(self.after))?;
        if self.said_after.is_empty() { Ok(()) } else { write!(f, " ({})", self.said_after) }
    }
}

/// The evidence in one line; empty for an update that never got to its trial and asked no hook.
impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ms: u64| format!("{}.{} s", ms / 1000, ms % 1000 / 100);
        let mut words = Vec::new();
        if let Some(watched) = self.watched_ms {
            let ready = self
                .ready_after_ms
                .map_or_else(|| "never ready".to_owned(), |ms| format!("ready after {}", seconds(ms)));
            words.push(format!("{ready}, watched for {}, {} restarts", seconds(watched), self.restarts));
        }
        words.extend(self.worse().map(ToString::to_string));
        let failed: Vec<&str> = self.hooks.iter().filter(|hook| !hook.ok).map(|hook| hook.hook.as_str()).collect();
        if !failed.is_empty() {
            words.push(format!("hooks that failed: {}", failed.join(", ")));
        }
        f.write_str(&words.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::{journal, push};

    fn seen(scope: CheckScope, status: CheckStatus) -> SeenCheck {
        SeenCheck { scope, status, message: format!("it {}s", status.as_str()), connected: None }
    }

    #[test]
    fn a_journal_without_an_outcome_is_no_past_update() {
        assert!(PastUpdate::of(&journal(true)).is_none());
    }

    #[test]
    fn only_a_local_check_that_got_worse_speaks_against_a_version() {
        use CheckScope::{External, Local};
        use CheckStatus::{Fail, Pass, Warn};
        let checks = |list: &[(&str, CheckScope, CheckStatus)]| {
            list.iter().map(|(name, scope, status)| ((*name).to_owned(), seen(*scope, *status))).collect()
        };
        let before = checks(&[("a", Local, Pass), ("b", External, Pass), ("c", Local, Fail), ("gone", Local, Pass)]);
        let after = checks(&[
            ("a", Local, Warn),
            ("b", External, Fail),
            ("c", Local, Fail),
            ("d", Local, Warn),
            ("e", Local, Fail),
        ]);
        let compared = compare(&before, &after);
        let worse: Vec<String> = compared.iter().filter(|check| check.worse).map(ToString::to_string).collect();
        assert_eq!(worse, ["a: pass before, warn after (it warns)", "e: absent before, fail after (it fails)"]);
        assert_eq!(compared.len(), 6);
    }

    #[test]
    fn a_step_that_was_begun_twice_is_shown_twice_and_a_gate_that_failed_has_its_time() {
        let mut journal = journal(true);
        for (step, mark) in [(Step::Gate, Mark::Began), (Step::Revert, Mark::Began), (Step::Revert, Mark::Began)] {
            push(&mut journal, step, mark);
        }
        journal.evidence.watched_ms = Some(1234);
        let shown: Vec<(Step, Option<u64>)> =
            phases(&journal).into_iter().map(|phase| (phase.step, phase.ms)).collect();
        assert_eq!(shown, [(Step::Gate, Some(1234)), (Step::Revert, None), (Step::Revert, None)]);
    }
}

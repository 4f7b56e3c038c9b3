//! The journal of one update: what was begun and what was done, on disk before and after each step.
//!
//! The steps go forward to `Commit` or turn back through `Revert`; both end in `Settle`. Which mark may follow which is
//! in [`Journal::allows`] and nowhere else. Whatever happens to the machine, the last mark on disk says where the update
//! stood, and [`recovery`] says what follows from it.
//!
//! ```text
//! Fetch → Stage → Preflight → Snapshot → Trial → Gate ─pass→ Commit → Settle
//!   └───────┴─────────┴──────────┴─→ Settle        └fail→ Revert ─→ Settle
//! ```

pub mod recovery;
mod store;

pub use store::{JournalError, JournalStore};

use crate::gate::{Baseline, Evidence, Verdict};
use picket_protocol::update_status::UpdateOutcome;
use picket_protocol::{Artifact, Sha256Digest, UnitText};
use semver::Version;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// The schema number of the journal.
pub const JOURNAL_SCHEMA: u32 = 1;

/// A step of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Download and verify.
    Fetch,
    /// Unpack and put in place.
    Stage,
    /// Look before leaping: space, self-test, state format, obstacles.
    Preflight,
    /// Keep what may have to be put back.
    Snapshot,
    /// Start the new version, until the next boot.
    Trial,
    /// Watch it.
    Gate,
    /// Make it the proven one.
    Commit,
    /// Go back to the proven one.
    Revert,
    /// Remember, clean up, tell.
    Settle,
}

/// Whether a step was begun or is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// It was begun.
    Began,
    /// It is done.
    Done,
}

/// Why an update is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// To a signed release.
    Release,
    /// To a version that `picket install` put here.
    Installed,
    /// Back to the previous version.
    Rollback,
}

impl Kind {
    /// The word in the history, and that hooks are told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Installed => "installed",
            Self::Rollback => "rollback",
        }
    }
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The step.
    pub step: Step,
    /// Begun or done.
    pub mark: Mark,
    /// When.
    pub at: jiff::Timestamp,
    /// How long a step that is done took, in milliseconds; absent where it was begun by another process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
}

/// When the step under way was begun by this process, by the clock that nobody sets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stopwatch(Option<Instant>);

impl PartialEq for Stopwatch {
    /// Not part of what a journal says.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Stopwatch {
    /// Takes a mark; what passed since the step was begun, when it is done.
    fn take(&mut self, mark: Mark) -> Option<u64> {
        match mark {
            Mark::Began => {
                self.0 = Some(Instant::now());
                None
            }
            Mark::Done => self.0.take().map(|began| u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// The journal of one update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    /// See [`JOURNAL_SCHEMA`].
    pub schema: u32,
    /// The update's id: a UUID of version 7, so that they sort by time.
    pub id: String,
    /// Why it is made.
    pub kind: Kind,
    /// Who asked: `schedule`, `wish`, or a person.
    pub trigger: String,
    /// The proven version it starts from.
    pub from: Version,
    /// The version it goes to.
    pub to: Version,
    /// The hash by which `to` is remembered if it fails.
    pub sha256: Sha256Digest,
    /// The artifact, when it is to be fetched.
    pub artifact: Option<Artifact>,
    /// Whether the agent was meant to run when the update began: it is left so.
    pub was_wanted: bool,
    /// When it began.
    pub started: jiff::Timestamp,
    /// What happened so far.
    pub entries: Vec<Entry>,
    /// The new version's own unit texts, from its self-test.
    #[serde(default)]
    pub units: Vec<UnitText>,
    /// The proven version's health just before the trial.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// The user that this update's hooks run as; none is the updater's own, or was not noted.
    #[serde(default)]
    pub hook_user: Option<String>,
    /// Whether a hook before the trial was begun: those after it are then told, whatever became of the update.
    #[serde(default)]
    pub before_began: bool,
    /// How often it was begun to tell hooks the outcome.
    #[serde(default)]
    pub tellings: u32,
    /// What the gate saw.
    #[serde(default)]
    pub evidence: Evidence,
    /// What the gate decided.
    #[serde(default)]
    pub verdict: Option<Verdict>,
    /// How it ended.
    #[serde(default)]
    pub outcome: Option<UpdateOutcome>,
    /// Why, in words.
    #[serde(default)]
    pub reason: String,
    /// For the time that each step takes.
    #[serde(skip)]
    pub stopwatch: Stopwatch,
}

impl Step {
    /// All steps, in order.
    pub const ALL: [Self; 9] = [
        Self::Fetch,
        Self::Stage,
        Self::Preflight,
        Self::Snapshot,
        Self::Trial,
        Self::Gate,
        Self::Commit,
        Self::Revert,
        Self::Settle,
    ];

    /// The word in the journal and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Stage => "stage",
            Self::Preflight => "preflight",
            Self::Snapshot => "snapshot",
            Self::Trial => "trial",
            Self::Gate => "gate",
            Self::Commit => "commit",
            Self::Revert => "revert",
            Self::Settle => "settle",
        }
    }
}

impl Journal {
    /// Reads the bytes of a journal's file.
    ///
    /// # Errors
    /// When they are not a journal.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Where the update stands: its last mark.
    pub fn position(&self) -> Option<(Step, Mark)> {
        self.entries.last().map(|entry| (entry.step, entry.mark))
    }

    /// Whether the gate let the new version pass.
    pub fn has_passed(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Pass))
    }

    /// Whether the mark (`step`, `mark`) may come next.
    ///
    /// A step may be begun again, because recovery does what is begun once more; nothing goes from `Commit` to `Revert`
    /// but a commit that has not switched yet, which only its own code can know (see [`Journal::allows_revert`]).
    pub fn allows(&self, step: Step, mark: Mark) -> bool {
        use Mark::{Began, Done};
        use Step::{Commit, Fetch, Gate, Preflight, Revert, Settle, Snapshot, Stage, Trial};
        let passed = self.has_passed();
        match (self.position(), (step, mark)) {
            (None, (Fetch, Began)) => self.artifact.is_some(),
            (None, (Preflight, Began)) => self.artifact.is_none(),
            // Every step can be done once it is begun, and begun again.
            (Some((at, Began)), (next, _)) if at == next => true,
            // Before the trial nothing was changed that would have to be changed back.
            (Some((Fetch | Stage | Preflight | Snapshot, _)), (Settle, Began))
            | (Some((Fetch, Done)), (Stage, Began))
            | (Some((Stage, Done)), (Preflight, Began))
            | (Some((Preflight, Done)), (Snapshot, Began))
            | (Some((Snapshot, Done)), (Trial, Began))
            | (Some((Trial, Done)), (Gate, Began))
            | (Some((Commit | Revert | Settle, Done)), (Settle, Began)) => true,
            (Some((Gate, Done)), (Commit, Began)) => passed,
            (Some((Trial | Gate, _)), (Revert, Began)) => !passed,
            _ => false,
        }
    }

    /// Whether a commit that failed before its switch may turn back. The verdict is taken back with it.
    pub fn allows_revert(&self) -> bool {
        matches!(self.position(), Some((Step::Commit, Mark::Began)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::gate::Fault;
    use proptest::prelude::*;

    pub(crate) fn journal(artifact: bool) -> Journal {
        Journal {
            schema: JOURNAL_SCHEMA,
            id: "id".into(),
            kind: Kind::Release,
            trigger: "test".into(),
            from: Version::new(1, 0, 0),
            to: Version::new(2, 0, 0),
            sha256: Sha256Digest::new([1; 32]),
            artifact: artifact.then(|| Artifact {
                path: "2.0.0/a.tar.xz".into(),
                unpacked: 1,
                files: std::collections::BTreeMap::new(),
            }),
            was_wanted: true,
            started: jiff::Timestamp::UNIX_EPOCH,
            entries: vec![],
            units: vec![],
            baseline: None,
            hook_user: None,
            before_began: false,
            tellings: 0,
            evidence: Evidence::default(),
            verdict: None,
            outcome: None,
            reason: String::new(),
            stopwatch: Stopwatch::default(),
        }
    }

    pub(crate) fn push(journal: &mut Journal, step: Step, mark: Mark) {
        journal.entries.push(Entry { step, mark, at: jiff::Timestamp::UNIX_EPOCH, took_ms: None });
    }

    /// The order of steps, told as a list instead of as a match: the model that `allows` must agree with.
    fn model_allows(
        (done, begun, open): (&[Step], &[Step], Option<Step>),
        passed: bool,
        fetches: bool,
        next: (Step, Mark),
    ) -> bool {
        let forward: &[Step] = if fetches {
            &[Step::Fetch, Step::Stage, Step::Preflight, Step::Snapshot, Step::Trial, Step::Gate, Step::Commit]
        } else {
            &[Step::Preflight, Step::Snapshot, Step::Trial, Step::Gate, Step::Commit]
        };
        let touched = |step| begun.contains(&step);
        let (step, mark) = next;
        if let Some(open) = open
            && step == open
        {
            return true;
        }
        if mark == Mark::Done {
            return false;
        }
        let started = !begun.is_empty();
        match step {
            Step::Settle => {
                if done.contains(&Step::Settle) || done.contains(&Step::Commit) || done.contains(&Step::Revert) {
                    return open.is_none();
                }
                started && !touched(Step::Trial)
            }
            Step::Revert => {
                touched(Step::Trial)
                    && !passed
                    && !touched(Step::Commit)
                    && !touched(Step::Revert)
                    && !touched(Step::Settle)
            }
            _ if touched(Step::Settle) || touched(Step::Revert) || open.is_some() => false,
            _ => {
                let position = forward.iter().position(|s| *s == step);
                let next_is_it = position == Some(done.len()) && forward[..done.len()] == *done;
                next_is_it && (step != Step::Commit || passed)
            }
        }
    }

    proptest! {
        #[test]
        fn the_state_machine_agrees_with_its_model(
            fetches in any::<bool>(),
            passes in any::<bool>(),
            choices in proptest::collection::vec((0usize..9, any::<bool>()), 0..120),
        ) {
            let mut journal = journal(fetches);
            let (mut done, mut begun, mut open): (Vec<Step>, Vec<Step>, Option<Step>) = (vec![], vec![], None);
            for (index, finish) in choices {
                let next = (Step::ALL[index], if finish { Mark::Done } else { Mark::Began });
                let allowed = journal.allows(next.0, next.1);
                let model = model_allows((&done, &begun, open), journal.has_passed(), fetches, next);
                prop_assert_eq!(allowed, model, "{:?} after {:?}, open {:?}", next, done, open);
                if !allowed {
                    continue;
                }
                push(&mut journal, next.0, next.1);
                if finish {
                    open = None;
                    if done.last() != Some(&next.0) {
                        done.push(next.0);
                    }
                    if next.0 == Step::Gate {
                        let fail = Verdict::Fail { reason: "x".into(), fault: Fault::Version };
                        journal.verdict = Some(if passes { Verdict::Pass } else { fail });
                    }
                } else {
                    open = Some(next.0);
                    begun.push(next.0);
                }
            }
            // Whatever path was taken: what failed is never committed, what passed is never reverted.
            if done.contains(&Step::Commit) {
                prop_assert!(journal.has_passed() && !done.contains(&Step::Revert));
            }
        }
    }
}

//! What follows from a journal that was found after a crash or a power cut: a pure decision.
//!
//! The rule is short. Before the trial, nothing was changed: the update is dropped. Once the gate has let the new
//! version pass, it is finished. In between, it is undone. Each of these can be cut short again and is then decided
//! again, with the same result.

use super::{Journal, Mark, Step};

/// What to do with an interrupted update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing was changed: settle it as interrupted.
    Drop,
    /// The new version was or may have been running: go back to the proven one.
    Revert,
    /// The new version passed: finish the switch.
    Commit,
    /// The switch is made and the trial is over: only tidy up.
    Settle,
}

/// Decides from the journal alone: the machine is then made to look like the decision, whatever it looks like now.
pub fn decide(journal: &Journal) -> Recovery {
    match journal.position() {
        None | Some((Step::Fetch | Step::Stage | Step::Preflight | Step::Snapshot, _)) => Recovery::Drop,
        Some((Step::Trial, _) | (Step::Revert, Mark::Began)) => Recovery::Revert,
        Some((Step::Gate, _)) => {
            if journal.has_passed() {
                Recovery::Commit
            } else {
                Recovery::Revert
            }
        }
        Some((Step::Commit, Mark::Began)) => Recovery::Commit,
        Some((Step::Commit | Step::Revert, Mark::Done) | (Step::Settle, _)) => Recovery::Settle,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{journal, push};
    use super::*;
    use crate::gate::Verdict;

    fn after(step: Step, mark: Mark, passed: bool) -> Recovery {
        let mut journal = journal(true);
        push(&mut journal, step, mark);
        journal.verdict = passed.then_some(Verdict::Pass);
        decide(&journal)
    }

    #[test]
    fn every_point_has_one_way_to_a_proven_version() {
        use Mark::{Began, Done};
        assert_eq!(decide(&journal(true)), Recovery::Drop);
        for step in [Step::Fetch, Step::Stage, Step::Preflight, Step::Snapshot] {
            assert_eq!((after(step, Began, false), after(step, Done, false)), (Recovery::Drop, Recovery::Drop));
        }
        assert_eq!(
            (after(Step::Trial, Began, false), after(Step::Trial, Done, false)),
            (Recovery::Revert, Recovery::Revert)
        );
        assert_eq!(
            (after(Step::Gate, Began, false), after(Step::Gate, Done, false)),
            (Recovery::Revert, Recovery::Revert)
        );
        assert_eq!(after(Step::Gate, Done, true), Recovery::Commit);
        assert_eq!(
            (after(Step::Commit, Began, true), after(Step::Commit, Done, true)),
            (Recovery::Commit, Recovery::Settle)
        );
        assert_eq!(
            (after(Step::Revert, Began, false), after(Step::Revert, Done, false)),
            (Recovery::Revert, Recovery::Settle)
        );
        assert_eq!(
            (after(Step::Settle, Began, true), after(Step::Settle, Done, true)),
            (Recovery::Settle, Recovery::Settle)
        );
    }
}

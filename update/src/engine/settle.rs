//! The end of every update: remember, tidy up, archive.

use super::error::Failure;
use super::{Engine, EngineError, Report};
use crate::failpoint::reach;
use crate::gate::{Fault, Verdict};
use crate::journal::{Journal, Kind, Mark, Step};
use crate::progress::Event;
use crate::state;
use picket_protocol::update_status::UpdateOutcome;
use std::collections::BTreeSet;

impl Engine<'_> {
    /// Ends an update that never got to its trial.
    pub(super) fn settle_refused(&self, mut journal: Journal, failure: Failure) -> Result<Report, EngineError> {
        let Failure { reason, hint, fault, trouble } = failure;
        journal.reason.clone_from(&reason);
        journal.verdict = Some(Verdict::Fail { reason, fault });
        let outcome = if fault == Fault::Interrupted { UpdateOutcome::Interrupted } else { UpdateOutcome::Refused };
        let mut report = self.settle(journal, outcome)?;
        report.hint = hint.or(report.hint);
        report.trouble = trouble;
        Ok(report)
    }

    /// Ends an update. May be called again at any point of itself.
    pub(super) fn settle(&self, mut journal: Journal, outcome: UpdateOutcome) -> Result<Report, EngineError> {
        journal.outcome = Some(outcome);
        self.journals().mark(&mut journal, Step::Settle, Mark::Began)?;
        let hint = self.remember(&journal, outcome)?;
        reach("settle-remembered");
        self.tidy(&journal, outcome);
        self.tell_after(&mut journal, outcome);
        reach("settle-told");
        // Nobody needs them any more, and the history keeps many of these.
        journal.units.clear();
        journal.artifact = None;
        self.journals().mark(&mut journal, Step::Settle, Mark::Done)?;
        self.journals().archive(&journal)?;
        Ok(Report {
            outcome: Some(outcome),
            version: self.versions().current(),
            reason: journal.reason,
            hint,
            trouble: None,
        })
    }

    /// Holds what failed, forgets the hold on what passed. Returns what a person can do about it.
    fn remember(&self, journal: &Journal, outcome: UpdateOutcome) -> Result<Option<String>, EngineError> {
        let mut held = self.held()?;
        let now = self.clock.now();
        if outcome == UpdateOutcome::Committed {
            held.forget(&journal.sha256)?;
            // A machine that left a damaged copy has nothing against the release.
            if journal.kind == Kind::Rollback
                && journal.trigger != super::repair::REPAIR
                && let Ok(left) = self.versions().record(&journal.from)
            {
                let reason = format!("{} went back from it to {}", journal.trigger, journal.to);
                held.hold(left.source.sha256(), &journal.from, &reason, now)?;
            }
            state::deferral(self.layout.update_dir()).clear()?;
            return Ok(None);
        }
        let fault = match &journal.verdict {
            Some(Verdict::Fail { fault, .. }) => *fault,
            _ => Fault::Interrupted,
        };
        // What never ran and is not the version's own fault says nothing about the version.
        let ran = journal.entries.iter().any(|entry| entry.step == Step::Trial);
        if !ran && fault != Fault::Version {
            return Ok(None);
        }
        let hold = held.remember(journal, fault, self.hold_policy(), now)?;
        Ok(Some(match hold.until {
            Some(until) if until > now => format!(
                "release {0} is not tried again before {until}; `picket update apply {0}` tries it now",
                journal.to
            ),
            Some(_) => "it is tried again by the next daily check, or with `picket update apply`".to_owned(),
            None => {
                format!("release {0} is not tried again by itself; `picket update apply {0}` tries it now", journal.to)
            }
        }))
    }

    /// Removes what nobody needs. That something cannot be removed is no reason to call an update failed.
    fn tidy(&self, journal: &Journal, outcome: UpdateOutcome) {
        let versions = self.versions();
        let now = self.clock.now();
        let convicted = matches!(&journal.verdict, Some(Verdict::Fail { fault: Fault::Version, .. }));
        if outcome != UpdateOutcome::Committed && convicted {
            let _ = versions.remove(&journal.to).inspect_err(|error| tracing::warn!(%error, "cannot be removed"));
        }
        if outcome == UpdateOutcome::Committed {
            // What is there was fetched for an update that this one has overtaken: nobody would go on with it.
            for dir in [self.fetcher.places.out(), self.fetcher.places.downloads()] {
                let _ =
                    picket_durable::remove_tree(&dir).inspect_err(|error| tracing::warn!(%error, "cannot be removed"));
            }
        }
        let keep = self.settings.keep_previous.get();
        let recent = state::recently_replaced(&self.journals().history(), keep, now);
        let wanted: BTreeSet<_> = recent.into_iter().chain([journal.from.clone()]).collect();
        match versions.prune(&wanted, keep, now) {
            Ok(removed) if !removed.is_empty() => {
                let removed: Vec<String> = removed.iter().map(ToString::to_string).collect();
                self.progress.tell(Event::Note { text: format!("removed old versions: {}", removed.join(", ")) });
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "old versions cannot be removed"),
        }
    }
}

//! After a crash or a power cut: finish or undo what the journal holds. Runs before the agent at every boot.

use super::{Engine, EngineError, Report};
use crate::journal::recovery::{Recovery, decide};
use crate::journal::{Journal, JournalError, Step};
use crate::state;
use picket_protocol::update_status::UpdateOutcome;
use std::collections::BTreeSet;
use std::time::Duration;

impl Engine<'_> {
    /// Brings the installation to a proven version, from whatever point a crash left it at. `None` when there was
    /// nothing to recover.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when an updater runs: it will end what it began.
    pub fn recover(&self) -> Result<Option<Report>, EngineError> {
        let _lock = Self::lock(self.layout)?;
        let report = self.recover_locked();
        state::publish(self.layout, &self.status());
        report
    }

    pub(super) fn recover_locked(&self) -> Result<Option<Report>, EngineError> {
        let journal = match self.journals().load() {
            Ok(journal) => journal,
            Err(JournalError::Damaged { path, source }) => {
                tracing::error!(%source, path = %path.display(), "the journal is damaged and set aside");
                self.journals().set_aside()?;
                None
            }
            Err(error) => return Err(error.into()),
        };
        let Some(journal) = journal else { return self.end_stray_trial() };
        tracing::warn!(id = journal.id, at = ?journal.position(), "recovering an interrupted update");
        let report = match decide(&journal) {
            Recovery::Drop => self.drop_it(journal)?,
            Recovery::Revert => self.revert(journal)?,
            Recovery::Commit => self.commit(journal)?,
            Recovery::Settle => {
                // A journal that got this far has its outcome, unless it was written by hand.
                let outcome = journal.outcome.unwrap_or(UpdateOutcome::Interrupted);
                let committed = journal.entries.iter().any(|entry| entry.step == Step::Commit);
                let outcome = if committed && journal.has_passed() { UpdateOutcome::Committed } else { outcome };
                self.settle(journal, outcome)?
            }
        };
        Ok(Some(report))
    }

    fn drop_it(&self, mut journal: Journal) -> Result<Report, EngineError> {
        let step = journal.position().map_or("first", |(step, _)| step.as_str());
        journal.reason = format!("interrupted in the {step} step by a crash or a power cut; nothing was changed");
        if journal.entries.is_empty() {
            // Nothing was marked yet, so nothing may be settled; the journal itself is all there is.
            journal.outcome = Some(UpdateOutcome::Interrupted);
            self.journals().archive(&journal)?;
            let version = self.versions().current();
            return Ok(Report { outcome: journal.outcome, version, reason: journal.reason, hint: None, trouble: None });
        }
        self.settle(journal, UpdateOutcome::Interrupted)
    }

    /// Without a journal there must be no trial: one that is on was left by a journal that was lost.
    fn end_stray_trial(&self) -> Result<Option<Report>, EngineError> {
        if !self.machine.trial_is_on()? {
            return Ok(None);
        }
        tracing::error!("a trial is on, but no journal knows of it; going back to the proven version");
        self.machine.end_trial()?;
        if self.machine.view()?.state.is_wanted() {
            self.machine.restart()?;
        }
        let reason = "a trial that no journal knew of was ended".to_owned();
        Ok(Some(Report {
            outcome: Some(UpdateOutcome::Interrupted),
            version: self.versions().current(),
            reason,
            hint: None,
            trouble: None,
        }))
    }

    /// Removes old versions, partial downloads and staged leftovers; never what is linked or runs. Returns what went.
    ///
    /// # Errors
    /// When another updater runs, or something cannot be removed.
    pub fn clean(&self) -> Result<Vec<String>, EngineError> {
        let _lock = Self::lock(self.layout)?;
        let removed = self.versions().prune(&BTreeSet::new(), Duration::ZERO, self.clock.now())?;
        let mut removed: Vec<String> = removed.iter().map(|version| format!("version {version}")).collect();
        let downloads = self.fetcher.places.downloads();
        let partial = std::fs::read_dir(&downloads).is_ok_and(|mut files| files.next().is_some());
        picket_durable::remove_tree(&downloads)?;
        if partial {
            removed.push("partial downloads".to_owned());
        }
        if picket_durable::remove_if_present(&self.fetcher.places.bundle())? {
            removed.push("a bundle that was not applied".to_owned());
        }
        state::publish(self.layout, &self.status());
        Ok(removed)
    }
}

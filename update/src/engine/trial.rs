//! The trial and what follows from it: start, watch, then switch or go back.

use super::error::chain;
use super::{Engine, EngineError, Report};
use crate::clock::Clock;
use crate::failpoint::reach;
use crate::fetcher::Fetcher;
use crate::gate::{Fault, Gate, GateSettings, ReleaseFetch, Verdict};
use crate::hooks::HookKind;
use crate::journal::{Journal, Kind, Mark, Step};
use crate::machine::ViewState;
use crate::self_test::{SelfTests, Test};
use crate::snapshot::Snapshots;
use crate::trust::TrustStore;
use picket_layout::Layout;
use picket_protocol::TargetTriple;
use picket_protocol::update_status::UpdateOutcome;
use semver::Version;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How often the proven version is looked for after it was started again.
const LOOK: Duration = Duration::from_millis(50);

impl Engine<'_> {
    /// Starts the new version, watches it, and does what the gate says.
    pub(super) fn try_out(&self, mut journal: Journal) -> Result<Report, EngineError> {
        let journals = self.journals();
        let old_run = self.machine.view().map(|view| view.run).unwrap_or_default();
        journals.mark(&mut journal, Step::Trial, Mark::Began)?;
        self.progress
            .step(Step::Trial, format!("start version {}; a power cut now would start {}", journal.to, journal.from));
        let started = self.machine.begin_trial(&journal.to, &journal.units);
        if let Err(error) = started {
            let reason = format!("the trial could not be started: {}", chain(error.as_ref()));
            journal.verdict = Some(Verdict::Fail { reason, fault: Fault::Environment });
            return self.revert(journal);
        }
        reach("trial-started");
        journals.mark(&mut journal, Step::Trial, Mark::Done)?;

        journals.mark(&mut journal, Step::Gate, Mark::Began)?;
        self.progress.step(Step::Gate, format!("watch version {}", journal.to));
        let verdict = self.watch(&mut journal, old_run);
        reach("gate-decided");
        let passed = verdict == Verdict::Pass;
        journal.verdict = Some(verdict);
        if passed {
            journals.mark(&mut journal, Step::Gate, Mark::Done)?;
            self.commit(journal)
        } else {
            self.revert(journal)
        }
    }

    fn watch(&self, journal: &mut Journal, old_run: String) -> Verdict {
        let baseline = journal.baseline.clone().unwrap_or_default();
        let hooks = [HookKind::Required, HookKind::Wanted].map(|kind| self.hooks_of(kind, journal));
        let version = journal.to.clone();
        let gate = Gate {
            version: &version,
            old_run,
            settings: GateSettings {
                start_deadline: self.settings.start_deadline.get(),
                soak: self.settings.soak.get(),
                network_patience: self.settings.network_patience.get(),
            },
            baseline: &baseline,
            machine: self.machine,
            probe: self.probe,
            fetch: self.release_fetch(journal),
            hooks,
            progress: self.progress,
            interrupted: self.interrupted,
        };
        gate.watch(&mut journal.evidence).unwrap_or_else(|error| {
            let reason = format!("the service manager could not be asked: {}", chain(error.as_ref()));
            Verdict::Fail { reason, fault: Fault::Environment }
        })
    }

    /// How the new version shows that it can take the next update. A version that was proven before has shown it, and a
    /// rollback must work without any network.
    fn release_fetch(&self, journal: &Journal) -> Option<Arc<dyn ReleaseFetch>> {
        if journal.kind == Kind::Rollback {
            return None;
        }
        let store = self.trust_store();
        let stored = store.load("root").ok().flatten();
        let root = stored.or_else(|| self.pinned_root.clone())?;
        Some(Arc::new(BothFetch {
            self_tests: self.self_tests.clone(),
            candidate: self.layout.version_exe(&journal.to),
            // Where there is no server, the new version shows that it can take the next bundle.
            releases: self.fetcher.releases.clone(),
            channel: self.settings.channel.clone(),
            root,
            fetcher: self.fetcher.clone(),
            target: self.build.target.clone(),
            clock: self.clock.clone(),
            scratch_root: self.self_tests.scratch_root.clone(),
        }))
    }

    /// Makes the new version the proven one. May be called again at any point of itself.
    pub(super) fn commit(&self, mut journal: Journal) -> Result<Report, EngineError> {
        self.journals().mark(&mut journal, Step::Commit, Mark::Began)?;
        self.progress.step(Step::Commit, format!("version {} becomes the proven one", journal.to));
        if let Err(error) = self.switch(&journal) {
            if self.versions().current().as_ref() == Some(&journal.to) {
                // The switch is made; only the folder's sync failed. What boots is complete and proven.
                tracing::warn!(%error, "the switch was made, but could not be synced");
            } else {
                let reason = format!("the switch could not be made: {}", chain(&error));
                journal.verdict = Some(Verdict::Fail { reason, fault: Fault::Environment });
                return self.revert(journal);
            }
        }
        journal.reason = self.after_switch(&journal);
        self.journals().mark(&mut journal, Step::Commit, Mark::Done)?;
        self.settle(journal, UpdateOutcome::Committed)
    }

    /// `previous` first, then the one rename that commits.
    fn switch(&self, journal: &Journal) -> Result<(), picket_durable::Error> {
        if self.versions().current().as_ref() == Some(&journal.to) {
            return Ok(());
        }
        let before = self.versions().previous();
        let previous = self.layout.previous_link();
        let linked = picket_durable::replace_symlink(&previous, &Layout::link_target(&journal.from)).and_then(|()| {
            reach("commit-previous-linked");
            picket_durable::replace_symlink(&self.layout.current_link(), &Layout::link_target(&journal.to))
        });
        if linked.is_err() && self.versions().current().as_ref() != Some(&journal.to) {
            // Nothing is switched: what could be gone back to before is what can be gone back to now.
            let put_back =
                before.map(|before| picket_durable::replace_symlink(&previous, &Layout::link_target(&before)));
            let _ =
                put_back.transpose().inspect_err(|error| tracing::warn!(%error, "the previous version is not linked"));
        }
        linked?;
        reach("commit-switched");
        Ok(())
    }

    /// What follows the switch. None of it can be a reason to go back: the new version is proven and boots.
    fn after_switch(&self, journal: &Journal) -> String {
        let mut notes = vec![format!("version {} passed its trial", journal.to)];
        let mut note = |what: &str, result: Result<(), crate::machine::MachineError>| {
            if let Err(error) = result {
                notes.push(format!("{what}: {}", chain(error.as_ref())));
            }
        };
        note("its units could not be registered", self.machine.register(&journal.units));
        reach("commit-registered");
        note("the trial's unit could not be removed", self.machine.end_trial().map(drop));
        reach("commit-trial-ended");
        note("the agent could not be left as it was", self.leave_as_it_was(journal));
        notes.join("; ")
    }

    /// After a commit: an agent that was stopped before is stopped again; one that runs the old version (a crash fell
    /// between the verdict and the switch) is restarted.
    fn leave_as_it_was(&self, journal: &Journal) -> Result<(), crate::machine::MachineError> {
        let view = self.machine.view()?;
        if !journal.was_wanted {
            return if view.state == ViewState::Stopped { Ok(()) } else { self.machine.stop() };
        }
        let other = self.probe.livez().is_some_and(|livez| livez.version != journal.to);
        if view.state != ViewState::Stopped && other { self.machine.restart() } else { Ok(()) }
    }

    /// Goes back to the proven version. May be called again at any point of itself.
    pub(super) fn revert(&self, mut journal: Journal) -> Result<Report, EngineError> {
        // A disk that the new version filled up must not keep it running: without this mark the next recovery decides
        // the same from the journal as it is.
        let marked = self.journals().mark(&mut journal, Step::Revert, Mark::Began);
        self.progress.step(Step::Revert, format!("go back to version {}", journal.from));
        let (reason, fault) = match &journal.verdict {
            Some(Verdict::Fail { reason, fault }) => (reason.clone(), *fault),
            _ => ("the trial was cut short by a crash or a power cut".to_owned(), Fault::Interrupted),
        };
        let mut notes = vec![reason];
        // If it cannot be ended now, the journal stays as it is for the next recovery; a reboot ends the trial in any case.
        let ended = self.machine.end_trial();
        reach("revert-trial-ended");
        self.restore_config(&journal, &mut notes);
        match self.bring_back(&journal) {
            Ok(Some(note)) => notes.push(note),
            Ok(None) => {}
            Err(error) => notes.push(format!("the agent could not be restarted: {}", chain(error.as_ref()))),
        }
        reach("revert-restarted");
        ended?;
        marked?;
        journal.reason = notes.join("; ");
        self.journals().mark(&mut journal, Step::Revert, Mark::Done)?;
        let outcome = if fault == Fault::Interrupted { UpdateOutcome::Interrupted } else { UpdateOutcome::RolledBack };
        self.settle(journal, outcome)
    }

    fn restore_config(&self, journal: &Journal, notes: &mut Vec<String>) {
        let snapshots = Snapshots { config_dir: self.layout.config_dir(), update_dir: self.layout.update_dir() };
        match snapshots.restore_if_needed(&journal.id, self.config_check) {
            Ok(true) => {
                notes.push("the configuration was put back, because the proven version could not use it".to_owned());
            }
            Ok(false) => {}
            Err(error) => notes.push(format!("the configuration could not be put back: {}", chain(&error))),
        }
    }

    /// Starts the proven version again where it should run and does not, and waits for it. A note, if it does not come.
    fn bring_back(&self, journal: &Journal) -> Result<Option<String>, crate::machine::MachineError> {
        let view = self.machine.view()?;
        if !journal.was_wanted {
            return if view.state == ViewState::Stopped { Ok(None) } else { self.machine.stop().map(|()| None) };
        }
        // Stopped by a person, or not started yet because the machine is booting: either way not ours to start.
        if view.state == ViewState::Stopped {
            return Ok(None);
        }
        if view.state == ViewState::Running && self.answers(&journal.from) {
            return Ok(None);
        }
        self.machine.restart()?;
        let began = Instant::now();
        let limit = self.settings.start_deadline.get();
        while began.elapsed() < limit {
            if self.answers(&journal.from) {
                return Ok(None);
            }
            std::thread::sleep(LOOK);
        }
        Ok(Some(format!("version {} did not answer within {} s", journal.from, limit.as_secs())))
    }

    fn answers(&self, version: &Version) -> bool {
        self.probe.livez().is_some_and(|livez| livez.version == *version)
    }
}

/// Fetches the release metadata as the candidate and as the judge, each from the same trusted root, each into a scratch
/// store: neither can disturb what is trusted.
struct BothFetch {
    self_tests: SelfTests,
    candidate: PathBuf,
    releases: String,
    channel: String,
    root: Vec<u8>,
    fetcher: Fetcher,
    target: TargetTriple,
    clock: Clock,
    scratch_root: PathBuf,
}

impl ReleaseFetch for BothFetch {
    fn candidate(&self) -> Result<(), String> {
        let test = Test::Fetch { releases: &self.releases, channel: &self.channel, root: &self.root };
        let report = self.self_tests.run(&self.candidate, &test).map_err(|error| chain(&error))?;
        let failed = report.failures().map(|check| format!("{}: {}", check.name, check.detail)).next();
        failed.map_or(Ok(()), Err)
    }

    fn judge(&self) -> Result<(), String> {
        let scratch = self.scratch_root.join(format!("judge-{}", uuid::Uuid::now_v7().simple()));
        let result = self.fetch_into(&scratch);
        let _ = picket_durable::remove_tree(&scratch);
        result
    }
}

impl BothFetch {
    fn fetch_into(&self, scratch: &Path) -> Result<(), String> {
        let store = TrustStore::new(scratch);
        store.keep("root", &self.root).map_err(|error| chain(&error))?;
        // The judge's own look ends by its own limits; nobody waits for it longer than the gate does.
        let never = AtomicBool::new(false);
        let looked = self.fetcher.look(&store, Some(&self.root), &self.clock, &self.channel, &self.target, &never);
        looked.map(drop).map_err(|error| error.chain())
    }
}

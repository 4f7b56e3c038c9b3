//! Everything before the trial: fetch, stage, preflight, snapshot. Nothing here changes what runs or what boots.

use super::check::Checked;
use super::error::{Failure, chain};
use super::{Engine, EngineError};
use crate::archive::{ArchiveError, Format, unpack};
use crate::fetcher::{Task, take_files, verified_archive};
use crate::gate::{Baseline, Fault, seen_checks};
use crate::journal::{Journal, Mark, Step};
use crate::machine::ViewState;
use crate::progress::Event;
use crate::self_test::{SelfTestError, Test, objection};
use crate::snapshot::Snapshots;
use picket_protocol::channel::ReleaseFile;
use picket_protocol::{Artifact, SelfTestReport, StateFormat};
use picket_versions::{FileRecord, PlaceError, VersionSource, record_files};
use semver::Version;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;

/// What a step brings: the outer error stops the updater, the inner one ends the update.
type Attempt<T = ()> = Result<Result<T, Failure>, EngineError>;

impl Engine<'_> {
    /// Does every step up to the trial.
    pub(super) fn prepare(&self, journal: &mut Journal, checked: Option<&Checked>) -> Attempt {
        if let (Some(artifact), Some(checked)) = (journal.artifact.clone(), checked) {
            let text = format!("download and verify {}", artifact.path);
            let fetched = self.step(journal, Step::Fetch, &text, |j| self.fetch(&j.to, &artifact, checked))?;
            if let Err(failure) = fetched {
                return Ok(Err(failure));
            }
            let text = format!("check again and put into {}", self.layout.version_dir(&journal.to).display());
            let staged = self.step(journal, Step::Stage, &text, |j| Ok(self.take_and_place(j, &artifact, checked)))?;
            if let Err(failure) = staged {
                return Ok(Err(failure));
            }
        }
        let release_format =
            checked.and_then(|checked| checked.channel.releases.get(&journal.to)).map(|r| r.state_format);
        let text = "space, obstacles, self-test of the new version, state format";
        let checks = self.step(journal, Step::Preflight, text, |journal| self.preflight(journal, release_format))?;
        if let Err(failure) = checks {
            return Ok(Err(failure));
        }
        let text = "keep the configuration as it is, ask the hooks";
        self.step(journal, Step::Snapshot, text, |journal| {
            if let Err(error) = self.keep_config(journal) {
                return Ok(Err(error.into()));
            }
            let asked = self.ask_before(journal)?;
            // After the hooks: what they changed is not the new version's doing.
            let health = self.probe.health();
            journal.evidence.checks_before = health.as_ref().map(seen_checks).unwrap_or_default();
            journal.baseline = Some(Baseline::of(health.as_ref()));
            Ok(asked)
        })
    }

    /// One step between its two marks.
    fn step<T>(
        &self,
        journal: &mut Journal,
        step: Step,
        text: &str,
        act: impl FnOnce(&mut Journal) -> Attempt<T>,
    ) -> Attempt<T> {
        if self.interrupted.load(Ordering::Relaxed) {
            let reason = format!("the updater was told to stop before the step {}", step.as_str());
            return Ok(Err(Failure { reason, hint: None, fault: Fault::Interrupted, trouble: None }));
        }
        self.journals().mark(journal, step, Mark::Began)?;
        self.progress.step(step, text);
        let result = act(journal)?;
        if result.is_ok() {
            self.journals().mark(journal, step, Mark::Done)?;
        }
        Ok(result)
    }

    /// Lets the fetcher download, verify and unpack the artifact.
    fn fetch(&self, version: &Version, artifact: &Artifact, checked: &Checked) -> Attempt {
        let target = checked.trusted.target(&artifact.path)?;
        if let Err(failure) = self.space_for(target.length, artifact.unpacked) {
            return Ok(Err(failure));
        }
        let keys = checked.trusted.minisign_keys();
        let task = Task::fetch(artifact, &target, version, &self.build.target, &keys);
        let told = |done, total| self.progress.tell(Event::Download { done, total });
        let fetched = self.fetcher.fetch(task, self.interrupted, &told);
        crate::failpoint::reach("fetch-downloaded");
        Ok(match fetched {
            Ok(fetched) => fetched.map_err(Failure::from),
            Err(_) if self.interrupted.load(Ordering::Relaxed) => Err(Failure {
                reason: "the updater was told to stop while it downloaded; what has arrived is kept".to_owned(),
                hint: None,
                fault: Fault::Interrupted,
                trouble: None,
            }),
            Err(error) => Err(error.into()),
        })
    }

    fn space_for(&self, download: u64, unpacked: u64) -> Result<(), Failure> {
        let reserve = self.settings.disk_reserve.0;
        let fetched = download.saturating_add(unpacked);
        for (place, bytes) in [(self.layout.update_dir().to_owned(), fetched), (self.layout.versions_dir(), unpacked)] {
            let free = picket_durable::free_space(&place)?;
            let needed = bytes.saturating_add(reserve);
            if free < needed {
                let reason = format!(
                    "not enough space in {}: {} MiB are free, {} MiB are needed ({} MiB for the release, {} MiB to leave \
                     free)",
                    place.display(),
                    free >> 20,
                    needed.div_ceil(1 << 20),
                    bytes.div_ceil(1 << 20),
                    reserve >> 20
                );
                let hint = "free some space (`picket update clean` removes old versions), or lower update.disk_reserve";
                return Err(Failure::of_environment(reason, Some(hint)));
            }
        }
        Ok(())
    }

    /// Checks with this process' own eyes what the fetcher brought, and puts it in place.
    fn take_and_place(&self, journal: &Journal, artifact: &Artifact, checked: &Checked) -> Result<(), Failure> {
        let places = &self.fetcher.places;
        let signed = checked.trusted.target(&artifact.path)?;
        let keys = checked.trusted.minisign_keys();
        // An archive whose files the vendor did not list is unpacked here, from bytes that nobody else can change.
        let own = artifact.files.is_empty().then(|| self.layout.update_dir().join("archive.verified"));
        let taken =
            verified_archive(places, &signed, &journal.to, &self.build.target, &keys, own.as_deref()).and_then(|()| {
                let staging = self.versions().fresh_staging()?;
                match &own {
                    None => take_files(places, &artifact.files, &staging),
                    Some(archive) => unpack_here(archive, artifact, &staging),
                }
            });
        if let Some(own) = &own {
            picket_durable::remove_if_present(own)?;
        }
        taken?;
        assert_written(&artifact.files, &self.layout.staging_dir())?;
        crate::failpoint::reach("stage-unpacked");
        let source = VersionSource::Release { sha256: journal.sha256 };
        let placed = self.versions().place(&journal.to, &self.build.target, source, self.clock.now());
        placed.map_err(|error| match error {
            PlaceError::File(error) => error.into(),
            error @ PlaceError::InUse { .. } => {
                Failure::of_environment(chain(&error), Some("the vendor published one number twice; tell the vendor"))
            }
        })?;
        // The release is in place; its archive is only in the way.
        for dir in [places.out(), places.downloads()] {
            picket_durable::remove_tree(&dir)?;
        }
        Ok(())
    }

    fn preflight(&self, journal: &mut Journal, release_format: Option<u32>) -> Attempt {
        if let Some(obstacle) = self.machine.trial_obstacle()? {
            return Ok(Err(Failure::of_environment(obstacle, None)));
        }
        if let Err(failure) = self.health_port_is_ours()? {
            return Ok(Err(failure));
        }
        if let Err(error) = self.versions().intact(&journal.to) {
            return Ok(Err(Failure::of_environment(chain(&error), Some("try again; it is then fetched anew"))));
        }
        if let Err(failure) = self.deciding_hooks_are_sound(journal) {
            return Ok(Err(failure));
        }
        let exe = self.layout.version_exe(&journal.to);
        let report = match self.self_tests.run(&exe, &Test::Offline) {
            Ok(report) => report,
            Err(error @ SelfTestError::Scratch(_)) => return Ok(Err(Failure::of_environment(chain(&error), None))),
            Err(error) => return Ok(Err(Failure::of_version(format!("version {}: {}", journal.to, chain(&error))))),
        };
        journal.evidence.self_test = Some(describe(&report));
        if let Some(reason) = self.self_test_verdict(journal, &report, release_format) {
            return Ok(Err(Failure::of_version(reason)));
        }
        journal.units = report.units;
        Ok(Ok(()))
    }

    /// The gate listens to the health port: if the proven version runs and cannot be heard there, nothing could be judged.
    fn health_port_is_ours(&self) -> Attempt {
        if self.machine.view()?.state != ViewState::Running {
            return Ok(Ok(()));
        }
        let answers = self.probe.livez().map(|livez| livez.version);
        if answers.as_ref() == Some(&self.current()?) {
            return Ok(Ok(()));
        }
        let reason = match answers {
            Some(version) => format!("version {version} answers on the health port, not the proven one"),
            None => "the agent runs, but does not answer on its health port".to_owned(),
        };
        let hint = "see `picket doctor`; if another program holds the port, set health.listen to another and restart";
        Ok(Err(Failure::of_environment(reason, Some(hint))))
    }

    /// Why the report speaks against the version.
    fn self_test_verdict(&self, journal: &Journal, report: &SelfTestReport, declared: Option<u32>) -> Option<String> {
        let to = &journal.to;
        if let Some(reason) = objection(report, to, &self.build.target) {
            return Some(reason);
        }
        let range = report.build.state_format;
        if let Some(reason) = state_format_obstacle(self.build.state_format, range, self.state_format()) {
            return Some(format!("version {to} {reason}"));
        }
        if declared.is_some_and(|declared| declared != range.writes) {
            return Some(format!("version {to} writes state format {}, the channel says another", range.writes));
        }
        None
    }

    /// The format the agent's state was last written in; the judge's own where none was noted.
    fn state_format(&self) -> u32 {
        let noted = picket_durable::read_untrusted(&self.layout.state_format(), 16).ok().flatten();
        let noted = noted.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse().ok());
        noted.unwrap_or(self.build.state_format.writes)
    }

    fn keep_config(&self, journal: &Journal) -> Result<(), picket_durable::Error> {
        let snapshots = Snapshots { config_dir: self.layout.config_dir(), update_dir: self.layout.update_dir() };
        snapshots.take(&journal.id)
    }
}

fn unpack_here(archive: &Path, artifact: &Artifact, staging: &Path) -> Result<(), Failure> {
    let format = Format::of(&artifact.path);
    format.and_then(|format| unpack(archive, format, staging, artifact.unpacked)).map_err(|error| match error {
        ArchiveError::File(error) => error.into(),
        error => Failure::of_version(chain(&error)),
    })
}

/// The files were checked while they were written. Whether the disk has them shows only when they are read again.
pub(crate) fn assert_written(files: &BTreeMap<String, ReleaseFile>, staging: &Path) -> Result<(), Failure> {
    let found = record_files(staging)?;
    let is_there = |(name, signed): (&String, &ReleaseFile)| {
        let same = |file: &FileRecord| file.length == signed.length && file.sha256 == signed.sha256;
        found.iter().any(|file| file.path == *name && same(file))
    };
    if files.iter().all(is_there) {
        return Ok(());
    }
    let reason = format!("{} does not hold what was written to it", staging.display());
    Err(Failure::of_environment(reason, Some("the disk loses writes: look at it (`dmesg`), then try again")))
}

/// Why the formats of stored state speak against the version under test, if they do: it must be able to read what is
/// there (`present`), and the proven version must be able to take back what it writes.
fn state_format_obstacle(proven: StateFormat, new: StateFormat, present: u32) -> Option<String> {
    if !new.can_read(present) {
        let (from, to) = (new.reads_from, new.reads_to());
        return Some(format!("reads state formats {from} to {to}, this machine's state is in format {present}"));
    }
    (!proven.can_read(new.writes)).then(|| {
        format!(
            "writes state format {}, which the proven version could not take back (it reads {} to {}); update to a \
             release in between first",
            new.writes,
            proven.reads_from,
            proven.reads_to()
        )
    })
}

/// The self-test in one line, for the evidence.
fn describe(report: &SelfTestReport) -> String {
    let failed: Vec<&str> = report.failures().map(|check| check.name.as_str()).collect();
    let confined = report.checks.iter().find(|check| check.name == "sandbox").map_or("", |check| check.detail.as_str());
    if failed.is_empty() {
        format!("{} checks passed; {confined}", report.checks.len())
    } else {
        format!("failed: {}; {confined}", failed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_lost_of_a_version_is_noticed_before_it_gets_its_name() {
        let dir = tempfile::tempdir().unwrap();
        picket_durable::write_atomic(&dir.path().join("picket"), b"whole", 0o755).unwrap();
        let files = || record_files(dir.path()).unwrap().into_iter();
        let signed: BTreeMap<_, _> =
            files().map(|file| (file.path, ReleaseFile { length: file.length, sha256: file.sha256 })).collect();
        assert!(assert_written(&signed, dir.path()).is_ok());
        picket_durable::write_atomic(&dir.path().join("picket"), b"hole", 0o755).unwrap();
        let failure = assert_written(&signed, dir.path()).unwrap_err();
        assert!(failure.reason.contains("does not hold what was written"), "{}", failure.reason);
    }

    #[test]
    fn a_version_whose_state_the_proven_one_could_not_take_back_is_refused() {
        let format = |reads_from, writes| StateFormat { reads_from, writes };
        let obstacle = |proven, new, present| state_format_obstacle(proven, new, present);
        assert_eq!(obstacle(format(1, 1), format(1, 1), 1), None);
        assert_eq!(obstacle(format(1, 1), format(1, 2), 1), None, "one step is taken");
        assert_eq!(obstacle(format(1, 2), format(1, 1), 2), None, "and taken back");
        let two_steps = obstacle(format(1, 1), format(1, 3), 1).unwrap();
        assert!(two_steps.contains("in between"), "{two_steps}");
        let too_old = obstacle(format(1, 3), format(1, 1), 3).unwrap();
        assert!(too_old.contains("reads state formats 1 to 2"), "{too_old}");
        assert!(obstacle(format(3, 3), format(3, 3), 1).is_some(), "nor one that left the old format behind");
    }
}

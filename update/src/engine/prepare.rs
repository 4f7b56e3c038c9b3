//! Everything before the trial: fetch, stage, preflight, snapshot. Nothing here changes what runs or what boots.

use super::check::Checked;
use super::error::{Failure, chain};
use super::{Engine, EngineError};
use crate::archive::{ArchiveError, Format, unpack};
use crate::fetch::{Download, DownloadError};
use crate::gate::{Baseline, Fault, Hooks};
use crate::journal::{Journal, Mark, Step};
use crate::machine::ViewState;
use crate::progress::Event;
use crate::self_test::{SelfTestError, Test};
use crate::snapshot::Snapshots;
use crate::state::{self, Deferral};
use crate::trust::minisign::{MAX_SIGNATURE_BYTES, trusted_comment};
use crate::trust::{TrustError, VerifiedTarget};
use picket_durable::Context;
use picket_protocol::{Artifact, SelfTestReport, StateFormat};
use picket_transport::TransportError;
use picket_versions::{PlaceError, VersionSource};
use semver::Version;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// What a step brings: the outer error stops the updater, the inner one ends the update.
type Attempt<T = ()> = Result<Result<T, Failure>, EngineError>;

impl Engine<'_> {
    /// Does every step up to the trial.
    pub(super) fn prepare(&self, journal: &mut Journal, checked: Option<&Checked>) -> Attempt {
        if let (Some(artifact), Some(checked)) = (journal.artifact.clone(), checked) {
            let text = format!("download and verify {}", artifact.path);
            let fetched =
                self.step(journal, Step::Fetch, &text, |journal| self.fetch(&journal.to, &artifact, checked))?;
            let path = match fetched {
                Ok(path) => path,
                Err(failure) => return Ok(Err(failure)),
            };
            let text = format!("unpack into {}", self.layout.version_dir(&journal.to).display());
            let staged =
                self.step(journal, Step::Stage, &text, |journal| Ok(self.unpack_and_place(journal, &artifact, &path)))?;
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
        let text = "keep the configuration as it is";
        self.step(journal, Step::Snapshot, text, |journal| Ok(self.take_snapshot(journal).map_err(Failure::from)))
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

    /// Downloads the artifact and checks both locks; returns its path once it has earned a name without `.unverified`.
    fn fetch(&self, version: &Version, artifact: &Artifact, checked: &Checked) -> Attempt<PathBuf> {
        let target = checked.trusted.target(&artifact.path)?;
        let space = self.space_for(target.length, artifact.unpacked);
        Ok(space.and_then(|()| self.download(version, &target, checked)))
    }

    fn space_for(&self, download: u64, unpacked: u64) -> Result<(), Failure> {
        let reserve = self.settings.disk_reserve.0;
        for (place, bytes) in [(self.layout.update_dir().to_owned(), download), (self.layout.versions_dir(), unpacked)]
        {
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

    fn download(&self, version: &Version, target: &VerifiedTarget, checked: &Checked) -> Result<PathBuf, Failure> {
        let url = |result: Result<picket_transport::SafeUrl, picket_transport::UrlError>| {
            result.map_err(|e| TrustError::Transport(TransportError::from(e)))
        };
        let location = &self.server.location;
        let signature_url = url(location.signature(target))?;
        let signature = self
            .server
            .optional(&signature_url, MAX_SIGNATURE_BYTES)
            .map_err(TrustError::Transport)?
            .ok_or_else(|| TrustError::Missing(format!("minisign signature of {}", target.path)))?;
        let signature = String::from_utf8_lossy(&signature).into_owned();
        let downloads = self.layout.update_dir().join("downloads");
        let download = Download {
            client: &self.server.client,
            url: url(location.target(target))?,
            target,
            dir: &downloads,
            progress: &|done, total| self.progress.tell(Event::Download { done, total }),
        };
        let unverified = download.run().map_err(|error| match error {
            DownloadError::Mismatch(error) => Failure::from(error),
            DownloadError::File(error) => Failure::from(error),
            DownloadError::Transport(error @ TransportError::TooLarge { .. }) => Failure::of_signature(
                chain(&error),
                "the server sends more than the vendor signed; if it happens again, it or a mirror may be compromised",
            ),
            other @ DownloadError::Transport(_) => Failure::of_network(
                chain(&other),
                Some("it goes on from there with the next attempt: `picket update apply`, or the daily check"),
            ),
        })?;
        crate::failpoint::reach("fetch-downloaded");
        let comment = trusted_comment(version, &self.build.target, &target.sha256()?);
        let artifact = BufReader::new(File::open(&unverified).doing("read", &unverified)?);
        if let Err(error) = checked.trusted.minisign_keys().verify(&target.path, artifact, &signature, &comment) {
            // Whole, of the signed hash, and yet refused by the second lock: it must not be found again.
            picket_durable::remove_if_present(&unverified)?;
            return Err(error.into());
        }
        let verified = unverified.with_extension("verified");
        picket_durable::rename(&unverified, &verified)?;
        Ok(verified)
    }

    fn unpack_and_place(&self, journal: &Journal, artifact: &Artifact, path: &Path) -> Result<(), Failure> {
        let versions = self.versions();
        let staging = versions.fresh_staging()?;
        let format = Format::of(&artifact.path);
        format.and_then(|format| unpack(path, format, &staging, artifact.unpacked)).map_err(|error| match error {
            ArchiveError::File(error) => error.into(),
            error => Failure::of_version(chain(&error)),
        })?;
        crate::failpoint::reach("stage-unpacked");
        let source = VersionSource::Release { sha256: journal.sha256 };
        versions.place(&journal.to, &self.build.target, source, self.clock.now()).map_err(|error| match error {
            PlaceError::File(error) => error.into(),
            error @ PlaceError::InUse { .. } => {
                Failure::of_environment(chain(&error), Some("the vendor published one number twice; tell the vendor"))
            }
        })?;
        // The release is in place; its archive is only in the way.
        picket_durable::remove_if_present(path)?;
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
        if report.build.version != *to || report.build.target != self.build.target {
            return Some(format!(
                "the executable of version {to} says that it is {} for {}",
                report.build.version, report.build.target
            ));
        }
        if let Some(check) = report.failures().next() {
            return Some(format!("version {to} fails its self-test: {} ({})", check.name, check.detail));
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

    fn take_snapshot(&self, journal: &mut Journal) -> Result<(), picket_durable::Error> {
        let snapshots = Snapshots { config_dir: self.layout.config_dir(), update_dir: self.layout.update_dir() };
        snapshots.take(&journal.id)?;
        journal.baseline = Some(Baseline::of(self.probe.health().as_ref()));
        Ok(())
    }

    /// Whether hooks call the machine busy, and may still put the update off. In words, if so.
    pub(super) fn deferred(&self, version: &Version) -> Result<Option<String>, EngineError> {
        let hooks = Hooks { dir: self.layout.busy_hooks(), required: false, limit: self.settings.hook_limit.get() };
        let results = hooks.run()?;
        let file = state::deferral(self.layout.update_dir());
        let Some(busy) = results.iter().find(|result| !result.ok) else {
            file.clear()?;
            return Ok(None);
        };
        let now = self.clock.now();
        let since = match file.load().filter(|deferral| deferral.version == *version) {
            Some(deferral) => deferral.since,
            None => {
                file.save(&Deferral { version: version.clone(), since: now })?;
                now
            }
        };
        let limit = self.settings.defer_at_most;
        if now.duration_since(since).unsigned_abs() >= limit.get() {
            self.progress.note(format!("{} still calls the machine busy, but {limit} are over", busy.hook));
            return Ok(None);
        }
        Ok(Some(format!(
            "release {version} waits: {} calls the machine busy ({}); at most until {limit} after {since}. \
             `picket update apply --now` does not wait",
            busy.hook, busy.detail
        )))
    }
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

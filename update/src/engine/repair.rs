//! Bit rot: an installed version whose files are not what was put there any more.
//!
//! Looked for by every daily run and by a person's. A damaged version is fetched again and put in its place by one
//! exchange of names, so that what boots is never missing; where that cannot be done, the machine goes back to the
//! previous version under the same trial and gate as ever.

use super::{Engine, EngineError, MayWait, Plan, Report};
use crate::decide::Asked;
use crate::fetcher::{Task, take_files, verified_archive};
use crate::journal::Kind;
use picket_versions::{RecordError, VersionSource, record_files};
use semver::Version;

/// Who is behind a step back that nobody asked for.
pub(super) const REPAIR: &str = "repair";

impl Engine<'_> {
    /// Looks at the proven version and the one before it, and mends what is damaged. A report when the machine went back.
    ///
    /// # Errors
    /// Only what kept it from going back where nothing else was left.
    pub(super) fn mend(&self) -> Result<Option<Report>, EngineError> {
        let versions = self.versions();
        let current = self.current()?;
        let previous = versions.previous().filter(|previous| *previous != current);
        for version in previous.iter().chain([&current]) {
            let Some(damage) = self.damage(version) else { continue };
            tracing::error!(%version, damage, "an installed version is damaged");
            self.progress.note(format!("version {version} is damaged on disk: {damage}"));
            match self.fetch_again(version) {
                Ok(()) => self.progress.note(format!("version {version} was fetched again and is whole")),
                Err(reason) if *version == current => {
                    self.progress.note(format!("version {version} cannot be fetched again: {reason}"));
                    return self.step_back(&current, previous.as_ref(), &damage, &reason);
                }
                Err(reason) => {
                    let told = "it is not gone back to until it is";
                    self.progress.note(format!("version {version} cannot be fetched again ({reason}); {told}"));
                }
            }
        }
        Ok(None)
    }

    /// What is wrong with a version's files; `None` when nothing is.
    fn damage(&self, version: &Version) -> Option<String> {
        match self.versions().intact(version) {
            Ok(_) => None,
            // A disk that cannot be read now may be read the next time; a wrong byte stays wrong.
            Err(RecordError::File(error)) => {
                tracing::warn!(%error, %version, "an installed version cannot be looked at");
                None
            }
            Err(error) => Some(super::error::chain(&error)),
        }
    }

    /// Fetches the release of `version` anew and exchanges it for the damaged one. The error is in words.
    fn fetch_again(&self, version: &Version) -> Result<(), String> {
        let checked = self.check_locked(&Asked::BySchedule).map_err(|error| error.chain())?;
        let target = &self.build.target;
        let (artifact, signed) = checked.artifact(version, target).map_err(|error| super::error::chain(&error))?;
        let keys = checked.trusted.minisign_keys();
        if artifact.files.is_empty() {
            return Err("the vendor did not list the files of this release".to_owned());
        }
        let task = Task::fetch(&artifact, &signed, version, target, &keys);
        let fetched = self.fetcher.fetch(task, self.interrupted, &|_, _| {}).map_err(|error| error.chain())?;
        fetched.map_err(|refusal| refusal.reason)?;
        let places = &self.fetcher.places;
        verified_archive(places, &signed, version, target, &keys, None).map_err(|failure| failure.reason)?;
        let words = |error: picket_durable::Error| super::error::chain(&error);
        let staging = self.versions().fresh_staging().map_err(words)?;
        take_files(places, &artifact.files, &staging).map_err(|failure| failure.reason)?;
        // What was proven was these very bytes; another build of the same number has proven nothing.
        if let Ok(known) = self.versions().record(version)
            && known.files != record_files(&staging).map_err(words)?
        {
            return Err("the release is another build than the one that was installed".to_owned());
        }
        let sha256 = signed.sha256().map_err(|error| super::error::chain(&error))?;
        let source = VersionSource::Release { sha256 };
        self.versions().exchange(version, target, source, self.clock.now()).map_err(words)?;
        // What runs was loaded from the damaged file.
        let restarted = self.machine.view().and_then(|view| {
            if view.state.is_wanted() && self.current().is_ok_and(|current| current == *version) {
                self.machine.restart()
            } else {
                Ok(())
            }
        });
        restarted.map_err(|error| format!("it is whole, but the agent could not be restarted: {error}"))
    }

    fn step_back(
        &self,
        current: &Version,
        previous: Option<&Version>,
        damage: &str,
        reason: &str,
    ) -> Result<Option<Report>, EngineError> {
        let whole = previous.and_then(|previous| Some((previous, self.versions().intact(previous).ok()?)));
        let Some((to, record)) = whole else {
            return Err(EngineError::Refused(format!(
                "version {current} is damaged on disk ({damage}), cannot be fetched again ({reason}), and there is no whole \
                 version to go back to; `picket install` from a good copy mends it"
            )));
        };
        self.transact(Plan {
            kind: Kind::Rollback,
            trigger: REPAIR.to_owned(),
            to: to.clone(),
            sha256: record.source.sha256(),
            artifact: None,
            checked: None,
            may_wait: MayWait::No,
        })
        .map(Some)
    }
}

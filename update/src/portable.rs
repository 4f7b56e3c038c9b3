//! The portable executable: one file that somebody unpacked, with no service and no installation, becomes its next version.
//!
//! The same halves and the same checks as for an installation: the fetcher downloads, verifies and unpacks, confined as far as
//! the kernel can; this process reads the archive again (length, SHA-256, minisign), copies the executable beside the old one
//! while it compares it with what the vendor signed, and lets it test itself. Only then does one rename put it in place. What
//! is missing is the trial: nothing runs that could be watched, so the old executable is kept beside the new one.

use crate::clock::Clock;
use crate::config::UpdateSettings;
use crate::decide::{self, Asked, Facts};
use crate::engine::{Checked, EngineError, Failure, assert_written, chain};
use crate::fetcher::{Fetcher, Task, take_files, verified_archive};
use crate::self_test::{SelfTests, Test, objection};
use crate::state;
use crate::trust::TrustStore;
use picket_durable::{Lock, LockError};
use picket_layout::EXECUTABLE;
use picket_protocol::BuildInfo;
use picket_protocol::update_status::UpdateOutcome;
use semver::Version;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// The updater of one executable.
pub struct Portable<'a> {
    /// The file.
    pub exe: &'a Path,
    /// What is known and trusted: the caller's own folder.
    pub dir: &'a Path,
    /// How it is configured.
    pub settings: &'a UpdateSettings,
    /// Which build this is.
    pub build: &'a BuildInfo,
    /// The half that meets the release server.
    pub fetcher: &'a Fetcher,
    /// The release root that was given or built in.
    pub pinned_root: Option<Vec<u8>>,
    /// How the new executable tests itself.
    pub self_tests: &'a SelfTests,
    /// The machine's own id, or nothing where it has none.
    pub machine_id: &'a str,
    /// The clock.
    pub clock: &'a Clock,
}

/// A new executable is in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// Its version.
    pub version: Version,
    /// Where the one before is.
    pub old: PathBuf,
}

/// Why the executable is still the one it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotReplaced {
    /// How that is called.
    pub outcome: UpdateOutcome,
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Of which kind it is.
    pub trouble: Option<crate::progress::Trouble>,
}

impl Portable<'_> {
    /// Keeps other updaters of this user away.
    ///
    /// # Errors
    /// When one is at work.
    pub fn lock(&self) -> Result<Lock, EngineError> {
        picket_durable::create_dir(self.dir, 0o700)?;
        Lock::acquire(&self.dir.join("lock")).map_err(|error| match error {
            LockError::Held { .. } => EngineError::Busy(error),
            error @ LockError::Io { .. } => EngineError::Lock(error),
        })
    }

    /// Looks at the release server. To be called under the lock.
    ///
    /// # Errors
    /// When the releases cannot be reached or trusted.
    pub fn check(&self, asked: &Asked) -> Result<Checked, EngineError> {
        let store = TrustStore::new(self.dir.join("tuf"));
        let (name, target) = (&self.settings.channel, &self.build.target);
        let pinned = self.pinned_root.as_deref();
        let (trusted, channel) =
            self.fetcher.look(&store, pinned, self.clock, name, target, &AtomicBool::new(false))?;
        let facts = Facts {
            current: &self.build.version,
            channel: &channel,
            target,
            pinned: None,
            auto: self.settings.auto,
            held: &|_, _| None,
            machine: &state::machine_id(self.dir, self.machine_id),
            now: self.clock.now(),
        };
        let decision = decide::decide(&facts, asked);
        Ok(Checked { trusted, channel, decision, available: None })
    }

    /// Becomes `version`, as `checked` has it. To be called under the lock.
    ///
    /// # Errors
    /// When anything speaks against it: the executable is still the one it was.
    pub fn replace(
        &self,
        version: &Version,
        checked: &Checked,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Replaced, NotReplaced> {
        let staging = self.exe.with_file_name(".picket-update");
        let done = self.prepare(version, checked, &staging, progress).and_then(|new| self.swap(&new));
        // What is left of it is in the way of nobody but the next one, who removes it, too.
        let _ = picket_durable::remove_tree(&staging);
        done.map(|old| Replaced { version: version.clone(), old }).map_err(|failure| NotReplaced {
            outcome: UpdateOutcome::Refused,
            reason: failure.reason,
            hint: failure.hint,
            trouble: failure.trouble,
        })
    }

    /// Fetches the release, checks it again, and lets its executable, in the folder `staging` beside this one, test itself.
    fn prepare(
        &self,
        version: &Version,
        checked: &Checked,
        staging: &Path,
        progress: &dyn Fn(u64, u64),
    ) -> Result<PathBuf, Failure> {
        let target = &self.build.target;
        let (artifact, signed) = checked.artifact(version, target)?;
        let Some(listed) = artifact.files.get(EXECUTABLE) else {
            let reason = format!("the vendor did not list the files of release {version}, so none of them is known");
            return Err(Failure::of_environment(reason, Some("download it and check its signature by hand")));
        };
        // Whether the file can be replaced at all is better known before anything is downloaded.
        picket_durable::remove_tree(staging)?;
        picket_durable::create_dir(staging, 0o700)?;
        let keys = checked.trusted.minisign_keys();
        let task = Task::fetch(&artifact, &signed, version, target, &keys);
        self.fetcher.fetch(task, &AtomicBool::new(false), progress)?.map_err(Failure::from)?;
        let places = &self.fetcher.places;
        verified_archive(places, &signed, version, target, &keys, None)?;
        let executable = BTreeMap::from([(EXECUTABLE.to_owned(), listed.clone())]);
        take_files(places, &executable, staging)?;
        picket_durable::sync_tree(staging)?;
        assert_written(&executable, staging)?;
        for dir in [places.out(), places.downloads()] {
            picket_durable::remove_tree(&dir)?;
        }
        let new = staging.join(EXECUTABLE);
        self.test(&new, version)?;
        Ok(new)
    }

    fn test(&self, new: &Path, version: &Version) -> Result<(), Failure> {
        let report = self.self_tests.run(new, &Test::Offline);
        let report = report.map_err(|error| Failure::of_version(format!("version {version}: {}", chain(&error))))?;
        objection(&report, version, &self.build.target).map_or(Ok(()), |reason| Err(Failure::of_version(reason)))
    }

    /// Puts `new` in place; the one before gets another name first.
    fn swap(&self, new: &Path) -> Result<PathBuf, Failure> {
        let mut name = self.exe.file_name().unwrap_or_default().to_owned();
        name.push(".old");
        let old = self.exe.with_file_name(name);
        let beside = new.with_file_name("old");
        if std::fs::hard_link(self.exe, &beside).is_err() {
            // A file system without hard links.
            picket_durable::copy_file(self.exe, &beside, 0o755)?;
        }
        picket_durable::rename(&beside, &old)?;
        crate::failpoint::reach("portable-kept");
        picket_durable::rename(new, self.exe)?;
        Ok(old)
    }
}

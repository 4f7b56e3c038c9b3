//! The updater's small files beside the journal: the last check, the pin, the deferral; and the status made from all.

use crate::clock::Clock;
use crate::held::HeldVersions;
use crate::journal::{Journal, JournalStore, Mark, Step};
use picket_durable::Error;
use picket_layout::Layout;
use picket_protocol::Yank;
use picket_protocol::channel::CHANNEL_MAX_BYTES;
use picket_protocol::update_status::{
    AvailableRelease, EndedUpdate, LastCheck, RunningUpdate, TrustExpiry, UPDATE_STATUS_SCHEMA, UpdateOutcome,
    UpdateStatus,
};
use picket_versions::VersionDirs;
use semver::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The largest of these files, in bytes: the notes of a release, or what was yanked, are some of a channel document.
const MAX_BYTES: u64 = 2 * CHANNEL_MAX_BYTES;

/// What the last look at the release server brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRecord {
    /// When, and what went wrong.
    pub check: LastCheck,
    /// The release that could be taken then.
    pub available: Option<AvailableRelease>,
}

/// The version a machine is pinned to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The version.
    pub version: Version,
    /// Who pinned it.
    pub by: String,
    /// When.
    pub at: jiff::Timestamp,
}

/// A release whose turn it is, and which this machine's windows or hooks put off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferral {
    /// The release.
    pub version: Version,
    /// Since when.
    pub since: jiff::Timestamp,
    /// Why, in words.
    #[serde(default)]
    pub reason: String,
}

/// When the updater is to be started without anybody asking: a release has its turn then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// The release.
    pub version: Version,
    /// When.
    pub at: jiff::Timestamp,
}

/// What the vendor took back, as the last channel document that was verified says: for when there is no network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenBack {
    /// The versions, with the vendor's reasons.
    pub yanked: BTreeMap<Version, Yank>,
}

/// One small JSON file in the updater's state folder.
#[derive(Debug, Clone)]
pub struct StateFile<T> {
    path: PathBuf,
    _type: std::marker::PhantomData<T>,
}

impl<T: Serialize + serde::de::DeserializeOwned> StateFile<T> {
    fn new(update_dir: &Path, name: &str) -> Self {
        Self { path: update_dir.join(name), _type: std::marker::PhantomData }
    }

    /// Its content; `None` when it is not there or damaged: none of these files is worth stopping for.
    pub fn load(&self) -> Option<T> {
        let bytes = picket_durable::read_if_present(&self.path, MAX_BYTES).ok()??;
        serde_json::from_slice(&bytes)
            .inspect_err(|error| tracing::warn!(%error, path = %self.path.display(), "damaged"))
            .ok()
    }

    /// Replaces its content.
    pub fn save(&self, value: &T) -> Result<(), Error> {
        picket_durable::write_json(&self.path, value, 0o600)
    }

    /// Removes it; says whether it was there.
    pub fn clear(&self) -> Result<bool, Error> {
        picket_durable::remove_if_present(&self.path)
    }
}

/// The last check.
pub fn last_check(update_dir: &Path) -> StateFile<CheckRecord> {
    StateFile::new(update_dir, "last-check.json")
}

/// The pin.
pub fn pin(update_dir: &Path) -> StateFile<Pin> {
    StateFile::new(update_dir, "pin.json")
}

/// The deferral.
pub fn deferral(update_dir: &Path) -> StateFile<Deferral> {
    StateFile::new(update_dir, "deferral.json")
}

/// When the updater is due.
pub fn due(update_dir: &Path) -> StateFile<Due> {
    // [`Layout::update_due`]: service managers look for it.
    StateFile::new(update_dir, "due.json")
}

/// Whether a release has waited until its time.
pub fn is_due(update_dir: &Path, now: jiff::Timestamp) -> bool {
    due(update_dir).load().is_some_and(|due| due.at <= now)
}

/// What the vendor took back.
pub fn taken_back(update_dir: &Path) -> StateFile<TakenBack> {
    StateFile::new(update_dir, "taken-back.json")
}

/// Why the vendor took `version` back, as far as this machine has heard; needs no network.
pub fn why_taken_back(update_dir: &Path, version: &Version) -> Option<String> {
    Some(taken_back(update_dir).load()?.yanked.get(version)?.reason.clone())
}

/// A random id for a machine that has none of its own, made once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineId {
    /// The id.
    pub id: String,
}

/// The id that a machine's place in rollouts is made from: the machine's own, or else one that is made and kept here.
/// Without either, all machines that have none (containers, often) would be in the same wave.
pub fn machine_id(update_dir: &Path, own: &str) -> String {
    if !own.trim().is_empty() {
        return own.trim().to_owned();
    }
    let file = StateFile::<MachineId>::new(update_dir, "machine-id.json");
    file.load().map_or_else(
        || {
            let made = MachineId { id: crate::random_id() };
            if let Err(error) = file.save(&made) {
                tracing::warn!(%error, "an id for this machine cannot be kept: its place in rollouts will change");
            }
            made.id
        },
        |known| known.id,
    )
}

/// Derives the status from what is on disk.
pub fn derive(layout: &Layout, clock: &Clock, trust: Option<TrustExpiry>) -> UpdateStatus {
    let dir = layout.update_dir();
    let now = clock.now();
    let versions = VersionDirs::new(layout);
    let journals = JournalStore::new(dir, clock);
    let running = journals.load().ok().flatten();
    let check = last_check(dir).load();
    let current = versions.current();
    // What was offered before may be what runs now.
    let available = check.as_ref().and_then(|record| record.available.clone());
    let available = available.filter(|available| Some(&available.version) != current.as_ref());
    let held = HeldVersions::load(dir).map(|held| held.list(now)).unwrap_or_default();
    let deferred = deferral(dir).load();
    let available = available.map(|mut available| {
        if let Some(hold) = held.iter().find(|hold| hold.version == available.version) {
            available.waiting = Some(format!("held: {}", hold.reason));
            available.due = None;
        } else if let Some(deferral) = deferred.filter(|deferral| deferral.version == available.version)
            && available.waiting.is_none()
        {
            available.waiting = Some(deferral.reason).filter(|reason| !reason.is_empty());
            available.due = due(dir).load().filter(|due| due.version == available.version).map(|due| due.at);
        }
        available
    });
    let taken_back = current.as_ref().and_then(|current| why_taken_back(dir, current));
    UpdateStatus {
        schema: UPDATE_STATUS_SCHEMA,
        at: now,
        previous: versions.previous(),
        current,
        running: running.as_ref().map(describe_running),
        last: journals.ended().next().as_ref().and_then(describe_ended),
        available,
        last_check: check.map(|record| record.check),
        trust,
        pinned: pin(dir).load().map(|pin| pin.version),
        held,
        taken_back,
    }
}

fn describe_running(journal: &Journal) -> RunningUpdate {
    RunningUpdate {
        id: journal.id.clone(),
        from: journal.from.clone(),
        to: journal.to.clone(),
        step: journal.position().map_or("begin", |(step, _)| step.as_str()).to_owned(),
        started: journal.started,
    }
}

/// How an ended update ended; `None` for a journal that has no outcome, which none in the history should be.
pub fn describe_ended(journal: &Journal) -> Option<EndedUpdate> {
    let settled = journal.entries.iter().rfind(|entry| entry.step == Step::Settle && entry.mark == Mark::Done);
    Some(EndedUpdate {
        id: journal.id.clone(),
        from: journal.from.clone(),
        to: journal.to.clone(),
        outcome: journal.outcome?,
        reason: journal.reason.clone(),
        finished: settled.or(journal.entries.last()).map_or(journal.started, |entry| entry.at),
    })
}

/// Publishes the status for everybody to read. Failing to is no reason to stop: the state itself is on disk.
pub fn publish(layout: &Layout, status: &UpdateStatus) {
    let write = || {
        picket_durable::create_dir(layout.update_run_dir(), 0o755)?;
        picket_durable::write_json(&layout.update_status(), status, 0o644)
    };
    if let Err(error) = write() {
        tracing::warn!(%error, "the status cannot be published");
    }
}

/// The versions that were replaced less than `keep` ago: kept on disk even when something newer was replaced since.
pub(crate) fn recently_replaced(history: &[Journal], keep: std::time::Duration, now: jiff::Timestamp) -> Vec<Version> {
    let ended = history.iter().filter_map(describe_ended);
    let recent = ended.filter(|ended| {
        ended.outcome == UpdateOutcome::Committed && now.duration_since(ended.finished).unsigned_abs() < keep
    });
    recent.map(|ended| ended.from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_an_id_gets_one_that_stays() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(machine_id(dir.path(), "0123\n"), "0123");
        let made = machine_id(dir.path(), " \n");
        assert!(made.len() > 30, "{made}");
        assert_eq!(machine_id(dir.path(), ""), made);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(machine_id(other.path(), ""), made);
    }
}

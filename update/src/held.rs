//! Versions that are not tried again for now: remembered by the hash of their content, with a reason and an end.
//!
//! By hash, so that a vendor who publishes the same number again, repaired, is not held to the broken one. With an end,
//! because a trial can fail for reasons that pass; with a budget, because it should not fail for ever. Asked for by
//! name, a held version is always tried.

use crate::gate::Fault;
use crate::journal::Journal;
use picket_protocol::Sha256Digest;
use picket_protocol::update_status::HeldVersion;
use semver::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest file, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// How many versions are remembered; beyond it the oldest is forgotten.
const MAX_HELD: usize = 100;

/// What is remembered of one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The version.
    pub version: Version,
    /// Why it is held.
    pub reason: String,
    /// How many trials it failed or did not survive.
    pub attempts: u32,
    /// The update that last changed this: settling it twice must not count twice.
    #[serde(default)]
    pub update: String,
    /// When it was last tried.
    pub last: jiff::Timestamp,
    /// Until when it is not tried again; `None` until it is asked for by name.
    pub until: Option<jiff::Timestamp>,
}

/// How long to hold.
#[derive(Debug, Clone, Copy)]
pub struct HoldPolicy {
    /// After a failed trial.
    pub hold_for: Duration,
    /// After so many trials it is held until asked for by name.
    pub retry_budget: u32,
}

/// The list on disk.
#[derive(Debug, Clone)]
pub struct HeldVersions {
    path: PathBuf,
    held: BTreeMap<Sha256Digest, Hold>,
}

impl HeldVersions {
    /// Loads the list from the updater's state folder. A damaged list is begun anew: forgetting a hold costs one more
    /// trial, which the gate ends as it did before.
    pub fn load(dir: &Path) -> Result<Self, picket_durable::Error> {
        let path = dir.join("held.json");
        let bytes = picket_durable::read_if_present(&path, MAX_BYTES)?.unwrap_or_default();
        let held = if bytes.is_empty() { BTreeMap::new() } else { parse(&bytes) };
        Ok(Self { path, held })
    }

    fn save(&self) -> Result<(), picket_durable::Error> {
        let entries: BTreeMap<String, &Hold> = self.held.iter().map(|(hash, hold)| (hash.to_string(), hold)).collect();
        picket_durable::write_json(&self.path, &entries, 0o600)
    }

    /// The hold on the content `sha256`, if it is in force at `now`.
    pub fn in_force(&self, sha256: &Sha256Digest, now: jiff::Timestamp) -> Option<&Hold> {
        self.held.get(sha256).filter(|hold| hold.until.is_none_or(|until| until > now))
    }

    /// Remembers that the trial of `failed` failed through `fault`, and returns the hold.
    pub fn remember(
        &mut self,
        failed: &Journal,
        fault: Fault,
        policy: HoldPolicy,
        now: jiff::Timestamp,
    ) -> Result<Hold, picket_durable::Error> {
        let before = self.held.get(&failed.sha256);
        if let Some(hold) = before.filter(|hold| hold.update == failed.id) {
            return Ok(hold.clone());
        }
        let attempts = before.map_or(0, |hold| hold.attempts) + 1;
        let hold_for = match fault {
            Fault::Version => policy.hold_for,
            // The next daily run may find the network, or the power, back.
            Fault::Environment | Fault::Interrupted => Duration::ZERO,
        };
        let spent = attempts >= policy.retry_budget.max(1) && fault != Fault::Environment;
        let until = if spent { None } else { Some(now + hold_for) };
        let hold = Hold {
            version: failed.to.clone(),
            reason: failed.reason.clone(),
            attempts,
            update: failed.id.clone(),
            last: now,
            until,
        };
        self.insert(failed.sha256, hold.clone())?;
        Ok(hold)
    }

    /// Holds a version until it is asked for by name: a person went back from it.
    pub fn hold(
        &mut self,
        sha256: Sha256Digest,
        version: &Version,
        reason: &str,
        now: jiff::Timestamp,
    ) -> Result<(), picket_durable::Error> {
        let attempts = self.held.get(&sha256).map_or(0, |hold| hold.attempts);
        let update = String::new();
        let hold =
            Hold { version: version.clone(), reason: reason.to_owned(), attempts, update, last: now, until: None };
        self.insert(sha256, hold)
    }

    fn insert(&mut self, sha256: Sha256Digest, hold: Hold) -> Result<(), picket_durable::Error> {
        self.held.insert(sha256, hold);
        while self.held.len() > MAX_HELD {
            let oldest = self.held.iter().min_by_key(|(_, hold)| hold.last).map(|(hash, _)| *hash);
            oldest.map(|hash| self.held.remove(&hash));
        }
        self.save()
    }

    /// Forgets a version: it was committed.
    pub fn forget(&mut self, sha256: &Sha256Digest) -> Result<(), picket_durable::Error> {
        if self.held.remove(sha256).is_some() { self.save() } else { Ok(()) }
    }

    /// The holds in force at `now`, for the status.
    pub fn list(&self, now: jiff::Timestamp) -> Vec<HeldVersion> {
        let in_force = self.held.values().filter(|hold| hold.until.is_none_or(|until| until > now));
        in_force
            .map(|hold| HeldVersion { version: hold.version.clone(), reason: hold.reason.clone(), until: hold.until })
            .collect()
    }
}

fn parse(bytes: &[u8]) -> BTreeMap<Sha256Digest, Hold> {
    let entries: BTreeMap<String, Hold> = serde_json::from_slice(bytes).unwrap_or_else(|error| {
        tracing::warn!(%error, "the list of held versions is damaged and begun anew");
        BTreeMap::new()
    });
    entries.into_iter().filter_map(|(hash, hold)| Some((hash.parse().ok()?, hold))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const POLICY: HoldPolicy = HoldPolicy { hold_for: Duration::from_secs(7 * 86_400), retry_budget: 3 };

    fn start() -> jiff::Timestamp {
        "2026-11-21T04:00:00Z".parse().unwrap()
    }

    fn failed(id: &str, hash: u8, reason: &str) -> Journal {
        let mut journal = crate::journal::tests::journal(true);
        journal.id = id.into();
        journal.sha256 = Sha256Digest::new([hash; 32]);
        journal.reason = reason.into();
        journal
    }

    #[test]
    fn a_failed_version_is_not_tried_the_next_day_but_a_week_later_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let mut now = start();
        for attempt in 1..=3 {
            let journal = failed(&attempt.to_string(), 7, "it crashed");
            let mut held = HeldVersions::load(dir.path()).unwrap();
            assert!(held.in_force(&journal.sha256, now).is_none(), "attempt {attempt}");
            held.remember(&journal, Fault::Version, POLICY, now).unwrap();
            let held = HeldVersions::load(dir.path()).unwrap();
            assert_eq!(held.in_force(&journal.sha256, now + DAY).unwrap().reason, "it crashed");
            now += DAY * 7;
        }
        let held = HeldVersions::load(dir.path()).unwrap();
        let hash = Sha256Digest::new([7; 32]);
        assert!(held.in_force(&hash, now + DAY * 3650).is_some(), "the budget was not kept");
    }

    #[test]
    fn an_update_that_is_settled_twice_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = HeldVersions::load(dir.path()).unwrap();
        let journal = failed("1", 7, "it crashed");
        for _ in 0..5 {
            assert_eq!(held.remember(&journal, Fault::Version, POLICY, start()).unwrap().attempts, 1);
        }
    }

    #[test]
    fn the_networks_trouble_does_not_use_up_the_budget_but_crashes_during_trials_do() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = HeldVersions::load(dir.path()).unwrap();
        for id in 0..10 {
            held.remember(&failed(&id.to_string(), 7, "no network"), Fault::Environment, POLICY, start()).unwrap();
        }
        assert!(held.in_force(&Sha256Digest::new([7; 32]), start()).is_none());
        for id in 0..3 {
            held.remember(&failed(&id.to_string(), 8, "power cut"), Fault::Interrupted, POLICY, start()).unwrap();
        }
        let hold = held.in_force(&Sha256Digest::new([8; 32]), start());
        assert!(hold.is_some(), "a version that takes the machine down is tried for ever");
    }

    #[test]
    fn a_damaged_list_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        picket_durable::write_atomic(&dir.path().join("held.json"), b"{", 0o600).unwrap();
        assert!(HeldVersions::load(dir.path()).unwrap().list(start()).is_empty());
    }
}

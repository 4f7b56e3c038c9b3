//! The identity on disk: a folder for each generation of files and one link that says which is in force.
//!
//! ```text
//! certs/                      0700
//!   generations/7/            client.crt client.key ca-bundle.crt hub.json: written once, never changed
//!   current  -> generations/7 the one switch: key, certificate, roots and record change together or not at all
//!   previous -> generations/6 kept for seven days, for `picket cert rollback`
//!   client.crt, client.key, ca-bundle.crt, hub.json -> current/…    for people and openssl
//!   client.crt.backup -> previous/client.crt
//!   pending/                  the key and the request of an enrolment that is under way
//!   lost.json                 that the hub took the identity back; no key is deleted for it
//!   counts.json               how often was enrolled and renewed, and how often that failed
//! ```
//!
//! A power cut between any two steps leaves the set before or the new one, whole: [`install_plan`] is a list of steps, and a
//! test cuts it at each.

use super::record::{CHAIN_FILE, Identity, IdentityError, KEY_FILE, NewSet, RECORD_FILE, ROOTS_FILE};
use jiff::{SignedDuration, Timestamp};
use picket_durable::{Lock, LockError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// How long the certificate before is kept.
const KEEP_PREVIOUS: SignedDuration = SignedDuration::from_hours(7 * 24);
/// The longest small file, in bytes.
const SMALL: u64 = 16 << 10;
/// The folder of all generations.
const GENERATIONS: &str = "generations";

/// The folder of the identity.
#[derive(Debug, Clone)]
pub struct CertStore {
    dir: PathBuf,
}

/// That the hub took the identity back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// When the hub said so.
    pub at: Timestamp,
    /// Its code: `revoked` or `unknown_agent`.
    pub code: String,
    /// Its words.
    pub detail: String,
    /// Which certificate was shown. With another one, nothing is lost.
    pub serial: String,
}

/// What was counted over all processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Enrolments that succeeded.
    #[serde(default)]
    pub enrolled: u64,
    /// Enrolments that failed.
    #[serde(default)]
    pub not_enrolled: u64,
    /// Renewals that succeeded.
    #[serde(default)]
    pub renewed: u64,
    /// Renewals that failed.
    #[serde(default)]
    pub not_renewed: u64,
    /// Why the last renewal failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// One step of a change of the folder. Each is durable when it is done.
#[derive(Debug)]
enum Step {
    Folder(PathBuf),
    Write { path: PathBuf, bytes: Zeroizing<Vec<u8>>, mode: u32 },
    Link { link: PathBuf, target: PathBuf },
}

impl Step {
    fn perform(&self) -> picket_durable::Result<()> {
        match self {
            Self::Folder(path) => picket_durable::create_dir(path, 0o700).map(drop),
            Self::Write { path, bytes, mode } => picket_durable::write_atomic(path, bytes, *mode),
            Self::Link { link, target } => picket_durable::replace_symlink(link, target),
        }
    }
}

/// Which generations there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Present {
    current: Option<u64>,
    previous: Option<u64>,
    all: Vec<u64>,
}

/// The steps that put a new set in force.
fn install_plan(dir: &Path, present: &Present, set: &NewSet) -> Result<(u64, Vec<Step>), serde_json::Error> {
    let next = present.all.iter().max().copied().unwrap_or(0) + 1;
    let folder = dir.join(GENERATIONS).join(next.to_string());
    let mut steps =
        vec![Step::Folder(dir.to_owned()), Step::Folder(dir.join(GENERATIONS)), Step::Folder(folder.clone())];
    for (name, bytes, mode) in set.files()? {
        steps.push(Step::Write { path: folder.join(name), bytes, mode });
    }
    // The way back first: it must not lead nowhere once the switch is done.
    steps.extend(present.current.map(|current| link(dir, "previous", current)));
    steps.push(link(dir, "current", next));
    Ok((next, steps))
}

/// The steps that go back. The switch first: until it is done, the way back must stay.
fn rollback_plan(dir: &Path, current: u64, previous: u64) -> Vec<Step> {
    vec![link(dir, "current", previous), link(dir, "previous", current)]
}

fn link(dir: &Path, name: &str, generation: u64) -> Step {
    Step::Link { link: dir.join(name), target: Path::new(GENERATIONS).join(generation.to_string()) }
}

/// Which generations may go: all but the one in force and, for its time, the one before.
fn to_remove(present: &Present, switched: Option<Timestamp>, now: Timestamp) -> Vec<u64> {
    let Some(current) = present.current else { return Vec::new() };
    let recent = switched.is_none_or(|at| now.duration_since(at) < KEEP_PREVIOUS);
    let kept = |generation: u64| generation == current || (recent && Some(generation) == present.previous);
    present.all.iter().copied().filter(|generation| !kept(*generation)).collect()
}

impl CertStore {
    /// The identity in `dir`, whether there is one or not.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which generation is in force; cheap enough to be asked every second.
    pub fn current(&self) -> Option<u64> {
        self.linked("current")
    }

    fn linked(&self, name: &str) -> Option<u64> {
        let target = std::fs::read_link(self.dir.join(name)).ok()?;
        target.strip_prefix(GENERATIONS).ok()?.to_str()?.parse().ok()
    }

    fn folder(&self, generation: u64) -> PathBuf {
        self.dir.join(GENERATIONS).join(generation.to_string())
    }

    fn present(&self) -> Present {
        let entries = std::fs::read_dir(self.dir.join(GENERATIONS)).into_iter().flatten().flatten();
        let mut all: Vec<u64> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        all.sort_unstable();
        Present { current: self.current(), previous: self.linked("previous"), all }
    }

    /// Reads the identity in force; `None` on a machine that has none.
    ///
    /// # Errors
    /// When it is there and cannot be used.
    pub fn load(&self) -> Result<Option<Identity>, IdentityError> {
        // Whoever may not look into the folder must not be told that there is nothing.
        match std::fs::symlink_metadata(self.dir.join("current")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(picket_durable::Error::new("look at", self.dir.join("current"), error).into()),
            Ok(_) => {}
        }
        let Some(generation) = self.current() else {
            let reason = "it is no link to a generation".to_owned();
            return Err(IdentityError::Damaged { path: self.dir.join("current"), reason });
        };
        Identity::read(&self.folder(generation), generation).map(Some)
    }

    /// Reads the identity before.
    ///
    /// # Errors
    /// [`IdentityError::NoPrevious`] with the reason.
    pub fn load_previous(&self) -> Result<Identity, IdentityError> {
        let previous = self.linked("previous").filter(|previous| Some(*previous) != self.current());
        let previous = previous.filter(|previous| self.folder(*previous).is_dir());
        let previous =
            previous.ok_or_else(|| IdentityError::NoPrevious("none was replaced within seven days".to_owned()))?;
        Identity::read(&self.folder(previous), previous).map_err(|error| IdentityError::NoPrevious(error.to_string()))
    }

    /// Nobody else changes the identity meanwhile.
    ///
    /// # Errors
    /// [`IdentityError::Busy`] while another process does.
    pub fn lock(&self) -> Result<Lock, IdentityError> {
        picket_durable::create_dir(&self.dir, 0o700)?;
        Lock::acquire(&self.dir.join("lock")).map_err(|error| match error {
            LockError::Held { .. } => IdentityError::Busy,
            LockError::Io { path, source } => picket_durable::Error::new("lock", path, source).into(),
        })
    }

    /// Puts a new set in force; whoever asks for the [`CertStore::lock`] holds it. The set before is kept.
    ///
    /// # Errors
    /// What the disk says; the set before is then in force still.
    pub fn install(&self, _lock: &Lock, set: &NewSet) -> Result<u64, IdentityError> {
        let damaged = |error: serde_json::Error| IdentityError::Damaged {
            path: self.dir.join(RECORD_FILE),
            reason: error.to_string(),
        };
        let (generation, steps) = install_plan(&self.dir, &self.present(), set).map_err(damaged)?;
        for step in &steps {
            step.perform()?;
        }
        self.show_links();
        Ok(generation)
    }

    /// Goes back to the set before, if its certificate still holds.
    ///
    /// # Errors
    /// [`IdentityError::NoPrevious`] with the reason.
    pub fn rollback(&self, _lock: &Lock, now: Timestamp) -> Result<Identity, IdentityError> {
        let previous = self.load_previous()?;
        if !previous.leaf().holds_at(now) {
            let reason = format!("it held until {}", previous.leaf().not_after);
            return Err(IdentityError::NoPrevious(reason));
        }
        let current = self.current().ok_or(IdentityError::NotEnrolled)?;
        for step in rollback_plan(&self.dir, current, previous.generation) {
            step.perform()?;
        }
        Ok(previous)
    }

    /// Removes what is neither in force nor to be gone back to any more, and mends the links for people.
    pub fn tidy(&self, _lock: &Lock, now: Timestamp) {
        let present = self.present();
        let switched = std::fs::symlink_metadata(self.dir.join("previous")).and_then(|meta| meta.modified()).ok();
        let switched = switched.and_then(|at| Timestamp::try_from(at).ok());
        for generation in to_remove(&present, switched, now) {
            if let Err(error) = picket_durable::remove_tree(&self.folder(generation)) {
                tracing::warn!(%error, "an old certificate is not removed");
            }
        }
        if present.current.is_some() {
            self.show_links();
        }
    }

    /// Links under fixed names; nothing of ours reads them.
    fn show_links(&self) {
        let backup = format!("{CHAIN_FILE}.backup");
        let names = [CHAIN_FILE, KEY_FILE, ROOTS_FILE, RECORD_FILE].map(|name| (name, Path::new("current").join(name)));
        let backup = (backup.as_str(), Path::new("previous").join(CHAIN_FILE));
        for (name, target) in names.into_iter().chain(self.linked("previous").map(|_| backup)) {
            let link = self.dir.join(name);
            if std::fs::read_link(&link).is_ok_and(|there| there == target) {
                continue;
            }
            if let Err(error) = picket_durable::replace_symlink(&link, &target) {
                tracing::warn!(%error, "a link for people is not made");
            }
        }
    }

    /// Whether the hub took `identity` back.
    pub fn lost(&self, identity: &Identity) -> Option<Lost> {
        self.small::<Lost>("lost.json").filter(|lost| lost.serial == identity.leaf().serial)
    }

    /// Notes that the hub took the identity with this certificate back, if it is the one in force still: what was refused may
    /// have been asked with one that was replaced meanwhile. Nothing is deleted. Says whether it was noted.
    ///
    /// # Errors
    /// What the disk says.
    pub fn mark_lost(
        &self,
        _lock: &Lock,
        serial: &str,
        code: &str,
        detail: &str,
        now: Timestamp,
    ) -> Result<bool, IdentityError> {
        let in_force = self.load()?.filter(|identity| identity.leaf().serial == serial);
        if in_force.is_none_or(|identity| self.lost(&identity).is_some()) {
            return Ok(false);
        }
        let detail = detail.chars().filter(|c| !c.is_control()).take(500).collect();
        let lost = Lost { at: now, code: code.to_owned(), detail, serial: serial.to_owned() };
        picket_durable::write_json(&self.dir.join("lost.json"), &lost, 0o600)?;
        Ok(true)
    }

    /// Takes back that the identity with this certificate is lost.
    ///
    /// # Errors
    /// What the disk says.
    pub fn found_again(&self, _lock: &Lock, serial: &str) -> Result<(), IdentityError> {
        let lost: Option<Lost> = self.small("lost.json");
        if lost.is_some_and(|lost| lost.serial == serial) {
            picket_durable::remove_if_present(&self.dir.join("lost.json"))?;
        }
        Ok(())
    }

    /// Whether somebody went back to the certificate before: it is the older of the two.
    pub fn is_rolled_back(&self) -> bool {
        self.linked("previous") > self.current()
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.small("counts.json").unwrap_or_default()
    }

    /// Counts something. A count that cannot be written is lost, and nothing else.
    pub fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts();
        change(&mut counts);
        let written = picket_durable::create_dir(&self.dir, 0o700)
            .and_then(|_| picket_durable::write_json(&self.dir.join("counts.json"), &counts, 0o600));
        if let Err(error) = written {
            tracing::warn!(%error, "a count is lost");
        }
    }

    fn small<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        let bytes = picket_durable::read_untrusted(&self.dir.join(name), SMALL).ok()??;
        serde_json::from_slice(&bytes).ok()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::hub::record::HubRecord;
    use picket_pki::{AgentIdentity, Authority, CsrKey, PrivateKey};
    use uuid::Uuid;

    /// A hub's authorities, for tests.
    pub(crate) struct Fleet {
        pub(crate) root: Authority,
        pub(crate) intermediate: Authority,
        pub(crate) agent: AgentIdentity,
    }

    impl Fleet {
        pub(crate) fn new() -> Self {
            let now = Timestamp::now();
            let root = Authority::root("test", now).unwrap();
            let intermediate = root.intermediate(now).unwrap();
            Self { root, intermediate, agent: AgentIdentity { tenant: 1, agent: Uuid::now_v7() } }
        }

        pub(crate) fn set(&self, hub: &str) -> NewSet {
            self.set_until(hub, Timestamp::now(), Timestamp::now() + SignedDuration::from_hours(90 * 24))
        }

        pub(crate) fn set_until(&self, hub: &str, from: Timestamp, until: Timestamp) -> NewSet {
            let key = PrivateKey::generate().unwrap();
            let asked = CsrKey::from_request(&key.request("x").unwrap()).unwrap();
            let leaf = self.intermediate.agent_until(self.agent, &asked, from, until).unwrap();
            let record = HubRecord {
                hub: hub.to_owned(),
                agent_id: self.agent.agent,
                tenant_id: self.agent.tenant,
                name: "web-1".to_owned(),
                pins: vec![self.root.certificate().pin],
                command_key: String::new(),
                enrolled_at: Timestamp::now(),
                obtained_at: Timestamp::now(),
            };
            let chain = vec![leaf, self.intermediate.certificate().clone()];
            NewSet { record, chain, key, roots: vec![self.root.certificate().clone()] }
        }
    }

    fn store() -> (tempfile::TempDir, CertStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = CertStore::new(dir.path().join("certs"));
        (dir, store)
    }

    #[test]
    fn a_power_cut_between_any_two_steps_leaves_the_set_before_or_the_new_one_whole() {
        let fleet = Fleet::new();
        let (first, second, third) = (fleet.set("https://one"), fleet.set("https://two"), fleet.set("https://three"));
        let steps_of = |store: &CertStore, set: &NewSet| install_plan(store.dir(), &store.present(), set).unwrap().1;
        let count = {
            let (_dir, store) = store();
            store.install(&store.lock().unwrap(), &first).unwrap();
            steps_of(&store, &second).len()
        };
        for cut in 0..=count {
            let (_dir, store) = store();
            store.install(&store.lock().unwrap(), &first).unwrap();
            for step in steps_of(&store, &second).iter().take(cut) {
                step.perform().unwrap();
            }
            let hub = store.load().unwrap().unwrap().record.hub;
            assert_eq!(hub, if cut == count { "https://two" } else { "https://one" }, "after {cut} steps");
            // And the next change works from there, with a way back to what was in force.
            let lock = store.lock().unwrap();
            store.install(&lock, &third).unwrap();
            store.tidy(&lock, Timestamp::now());
            assert_eq!(store.load().unwrap().unwrap().record.hub, "https://three");
            assert_eq!(store.load_previous().unwrap().record.hub, hub);
            assert_eq!(store.present().all.len(), 2);
        }
    }

    #[test]
    fn a_power_cut_in_a_rollback_leaves_a_whole_set() {
        let fleet = Fleet::new();
        for cut in 0..=2 {
            let (_dir, store) = store();
            let lock = store.lock().unwrap();
            store.install(&lock, &fleet.set("https://one")).unwrap();
            let two = store.install(&lock, &fleet.set("https://two")).unwrap();
            for step in rollback_plan(store.dir(), two, two - 1).iter().take(cut) {
                step.perform().unwrap();
            }
            let expected = if cut == 0 { "https://two" } else { "https://one" };
            assert_eq!(store.load().unwrap().unwrap().record.hub, expected);
        }
    }

    #[test]
    fn the_one_before_can_be_gone_back_to_for_seven_days() {
        let fleet = Fleet::new();
        let (_dir, store) = store();
        let lock = store.lock().unwrap();
        assert!(store.load().unwrap().is_none());
        let one = store.install(&lock, &fleet.set("https://one")).unwrap();
        assert!(matches!(store.rollback(&lock, Timestamp::now()), Err(IdentityError::NoPrevious(_))));
        let two = store.install(&lock, &fleet.set("https://two")).unwrap();
        assert!(!store.is_rolled_back());
        assert_eq!(store.rollback(&lock, Timestamp::now()).unwrap().generation, one);
        assert!(store.is_rolled_back());
        assert_eq!(store.rollback(&lock, Timestamp::now()).unwrap().generation, two, "and forth again");
        assert!(!store.is_rolled_back());
        let later = |hours| Timestamp::now() + SignedDuration::from_hours(hours);
        store.tidy(&lock, later(6 * 24));
        assert!(store.load_previous().is_ok());
        store.tidy(&lock, later(7 * 24 + 1));
        assert!(store.load_previous().is_err());
        assert_eq!(store.load().unwrap().unwrap().generation, two);
    }

    #[test]
    fn a_certificate_that_does_not_hold_any_more_is_not_gone_back_to() {
        let fleet = Fleet::new();
        let (_dir, store) = store();
        let lock = store.lock().unwrap();
        let then = Timestamp::now() - SignedDuration::from_hours(100 * 24);
        let expired = fleet.set_until("https://one", then, Timestamp::now() - SignedDuration::from_hours(1));
        store.install(&lock, &expired).unwrap();
        store.install(&lock, &fleet.set("https://two")).unwrap();
        let outcome = store.rollback(&lock, Timestamp::now());
        assert!(matches!(&outcome, Err(IdentityError::NoPrevious(why)) if why.contains("held until")), "{outcome:?}");
        assert_eq!(store.load().unwrap().unwrap().record.hub, "https://two");
    }

    #[test]
    fn keys_are_the_owners_alone_and_openssl_finds_the_files_under_fixed_names() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, store) = store();
        let set = Fleet::new().set("https://one");
        store.install(&store.lock().unwrap(), &set).unwrap();
        let mode = |name: &str| std::fs::metadata(store.dir().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(""), mode(KEY_FILE), mode(CHAIN_FILE)), (0o700, 0o600, 0o644));
        let pem = picket_durable::read_text(&store.dir().join(CHAIN_FILE), 1 << 20).unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"));
    }

    #[test]
    fn files_of_two_generations_are_not_taken_for_one_identity() {
        let fleet = Fleet::new();
        let (_dir, store) = store();
        let lock = store.lock().unwrap();
        let one = store.install(&lock, &fleet.set("https://one")).unwrap();
        let two = store.install(&lock, &fleet.set("https://two")).unwrap();
        picket_durable::copy_file(&store.folder(one).join(KEY_FILE), &store.folder(two).join(KEY_FILE), 0o600).unwrap();
        let error = store.load().unwrap_err();
        assert!(error.to_string().contains("client.key") && error.to_string().contains("rollback"), "{error}");
    }

    #[test]
    fn a_lost_identity_is_marked_and_its_key_stays() {
        let fleet = Fleet::new();
        let (_dir, store) = store();
        let lock = store.lock().unwrap();
        store.install(&lock, &fleet.set("https://one")).unwrap();
        let identity = store.load().unwrap().unwrap();
        assert_eq!(store.lost(&identity), None);
        let serial = &identity.leaf().serial;
        assert!(store.mark_lost(&lock, serial, "revoked", "stolen\u{1b}", Timestamp::now()).unwrap());
        assert!(!store.mark_lost(&lock, serial, "revoked", "again", Timestamp::now()).unwrap());
        assert_eq!(store.lost(&identity).unwrap().detail, "stolen");
        assert!(store.load().unwrap().is_some());
        // Enrolled anew, nothing is lost.
        store.install(&lock, &fleet.set("https://one")).unwrap();
        assert_eq!(store.lost(&store.load().unwrap().unwrap()), None);
    }

    #[test]
    fn a_refusal_of_a_certificate_that_was_replaced_meanwhile_costs_nothing() {
        let fleet = Fleet::new();
        let (_dir, store) = store();
        let lock = store.lock().unwrap();
        store.install(&lock, &fleet.set("https://one")).unwrap();
        let before = store.load().unwrap().unwrap().leaf().serial.clone();
        store.install(&lock, &fleet.set("https://one")).unwrap();
        assert!(!store.mark_lost(&lock, &before, "revoked", "stolen", Timestamp::now()).unwrap());
        assert_eq!(store.lost(&store.load().unwrap().unwrap()), None);
    }

    #[test]
    fn what_is_counted_is_kept() {
        let (_dir, store) = store();
        store.count(|counts| counts.renewed += 1);
        store.count(|counts| counts.not_renewed += 2);
        assert_eq!((store.counts().renewed, store.counts().not_renewed), (1, 2));
    }
}

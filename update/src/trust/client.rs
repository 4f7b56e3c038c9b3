//! The TUF client workflow, step by step (specification v1.0.33, §5), over any source of metadata.
//!
//! The verification is [`sigstore_tuf::TrustedMetadataSet`]'s; this module decides what to ask for, in which order, and
//! makes sure that what was trusted is on disk before anything is built on it.

use super::delegations::{self, search, view};
use super::idle::Cheap;
use super::source::{Changed, Fetched, MetadataSource};
use super::store::{LastLook, TrustStore};
use super::target::VerifiedTarget;
use super::{MINISIGN_FIELD, MinisignKeys, TrustError, keys, provider};
use crate::clock::Clock;
use picket_protocol::Channel;
use picket_protocol::update_status::TrustExpiry;
use sigstore_tuf::{Error as TufError, Metadata, Snapshot, TrustedMetadataSet};

/// Roots are followed one by one; more than this at once is an endless-data attack or a very old machine
/// (TUF §5.3.3 leaves the number open; python-tuf's is 256).
const MAX_ROOT_ROTATIONS: u64 = 256;
/// Limits of each role's file, in bytes (python-tuf's `UpdaterConfig`).
const MAX_ROOT: u64 = 512_000;
pub(super) const MAX_TIMESTAMP: u64 = 16_384;
const MAX_SNAPSHOT: u64 = 2_000_000;
const MAX_TARGETS: u64 = 5_000_000;

/// Follows one release repository from one pinned root.
pub struct TrustClient<'a> {
    store: &'a TrustStore,
    clock: &'a Clock,
}

/// A complete, fresh set of verified metadata.
#[derive(Debug, Clone)]
pub struct Trusted {
    set: TrustedMetadataSet,
    /// The time at which it was fresh.
    at: jiff::Timestamp,
}

impl<'a> TrustClient<'a> {
    /// A client on `store`, which may be empty.
    pub fn new(store: &'a TrustStore, clock: &'a Clock) -> Self {
        provider::install();
        Self { store, clock }
    }

    /// Where it keeps what is trusted.
    pub(crate) fn store(&self) -> &TrustStore {
        self.store
    }

    /// The trusted root: the stored one, or `pinned` where none is stored yet (§5.2).
    ///
    /// # Errors
    /// When neither is usable.
    pub fn root(&self, pinned: Option<&[u8]>) -> Result<TrustedMetadataSet, TrustError> {
        if let Some(stored) = self.store.load("root")? {
            match TrustedMetadataSet::from_root(&stored) {
                Ok(set) => return Ok(set),
                // A damaged disk must not end updates for ever while the pinned root still stands.
                Err(error) if pinned.is_some() => {
                    tracing::warn!(%error, "the stored release root is damaged; starting from the pinned one");
                }
                Err(error) => return Err(TrustError::PinnedRoot(error)),
            }
        }
        let pinned = pinned.ok_or(TrustError::NoRoot)?;
        let set = TrustedMetadataSet::from_root(pinned).map_err(TrustError::PinnedRoot)?;
        keys::check_root(set.root()).map_err(TrustError::PinnedRoot)?;
        self.store.keep("root", pinned)?;
        Ok(set)
    }

    /// Checks that `bytes` are root metadata that is signed by its own keys, and names a minisign key.
    ///
    /// # Errors
    /// [`TrustError::PinnedRoot`] when they are not.
    pub fn check_root(&self, bytes: &[u8]) -> Result<(), TrustError> {
        let set = TrustedMetadataSet::from_root(bytes).map_err(TrustError::PinnedRoot)?;
        keys::check_root(set.root()).map_err(TrustError::PinnedRoot)?;
        if MinisignKeys::from_root_field(set.root().extra.get(MINISIGN_FIELD)).is_empty() {
            let error = TufError::Malformed(format!("it names no minisign key ({MINISIGN_FIELD})"));
            return Err(TrustError::PinnedRoot(error));
        }
        Ok(())
    }

    /// What is trusted without asking anyone: for status and expiry.
    pub fn offline(&self, pinned: Option<&[u8]>) -> Result<TrustExpiry, TrustError> {
        let mut set = self.root(pinned)?;
        self.load_floors(&mut set)?;
        let stored_targets = self.store.load("targets")?;
        let targets = stored_targets.and_then(|bytes| Metadata::<sigstore_tuf::Targets>::from_slice(&bytes).ok());
        let mut expiry = expiry(&set);
        expiry.targets = targets.map(|targets| targets.signed().expires);
        Ok(expiry)
    }

    /// Brings the trusted metadata up to date with `source`.
    ///
    /// # Errors
    /// Every refusal of the workflow; the trusted metadata on disk is then as before, or further along a chain that was
    /// verified up to that point.
    pub fn refresh(&self, pinned: Option<&[u8]>, source: &dyn MetadataSource) -> Result<Trusted, TrustError> {
        let clock = self.clock.now();
        let now = clock.max(self.store.time_floor());
        let mut set = self.root(pinned)?;
        let refreshed = self.refresh_at(now, &mut set, source);
        match refreshed {
            Ok(()) => {
                self.store.raise_time_floor(now)?;
                Ok(Trusted { set, at: now })
            }
            // By the clock alone it would pass: a person must learn that it is about the clock.
            Err(TrustError::Refused { role, source: TufError::Expired { expires, .. } }) if expires > clock => {
                Err(TrustError::ClockBack { role, expires, clock })
            }
            Err(error) => Err(error),
        }
    }

    fn refresh_at(
        &self,
        now: jiff::Timestamp,
        set: &mut TrustedMetadataSet,
        source: &dyn MetadataSource,
    ) -> Result<(), TrustError> {
        let cheap = self.look_cheaply(now, set, source)?;
        let early = match cheap {
            Cheap::Unchanged => return Ok(()),
            Cheap::Timestamp(file) => Some(file),
            Cheap::NotPossible => None,
        };
        let root = set.root().version;
        self.follow_roots(set, source)?;
        // §5.3.10: an expired root stops the update, not before the newest one is known.
        set.check_root_expired(now).map_err(refused("root"))?;
        let snapshot_floor = self.load_floors(set)?;
        // Under a new root the timestamp may be signed by another key than a moment ago.
        let file = match early.filter(|_| set.root().version == root) {
            Some(file) => file,
            None => fetch_timestamp(source, None)?.ok_or_else(|| TrustError::Missing("timestamp.json".to_owned()))?,
        };
        self.update_timestamp(now, set, &file.bytes)?;
        self.update_snapshot(now, set, source, snapshot_floor.as_ref())?;
        self.update_targets(now, set, source)?;
        let look = file.etag.map(|etag| LastLook { server: source.name(), etag, complete: now });
        Ok(self.store.note_look(look.as_ref())?)
    }

    /// §5.3: root N+1, N+2, … until there is no next one.
    fn follow_roots(&self, set: &mut TrustedMetadataSet, source: &dyn MetadataSource) -> Result<(), TrustError> {
        let first = set.root().version;
        for version in first.saturating_add(1)..=first.saturating_add(MAX_ROOT_ROTATIONS) {
            let Some(bytes) = source.fetch(&format!("{version}.root.json"), MAX_ROOT)? else { return Ok(()) };
            set.update_root(&bytes).and_then(|()| keys::check_root(set.root())).map_err(refused("root"))?;
            self.store.keep("root", &bytes)?;
            tracing::info!(version, "the vendor's root was renewed");
        }
        Err(TrustError::Missing(format!("end to its roots after {MAX_ROOT_ROTATIONS} of them")))
    }

    /// Loads the last trusted timestamp and snapshot as floors, expired or not; returns the snapshot even where the
    /// timestamp no longer pins it (a crash between two writes), so that its versions still count.
    fn load_floors(&self, set: &mut TrustedMetadataSet) -> Result<Option<Metadata<Snapshot>>, TrustError> {
        // An authenticated file is a floor whatever its date: the earliest date makes no file expired.
        let any_time = jiff::Timestamp::MIN;
        if let Some(bytes) = self.store.load("timestamp")?
            && let Err(error) = set.update_timestamp(&bytes, any_time)
        {
            self.drop_floor("timestamp", &error)?;
        }
        let Some(bytes) = self.store.load("snapshot")? else { return Ok(None) };
        let floor = Metadata::<Snapshot>::from_slice(&bytes).and_then(|floor| {
            let keys = set.root().role("snapshot").ok_or_else(|| TufError::UnknownRole("snapshot".to_owned()))?;
            floor.verify_threshold(&set.root().keys, keys, "snapshot")?;
            Ok(floor)
        });
        match floor {
            Ok(floor) => {
                if set.timestamp().is_some() {
                    // Fails when a newer timestamp is already trusted; the snapshot is then fetched again.
                    let _ = set.update_snapshot(&bytes, any_time);
                }
                Ok(Some(floor))
            }
            Err(error) => {
                self.drop_floor("snapshot", &error)?;
                Ok(None)
            }
        }
    }

    /// §5.3.11: a new root with new online keys makes the old files worthless, and lets a vendor recover from a
    /// fast-forward attack. A damaged file is worthless, too.
    fn drop_floor(&self, role: &'static str, error: &TufError) -> Result<(), TrustError> {
        tracing::warn!(role, %error, "stored metadata no longer verifies and is dropped");
        Ok(self.store.forget(role)?)
    }

    /// §5.4.
    fn update_timestamp(
        &self,
        now: jiff::Timestamp,
        set: &mut TrustedMetadataSet,
        bytes: &[u8],
    ) -> Result<(), TrustError> {
        let updated = match set.update_timestamp(bytes, now) {
            Ok(()) => {
                self.store.keep("timestamp", bytes)?;
                Ok(())
            }
            // §5.4.3.1: the same version again is no news and no fault; the kept one is used now, so it must be fresh now.
            Err(TufError::EqualVersion { .. }) => set.check_timestamp_expired(now),
            Err(error) => Err(error),
        };
        if let Err(TufError::Expired { expires, .. }) = &updated {
            // What was once seen expired stays expired, whatever becomes of the clock. Not the clock itself is kept: were
            // it wrong, no metadata would ever be fresh again; so the vendor's next timestamp is.
            // At the very second it is not expired yet.
            let after = expires.checked_add(jiff::SignedDuration::from_secs(1)).unwrap_or(*expires);
            self.store.raise_time_floor(after)?;
        }
        updated.map_err(refused("timestamp"))
    }

    /// §5.5.
    fn update_snapshot(
        &self,
        now: jiff::Timestamp,
        set: &mut TrustedMetadataSet,
        source: &dyn MetadataSource,
        floor: Option<&Metadata<Snapshot>>,
    ) -> Result<(), TrustError> {
        let pinned = set.timestamp().and_then(sigstore_tuf::Timestamp::snapshot_meta).map(|meta| meta.version);
        let pinned = pinned.ok_or_else(|| TrustError::Missing("snapshot version in its timestamp".to_owned()))?;
        if set.snapshot().is_some_and(|snapshot| snapshot.version == pinned) {
            return set.check_snapshot_expired(now).map_err(refused("snapshot"));
        }
        let name = versioned(set, pinned, "snapshot");
        let bytes = source.fetch(&name, MAX_SNAPSHOT)?.ok_or_else(|| TrustError::Missing(name))?;
        set.update_snapshot(&bytes, now).map_err(refused("snapshot"))?;
        if let (Some(floor), Some(snapshot)) = (floor, set.snapshot()) {
            check_floor(floor.signed(), snapshot)?;
        }
        Ok(self.store.keep("snapshot", &bytes)?)
    }

    /// §5.6.
    fn update_targets(
        &self,
        now: jiff::Timestamp,
        set: &mut TrustedMetadataSet,
        source: &dyn MetadataSource,
    ) -> Result<(), TrustError> {
        if let Some(bytes) = self.store.load("targets")?
            && set.update_targets(&bytes, now).is_ok()
        {
            return Ok(());
        }
        let pinned = set.snapshot().and_then(|snapshot| snapshot.meta.get("targets.json")).map(|meta| meta.version);
        let pinned = pinned.ok_or_else(|| TrustError::Missing("targets version in its snapshot".to_owned()))?;
        let name = versioned(set, pinned, "targets");
        let bytes = source.fetch(&name, MAX_TARGETS)?.ok_or_else(|| TrustError::Missing(name))?;
        set.update_targets(&bytes, now).map_err(refused("targets"))?;
        Ok(self.store.keep("targets", &bytes)?)
    }
}

/// Asks for the timestamp; `known` is the ETag of the one that is trusted.
fn fetch_timestamp(source: &dyn MetadataSource, known: Option<&str>) -> Result<Option<Fetched>, TrustError> {
    match source.fetch_changed("timestamp.json", MAX_TIMESTAMP, known)? {
        Some(Changed::Bytes(file)) => Ok(Some(file)),
        // Without a validator in the question this is no answer.
        Some(Changed::No) | None => Ok(None),
    }
}

impl TrustClient<'_> {
    /// What the vendor, or a role that the vendor delegated the path to, signed about the file at `path`; roles that are
    /// not loaded yet are fetched (§5.6.7).
    ///
    /// # Errors
    /// When nobody lists it, or a role on the way cannot be had or trusted.
    pub fn find(
        &self,
        trusted: &mut Trusted,
        source: &dyn MetadataSource,
        path: &str,
    ) -> Result<VerifiedTarget, TrustError> {
        let at = trusted.at;
        let set = &mut trusted.set;
        let found = search(|role, delegator| {
            if role != "targets" && !self.load_delegated(set, source, at, role, delegator)? {
                return Ok(None);
            }
            view(set, role, path)
        })?;
        let file = found.ok_or_else(|| TrustError::UnknownTarget(path.to_owned()))?;
        VerifiedTarget::read(path, &file, set.root().consistent_snapshot)
    }

    /// Makes sure that `role` is loaded and vouched for by `delegator`; says no where the snapshot knows of no such role.
    fn load_delegated(
        &self,
        set: &mut TrustedMetadataSet,
        source: &dyn MetadataSource,
        at: jiff::Timestamp,
        role: &str,
        delegator: &str,
    ) -> Result<bool, TrustError> {
        if set.targets_role(role).is_some() {
            // Loaded through another delegator, whose keys and threshold may be others.
            return set.verify_delegated_targets(role, delegator, at).map(|_| true).map_err(delegations::refused);
        }
        let pinned = set.snapshot().and_then(|snapshot| snapshot.meta.get(&format!("{role}.json")));
        let Some(version) = pinned.map(|meta| meta.version) else { return Ok(false) };
        let stored = delegations::stored_name(role);
        if let Some(stored) = &stored
            && let Some(bytes) = self.store.load(stored)?
            && set.update_delegated_targets(&bytes, role, delegator, at).is_ok()
        {
            return Ok(true);
        }
        let name = versioned(set, version, &delegations::file_name(role));
        let bytes = source.fetch(&name, MAX_TARGETS)?.ok_or_else(|| TrustError::Missing(name))?;
        set.update_delegated_targets(&bytes, role, delegator, at).map_err(delegations::refused)?;
        if let Some(stored) = &stored {
            self.store.keep(stored, &bytes)?;
        }
        Ok(true)
    }
}

fn refused(role: &'static str) -> impl FnOnce(TufError) -> TrustError {
    move |source| TrustError::Refused { role, source }
}

fn versioned(set: &TrustedMetadataSet, version: u64, role: &str) -> String {
    if set.root().consistent_snapshot { format!("{version}.{role}.json") } else { format!("{role}.json") }
}

/// §5.5.5: no targets file may disappear or go backwards from one trusted snapshot to the next.
fn check_floor(floor: &Snapshot, offered: &Snapshot) -> Result<(), TrustError> {
    for (name, trusted) in &floor.meta {
        let offered = offered.meta.get(name).map_or(0, |meta| meta.version);
        if offered < trusted.version {
            return Err(TrustError::Floor { name: name.clone(), trusted: trusted.version, offered });
        }
    }
    Ok(())
}

fn expiry(set: &TrustedMetadataSet) -> TrustExpiry {
    TrustExpiry {
        root: set.root().expires,
        targets: set.targets_role("targets").map(|targets| targets.expires),
        snapshot: set.snapshot().map(|snapshot| snapshot.expires),
        timestamp: set.timestamp().map(|timestamp| timestamp.expires),
    }
}

impl Trusted {
    /// What is known to be signed about the file at `path`, from the roles that are loaded.
    ///
    /// # Errors
    /// When none of them lists it.
    pub fn target(&self, path: &str) -> Result<VerifiedTarget, TrustError> {
        let found = search(|role, delegator| {
            if role != "targets" && self.set.verify_delegated_targets(role, delegator, self.at).is_err() {
                return Ok(None);
            }
            view(&self.set, role, path)
        })?;
        let file = found.ok_or_else(|| TrustError::UnknownTarget(path.to_owned()))?;
        VerifiedTarget::read(path, &file, self.set.root().consistent_snapshot)
    }

    /// Checks `bytes` against the signed length and hash of `target` and reads them as the channel called `name`.
    pub fn channel(&self, name: &str, target: &VerifiedTarget, bytes: &[u8]) -> Result<Channel, TrustError> {
        target.check(bytes)?;
        Ok(Channel::parse(bytes, name)?)
    }

    /// The minisign keys that the root names.
    pub fn minisign_keys(&self) -> MinisignKeys {
        MinisignKeys::from_root_field(self.set.root().extra.get(MINISIGN_FIELD))
    }

    /// When each role expires.
    pub fn expiry(&self) -> TrustExpiry {
        expiry(&self.set)
    }

    /// The version of each role, for people: root, timestamp, snapshot, targets.
    pub fn versions(&self) -> [u64; 4] {
        [
            self.set.root().version,
            self.set.timestamp().map_or(0, |role| role.version),
            self.set.snapshot().map_or(0, |role| role.version),
            self.set.targets_role("targets").map_or(0, |role| role.version),
        ]
    }
}

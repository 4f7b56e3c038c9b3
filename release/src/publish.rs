//! Publishing: from drafts and keys to signed metadata, in the order in which nothing is ever half there.

use crate::error::ReleaseError;
use crate::key::SecretKey;
use crate::metadata::{self, Envelope, Role};
use crate::repository::Repository;
use crate::sign::{Signed, short};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;

/// What to publish with.
pub struct PublishOptions<'a> {
    /// The keys at hand: any of targets and online.
    pub keys: &'a [SecretKey],
    /// The time that the metadata is made at.
    pub now: Timestamp,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    /// The versions in force: root, targets, snapshot, timestamp.
    pub root: u64,
    /// See [`Published::root`].
    pub targets: u64,
    /// See [`Published::root`].
    pub snapshot: u64,
    /// See [`Published::root`].
    pub timestamp: u64,
    /// Until when the timestamp is valid: `refresh` before.
    pub valid_until: Timestamp,
}

/// A document that waits for more signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// How far it is.
    pub signed: Signed,
}

impl Repository {
    /// Signs and publishes what is staged. `Ok(Err(waiting))` when a document needs more signatures than the keys at
    /// hand can give: it is kept, signed as far as it goes.
    ///
    /// # Errors
    /// When no online key is at hand, or a file is missing.
    pub fn publish(&self, options: &PublishOptions<'_>) -> Result<Result<Published, Waiting>, ReleaseError> {
        if let Some(signed) = self.promote_root()? {
            return Ok(Err(Waiting { signed }));
        }
        if let Some(waiting) = self.publish_targets(options)? {
            return Ok(Err(waiting));
        }
        self.publish_online(options, true).map(Ok)
    }

    /// Signs the timestamp anew, and the snapshot with it when half its life is over.
    ///
    /// # Errors
    /// When nothing was published yet, or no online key is at hand.
    pub fn refresh(&self, options: &PublishOptions<'_>) -> Result<Published, ReleaseError> {
        let Some(targets) = self.newest(Role::Targets)? else {
            return Err(ReleaseError::Release("nothing is published yet: `picket release publish` first".to_owned()));
        };
        if !self.progress(&Envelope::load(&targets)?)?.is_complete() {
            let message = "the root names other keys than the published targets are signed with; a refresh would bring \
                           it to machines that then trust no release: `picket release publish` first";
            return Err(ReleaseError::Release(message.to_owned()));
        }
        let snapshot = self.newest(Role::Snapshot)?.map(|path| Envelope::load(&path)).transpose()?;
        let half = self.lifetimes().of(Role::Snapshot) / 2;
        let snapshot_keys = self.root()?.role_keys(Role::Snapshot);
        let fresh = snapshot.is_some_and(|snapshot| {
            let signed = snapshot.signed_by(&snapshot_keys).len() >= snapshot_keys.threshold;
            signed && snapshot.expires().is_some_and(|expires| expires > options.now + half)
        });
        self.publish_online(options, !fresh)
    }

    fn publish_targets(&self, options: &PublishOptions<'_>) -> Result<Option<Waiting>, ReleaseError> {
        let channels = self.channels()?;
        if channels.is_empty() {
            return Err(ReleaseError::Release("there is no release yet: `picket release add` first".to_owned()));
        }
        let files = self.target_files(&channels)?;
        let published = self.newest(Role::Targets)?.map(|path| Envelope::load(&path)).transpose()?;
        let unchanged = published.as_ref().is_some_and(|p| self.is_in_force(p, &files, options.now));
        let staged = self.staged(Role::Targets);
        if unchanged {
            picket_durable::remove_if_present(&staged)?;
            return Ok(None);
        }
        let version = published.map_or(1, |published| published.version() + 1);
        let mut targets = self.draft_targets(version, &files, options.now)?;
        self.sign_with_all(&mut targets, options)?;
        picket_durable::write_atomic(&staged, &targets.to_bytes(), 0o644)?;
        let signed = self.progress(&targets)?;
        if !signed.is_complete() {
            return Ok(Some(Waiting { signed }));
        }
        picket_durable::rename(&staged, &self.published(Role::Targets, version))?;
        Ok(None)
    }

    /// Whether published targets say just this, are signed by keys that still count, and live for half their time.
    fn is_in_force(&self, published: &Envelope, files: &BTreeMap<String, serde_json::Value>, now: Timestamp) -> bool {
        let half = self.lifetimes().of(Role::Targets) / 2;
        published.signed["targets"] == serde_json::json!(files)
            && published.expires().is_some_and(|expires| expires > now + half)
            && self.progress(published).is_ok_and(|signed| signed.is_complete())
    }

    /// The draft that waits already, if it says the same: its signatures are worth keeping.
    fn draft_targets(
        &self,
        version: u64,
        files: &BTreeMap<String, serde_json::Value>,
        now: Timestamp,
    ) -> Result<Envelope, ReleaseError> {
        let staged = self.staged(Role::Targets);
        if staged.exists() {
            let draft = Envelope::load(&staged)?;
            let alive = draft.expires().is_some_and(|expires| expires > now);
            if draft.version() == version && draft.signed["targets"] == serde_json::json!(files) && alive {
                return Ok(draft);
            }
        }
        let expires = now + self.lifetimes().of(Role::Targets);
        Ok(Envelope::new(metadata::targets(version, expires, files)))
    }

    fn publish_online(&self, options: &PublishOptions<'_>, new_snapshot: bool) -> Result<Published, ReleaseError> {
        let targets = self.newest(Role::Targets)?.map(|path| Envelope::load(&path)).transpose()?;
        let targets = targets.map_or(0, |targets| targets.version());
        let old = self.newest(Role::Snapshot)?.map(|path| Envelope::load(&path)).transpose()?;
        let snapshot = match old {
            Some(old) if !new_snapshot && old.signed["meta"]["targets.json"]["version"] == targets => old,
            old => {
                let version = old.map_or(1, |old| old.version() + 1);
                let expires = options.now + self.lifetimes().of(Role::Snapshot);
                self.sign_online(metadata::snapshot(version, expires, targets), Role::Snapshot, options)?
            }
        };
        let old = self.newest(Role::Timestamp)?.map(|path| Envelope::load(&path)).transpose()?;
        let version = old.map_or(1, |old| old.version() + 1);
        let expires = options.now + self.lifetimes().of(Role::Timestamp);
        let payload = metadata::timestamp(version, expires, &snapshot);
        let timestamp = self.sign_online(payload, Role::Timestamp, options)?;
        Ok(Published {
            root: self.root()?.version(),
            targets,
            snapshot: snapshot.version(),
            timestamp: timestamp.version(),
            valid_until: metadata::to_the_second(expires),
        })
    }

    /// Signs with an online key and writes the result as published.
    fn sign_online(
        &self,
        payload: serde_json::Value,
        role: Role,
        options: &PublishOptions<'_>,
    ) -> Result<Envelope, ReleaseError> {
        let keys = self.root()?.role_keys(role);
        let key = options.keys.iter().find(|key| keys.ids.contains(&key.public().id())).ok_or_else(|| {
            let ids: Vec<&str> = keys.ids.iter().map(|id| short(id)).collect();
            ReleaseError::Release(format!("no online key is at hand; give one of {} with --key", ids.join(", ")))
        })?;
        let mut envelope = Envelope::new(payload);
        envelope.sign(key)?;
        picket_durable::write_atomic(&self.published(role, envelope.version()), &envelope.to_bytes(), 0o644)?;
        Ok(envelope)
    }

    /// Signs the targets with every key at hand that may.
    fn sign_with_all(&self, targets: &mut Envelope, options: &PublishOptions<'_>) -> Result<(), ReleaseError> {
        let authorised = self.root()?.role_keys(Role::Targets);
        for key in options.keys.iter().filter(|key| authorised.ids.contains(&key.public().id())) {
            targets.sign(key)?;
        }
        Ok(())
    }
}

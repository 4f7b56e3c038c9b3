//! The look that costs one request when nothing changed.

use super::client::MAX_TIMESTAMP;
use super::source::{Changed, Fetched, MetadataSource};
use super::{TrustClient, TrustError};
use sigstore_tuf::TrustedMetadataSet;

/// How long a look at the timestamp alone may stand for a look at everything: half of the shortest life that metadata
/// usually has, so that a new root is seen even where the timestamp seems never to change.
const COMPLETE_LOOK_EVERY: jiff::SignedDuration = jiff::SignedDuration::from_hours(24 * 7);

/// What a question for no more than the timestamp brought.
pub(super) enum Cheap {
    /// Everything is as it was.
    Unchanged,
    /// There is news, and this is the timestamp.
    Timestamp(Fetched),
    /// The question could not be put.
    NotPossible,
}

impl TrustClient<'_> {
    /// Asks only whether `timestamp.json` changed since the last complete look, where all that was trusted then is still
    /// there and fresh. If it did not, nothing else can have changed that a machine would be told of: whoever answers for
    /// the timestamp could as well deny that there is a new root, and both lies end when the timestamp expires.
    pub(super) fn look_cheaply(
        &self,
        now: jiff::Timestamp,
        set: &mut TrustedMetadataSet,
        source: &dyn MetadataSource,
    ) -> Result<Cheap, TrustError> {
        let Some(last) = self.store().last_look().filter(|last| last.server == source.name()) else {
            return Ok(Cheap::NotPossible);
        };
        let age = now.duration_since(last.complete);
        if age.is_negative() || age > COMPLETE_LOOK_EVERY {
            return Ok(Cheap::NotPossible);
        }
        let Some(stored) = self.stored(now, set)? else { return Ok(Cheap::NotPossible) };
        match source.fetch_changed("timestamp.json", MAX_TIMESTAMP, Some(&last.etag))? {
            Some(Changed::No) => {
                *set = stored;
                Ok(Cheap::Unchanged)
            }
            Some(Changed::Bytes(file)) => Ok(Cheap::Timestamp(file)),
            None => Err(TrustError::Missing("timestamp.json".to_owned())),
        }
    }

    /// Everything that is trusted, from the disk alone, if it is all there and fresh.
    fn stored(
        &self,
        now: jiff::Timestamp,
        root: &TrustedMetadataSet,
    ) -> Result<Option<TrustedMetadataSet>, TrustError> {
        let files = [self.store().load("timestamp")?, self.store().load("snapshot")?, self.store().load("targets")?];
        let [Some(timestamp), Some(snapshot), Some(targets)] = files else { return Ok(None) };
        let mut set = root.clone();
        let verified = set
            .check_root_expired(now)
            .and_then(|()| set.update_timestamp(&timestamp, now))
            .and_then(|()| set.update_snapshot(&snapshot, now))
            .and_then(|()| set.update_targets(&targets, now).map(drop));
        Ok(verified.is_ok().then_some(set))
    }
}

//! What the vendor took back: remembered for when there is no network, dropped where it was only staged, and not gone
//! back to unless somebody insists.

use super::{Engine, EngineError};
use crate::state::{self, TakenBack};
use crate::trust::Trusted;
use picket_layout::Layout;
use picket_protocol::Channel;
use semver::Version;

/// Why `picket update rollback` refuses to go back to `version`, if the vendor took it back. Needs no network.
pub fn rollback_obstacle(layout: &Layout, version: &Version) -> Option<String> {
    let reason = state::why_taken_back(layout.update_dir(), version)?;
    Some(format!(
        "the vendor took release {version} back: {reason}; `picket update rollback --force` goes there all the same"
    ))
}

impl Engine<'_> {
    /// Remembers what `channel` takes back, and drops what of it was staged or downloaded here.
    pub(super) fn heed_yanks(&self, trusted: &Trusted, channel: &Channel) -> Result<(), EngineError> {
        let file = state::taken_back(self.layout.update_dir());
        let known = TakenBack { yanked: channel.yanked.clone() };
        if file.load().as_ref() != Some(&known) {
            file.save(&known)?;
        }
        let staged = self.versions().all();
        for version in channel.yanked.keys() {
            // Never what is linked or runs: what boot starts, and the way back, are for `decide` and for people.
            let dropped = staged.contains(version) && self.versions().remove(version)?;
            let partial = self.drop_downloads(trusted, channel, version)?;
            if dropped || partial {
                self.progress
                    .note(format!("release {version}, which the vendor took back, was staged here and is dropped"));
            }
        }
        Ok(())
    }

    /// Removes whatever of a release was downloaded; says whether there was anything.
    fn drop_downloads(&self, trusted: &Trusted, channel: &Channel, version: &Version) -> Result<bool, EngineError> {
        let artifact = channel.releases.get(version).and_then(|release| release.artifacts.get(&self.build.target));
        let Some(target) = artifact.and_then(|artifact| trusted.target(&artifact.path).ok()) else { return Ok(false) };
        let downloads = self.fetcher.places.downloads();
        let mut found = false;
        for kind in ["unverified", "etag"] {
            found |= picket_durable::remove_if_present(&downloads.join(format!("{}.{kind}", target.hashes)))?;
        }
        Ok(found)
    }
}

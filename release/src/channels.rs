//! What a vendor says of releases that are out: taken back, brought out in waves, stopped, gone on with.
//!
//! Everything here changes the channel as the next publish will sign it, and nothing that is published.

use crate::error::ReleaseError;
use crate::metadata::to_the_second;
use crate::repository::{Repository, load_channel};
use jiff::Timestamp;
use picket_protocol::{Channel, Release, Rollout, Stop, Yank};
use semver::Version;

impl Repository {
    /// The channel called `name`, as the next publish will sign it.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn channel(&self, name: &str) -> Result<Channel, ReleaseError> {
        load_channel(&self.channel_path(name)?)
    }

    /// Takes a release back: machines no longer go to it, those that only staged it drop it, and those that run it go to
    /// the head.
    ///
    /// # Errors
    /// When the release is not there, or nothing would be left to go to.
    pub fn yank(
        &self,
        channel: &str,
        version: &Version,
        reason: &str,
        head: Option<&Version>,
        now: Timestamp,
    ) -> Result<Channel, ReleaseError> {
        let mut channel = self.channel(channel)?;
        release(&mut channel, version)?;
        let yank = Yank { reason: reason.to_owned(), at: to_the_second(now) };
        channel.yanked.insert(version.clone(), yank);
        let usable = |version: &&Version| !channel.yanked.contains_key(*version);
        // One that is stopped would be a head that nobody goes to; better than none.
        let newest = || {
            let mut usable = channel.releases.keys().rev().filter(usable);
            let moving = usable.clone().find(|version| channel.stop_of(version).is_none());
            moving.or_else(|| usable.next()).cloned()
        };
        let new_head = match head {
            Some(head) => Some(head.clone()),
            None if channel.head == *version => newest(),
            None => Some(channel.head.clone()),
        };
        channel.head = new_head.ok_or_else(|| {
            ReleaseError::Release(format!("{version} is the only release; publish another one first"))
        })?;
        self.save_channel(&channel)?;
        Ok(channel)
    }

    /// Lets machines that run `versions` go back to the head, though these are newer and not yanked.
    ///
    /// # Errors
    /// When there are more of them than a channel may name.
    pub fn allow_downgrade_from(&self, channel: &str, versions: &[Version]) -> Result<Channel, ReleaseError> {
        let mut channel = self.channel(channel)?;
        channel.allow_downgrade_from.extend(versions.iter().cloned());
        self.save_channel(&channel)?;
        Ok(channel)
    }

    /// Makes `head` the version that machines should run. Those that are on a newer one go back only if it is named in
    /// `from`.
    ///
    /// # Errors
    /// When it is not released, or yanked.
    pub fn set_head(&self, channel: &str, head: &Version, from: &[Version]) -> Result<Channel, ReleaseError> {
        let mut channel = self.channel(channel)?;
        release(&mut channel, head)?;
        channel.head = head.clone();
        channel.allow_downgrade_from = from.iter().cloned().collect();
        self.save_channel(&channel)?;
        Ok(channel)
    }

    /// Says how a release reaches the machines in time; `None` lets all of them take it at once.
    ///
    /// # Errors
    /// When the release is not there, or the rollout is not possible.
    pub fn set_rollout(
        &self,
        channel: &str,
        version: &Version,
        rollout: Option<Rollout>,
    ) -> Result<Channel, ReleaseError> {
        let mut channel = self.channel(channel)?;
        release(&mut channel, version)?.rollout = rollout.map(|rollout| {
            let start = rollout.start.map(to_the_second);
            Rollout { start, ..rollout }
        });
        self.save_channel(&channel)?;
        Ok(channel)
    }

    /// Halts the rollout of `version`, or of everything.
    ///
    /// # Errors
    /// When the release is not there, or it is halted already: its waves are counted from when it was.
    pub fn stop(
        &self,
        channel: &str,
        version: Option<&Version>,
        reason: &str,
        now: Timestamp,
    ) -> Result<Channel, ReleaseError> {
        let mut channel = self.channel(channel)?;
        let stop = match version {
            Some(version) => &mut release(&mut channel, version)?.stop,
            None => &mut channel.stop,
        };
        if let Some(stop) = stop {
            return Err(ReleaseError::Release(format!("it was stopped already, at {}: {}", stop.at, stop.reason)));
        }
        *stop = Some(Stop { reason: reason.to_owned(), at: to_the_second(now) });
        self.save_channel(&channel)?;
        Ok(channel)
    }

    /// Goes on with the rollout of `version`, or of everything: waves that had not opened come later by the length of the
    /// halt. Returns the stop that was.
    ///
    /// # Errors
    /// When the release is not there, or it is not halted.
    pub fn resume(&self, channel: &str, version: Option<&Version>, now: Timestamp) -> Result<Stop, ReleaseError> {
        let mut channel = self.channel(channel)?;
        let stop = match version {
            Some(version) => release(&mut channel, version)?.stop.take(),
            None => channel.stop.take(),
        };
        let stop = stop.ok_or_else(|| {
            let what = version.map_or_else(|| "the channel".to_owned(), |version| format!("release {version}"));
            ReleaseError::Release(format!("{what} is not stopped"))
        })?;
        for (known, release) in &mut channel.releases {
            if version.is_none_or(|version| version == known)
                && let Some(rollout) = &release.rollout
            {
                release.rollout = Some(rollout.resumed(release.published, stop.at, to_the_second(now)));
            }
        }
        self.save_channel(&channel)?;
        Ok(stop)
    }
}

fn release<'a>(channel: &'a mut Channel, version: &Version) -> Result<&'a mut Release, ReleaseError> {
    let Channel { channel: name, releases, .. } = channel;
    releases.get_mut(version).ok_or_else(|| ReleaseError::Release(format!("channel {name} has no release {version}")))
}

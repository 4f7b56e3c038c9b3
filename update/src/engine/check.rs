//! Looking at the release server: what is there, what may be trusted, what this machine should do about it.

use super::{Engine, EngineError};
use crate::decide::{self, Asked, Decision, Facts};
use crate::held::Hold;
use crate::state::{self, CheckRecord, Due};
use crate::trust::{MetadataSource, TrustClient, TrustError, TrustStore, Trusted, VerifiedTarget};
use picket_protocol::channel::CHANNEL_MAX_BYTES;
use picket_protocol::update_status::{AvailableRelease, LastCheck, Turn};
use picket_protocol::{Artifact, Channel, Release, TargetTriple};
use semver::Version;

/// A look at the release server that brought a complete, trusted picture.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The trusted metadata.
    pub trusted: Trusted,
    /// The signed channel.
    pub channel: Channel,
    /// What this machine should do.
    pub decision: Decision,
    /// What the status offers: decided as the daily check would, whoever looked.
    pub available: Option<AvailableRelease>,
}

/// What a person is told.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Offer {
    /// Whether there is a release to take.
    pub update_available: bool,
    /// The version that runs.
    pub current: Version,
    /// The release.
    pub version: Option<Version>,
    /// Its notes.
    pub release_notes: Option<String>,
    /// Whether the vendor calls it critical.
    pub critical: Option<bool>,
    /// Why it is not taken by itself, or why there is none.
    pub reason: Option<String>,
    /// This machine's turn, where the release comes in waves.
    pub turn: Option<Turn>,
    /// When it will be taken by itself, where only time keeps it back.
    pub due: Option<jiff::Timestamp>,
}

impl Checked {
    /// The artifact of `version` for `target`, with what the vendor signed about it.
    pub fn artifact(&self, version: &Version, target: &TargetTriple) -> Result<(Artifact, VerifiedTarget), TrustError> {
        let artifact = self.channel.releases.get(version).and_then(|release| release.artifacts.get(target));
        let artifact =
            artifact.ok_or_else(|| TrustError::NoArtifact { version: version.clone(), target: target.clone() })?;
        Ok((artifact.clone(), self.trusted.target(&artifact.path)?))
    }

    /// What a person is told about it.
    pub fn offer(&self, current: &Version) -> Offer {
        let (version, reason) = match &self.decision {
            Decision::Take { version } => (Some(version), None),
            Decision::Offer { version, waiting, .. } => (Some(version), Some(waiting.clone())),
            Decision::Stay { reason } | Decision::Refuse { reason } => (None, Some(reason.clone())),
        };
        let release = version.and_then(|version| self.channel.releases.get(version));
        let by_itself = self.available.as_ref().filter(|available| Some(&available.version) == version);
        Offer {
            update_available: version.is_some(),
            current: current.clone(),
            version: version.cloned(),
            release_notes: release.map(|release| release.notes.clone()),
            critical: release.map(|release| release.critical),
            reason,
            turn: by_itself.and_then(|available| available.turn),
            due: by_itself.and_then(|available| available.due),
        }
    }
}

/// Fetches the channel document that `trusted` lists, unless it is known already, and with it whatever delegated roles
/// list its builds for `target`: what follows asks nobody.
pub fn fetch_channel(
    client: &TrustClient<'_>,
    source: &dyn MetadataSource,
    trusted: &mut Trusted,
    name: &str,
    target: &TargetTriple,
) -> Result<Channel, TrustError> {
    let channel = channel_document(client, source, trusted, name)?;
    for artifact in channel.releases.values().filter_map(|release| release.artifacts.get(target)) {
        if let Err(error) = client.find(trusted, source, &artifact.path) {
            tracing::warn!(path = artifact.path, error = super::error::chain(&error), "a release cannot be taken");
        }
    }
    Ok(channel)
}

fn channel_document(
    client: &TrustClient<'_>,
    source: &dyn MetadataSource,
    trusted: &mut Trusted,
    name: &str,
) -> Result<Channel, TrustError> {
    let target = client.find(trusted, source, &Channel::target_path(name))?;
    if let Some(kept) = client.store().channel(name)?
        && let Ok(channel) = trusted.channel(name, &target, &kept)
    {
        return Ok(channel);
    }
    let bytes = source.fetch_target(&target, target.length.min(CHANNEL_MAX_BYTES))?;
    let bytes = bytes.ok_or_else(|| TrustError::Missing(target.path.clone()))?;
    let channel = trusted.channel(name, &target, &bytes)?;
    client.store().keep_channel(name, &bytes)?;
    Ok(channel)
}

/// Fetches and verifies the release metadata and the channel called `channel`, from whatever root `store` holds: what a
/// candidate must be able to do.
pub fn fetch_release(
    source: &dyn MetadataSource,
    store: &TrustStore,
    clock: &crate::clock::Clock,
    channel: &str,
    target: &TargetTriple,
) -> Result<Trusted, TrustError> {
    let client = TrustClient::new(store, clock);
    let mut trusted = client.refresh(None, source)?;
    fetch_channel(&client, source, &mut trusted, channel, target)?;
    Ok(trusted)
}

impl Engine<'_> {
    /// Looks at the release server on a person's behalf, and remembers what it saw.
    ///
    /// # Errors
    /// When another updater runs, or the releases cannot be reached or trusted.
    pub fn check(&self, asked: &Asked) -> Result<Checked, EngineError> {
        let _lock = Self::lock(self.layout)?;
        let checked = self.check_locked(asked);
        state::publish(self.layout, &self.status());
        checked
    }

    pub(super) fn check_locked(&self, asked: &Asked) -> Result<Checked, EngineError> {
        let result = self.look_and_decide(asked);
        let (error, available) = match &result {
            Ok(checked) => {
                self.heed_yanks(&checked.trusted, &checked.channel)?;
                self.note_due(checked)?;
                (None, checked.available.clone())
            }
            Err(error) => (Some(error.chain()), None),
        };
        let record = CheckRecord { check: LastCheck { at: self.clock.now(), error }, available };
        state::last_check(self.layout.update_dir()).save(&record)?;
        result
    }

    /// Notes when the updater is to be started next without anybody asking. Windows and hooks that put a release off have
    /// their own time, and their limit counts on while there is one to be taken, whichever: a busy machine must not be
    /// left behind because a newer one comes out every few days.
    fn note_due(&self, checked: &Checked) -> Result<(), EngineError> {
        let dir = self.layout.update_dir();
        let due = state::due(dir);
        match &checked.available {
            Some(AvailableRelease { waiting: None, .. }) => return Ok(()),
            Some(AvailableRelease { version, due: Some(at), .. }) => {
                due.save(&Due { version: version.clone(), at: *at })?;
            }
            _ => {
                due.clear()?;
            }
        }
        state::deferral(dir).clear()?;
        Ok(())
    }

    fn look_and_decide(&self, asked: &Asked) -> Result<Checked, EngineError> {
        let (store, pinned) = (self.trust_store(), self.pinned_root.as_deref());
        let (name, target) = (&self.settings.channel, &self.build.target);
        let (trusted, channel) = self.fetcher.look(&store, pinned, &self.clock, name, target, self.interrupted)?;
        let (decision, available) = self.decide(&trusted, &channel, asked)?;
        Ok(Checked { trusted, channel, decision, available })
    }

    fn decide(
        &self,
        trusted: &Trusted,
        channel: &Channel,
        asked: &Asked,
    ) -> Result<(Decision, Option<AvailableRelease>), EngineError> {
        let current = self.current()?;
        let pin = state::pin(self.layout.update_dir()).load();
        let held = self.held()?;
        let now = self.clock.now();
        let hold = |_: &Version, release: &Release| -> Option<Hold> {
            let artifact = release.artifacts.get(&self.build.target)?;
            let target = trusted.target(&artifact.path).ok()?;
            held.in_force(&target.sha256().ok()?, now).cloned()
        };
        let facts = Facts {
            current: &current,
            channel,
            target: &self.build.target,
            pinned: pin.as_ref().map(|pin| &pin.version),
            auto: self.settings.auto,
            held: &hold,
            machine: &state::machine_id(self.layout.update_dir(), &self.machine_id),
            now,
        };
        Ok((decide::decide(&facts, asked), available(&facts)))
    }
}

/// What the status offers: decided as the daily check would, whoever looked.
fn available(facts: &Facts<'_>) -> Option<AvailableRelease> {
    let (version, waiting, due) = match decide::decide(facts, &Asked::BySchedule) {
        Decision::Take { version } => (version, None, None),
        Decision::Offer { version, waiting, due } => (version, Some(waiting), due),
        Decision::Stay { .. } | Decision::Refuse { .. } => return None,
    };
    let release = facts.channel.releases.get(&version)?;
    let urgent = decide::is_urgent(facts.channel, facts.current, &version);
    let turn = decide::turn(facts, &version).filter(|_| !urgent);
    Some(AvailableRelease { critical: release.critical, notes: release.notes.clone(), version, waiting, due, turn })
}

//! What the updater publishes for everybody on the machine to read: what runs, what happened, what is trusted how long.
//!
//! Written by the updater (root) to a folder that everybody may read, so that `picket update status` and the agent's
//! health need no privilege. It is derived from the journal, the links and the trust store each time it is written;
//! nothing is decided by it.

use semver::Version;
use serde::{Deserialize, Serialize};

/// The schema number written by this version.
pub const UPDATE_STATUS_SCHEMA: u32 = 1;
/// The largest status that is read, in bytes.
pub const UPDATE_STATUS_MAX_BYTES: u64 = 1 << 20;

/// The updater's published status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// See [`UPDATE_STATUS_SCHEMA`].
    pub schema: u32,
    /// When it was derived (RFC 3339, UTC).
    pub at: jiff::Timestamp,
    /// The proven version: what boot starts.
    pub current: Option<Version>,
    /// The version that `update rollback` returns to.
    pub previous: Option<Version>,
    /// The update that is under way.
    pub running: Option<RunningUpdate>,
    /// The last update that ended.
    pub last: Option<EndedUpdate>,
    /// The newest release this machine may take and has not.
    pub available: Option<AvailableRelease>,
    /// The last look at the release server.
    pub last_check: Option<LastCheck>,
    /// When the trusted metadata expires.
    pub trust: Option<TrustExpiry>,
    /// The version this machine is pinned to.
    pub pinned: Option<Version>,
    /// Versions that are not tried again for now.
    pub held: Vec<HeldVersion>,
}

/// An update under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningUpdate {
    /// The update's id.
    pub id: String,
    /// From which version.
    pub from: Version,
    /// To which version.
    pub to: Version,
    /// The step it is at, for example `gate`.
    pub step: String,
    /// When it began.
    pub started: jiff::Timestamp,
}

/// An update that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedUpdate {
    /// The update's id.
    pub id: String,
    /// From which version.
    pub from: Version,
    /// To which version.
    pub to: Version,
    /// How it ended.
    pub outcome: UpdateOutcome,
    /// Why, in words.
    pub reason: String,
    /// When it ended.
    pub finished: jiff::Timestamp,
}

/// How an update ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOutcome {
    /// The new version passed its trial and is the proven one.
    Committed,
    /// The new version failed its trial; the old one runs.
    RolledBack,
    /// The new version never got to its trial.
    Refused,
    /// A crash, a power cut or a person stopped it; the old version runs.
    Interrupted,
}

/// A release that could be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AvailableRelease {
    /// Its version.
    pub version: Version,
    /// Whether the vendor calls it critical.
    pub critical: bool,
    /// Its notes.
    pub notes: String,
    /// Why it is not applied by itself, where it is not.
    pub waiting: Option<String>,
}

/// A look at the release server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCheck {
    /// When.
    pub at: jiff::Timestamp,
    /// What went wrong, if anything did.
    pub error: Option<String>,
}

/// When each role of the trusted metadata expires. Expired metadata stops updates, never the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustExpiry {
    /// The root: renewed by the vendor's offline keys.
    pub root: jiff::Timestamp,
    /// The targets: renewed with each release.
    pub targets: Option<jiff::Timestamp>,
    /// The snapshot: renewed with the timestamp.
    pub snapshot: Option<jiff::Timestamp>,
    /// The timestamp: renewed by the vendor on schedule.
    pub timestamp: Option<jiff::Timestamp>,
}

impl TrustExpiry {
    /// The role that expires first, and when.
    pub fn first(&self) -> (&'static str, jiff::Timestamp) {
        let roles = [("targets", self.targets), ("snapshot", self.snapshot), ("timestamp", self.timestamp)];
        roles
            .into_iter()
            .filter_map(|(role, at)| Some((role, at?)))
            .fold(("root", self.root), |first, role| if role.1 < first.1 { role } else { first })
    }
}

/// A version that is not tried again for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldVersion {
    /// The version.
    pub version: Version,
    /// Why.
    pub reason: String,
    /// Until when; `None` until it is asked for by name.
    pub until: Option<jiff::Timestamp>,
}

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
    /// Why the vendor took the proven version back, where it did.
    #[serde(default)]
    pub taken_back: Option<String>,
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

impl UpdateOutcome {
    /// The word in JSON, and that hooks are told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled-back",
            Self::Refused => "refused",
            Self::Interrupted => "interrupted",
        }
    }
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
    /// When it will be applied by itself, where only time keeps it back; it may be later where something else does then.
    #[serde(default)]
    pub due: Option<jiff::Timestamp>,
    /// This machine's turn, where the release comes in waves.
    #[serde(default)]
    pub turn: Option<Turn>,
}

/// A machine's turn in the waves of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Its wave, from 1 on.
    pub wave: usize,
    /// How many waves there are.
    pub waves: usize,
    /// The share of all machines that have had their turn with this wave, in percent.
    pub percent: u8,
    /// The machine's place among all, in hundredths of a percent from 0 to 9,999: it is in the first wave whose share is
    /// larger. Another version gives it another place.
    pub place: u16,
    /// When its wave opens.
    pub opens: jiff::Timestamp,
    /// When its own turn is: up to the rollout's jitter after the opening.
    pub at: jiff::Timestamp,
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

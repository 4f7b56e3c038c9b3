//! The sign of life of an agent, with what the hub must know to judge it.

use crate::event::{GapReason, Priority};
use crate::health::OverallStatus;
use jiff::Timestamp;
use semver::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A sign of life. Sent once a connection is made and then at the interval that the hub asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts from 1 in each life of the process.
    pub seq: u64,
    /// The agent's time when it was written.
    pub sent_at: Timestamp,
    /// The agent's version.
    pub version: Version,
    /// Which boot of the machine (`/proc/sys/kernel/random/boot_id`), or nothing where it cannot be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<Uuid>,
    /// When the process started.
    pub started_at: Timestamp,
    /// How it is.
    pub health: AgentHealth,
    /// The books of its last streams of events, the present one last. At most eight.
    #[serde(default)]
    pub ledgers: Vec<StreamLedger>,
    /// Its certificate.
    pub certificate: CertificateState,
    /// What its updater says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdateState>,
    /// The configuration of the hub's that it has, and what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<super::ConfigStatus>,
    /// How far its clock is ahead of the hub's, as it reckons, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
}

/// How an agent is: its health report in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHealth {
    /// Healthy or not.
    pub status: OverallStatus,
    /// The checks that do not pass, by their code, with their words. At most 32, each at most 256 characters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_passing: BTreeMap<String, String>,
}

/// The books of one stream of events, in events: `emitted = acknowledged + queued + gaps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamLedger {
    /// Which stream.
    pub boot_id: Uuid,
    /// By class.
    pub classes: BTreeMap<Priority, ClassAccount>,
    /// Missing events of which the hub has not been told yet by a gap event.
    #[serde(default)]
    pub untold: u64,
}

/// The books of one class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassAccount {
    /// What happened.
    pub emitted: u64,
    /// What the hub said it has stored.
    pub acknowledged: u64,
    /// What waits.
    pub queued: u64,
    /// What is missing, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gaps: BTreeMap<GapReason, u64>,
}

impl StreamLedger {
    /// All classes together: emitted, acknowledged, queued, missing.
    pub fn total(&self) -> (u64, u64, u64, u64) {
        self.classes.values().fold((0, 0, 0, 0), |(emitted, acknowledged, queued, gaps), class| {
            (
                emitted.saturating_add(class.emitted),
                acknowledged.saturating_add(class.acknowledged),
                queued.saturating_add(class.queued),
                class.gaps.values().fold(gaps, |sum, count| sum.saturating_add(*count)),
            )
        })
    }
}

/// The certificate with which an agent is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateState {
    /// Its serial number in hexadecimal digits.
    pub serial: String,
    /// Until when it holds.
    pub not_after: Timestamp,
    /// How often it was renewed on this machine, and how often that failed.
    #[serde(default)]
    pub renewed: u64,
    /// Why the last renewal failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// What an agent's updater says, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateState {
    /// The proven version.
    pub current: Option<Version>,
    /// The update under way: to which version, and at which step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<(Version, String)>,
    /// How the last one ended: to which version, and in which word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<(Version, String)>,
    /// When the release metadata that it trusts expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_expires: Option<Timestamp>,
}

//! What an engine says of an event: a match, with everything a finding needs.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::rule::RuleKey;
use crate::shard::Shard;

/// How bad it is, in Sigma's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing to do: it enriches other findings.
    Informational,
    /// Notable, rarely an incident alone.
    Low,
    /// To be looked at by hand, more often than daily.
    Medium,
    /// To be looked at promptly.
    High,
    /// An incident: to be looked at now. Also what a rule has to say without a `level` is [`Level::Medium`].
    Critical,
}

impl Level {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Informational => "informational",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// What a match is about: what a person would search for next.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entity {
    /// What it is.
    pub kind: EntityKind,
    /// Its name: a path, an address, an agent's id. At most 1024 bytes.
    pub value: String,
}

/// What an entity is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntityKind {
    /// A file, by its path.
    File,
    /// The other side of a connection, by its address.
    Address,
    /// A metric.
    Metric,
    /// The agent itself.
    Agent,
    /// A group of a correlation: its key.
    Group,
}

/// One field that made a selection true: the explanation of a match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldMatch {
    /// The selection it belongs to, where known.
    pub selection: Option<String>,
    /// The field's name; `keyword` where any value would do.
    pub field: String,
    /// The event's value as text, cut at 512 bytes.
    pub value: String,
    /// What was looked for, cut at 256 bytes, where known.
    pub pattern: Option<String>,
}

/// What a correlation has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CorrelationKind {
    /// How many events.
    EventCount,
    /// How many different values of a field.
    ValueCount,
    /// Which of several rules, in any order.
    Temporal,
    /// Which of several rules, in this order.
    TemporalOrdered,
    /// The sum of a field's values.
    ValueSum,
    /// Their mean.
    ValueAvg,
    /// A percentile of them, interpolated linearly between ranks.
    ValuePercentile,
    /// The middle one of them.
    ValueMedian,
}

/// The group of a correlation that reached its condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Correlated {
    /// What was counted.
    pub kind: CorrelationKind,
    /// The `group-by` fields and this group's values, in the rule's order; a field that was absent is left out.
    pub group: Vec<(String, String)>,
    /// The length of the window.
    pub timespan: SignedDuration,
    /// When the first event of the window was.
    pub first: Timestamp,
    /// When the last event of the window was.
    pub last: Timestamp,
    /// The count, sum, mean … that met the condition.
    pub value: f64,
    /// How many events stand behind it; [`Match::evidence`] names at most [`MAX_EVIDENCE`] of them, the latest.
    pub events: u64,
}

/// The most events that a match names as evidence.
pub const MAX_EVIDENCE: usize = 1000;

/// Whether one event was enough.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchKind {
    /// One event was.
    Detection {
        /// The selections that were true of it, by name, in alphabetical order.
        selections: Vec<String>,
        /// The fields that made them true, at most 64.
        fields: Vec<FieldMatch>,
    },
    /// Several events together.
    Correlation(Box<Correlated>),
}

/// A rule matched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Match {
    /// The rule and its version.
    pub rule: RuleKey,
    /// The Sigma `id` of the document that matched (a source may hold several).
    pub sigma_id: Uuid,
    /// The rule's title.
    pub title: String,
    /// What it means, as the rule says.
    pub description: String,
    /// What may look like it and is harmless.
    pub false_positives: Vec<String>,
    /// How bad it is.
    pub level: Level,
    /// The rule's tags; `attack.*` names MITRE ATT&CK tactics and techniques.
    pub tags: Vec<String>,
    /// The shard.
    pub shard: Shard,
    /// The agent whose event completed it.
    pub agent: Uuid,
    /// When the event that completed it was.
    pub at: Timestamp,
    /// What it is about.
    pub entity: Entity,
    /// The ids of the events behind it, the one that completed it last.
    pub evidence: Vec<Uuid>,
    /// The same for every match that tells the same story: the rule, and the group or the agent and the entity. 32
    /// hexadecimal digits (128 bits of SHA-256). The rule's version is not part of it.
    pub dedupe_key: String,
    /// The same only for this very match: from the rule, its version and the event that completed it. A replay gives the
    /// same. 32 hexadecimal digits (128 bits of SHA-256).
    pub match_key: String,
    /// What matched.
    pub kind: MatchKind,
}

/// The hub among the agents. What it tells of an agent is about that agent.
pub const HUB_AGENT: Uuid = Uuid::from_u128(0x7069_636b_6574_8000_8000_0000_0000_0001);

/// The longest beginning of `text` within `bytes` that ends with a whole character.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

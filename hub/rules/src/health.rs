//! What rules cost, and what is done about those that cost too much.

use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::rule::RuleKey;
use crate::shard::Shard;

/// What a rule may cost before it is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The mean time of one evaluation, over the last [`Budget::samples`]; one of them counts for at most eight times this.
    pub mean: Duration,
    /// How many evaluations a mean is taken of: nothing is judged of fewer.
    pub samples: u32,
    /// Matches in one minute of the events' time; those of rules that only feed a correlation are not counted.
    pub matches_per_minute: u32,
    /// One event in so many is measured, rule by rule; the others are not measured at all.
    pub sample_every: u32,
}

impl Default for Budget {
    /// A rule of the public corpus takes about 0.2–2 µs an event; 500 µs a rule would leave 2,000 events a second to all of them.
    fn default() -> Self {
        Self { mean: Duration::from_micros(500), samples: 64, matches_per_minute: 6_000, sample_every: 128 }
    }
}

/// Why a rule is not asked any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Suspension {
    /// It took too long.
    Slow {
        /// The mean time of one evaluation in nanoseconds.
        mean_nanos: u64,
        /// The budget it broke, in nanoseconds.
        budget_nanos: u64,
    },
    /// It matched too often.
    Exploding {
        /// Matches in that minute of the events' time, until it was suspended.
        matches: u32,
        /// The budget it broke.
        budget: u32,
    },
    /// It was suspended by hand, or before a restart.
    Held,
}

impl std::fmt::Display for Suspension {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Slow { mean_nanos, budget_nanos } => write!(
                f,
                "it took {} µs an event in the mean and may take {} µs: make its regular expressions or its lists \
                 shorter, then resume it",
                mean_nanos / 1000,
                budget_nanos / 1000
            ),
            Self::Exploding { matches, budget } => write!(
                f,
                "it matched {matches} times within a minute and may match {budget} times: add a condition or a filter for \
                 what is ordinary here, then resume it"
            ),
            Self::Held => write!(f, "it is held back: resume it when it is wanted again"),
        }
    }
}

/// Whether a rule is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum RuleState {
    /// It is.
    Active,
    /// It never will be here: no event of its log source is collected.
    Unreached,
    /// It is not, until it is resumed.
    Suspended {
        /// Why.
        why: Suspension,
    },
}

/// How a rule is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleHealth {
    /// The rule.
    pub rule: RuleKey,
    /// Its title.
    pub title: String,
    /// The shards it belongs to.
    pub shards: Vec<Shard>,
    /// Whether it is asked.
    pub state: RuleState,
    /// Matches since it was loaded.
    pub matches: u64,
    /// Evaluations measured since it was loaded.
    pub sampled: u64,
    /// The mean time of a measured evaluation in nanoseconds. Measured without the index that spares most events most
    /// rules, so it is what the rule costs an event that comes near it.
    pub mean_nanos: u64,
    /// The longest one in nanoseconds.
    pub max_nanos: u64,
}

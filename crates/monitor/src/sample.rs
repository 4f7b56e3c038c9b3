//! One measurement, and what is refused as one.

use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Which of several: which disk, which interface, whether it succeeded.
pub type Tags = BTreeMap<String, String>;

/// The longest name of a metric, in bytes.
pub const MAX_NAME: usize = 128;
/// The most tags of a sample.
pub const MAX_TAGS: usize = 8;
/// The longest name of a tag, in bytes.
pub const MAX_TAG_NAME: usize = 64;
/// The longest value of a tag, in bytes: a mount point may be long.
pub const MAX_TAG_VALUE: usize = 512;

/// One moment, told by two clocks: the one that people read and that may be set, and one that only ever goes on. What lasts
/// is measured with the second, so that whoever sets the clock neither raises an alert nor holds one back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The time of day; for people, and for nothing else.
    pub wall: Timestamp,
    /// How long the process has run, or any other time that nobody can set.
    pub steady: Duration,
}

impl Moment {
    /// How long after `earlier` it is.
    pub fn since(&self, earlier: &Self) -> Duration {
        self.steady.saturating_sub(earlier.steady)
    }
}

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric: `cpu_usage`, `response_time.heartbeat`.
    pub name: String,
    /// How much, in `unit`.
    pub value: f64,
    /// Of what: `percent`, `seconds`, `bytes`, `count`; empty where the name says it.
    pub unit: &'static str,
    /// Which of several.
    pub tags: Tags,
    /// When.
    pub at: Moment,
}

impl Sample {
    /// A sample without tags.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, at: Moment) -> Self {
        Self { name: name.into(), value, unit, tags: Tags::new(), at }
    }

    /// Adds a tag.
    #[must_use]
    pub fn tag(mut self, name: &str, value: impl Into<String>) -> Self {
        self.tags.insert(name.to_owned(), value.into());
        self
    }

    /// Why it cannot be recorded, if it cannot.
    pub fn refusal(&self) -> Option<Refusal> {
        if !self.value.is_finite() {
            return Some(Refusal::NotFinite);
        }
        let too_long = self.name.is_empty()
            || self.name.len() > MAX_NAME
            || self.tags.len() > MAX_TAGS
            || self.tags.iter().any(|(name, value)| name.len() > MAX_TAG_NAME || value.len() > MAX_TAG_VALUE);
        too_long.then_some(Refusal::TooLong)
    }
}

/// Why a sample was not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its value is infinite or not a number.
    #[error("the value is infinite or not a number")]
    NotFinite,
    /// Its name or tags are beyond the limits.
    #[error("the name is empty, or name or tags are too long")]
    TooLong,
    /// It would begin a series, and there are as many as there may be.
    #[error("there are as many series as there may be")]
    TooManySeries,
}

/// Whether `tags` hold all of `selector`.
pub fn selects(selector: &Tags, tags: &Tags) -> bool {
    selector.iter().all(|(name, value)| tags.get(name) == Some(value))
}

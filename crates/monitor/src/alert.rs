//! One alert, from its beginning to its end.

use crate::sample::{Moment, Sample, Tags};
use jiff::Timestamp;
use picket_protocol::event::{AlertAction, AlertEvent, AlertLevel};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::time::Duration;
use uuid::{NoContext, Uuid};

/// An alert: a metric that is, or was, beyond a bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Its id for all of its life, a UUID of version 7 (RFC 9562 §5.7): ids sort by the time of their beginning.
    pub id: Uuid,
    /// The threshold's name.
    pub threshold: String,
    /// The metric's name.
    pub metric: String,
    /// Which of several.
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    /// The unit of value and bound.
    pub unit: Cow<'static, str>,
    /// How bad it is; for a closed alert, how bad it was at its end.
    pub level: AlertLevel,
    /// How bad it has been.
    pub worst: AlertLevel,
    /// The value that decided last.
    pub value: f64,
    /// The bound it crossed.
    pub bound: f64,
    /// The last thing that happened, in words.
    pub message: String,
    /// When it began.
    pub raised_at: Timestamp,
    /// When its level changed last.
    pub changed_at: Timestamp,
    /// Who has seen it at this level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<Acknowledgement>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cleared_at: Option<Timestamp>,
}

/// Who has seen an alert, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// What they had to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Alert {
    /// Whether it can be gone on with: open, and its sizes and numbers such as a sample may have.
    pub(crate) fn is_sound(&self) -> bool {
        let sample = Sample {
            name: self.metric.clone(),
            value: self.value,
            unit: "",
            tags: self.tags.clone(),
            at: Moment { wall: self.raised_at, steady: Duration::ZERO },
        };
        self.cleared_at.is_none() && self.bound.is_finite() && sample.refusal().is_none()
    }

    /// The event of what just happened to it.
    pub(crate) fn event(&self, action: AlertAction, at: Timestamp) -> AlertEvent {
        AlertEvent {
            timestamp: at,
            alert_id: self.id,
            action,
            level: self.level,
            metric: self.metric.clone(),
            tags: self.tags.clone(),
            value: self.value,
            threshold: self.bound,
            message: self.message.clone(),
            by: self.acknowledged.as_ref().map(|seen| seen.by.clone()),
            note: self.acknowledged.as_ref().and_then(|seen| seen.note.clone()),
        }
    }

    /// The metric with its tags, as messages name it: `disk_usage{mount="/var"}`.
    pub(crate) fn subject(metric: &str, tags: &Tags) -> String {
        if tags.is_empty() {
            return metric.to_owned();
        }
        let tags: Vec<String> = tags.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        format!("{metric}{{{}}}", tags.join(", "))
    }
}

/// A new id of the time `at`.
pub(crate) fn new_id(at: Timestamp) -> Uuid {
    let seconds = u64::try_from(at.as_second()).unwrap_or_default();
    let nanoseconds = u32::try_from(at.subsec_nanosecond()).unwrap_or_default();
    Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, seconds, nanoseconds))
}

/// The word of a level in messages.
pub(crate) fn word(level: AlertLevel) -> &'static str {
    match level {
        AlertLevel::Warning => "warning",
        AlertLevel::Critical => "critical",
    }
}

/// A value with its unit, to at most two decimals: `91.25 percent`.
pub(crate) fn amount(value: f64, unit: &str) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if unit.is_empty() { text.to_owned() } else { format!("{text} {unit}") }
}

/// A length of time in its two greatest units: `2h 5m`, `90s`.
pub(crate) fn length(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_lengths_are_said_shortly() {
        assert_eq!(amount(91.254, "percent"), "91.25 percent");
        assert_eq!(amount(5.0, "seconds"), "5 seconds");
        assert_eq!(amount(100.0, ""), "100");
        assert_eq!(length(Duration::from_secs(90)), "90s");
        assert_eq!(length(Duration::from_secs(7_500)), "2h 5m");
        assert_eq!(length(Duration::from_secs(200_000)), "2d 7h");
    }

    #[test]
    fn ids_sort_by_the_time_they_began() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(new_id(at(1_700_000_000)) < new_id(at(1_700_000_001)));
        assert_eq!(new_id(at(1_700_000_000)).get_version_num(), 7);
    }
}

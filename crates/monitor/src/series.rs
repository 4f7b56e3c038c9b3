//! One series: the samples of one metric with one set of tags, and where each threshold stands for it.

use crate::ring::Ring;
use crate::sample::{Moment, Sample, Tags};
use crate::threshold::{State, Threshold};
use jiff::Timestamp;
use serde::Serialize;
use std::time::Duration;
use uuid::Uuid;

/// A series as the local API lists it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeriesInfo {
    /// The metric's name.
    pub name: String,
    /// The unit of its values.
    pub unit: &'static str,
    /// Which of several.
    pub tags: Tags,
    /// How many samples are kept.
    pub count: usize,
    /// When the newest was taken.
    pub newest: Timestamp,
}

/// Where one threshold stands for one series.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Its place in the monitor's list.
    pub threshold: usize,
    pub state: State,
    /// The open alert.
    pub alert: Option<Uuid>,
}

#[derive(Debug)]
pub(crate) struct Series {
    pub tags: Tags,
    pub unit: &'static str,
    pub ring: Ring,
    pub watches: Vec<Watch>,
    /// When the newest sample was taken.
    pub newest: Moment,
    /// The time between the last two samples.
    gap: Duration,
}

impl Series {
    pub fn new(sample: &Sample, thresholds: &[Threshold]) -> Self {
        let watching =
            thresholds.iter().enumerate().filter(|(_, threshold)| threshold.watches(&sample.name, &sample.tags));
        let watch = |(threshold, _)| Watch { threshold, state: State::default(), alert: None };
        Self {
            tags: sample.tags.clone(),
            unit: sample.unit,
            ring: Ring::default(),
            watches: watching.map(watch).collect(),
            newest: sample.at,
            gap: Duration::ZERO,
        }
    }

    pub fn push(&mut self, sample: &Sample, limit: usize, retention: Duration) {
        self.gap = sample.at.since(&self.newest);
        self.newest = sample.at;
        self.unit = sample.unit;
        self.ring.push(sample.at.wall, sample.value, limit, retention);
    }

    /// How long it has been silent at `now`, if that is longer than `limit` and than three of its own intervals.
    pub fn silent(&self, now: Moment, limit: Duration) -> Option<Duration> {
        let silence = now.since(&self.newest);
        (silence > limit.max(self.gap.saturating_mul(3))).then_some(silence)
    }

    pub fn has_alert(&self) -> bool {
        self.watches.iter().any(|watch| watch.alert.is_some())
    }
}

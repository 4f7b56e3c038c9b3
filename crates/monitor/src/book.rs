//! The alerts that are open and those that were closed last.

use crate::alert::{Acknowledgement, Alert, amount, length, new_id, word};
use crate::sample::Tags;
use crate::settings::Comparison;
use crate::threshold::Threshold;
use jiff::Timestamp;
use picket_protocol::event::{AlertAction, AlertEvent, AlertLevel};
use std::collections::VecDeque;
use std::time::Duration;
use uuid::Uuid;

/// The most open alerts. A machine with more has one problem, not many; what comes beyond is counted, and raised as soon
/// as there is room.
pub const MAX_ACTIVE: usize = 256;
/// How many closed alerts are remembered.
pub const MAX_RECENT: usize = 128;
/// The longest name of who acknowledged, in bytes.
pub const MAX_BY: usize = 128;
/// The longest note to an acknowledgement, in bytes.
pub const MAX_NOTE: usize = 512;

/// An alert that cannot be acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcknowledgeError {
    /// No open alert has this id.
    #[error("no open alert has the id {0}")]
    Unknown(Uuid),
    /// Somebody has.
    #[error("{by} has acknowledged it already")]
    Already {
        /// Who.
        by: String,
    },
    /// A name is needed, of a sensible length.
    #[error("say who acknowledges, in 1 to {MAX_BY} bytes without control characters")]
    Name,
    /// A note is short.
    #[error("a note has at most {MAX_NOTE} bytes and no control characters")]
    Note,
}

/// What a sample says of one threshold.
#[derive(Clone, Copy)]
pub(crate) struct Crossing<'a> {
    pub threshold: &'a Threshold,
    pub metric: &'a str,
    pub tags: &'a Tags,
    pub unit: &'static str,
    pub level: AlertLevel,
    pub value: f64,
    pub at: Timestamp,
}

impl Crossing<'_> {
    fn bound(&self) -> f64 {
        self.threshold.bound(self.level).unwrap_or(f64::NAN)
    }

    fn message(&self) -> String {
        let side = match self.threshold.comparison {
            Comparison::Greater => "at or above",
            Comparison::Less => "at or below",
        };
        format!(
            "{} is {}, {side} its {} bound of {}",
            Alert::subject(self.metric, self.tags),
            amount(self.value, self.unit),
            word(self.level),
            amount(self.bound(), self.unit),
        )
    }
}

/// Open alerts and closed ones.
#[derive(Debug, Default)]
pub(crate) struct Book {
    active: Vec<Alert>,
    recent: VecDeque<Alert>,
}

impl Book {
    /// Opens an alert, if there is room.
    pub fn raise(&mut self, crossing: &Crossing<'_>) -> Option<(Uuid, AlertEvent)> {
        if self.active.len() >= MAX_ACTIVE {
            return None;
        }
        let alert = Alert {
            id: new_id(crossing.at),
            threshold: crossing.threshold.name.clone(),
            metric: crossing.metric.to_owned(),
            tags: crossing.tags.clone(),
            unit: crossing.unit.into(),
            level: crossing.level,
            worst: crossing.level,
            value: crossing.value,
            bound: crossing.bound(),
            message: crossing.message(),
            raised_at: crossing.at,
            changed_at: crossing.at,
            acknowledged: None,
            cleared_at: None,
        };
        let event = alert.event(AlertAction::Raised, crossing.at);
        let id = alert.id;
        self.active.push(alert);
        Some((id, event))
    }

    /// Takes back an alert that was open before the process began. Whether there was room for it.
    pub fn take_back(&mut self, alert: Alert) -> bool {
        let room = self.active.len() < MAX_ACTIVE && self.active.iter().all(|open| open.id != alert.id);
        if room {
            self.active.push(alert);
        }
        room
    }

    /// Moves an open alert to another level. Going up takes the acknowledgement away: who has seen a warning has not seen
    /// that it became critical.
    pub fn change(&mut self, id: Uuid, crossing: &Crossing<'_>) -> Option<AlertEvent> {
        let alert = self.active.iter_mut().find(|alert| alert.id == id)?;
        let action = if crossing.level > alert.level { AlertAction::Raised } else { AlertAction::Lowered };
        if action == AlertAction::Raised {
            alert.acknowledged = None;
        }
        alert.level = crossing.level;
        alert.worst = alert.worst.max(crossing.level);
        alert.value = crossing.value;
        alert.bound = crossing.bound();
        alert.message = crossing.message();
        alert.changed_at = crossing.at;
        Some(alert.event(action, crossing.at))
    }

    /// Closes an alert because its value came back.
    pub fn recover(&mut self, id: Uuid, value: f64, at: Timestamp) -> Option<AlertEvent> {
        self.close(id, at, |alert, lasted| {
            alert.value = value;
            let subject = Alert::subject(&alert.metric, &alert.tags);
            format!("{subject} is back at {} after {lasted}", amount(value, &alert.unit))
        })
    }

    /// Closes an alert for another reason, which is told with the last value.
    pub fn end(&mut self, id: Uuid, why: &str, at: Timestamp) -> Option<AlertEvent> {
        self.close(id, at, |alert, lasted| {
            let subject = Alert::subject(&alert.metric, &alert.tags);
            format!(
                "{subject}: {why}; it was {} at last, the alert is closed after {lasted}",
                amount(alert.value, &alert.unit)
            )
        })
    }

    fn close(&mut self, id: Uuid, at: Timestamp, say: impl FnOnce(&mut Alert, &str) -> String) -> Option<AlertEvent> {
        let index = self.active.iter().position(|alert| alert.id == id)?;
        let mut alert = self.active.remove(index);
        let lasted = Duration::try_from(at.duration_since(alert.raised_at)).unwrap_or_default();
        alert.message = say(&mut alert, &length(lasted));
        alert.cleared_at = Some(at);
        let event = alert.event(AlertAction::Cleared, at);
        if self.recent.len() == MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(alert);
        Some(event)
    }

    /// Notes who has seen an open alert.
    pub fn acknowledge(
        &mut self,
        id: Uuid,
        by: &str,
        note: Option<&str>,
        at: Timestamp,
    ) -> Result<AlertEvent, AcknowledgeError> {
        if by.trim().is_empty() || by.len() > MAX_BY || by.chars().any(char::is_control) {
            return Err(AcknowledgeError::Name);
        }
        if note.is_some_and(|note| note.len() > MAX_NOTE || note.chars().any(char::is_control)) {
            return Err(AcknowledgeError::Note);
        }
        let alert = self.active.iter_mut().find(|alert| alert.id == id).ok_or(AcknowledgeError::Unknown(id))?;
        if let Some(seen) = &alert.acknowledged {
            return Err(AcknowledgeError::Already { by: seen.by.clone() });
        }
        alert.acknowledged = Some(Acknowledgement { by: by.to_owned(), at, note: note.map(str::to_owned) });
        Ok(alert.event(AlertAction::Acknowledged, at))
    }

    /// The value an open alert shows, kept fresh between changes of level.
    pub fn note(&mut self, id: Uuid, value: f64) {
        if let Some(alert) = self.active.iter_mut().find(|alert| alert.id == id) {
            alert.value = value;
        }
    }

    pub fn active(&self) -> &[Alert] {
        &self.active
    }

    pub fn recent(&self) -> impl Iterator<Item = &Alert> {
        self.recent.iter()
    }
}

//! Which events a channel is told.

use picket_protocol::event::{AlertAction, AlertEvent, AlertLevel};
use std::collections::BTreeSet;
use uuid::Uuid;

/// What one channel has been told: who heard of the beginning of an alert also hears of its end, though that has a lower
/// level.
#[derive(Debug)]
pub(super) struct Route {
    level: AlertLevel,
    /// The open alerts it was told of; at most as many as can be open.
    told: BTreeSet<Uuid>,
}

impl Route {
    pub fn new(level: AlertLevel) -> Self {
        Self { level, told: BTreeSet::new() }
    }

    /// Takes note of an alert that was told of before there was this route, if the channel is one that heard of it.
    pub fn know(&mut self, alert: Uuid, worst: AlertLevel) {
        if worst >= self.level && self.told.len() < crate::book::MAX_ACTIVE {
            self.told.insert(alert);
        }
    }

    /// Whether this event is for the channel.
    pub fn wants(&mut self, event: &AlertEvent) -> bool {
        let wanted = event.level >= self.level || self.told.contains(&event.alert_id);
        if event.action == AlertAction::Cleared {
            self.told.remove(&event.alert_id);
        } else if wanted && self.told.len() < crate::book::MAX_ACTIVE {
            self.told.insert(event.alert_id);
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AlertAction::{Cleared, Lowered, Raised};
    use AlertLevel::{Critical, Warning};
    use jiff::Timestamp;

    #[test]
    fn who_heard_of_the_beginning_hears_of_the_end() {
        let event = |action, level, id: u128| AlertEvent {
            timestamp: Timestamp::UNIX_EPOCH,
            alert_id: Uuid::from_u128(id),
            action,
            level,
            metric: "m".into(),
            tags: crate::Tags::default(),
            value: 1.0,
            threshold: 1.0,
            message: String::new(),
            by: None,
            note: None,
        };
        let mut route = Route::new(Critical);
        let life = [(Raised, Warning), (Raised, Critical), (Lowered, Warning), (Cleared, Warning), (Raised, Warning)];
        let told: Vec<bool> = life.iter().map(|(action, level)| route.wants(&event(*action, *level, 1))).collect();
        assert_eq!(told, [false, true, true, true, false]);
        assert!(!route.wants(&event(Cleared, Warning, 2)), "an alert it never heard of");
    }
}

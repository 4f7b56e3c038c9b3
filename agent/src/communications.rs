//! What was said to others, and whether they took it: the rows of `communication_logs`.

use crate::keep::Kept;
use picket_monitor::{Attempt, Hear};
use picket_store::Table;
use serde::Serialize;
use std::sync::Arc;
use uuid::Uuid;

/// One attempt to reach somebody.
#[derive(Serialize)]
struct Communication<'a> {
    /// What it was about: `alerts`.
    about: &'static str,
    /// Through what kind of channel, and which by its place in the configuration.
    channel: &'static str,
    index: usize,
    /// Which alerts were to be told.
    alerts: Vec<Uuid>,
    attempt: u32,
    took_ms: u64,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> Communication<'a> {
    fn of(attempt: &Attempt<'a>) -> Self {
        Self {
            about: "alerts",
            channel: attempt.channel.as_str(),
            index: attempt.index,
            alerts: attempt.events.iter().map(|event| event.alert_id).collect(),
            attempt: attempt.number,
            took_ms: u64::try_from(attempt.took.as_millis()).unwrap_or(u64::MAX),
            outcome: match (attempt.error, attempt.again) {
                (None, _) => "accepted",
                (Some(_), true) => "failed",
                (Some(_), false) => "given_up",
            },
            error: attempt.error,
        }
    }
}

/// Keeps each attempt to tell of alerts.
pub(crate) fn keep_attempts(kept: &Arc<Kept>) -> Hear {
    let kept = Arc::clone(kept);
    Arc::new(move |attempt| {
        kept.record(Table::CommunicationLogs, jiff::Timestamp::now(), &Communication::of(attempt));
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_monitor::ChannelKind;
    use std::time::Duration;

    #[test]
    fn a_row_says_who_was_told_what_and_how_it_ended() {
        let attempt = Attempt {
            index: 1,
            channel: ChannelKind::Webhook,
            events: &[],
            number: 6,
            took: Duration::from_millis(12),
            error: Some("503 Service Unavailable"),
            again: false,
        };
        let row = serde_json::to_value(Communication::of(&attempt)).unwrap();
        assert_eq!(
            row,
            serde_json::json!({
                "about": "alerts", "channel": "webhook", "index": 1, "alerts": [], "attempt": 6, "took_ms": 12,
                "outcome": "given_up", "error": "503 Service Unavailable",
            })
        );
        assert_eq!(Communication::of(&Attempt { error: None, ..attempt }).outcome, "accepted");
    }
}

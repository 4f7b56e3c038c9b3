//! What is handed to the outbox: a draft of a record, or the news that something is missing.

use picket_protocol::event::{EVENT_MAX_BYTES, EventBody, Fold, GapEvent, GapReason, Priority};

/// The highest count that is believed of what others tell: the largest that every JSON reader keeps exact (RFC 8259 §6).
/// Thousands of such counts still fit into the books.
const COUNT_MAX: u64 = 1 << 53;

/// A record before it has an identity. Its payload is the event's body as JSON, `{"type": …, "details": …}`; the rest of
/// the wire form (schema, device, boot, sequence, class) is put around it when it is sent, so that the caller need not
/// know the identity and a changed device id applies to what waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What is given up first when there is no room.
    pub class: Priority,
    /// How many events it stands for; at least 1.
    pub weight: u64,
    /// When it happened, by the wall clock, in milliseconds since 1970.
    pub at_ms: i64,
    /// The event's body as JSON.
    pub body: Vec<u8>,
}

/// An event that cannot be written in the wire's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the event cannot be written as JSON of at most {EVENT_MAX_BYTES} bytes")]
pub struct FormatError;

impl Draft {
    /// Writes `event` in its wire form. A folded event weighs as many as it stands for.
    ///
    /// # Errors
    /// [`FormatError`] when it cannot be written or is longer than [`EVENT_MAX_BYTES`].
    pub fn event(event: &EventBody) -> Result<Self, FormatError> {
        let body = serde_json::to_vec(event).map_err(|_| FormatError)?;
        if body.len() > EVENT_MAX_BYTES {
            return Err(FormatError);
        }
        Ok(Self { class: event.class(), weight: weight(event), at_ms: event.timestamp().as_millisecond(), body })
    }
}

/// How many events `event` stands for.
pub(crate) fn weight(event: &EventBody) -> u64 {
    let fold: Option<&Fold> = match event {
        EventBody::File(event) => event.fold.as_ref(),
        EventBody::Network(event) => event.fold.as_ref(),
        EventBody::Alert(_) | EventBody::Gap(_) | EventBody::Config(_) => None,
    };
    fold.map_or(1, |fold| fold.count.clamp(1, COUNT_MAX))
}

/// Events that were given up before they became a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// The class they were of.
    pub class: Priority,
    /// Where: `files`, `network`, `outbox`, `sensor`.
    pub source: String,
    /// How many; `None` where nobody can know.
    pub count: Option<u64>,
    /// The time that is affected, where it is known.
    pub since: Option<jiff::Timestamp>,
    /// The whole in words.
    pub detail: String,
}

impl Gap {
    /// The news of a watcher that `event` tells; watchers lose file and network events, which are of class normal.
    pub fn of_event(event: GapEvent) -> Self {
        let GapEvent { reason, source, count, since, detail, timestamp: _ } = event;
        let count = count.map(|count| count.min(COUNT_MAX));
        Self { reason, class: Priority::Normal, source, count, since, detail }
    }

    /// A gap within the outbox itself.
    pub(crate) fn own(reason: GapReason, class: Priority, count: Option<u64>) -> Self {
        let detail = detail(reason).to_owned();
        Self { reason, class, source: "outbox".to_owned(), count, since: None, detail }
    }
}

/// What the outbox says of its own gaps.
fn detail(reason: GapReason) -> &'static str {
    match reason {
        GapReason::QueueFull => "events came faster than they could be stored; the lowest class was given up first",
        GapReason::QuotaBytes => "the outbox reached its size while nothing could be delivered; the oldest went first",
        GapReason::QuotaAge => "the events could not be delivered within the time they are kept",
        GapReason::DiskFull => "the disk took no more and the memory set aside for that ran out",
        GapReason::Corruption => "stored or waiting events were lost to damage or a killed process",
        GapReason::Format => "the events could not be written in the wire's form, or the receiver refuses them",
        GapReason::Shed => "somebody asked for the events to be dropped",
        GapReason::ProcessLost => "the process that held the events ended before it handed them on",
        GapReason::RateLimit | GapReason::KernelOverflow | GapReason::Unwatched | GapReason::Unknown => {
            "the events were missed before they reached the outbox"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_nothing_can_have_seen_is_cut_to_what_books_can_hold() {
        let told = |count: u64| {
            let json = serde_json::json!({ "timestamp": "2026-11-21T12:00:00Z", "reason": "kernel_overflow",
                "source": "files", "count": count, "detail": "" });
            Gap::of_event(serde_json::from_value(json).unwrap()).count
        };
        assert_eq!((told(7), told(1 << 53), told(u64::MAX)), (Some(7), Some(1 << 53), Some(1 << 53)));
    }
}

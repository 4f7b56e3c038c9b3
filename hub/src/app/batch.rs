//! A batch of events as it comes: unpacked within its bounds, read line by line.
//!
//! What is asked of a line is what the books and the judge need; the rest of it is kept as it came, so that an event of a
//! later agent loses nothing on an older hub.

use crate::app::admission::Turn;
use crate::app::intake::Room;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use jiff::Timestamp;
use picket_hub_db::{EVENT_MIN_TIME, EventData, NewEvent};
use picket_protocol::event::{EVENT_MAX_BYTES, Priority};
use picket_protocol::hub::{EventsAnswer, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, ProblemCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// The events of one stream.
pub type Streams = BTreeMap<Uuid, Vec<NewEvent>>;

#[derive(Deserialize)]
struct Line<'a> {
    boot_id: Uuid,
    seq: u64,
    class: Priority,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    details: &'a RawValue,
}

#[derive(Deserialize)]
struct Details {
    timestamp: Timestamp,
    #[serde(default)]
    count: Option<u64>,
    #[serde(default)]
    fold: Option<Fold>,
}

#[derive(Deserialize)]
struct Fold {
    count: u64,
}

/// Whether a batch of `raw_bytes` before compression is taken.
///
/// # Errors
/// `too_large`, when it is not.
pub fn check_size(raw_bytes: usize) -> Outcome<()> {
    if raw_bytes <= MAX_BATCH_BYTES {
        return Ok(());
    }
    let detail = format!("a batch of {raw_bytes} bytes is larger than the {MAX_BATCH_BYTES} that are taken");
    Err(Refusal::new(ProblemCode::TooLarge, detail))
}

/// Unpacks a batch of at most [`MAX_BATCH_BYTES`] that came at `now`, and reads its lines, by stream.
///
/// # Errors
/// `too_large`, or `invalid` with the number of the line that is wrong: the sender finds the event and counts it as a gap.
pub fn read(packed: &[u8], raw_bytes: usize, now: Timestamp) -> Outcome<Streams> {
    let invalid = |detail: String| Refusal::new(ProblemCode::Invalid, detail);
    check_size(raw_bytes)?;
    // The size is the sender's word, and the limit of what is written: a bomb ends here as an error.
    let lines = zstd::bulk::decompress(packed, raw_bytes)
        .map_err(|error| invalid(format!("the batch is no zstd frame of {raw_bytes} bytes: {error}")))?;
    if lines.len() != raw_bytes {
        return Err(invalid(format!("the batch has {} bytes, not the {raw_bytes} that were announced", lines.len())));
    }
    let mut streams = Streams::new();
    for (index, line) in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
        let number = index + 1;
        if number > MAX_BATCH_RECORDS {
            return Err(invalid(format!("the batch has more than {MAX_BATCH_RECORDS} events")));
        }
        if line.len() > EVENT_MAX_BYTES * 2 {
            return Err(invalid(format!("event {number} is longer than an event may be")));
        }
        let (boot, event) = event(line, now).map_err(|why| invalid(format!("event {number} cannot be read: {why}")))?;
        event.check().map_err(|error| invalid(format!("event {number}: {error}")))?;
        streams.entry(boot).or_default().push(event);
    }
    if streams.is_empty() {
        return Err(invalid("the batch has no event".to_owned()));
    }
    Ok(streams)
}

fn event(line: &[u8], now: Timestamp) -> Result<(Uuid, NewEvent), serde_json::Error> {
    let line: Line<'_> = serde_json::from_slice(line)?;
    let details: Details = serde_json::from_str(line.details.get())?;
    let is_gap = line.kind == "gap";
    let event = NewEvent {
        seq: line.seq,
        class: line.class,
        // A time that no database keeps is a clock's, not the event's: it is kept under the time at which it came, and
        // what the clock said stays in its details.
        timestamp: if details.timestamp < EVENT_MIN_TIME { now } else { details.timestamp },
        weight: if is_gap { 0 } else { details.fold.map_or(1, |fold| fold.count) },
        gap: if is_gap { details.count.unwrap_or(0) } else { 0 },
        data: EventData::of_json(line.details),
        kind: line.kind.into_owned(),
    };
    Ok((line.boot_id, event))
}

/// The first and the last number of each stream: by them an event is found again in the logs on its way.
fn places(streams: &Streams) -> Vec<(Uuid, u64, u64)> {
    let ends = |(boot_id, events): (&Uuid, &Vec<NewEvent>)| {
        let seqs = || events.iter().map(|event| event.seq);
        Some((*boot_id, seqs().min()?, seqs().max()?))
    };
    streams.iter().filter_map(ends).collect()
}

impl Hub {
    /// An agent's turn to have a batch stored. One that sends slowly, or in many pieces at once, cannot take the room of all.
    ///
    /// # Errors
    /// `overloaded`, when as many of it are on their way as may be.
    pub fn batch_turn(&self, agent: Uuid) -> Outcome<Turn<Uuid>> {
        self.batches_each.take(agent).ok_or_else(|| {
            let detail = "as many batches of this agent are on their way as may be; send one after the other";
            Refusal::new(ProblemCode::Overloaded, detail).after(Duration::from_secs(1))
        })
    }

    /// Unpacks an agent's batch and stores it. When this returns, all of it is on disk.
    ///
    /// # Errors
    /// When it is no batch, or not known to be stored.
    pub async fn take_batch(&self, agent: Uuid, packed: &[u8], raw_bytes: usize, room: Room) -> Outcome<EventsAnswer> {
        let now = self.clock.now();
        let streams = read(packed, raw_bytes, now)?;
        let places = tracing::enabled!(tracing::Level::DEBUG).then(|| places(&streams));
        let stored = self.intake.store(agent, streams, now, room).await?;
        for (boot_id, first_seq, last_seq) in places.into_iter().flatten() {
            tracing::debug!(%agent, %boot_id, first_seq, last_seq, "events are stored");
        }
        Ok(EventsAnswer { stored: stored.new, duplicates: stored.duplicates, hub_time: self.clock.now() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(lines: &str) -> (Vec<u8>, usize) {
        (zstd::bulk::compress(lines.as_bytes(), 3).unwrap(), lines.len())
    }

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn line(seq: u64, rest: &str) -> String {
        let boot = Uuid::nil();
        format!(r#"{{"schema":1,"device_id":"x","boot_id":"{boot}","seq":{seq},"class":"normal",{rest}}}"#)
    }

    #[test]
    fn what_a_line_stands_for_is_read_and_its_details_are_kept_to_the_byte() {
        let details = r#"{"timestamp":"2026-11-21T12:00:00Z", "path" : "/etc/ä", "new":[1.0e3]}"#;
        let folded = r#"{"timestamp":"2026-11-21T12:00:00Z","fold":{"count":7,"first":"","last":""}}"#;
        let gap = r#"{"timestamp":"2026-11-21T12:00:00Z","reason":"shed","count":40}"#;
        let lines = [
            line(1, &format!(r#""type":"file","details":{details}"#)),
            line(2, &format!(r#""type":"network","details":{folded}"#)),
            line(3, &format!(r#""type":"gap","details":{gap}"#)),
            line(4, &format!(r#""type":"of_tomorrow","details":{details}"#)),
        ]
        .join("\n");
        let (packed, size) = pack(&lines);
        let streams = read(&packed, size, now()).unwrap();
        let events = &streams[&Uuid::nil()];
        let counts: Vec<_> = events.iter().map(|event| (event.seq, event.weight, event.gap)).collect();
        assert_eq!(counts, [(1, 1, 0), (2, 7, 0), (3, 0, 40), (4, 1, 0)]);
        assert_eq!((events[0].data.as_str(), events[3].kind.as_str()), (details, "of_tomorrow"));
    }

    #[test]
    fn an_event_of_an_impossible_time_is_kept_under_the_time_at_which_it_came() {
        let details = r#"{"timestamp":"-009999-03-01T00:00:00Z"}"#;
        let (packed, size) = pack(&line(1, &format!(r#""type":"file","details":{details}"#)));
        let streams = read(&packed, size, now()).unwrap();
        let event = &streams[&Uuid::nil()][0];
        assert_eq!((event.timestamp, event.data.as_str()), (now(), details));
        let odd = line(1, r#""type":"file","details":{"timestamp":"1969-07-20T20:17:00Z"}"#);
        let (packed, size) = pack(&odd);
        let streams = read(&packed, size, now()).unwrap();
        assert!(streams[&Uuid::nil()][0].timestamp < now(), "odd, and possible");
    }

    #[test]
    fn the_line_that_is_wrong_is_named() {
        let good = line(1, r#""type":"x","details":{"timestamp":"2026-11-21T12:00:00Z"}"#);
        for bad in [
            "[]".to_owned(),
            line(0, r#""type":"x","details":{"timestamp":"2026-11-21T12:00:00Z"}"#),
            line(2, r#""type":"x","details":{}"#),
            line(2, r#""type":"","details":{"timestamp":"2026-11-21T12:00:00Z"}"#),
        ] {
            let (packed, size) = pack(&format!("{good}\n{bad}\n"));
            let refusal = read(&packed, size, now()).unwrap_err();
            assert_eq!(refusal.code(), ProblemCode::Invalid);
            assert!(refusal.to_string().contains("event 2"), "{refusal}");
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_unpacked() {
        let zeros = vec![b' '; 100 << 20];
        let bomb = zstd::bulk::compress(&zeros, 1).unwrap();
        assert_eq!(read(&bomb, zeros.len(), now()).unwrap_err().code(), ProblemCode::TooLarge);
        assert_eq!(read(&bomb, 1 << 10, now()).unwrap_err().code(), ProblemCode::Invalid, "more than it says");
        let (packed, size) = pack(" ");
        assert_eq!(read(&packed, size + 5, now()).unwrap_err().code(), ProblemCode::Invalid, "less than it says");
        assert_eq!(read(&[], 0, now()).unwrap_err().code(), ProblemCode::Invalid);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), size in 0usize..1000) {
            let _ = read(&bytes, size, now());
            let packed = zstd::bulk::compress(&bytes, 1).unwrap();
            let _ = read(&packed, bytes.len(), now());
        }
    }
}

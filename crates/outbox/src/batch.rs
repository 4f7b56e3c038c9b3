//! What is handed out to be delivered, and its form on the wire.

use crate::lane::Lane;
use picket_protocol::event::{EVENT_SCHEMA, EventId, Priority};
use serde::Serialize;
use std::collections::BTreeMap;
use uuid::Uuid;

/// zstd's level: 3 is its default, at which telemetry shrinks about thirteen-fold at some hundred MB/s.
const ZSTD_LEVEL: i32 = 3;
/// The bytes of the envelope around a body, about: schema, device, boot, sequence and class.
pub(crate) const ENVELOPE_BYTES: usize = 160;

/// One record of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its identity.
    pub id: EventId,
    /// Its class.
    pub class: Priority,
    /// How many events it stands for; 0 for a gap record, which speaks of events that are missing.
    pub weight: u64,
    /// The event's body as JSON.
    pub body: Vec<u8>,
    pub(crate) lane: Lane,
    pub(crate) lost: u64,
    pub(crate) stored_bytes: u64,
}

/// Records that were handed out. Until it is acknowledged or released, the same records are handed out again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub(crate) token: u64,
    /// The records, the most urgent lane first.
    pub records: Vec<Record>,
}

/// A batch as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedBatch {
    /// The events, one JSON object a line, compressed with zstd.
    pub bytes: Vec<u8>,
    /// The bytes before compression; a receiver refuses a greater number before it reserves memory for it.
    pub uncompressed_bytes: usize,
    /// How many records it has.
    pub records: usize,
}

impl Batch {
    /// How many events it stands for.
    pub fn weight(&self) -> u64 {
        self.records.iter().map(|record| record.weight).sum()
    }

    /// The first and the last number of each stream of it: by them its events are found again in the logs on their way.
    pub fn places(&self) -> BTreeMap<Uuid, (u64, u64)> {
        let mut places = BTreeMap::new();
        for EventId { boot_id, seq } in self.records.iter().map(|record| record.id) {
            let (first, last) = places.entry(boot_id).or_insert((seq, seq));
            (*first, *last) = (seq.min(*first), seq.max(*last));
        }
        places
    }

    /// The events as they go on the wire, one a line: each is a `picket_protocol::event::Event`.
    pub fn lines(&self, device_id: &str) -> Vec<u8> {
        let size = self.records.iter().map(|record| record.body.len() + ENVELOPE_BYTES).sum();
        let mut lines = Vec::with_capacity(size);
        for record in &self.records {
            record.write_line(device_id, &mut lines);
        }
        lines
    }

    /// Puts it into the form in which it is sent.
    ///
    /// # Errors
    /// When zstd has no memory.
    pub fn encode(&self, device_id: &str) -> std::io::Result<EncodedBatch> {
        let lines = self.lines(device_id);
        let bytes = zstd::bulk::compress(&lines, ZSTD_LEVEL)?;
        Ok(EncodedBatch { bytes, uncompressed_bytes: lines.len(), records: self.records.len() })
    }
}

/// What stands before the body's own members.
#[derive(Serialize)]
struct Envelope<'a> {
    schema: u32,
    device_id: &'a str,
    #[serde(flatten)]
    id: EventId,
    class: Priority,
}

impl Record {
    /// One line: the envelope's members and the body's in one object.
    fn write_line(&self, device_id: &str, out: &mut Vec<u8>) {
        let envelope = Envelope { schema: EVENT_SCHEMA, device_id, id: self.id, class: self.class };
        let begin = out.len();
        // Only a map key that is no string, or a writer that fails, makes serde_json fail; here is neither.
        if serde_json::to_writer(&mut *out, &envelope).is_err() || self.body.first() != Some(&b'{') {
            out.truncate(begin);
            return;
        }
        out.pop();
        if self.body.get(1) != Some(&b'}') {
            out.push(b',');
        }
        out.extend_from_slice(&self.body[1..]);
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::event::{ConfigEvent, Event, EventBody};
    use uuid::Uuid;

    #[test]
    fn what_is_sent_reads_as_the_events_that_were_emitted() {
        let body = EventBody::Config(ConfigEvent {
            timestamp: "2026-11-21T12:00:00Z".parse().unwrap(),
            sha256: "ab".into(),
            cause: "start \"quoted\"\n".into(),
            changed: vec!["log.level".into()],
            needs_restart: vec![],
        });
        let id = EventId { boot_id: Uuid::now_v7(), seq: 3 };
        let bytes = serde_json::to_vec(&body).unwrap();
        let record =
            Record { id, class: Priority::High, weight: 1, body: bytes, lane: Lane::High, lost: 0, stored_bytes: 0 };
        let batch = Batch { token: 1, records: vec![record.clone(), record] };
        let encoded = batch.encode("agent-123").unwrap();
        let lines = zstd::bulk::decompress(&encoded.bytes, encoded.uncompressed_bytes).unwrap();
        let events: Vec<Event> = lines
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect();
        let expected = Event { schema: EVENT_SCHEMA, device_id: "agent-123".into(), id, class: Priority::High, body };
        assert_eq!(events, [expected.clone(), expected]);
        assert_eq!(encoded.records, 2);
    }
}

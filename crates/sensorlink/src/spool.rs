//! The queue on disk, between the end of one sensor and the start of the next.
//!
//! A sensor that ends in good order writes its numbers and its queue; the next one reads them, removes the file *before*
//! it gives a new number, and goes on. So a number is never given twice. Where there is no such file but an earlier life
//! is known of, that life was killed: the next one is a new incarnation and begins with a gap.

use crate::queue::{Limits, Position, Queue, SOURCE};
use picket_protocol::GapReason;
use picket_protocol::event::GapEvent;
use picket_protocol::sensor::Numbered;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The schema number of the file.
const SCHEMA: u32 = 1;

/// The largest file, in bytes: the queue at its limit, what was on the way beside it, and room for gaps.
fn max_bytes(limits: Limits) -> u64 {
    2 * limits.bytes as u64 + (4 << 20)
}

/// The first line of the file. Each other line is one event.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    schema: u32,
    incarnation: Uuid,
    position: Position,
    lines: u64,
}

/// The files of one sensor.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    dir: PathBuf,
}

impl Spool {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn queue_file(&self) -> PathBuf {
        self.dir.join("queue.ndjson")
    }

    fn incarnation_file(&self) -> PathBuf {
        self.dir.join("incarnation")
    }

    /// What an earlier life left, or a new life. When this returns, nothing of it is on disk any more but the
    /// incarnation's name.
    pub(crate) fn take(&self, limits: Limits, now: jiff::Timestamp) -> Result<(Uuid, Queue), picket_durable::Error> {
        let left = picket_durable::read_if_present(&self.queue_file(), max_bytes(limits));
        let (incarnation, queue) = match left {
            Ok(Some(bytes)) => self.resume(&bytes, limits, now),
            Ok(None) => (Uuid::now_v7(), self.begin(limits, now)),
            Err(error) => {
                tracing::error!(%error, "the stored queue cannot be read");
                (Uuid::now_v7(), damaged(limits, now))
            }
        };
        // In this order: after a crash in between, the next life knows that this one was.
        picket_durable::write_atomic(&self.incarnation_file(), format!("{incarnation}\n").as_bytes(), 0o600)?;
        picket_durable::remove_if_present(&self.queue_file())?;
        Ok((incarnation, queue))
    }

    /// A new life. If there was one before, it did not end in good order.
    fn begin(&self, limits: Limits, now: jiff::Timestamp) -> Queue {
        let mut queue = Queue::new(limits, Position::default());
        if self.incarnation_file().exists() {
            tracing::warn!("the sensor before this one ended without handing its queue on");
            queue.push_gap(GapEvent {
                timestamp: now,
                reason: GapReason::ProcessLost,
                source: SOURCE.to_owned(),
                count: None,
                since: None,
                detail: "the sensor ended without handing on what the agent had not taken yet".to_owned(),
            });
        }
        queue
    }

    fn resume(&self, bytes: &[u8], limits: Limits, now: jiff::Timestamp) -> (Uuid, Queue) {
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let header: Option<Header> = lines.next().and_then(|line| serde_json::from_slice(line).ok());
        let Some(header) = header.filter(|header| header.schema == SCHEMA && header.position.is_sound()) else {
            tracing::error!(file = %self.queue_file().display(), "the stored queue is damaged");
            return (Uuid::now_v7(), damaged(limits, now));
        };
        let mut queue = Queue::new(limits, header.position);
        let mut read = 0;
        let mut last = header.position.acked;
        for line in lines.filter(|line| !line.is_empty()) {
            let Ok(Numbered { seq, event }) = serde_json::from_slice(line) else { continue };
            if seq <= last || seq >= header.position.next {
                continue;
            }
            queue.restore(seq, event, line);
            (last, read) = (seq, read + 1);
        }
        queue.reconcile(read < header.lines, now);
        (header.incarnation, queue)
    }

    /// Writes the queue for the next life.
    pub(crate) fn put(&self, incarnation: Uuid, queue: &Queue) -> Result<(), picket_durable::Error> {
        let path = self.queue_file();
        let failed =
            |error: serde_json::Error| picket_durable::Error::new("write", &path, std::io::Error::other(error));
        let events = queue.encoded().map_err(failed)?;
        let header = Header { schema: SCHEMA, incarnation, position: queue.position(), lines: events.len() as u64 };
        let mut bytes = serde_json::to_vec(&header).map_err(failed)?;
        for (_, encoded) in events {
            bytes.push(b'\n');
            bytes.extend_from_slice(&encoded);
        }
        bytes.push(b'\n');
        picket_durable::write_atomic(&path, &bytes, 0o600)
    }
}

/// A new life after one whose queue cannot be read at all.
fn damaged(limits: Limits, now: jiff::Timestamp) -> Queue {
    let mut queue = Queue::new(limits, Position::default());
    queue.push_gap(GapEvent {
        timestamp: now,
        reason: GapReason::Corruption,
        source: SOURCE.to_owned(),
        count: None,
        since: None,
        detail: "the queue that the sensor before this one stored cannot be read".to_owned(),
    });
    queue
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::tests::{NOW, file};
    use picket_protocol::EventBody;
    use picket_protocol::sensor::{Events, Frame};
    use proptest::prelude::*;

    fn events(queue: &mut Queue) -> Vec<Numbered> {
        let Some(ready) = queue.frame_after(0).unwrap() else { return Vec::new() };
        let Frame::Events(Events { events }) = Frame::decode(&ready.bytes[4..]).unwrap() else { panic!("no events") };
        events
    }

    fn filled() -> Queue {
        let mut queue = Queue::new(Limits { bytes: 1 << 20, events: 4 }, Position::default());
        for name in ["/a", "/b", "/c", "/d", "/e", "/f"] {
            queue.push(file(name), NOW);
        }
        queue
    }

    #[test]
    fn a_life_that_ended_in_good_order_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path());
        let (incarnation, mut queue) = spool.take(Limits::default(), NOW).unwrap();
        assert!(queue.is_empty(), "the first life ever begins with nothing");
        queue.push(file("/before"), NOW);
        spool.put(incarnation, &queue).unwrap();
        let (again, mut restored) = spool.take(Limits::default(), NOW).unwrap();
        assert_eq!((again, restored.counters()), (incarnation, queue.counters()));
        restored.push(file("/after"), NOW);
        let numbers: Vec<u64> = events(&mut restored).iter().map(|numbered| numbered.seq).collect();
        assert_eq!(numbers, [1, 2]);
    }

    #[test]
    fn a_life_that_was_killed_is_followed_by_another_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path());
        let (first, _) = spool.take(Limits::default(), NOW).unwrap();
        let (second, mut queue) = spool.take(Limits::default(), NOW).unwrap();
        assert_ne!(first, second);
        assert!(matches!(&events(&mut queue)[..], [Numbered { event: EventBody::Gap(gap), .. }]
            if gap.reason == GapReason::ProcessLost && gap.count.is_none()));
    }

    #[test]
    fn gaps_and_the_ledger_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path());
        let mut queue = filled();
        spool.put(Uuid::now_v7(), &queue).unwrap();
        let (_, mut restored) = spool.take(Limits { bytes: 1 << 20, events: 4 }, NOW).unwrap();
        assert_eq!(restored.counters(), queue.counters());
        assert_eq!(events(&mut restored), events(&mut queue));
    }

    #[test]
    fn a_line_that_is_damaged_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path());
        spool.put(Uuid::now_v7(), &filled()).unwrap();
        let bytes = picket_durable::read_bounded(&spool.queue_file(), 1 << 20).unwrap();
        let text = String::from_utf8(bytes).unwrap().replacen("\"/d\"", "/d\"", 1);
        picket_durable::write_atomic(&spool.queue_file(), text.as_bytes(), 0o600).unwrap();
        let (_, mut queue) = spool.take(Limits::default(), NOW).unwrap();
        let counters = queue.counters();
        assert_eq!(counters.emitted, counters.acknowledged + counters.queued + counters.shed);
        assert!(events(&mut queue).iter().any(|numbered| matches!(&numbered.event, EventBody::Gap(gap)
            if gap.reason == GapReason::Corruption && gap.count == Some(1))));
    }

    proptest! {
        #[test]
        fn no_bytes_in_its_place_keep_the_sensor_from_starting(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let dir = tempfile::tempdir().unwrap();
            let spool = Spool::new(dir.path());
            picket_durable::write_atomic(&spool.queue_file(), &bytes, 0o600).unwrap();
            spool.take(Limits::default(), NOW).unwrap();
        }

        #[test]
        fn no_change_of_it_keeps_the_sensor_from_starting(at in 0_usize..2_000, to in any::<u8>()) {
            let dir = tempfile::tempdir().unwrap();
            let spool = Spool::new(dir.path());
            spool.put(Uuid::now_v7(), &filled()).unwrap();
            let mut bytes = picket_durable::read_bounded(&spool.queue_file(), 1 << 20).unwrap();
            let at = at % bytes.len();
            bytes[at] = to;
            picket_durable::write_atomic(&spool.queue_file(), &bytes, 0o600).unwrap();
            spool.take(Limits::default(), NOW).unwrap();
        }
    }
}

//! What the sensor and the agent of one machine say to each other: versioned frames over a Unix socket.
//!
//! A frame is its length in bytes (`u32`, big-endian) and one JSON object with the field `kind`. Both sides begin with
//! [`Hello`] and go on in the highest version that both know; while one of them is restarted by an update, the other is
//! still of the version before. A kind that a reader does not know is skipped ([`Frame::Unknown`]), as are unknown
//! fields; an event that it does not know becomes a counted gap.
//!
//! ```text
//! agent → sensor   hello {versions, program, mark}     the mark: what is durable of which incarnation
//! sensor → agent   hello {versions, program, incarnation}
//! sensor → agent   sight {sights}, counters {…}        at once, on every change, and as a sign of life
//! sensor → agent   events {events: [{seq, event}, …]}  ascending, each at least once
//! agent → sensor   ack {up_to}                         everything up to it is durable
//! either           bye {reason}
//! ```

use crate::event::{EventBody, GapEvent, GapReason};
use crate::sight::Sight;
pub use crate::versions::VersionRange;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use uuid::Uuid;

/// The versions of the frames that this program understands. Version 1 is the first.
pub const VERSIONS: VersionRange = VersionRange { oldest: 1, newest: 1 };

/// The longest frame in bytes, its length not counted.
pub const FRAME_MAX_BYTES: usize = 1 << 20;

/// How much of an events frame is filled before the next one is begun, in bytes: an event of the greatest length
/// ([`crate::event::EVENT_MAX_BYTES`]) still fits behind it.
pub const EVENTS_TARGET_BYTES: usize = 256 << 10;

/// How far an agent got: everything of this incarnation up to this sequence number is durable on its side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Which life of the sensor the number belongs to.
    pub incarnation: Uuid,
    /// The number.
    pub seq: u64,
}

/// The first frame of each side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The versions of the frames that the writer understands.
    pub versions: VersionRange,
    /// The program's version, for logs and health.
    pub program: String,
    /// Of the sensor: the life its sequence numbers belong to. A sensor that ended in good order goes on with the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Uuid>,
    /// Of the agent: how far it got, where it got anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
}

/// One event with its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Numbered {
    /// Counts from 1 within the incarnation. A number that never comes was given up, and counted in a gap.
    pub seq: u64,
    /// What happened.
    pub event: EventBody,
}

/// What the sensor counted in its incarnation. `emitted = acknowledged + queued + shed` at every instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Events that the watchers reported; gaps are not events.
    pub emitted: u64,
    /// Events that the agent acknowledged.
    pub acknowledged: u64,
    /// Events that wait for its acknowledgement.
    pub queued: u64,
    /// Events that were given up, each counted in a gap.
    pub shed: u64,
    /// The bytes in the queue.
    pub queued_bytes: u64,
    /// The queue's limit in bytes.
    pub limit_bytes: u64,
    /// The queue's limit in events.
    pub limit_events: u64,
}

/// Acknowledges events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Every event up to this number is durable.
    pub up_to: u64,
}

/// How much each watcher sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sights {
    /// One for each watcher.
    pub sights: Vec<Sight>,
}

/// Why the connection ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// In words.
    pub reason: String,
}

/// A run of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Events {
    /// The events, in ascending order.
    pub events: Vec<Numbered>,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Frame {
    /// The first of each side.
    Hello(Hello),
    /// What was seen.
    Events(Events),
    /// What is durable.
    Ack(Ack),
    /// How much is seen.
    Sight(Sights),
    /// What was counted.
    Counters(Counters),
    /// The end.
    Bye(Bye),
    /// A kind of a later version: to be skipped.
    Unknown,
}

/// Why a frame cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed or ended within a frame.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The frame says that it is longer than a frame may be, or empty.
    #[error("a frame of {0} bytes; at most {FRAME_MAX_BYTES} are allowed, and at least 2")]
    Length(u64),
    /// What is in it is no frame.
    #[error("the frame cannot be read")]
    Json(#[from] serde_json::Error),
}

/// The one field that is read before the rest.
#[derive(Deserialize)]
struct Head {
    kind: String,
}

impl Frame {
    /// Reads a frame without its length.
    ///
    /// # Errors
    /// [`FrameError::Length`] and [`FrameError::Json`]; never for a kind that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() > FRAME_MAX_BYTES {
            return Err(FrameError::Length(bytes.len() as u64));
        }
        let head: Head = serde_json::from_slice(bytes)?;
        Ok(match head.kind.as_str() {
            "hello" => Self::Hello(serde_json::from_slice(bytes)?),
            "events" => Self::Events(decode_events(bytes)?),
            "ack" => Self::Ack(serde_json::from_slice(bytes)?),
            "sight" => Self::Sight(serde_json::from_slice(bytes)?),
            "counters" => Self::Counters(serde_json::from_slice(bytes)?),
            "bye" => Self::Bye(serde_json::from_slice(bytes)?),
            _ => Self::Unknown,
        })
    }

    /// The frame with its length before it.
    ///
    /// # Errors
    /// [`FrameError::Length`] for more than [`FRAME_MAX_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut bytes = vec![0; 4];
        serde_json::to_writer(&mut bytes, self)?;
        with_length(bytes)
    }

    /// Reads the next frame; `None` where the connection ended between two frames.
    ///
    /// # Errors
    /// See [`FrameError`]. A length is believed only as far as bytes arrive: it makes nobody reserve memory.
    pub fn read(from: &mut impl Read) -> Result<Option<Self>, FrameError> {
        let mut length = [0; 4];
        if !read_or_end(from, &mut length)? {
            return Ok(None);
        }
        let length = u32::from_be_bytes(length);
        if !(2..=FRAME_MAX_BYTES as u64).contains(&u64::from(length)) {
            return Err(FrameError::Length(u64::from(length)));
        }
        let mut bytes = Vec::new();
        if from.take(u64::from(length)).read_to_end(&mut bytes)? < length as usize {
            return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        Self::decode(&bytes).map(Some)
    }

    /// Writes the frame.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn write(&self, to: &mut impl Write) -> Result<(), FrameError> {
        Ok(to.write_all(&self.encode()?)?)
    }
}

/// Fills `buffer`; `false` where not one byte comes before the end.
fn read_or_end(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn with_length(mut bytes: Vec<u8>) -> Result<Vec<u8>, FrameError> {
    let length = bytes.len() - 4;
    let prefix = u32::try_from(length).ok().filter(|_| length <= FRAME_MAX_BYTES);
    let prefix = prefix.ok_or(FrameError::Length(length as u64))?;
    bytes[..4].copy_from_slice(&prefix.to_be_bytes());
    Ok(bytes)
}

/// Events, each for itself: one of a later version becomes a gap instead of ending the connection.
fn decode_events(bytes: &[u8]) -> Result<Events, FrameError> {
    #[derive(Deserialize)]
    struct Loose {
        events: Vec<LooseNumbered>,
    }
    #[derive(Deserialize)]
    struct LooseNumbered {
        seq: u64,
        event: serde_json::Value,
    }
    if let Ok(events) = serde_json::from_slice(bytes) {
        return Ok(events);
    }
    let loose: Loose = serde_json::from_slice(bytes)?;
    let events = loose.events.into_iter().map(|LooseNumbered { seq, event }| {
        let event = serde_json::from_value(event).unwrap_or_else(|error| {
            EventBody::Gap(GapEvent {
                timestamp: jiff::Timestamp::now(),
                reason: GapReason::Format,
                source: "sensor".to_owned(),
                count: Some(1),
                since: None,
                detail: format!("an event of the sensor that this version does not understand: {error}"),
            })
        });
        Numbered { seq, event }
    });
    Ok(Events { events: events.collect() })
}

/// One event in the form in which [`EventsFrame`] takes it.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn encode_event(seq: u64, event: &EventBody) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    struct Borrowed<'a> {
        seq: u64,
        event: &'a EventBody,
    }
    serde_json::to_vec(&Borrowed { seq, event })
}

/// An events frame made of events that are encoded already: they are kept so, and may be sent more than once.
#[derive(Debug)]
pub struct EventsFrame {
    bytes: Vec<u8>,
    count: usize,
}

impl Default for EventsFrame {
    fn default() -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(br#"{"kind":"events","events":["#);
        Self { bytes, count: 0 }
    }
}

impl EventsFrame {
    /// Whether another event still belongs into this frame.
    pub fn has_room(&self) -> bool {
        self.bytes.len() < EVENTS_TARGET_BYTES
    }

    /// How many events are in it.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds what [`encode_event`] made.
    pub fn push(&mut self, encoded: &[u8]) {
        if self.count > 0 {
            self.bytes.push(b',');
        }
        self.bytes.extend_from_slice(encoded);
        self.count += 1;
    }

    /// The frame with its length before it.
    ///
    /// # Errors
    /// [`FrameError::Length`] for more than [`FRAME_MAX_BYTES`].
    pub fn finish(mut self) -> Result<Vec<u8>, FrameError> {
        self.bytes.extend_from_slice(b"]}");
        with_length(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gap(count: u64) -> EventBody {
        EventBody::Gap(GapEvent {
            timestamp: jiff::Timestamp::UNIX_EPOCH,
            reason: GapReason::QueueFull,
            source: "sensor".to_owned(),
            count: Some(count),
            since: None,
            detail: String::new(),
        })
    }

    fn body(bytes: &[u8]) -> &[u8] {
        &bytes[4..]
    }

    #[test]
    fn neighbouring_versions_find_a_common_one_and_strangers_do_not() {
        let range = |oldest, newest| VersionRange { oldest, newest };
        assert_eq!(range(1, 1).common(range(1, 2)), Some(1));
        assert_eq!(range(2, 3).common(range(1, 2)), Some(2));
        assert_eq!(range(2, 3).common(range(2, 3)), Some(3));
        assert_eq!(range(3, 4).common(range(1, 2)), None);
        assert_eq!(range(9, 1).common(range(1, 9)), None);
        assert_eq!(VERSIONS.common(VERSIONS), Some(VERSIONS.newest));
    }

    #[test]
    fn every_frame_is_read_as_it_was_written() {
        let incarnation = Uuid::now_v7();
        let hello = Hello {
            versions: VERSIONS,
            program: "1.2.3".into(),
            incarnation: Some(incarnation),
            mark: Some(Mark { incarnation, seq: 7 }),
        };
        let frames = [
            Frame::Hello(hello),
            Frame::Events(Events { events: vec![Numbered { seq: 3, event: gap(1) }] }),
            Frame::Ack(Ack { up_to: 9 }),
            Frame::Sight(Sights { sights: Vec::new() }),
            Frame::Counters(Counters { emitted: 5, ..Counters::default() }),
            Frame::Bye(Bye { reason: "an update".into() }),
        ];
        let mut stream = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut stream).unwrap());
        let mut stream = stream.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut stream).unwrap(), Some(frame));
        }
        assert!(Frame::read(&mut stream).unwrap().is_none());
    }

    #[test]
    fn encoded_events_are_the_frame_that_would_have_been_written() {
        let mut frame = EventsFrame::default();
        for seq in [4, 8] {
            frame.push(&encode_event(seq, &gap(seq)).unwrap());
        }
        let events = [4, 8].map(|seq| Numbered { seq, event: gap(seq) }).to_vec();
        assert_eq!(Frame::decode(body(&frame.finish().unwrap())).unwrap(), Frame::Events(Events { events }));
    }

    #[test]
    fn kinds_fields_and_events_of_a_later_version_end_nothing() {
        assert_eq!(Frame::decode(br#"{"kind":"dance","with":{"me":[1]}}"#).unwrap(), Frame::Unknown);
        let hello = br#"{"kind":"hello","versions":{"oldest":2,"newest":3},"program":"9.0.0","mood":"good"}"#;
        assert!(matches!(Frame::decode(hello).unwrap(), Frame::Hello(Hello { incarnation: None, .. })));
        let events = br#"{"kind":"events","events":[{"seq":1,"event":{"type":"dream","details":{}}},
            {"seq":2,"event":{"type":"gap","details":{"timestamp":"1970-01-01T00:00:00Z","reason":"queue_full",
            "source":"sensor","count":2,"detail":""}}}]}"#;
        let Frame::Events(Events { events }) = Frame::decode(events).unwrap() else { panic!("no events") };
        assert!(matches!(&events[0].event, EventBody::Gap(gap) if gap.reason == GapReason::Format));
        assert_eq!((events[0].seq, &events[1]), (1, &Numbered { seq: 2, event: gap(2) }));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_anything_is_read() {
        let error = Frame::read(&mut [0xff_u8; 64].as_slice()).unwrap_err();
        assert!(matches!(error, FrameError::Length(length) if length == u64::from(u32::MAX)));
        assert!(matches!(Frame::read(&mut [0_u8; 8].as_slice()), Err(FrameError::Length(0))));
        assert!(matches!(Frame::read(&mut [0_u8, 0, 0, 9, b'{'].as_slice()), Err(FrameError::Io(_))));
        assert!(matches!(Frame::read(&mut [0_u8, 0].as_slice()), Err(FrameError::Io(_))));
        let long = Frame::Bye(Bye { reason: "x".repeat(FRAME_MAX_BYTES) });
        assert!(matches!(long.encode(), Err(FrameError::Length(_))));
    }

    #[test]
    fn the_longest_event_fits_behind_a_frame_that_has_room() {
        let mut frame = EventsFrame::default();
        let event = vec![b' '; crate::event::EVENT_MAX_BYTES];
        while frame.has_room() {
            frame.push(&event);
        }
        assert!(frame.finish().unwrap().len() <= FRAME_MAX_BYTES);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Frame::decode(&bytes);
            let _ = Frame::read(&mut bytes.as_slice());
        }

        #[test]
        fn no_change_of_a_frame_makes_the_reader_panic(at in 0_usize..200, to in any::<u8>(), cut in 0_usize..200) {
            let mut frame = EventsFrame::default();
            frame.push(&encode_event(1, &gap(1)).unwrap());
            let mut bytes = frame.finish().unwrap();
            let at = at % bytes.len();
            bytes[at] = to;
            bytes.truncate(bytes.len() - cut % bytes.len());
            let _ = Frame::read(&mut bytes.as_slice());
        }

        #[test]
        fn depth_is_no_way_to_overflow_the_stack(depth in 1_usize..100_000) {
            let text = format!(r#"{{"kind":"sight","sights":{}"#, "[".repeat(depth));
            let _ = Frame::decode(text.as_bytes());
        }
    }
}

//! Rows that may be brought twice, and are kept once.
//!
//! Whoever delivers events brings a run of them again when it did not hear that it was stored: it was killed between the
//! commit and the acknowledgement, or only part of the run could be written. Each event has its place in the stream it
//! comes from ([`Origin`]). `meta` remembers, written in the same transaction as the rows, which places the last two runs
//! had; what is among them is not stored again. No mark of "all up to here" is kept: a stream is delivered by classes, and
//! so not in the order of its places. What is in clear there are ids of streams and numbers.

use crate::error::Result;
use crate::schema;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use uuid::Uuid;

/// The key in `meta`.
const KEY: &str = "delivered";

/// The place of an event in the stream it comes from; no two events have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The stream: for events, the id of the boot.
    pub stream: Uuid,
    /// The number in it.
    pub number: u64,
}

/// Places, by stream.
type Places = BTreeMap<Uuid, BTreeSet<u64>>;

/// What the last runs brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Delivered {
    /// The run that is being written; none yet in this process.
    run: Option<u64>,
    /// What the run before brought, or an earlier process.
    before: Places,
    /// What of the present run was written.
    present: Places,
}

impl Delivered {
    /// What the file remembers. A record that does not read as one is none: rows may come twice then, none is lost.
    pub(crate) fn load(connection: &Connection, path: &Path) -> Result<Self> {
        let places = match schema::meta(connection, path, KEY) {
            Ok(value) => value.and_then(|bytes| decode(&bytes)).unwrap_or_default(),
            Err(error) if error.is_damage() => Places::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { run: None, before: places, present: Places::new() })
    }

    /// Notes a row of the run `run`; says whether it is to be stored, for it was not before.
    pub(crate) fn note(&mut self, run: u64, origin: Origin) -> bool {
        if self.run.is_some_and(|present| present != run) {
            self.before = std::mem::take(&mut self.present);
        }
        self.run = Some(run);
        let known = |places: &Places| places.get(&origin.stream).is_some_and(|all| all.contains(&origin.number));
        let is_new = !known(&self.before) && !known(&self.present);
        self.present.entry(origin.stream).or_default().insert(origin.number);
        is_new
    }

    /// Writes it, in the transaction of the rows.
    pub(crate) fn save(&self, connection: &Connection, path: &Path) -> Result<()> {
        let mut all = self.before.clone();
        for (stream, numbers) in &self.present {
            all.entry(*stream).or_default().extend(numbers);
        }
        schema::set_meta(connection, path, KEY, &encode(&all))
    }
}

/// For each stream its id, how many ranges there are (32 bits), and of each the first number and how many (64 bits each),
/// all big endian.
fn encode(places: &Places) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (stream, numbers) in places {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for number in numbers {
            match ranges.last_mut() {
                Some((first, count)) if first.checked_add(*count) == Some(*number) => *count += 1,
                _ => ranges.push((*number, 1)),
            }
        }
        bytes.extend_from_slice(stream.as_bytes());
        bytes.extend_from_slice(&u32::try_from(ranges.len()).unwrap_or(u32::MAX).to_be_bytes());
        for (first, count) in ranges {
            bytes.extend_from_slice(&first.to_be_bytes());
            bytes.extend_from_slice(&count.to_be_bytes());
        }
    }
    bytes
}

/// How many places are read at most: some runs of the queue's length.
const PLACES_MAX: u64 = 1 << 16;

fn decode(mut bytes: &[u8]) -> Option<Places> {
    fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
        let (head, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(*head)
    }
    let (mut places, mut total) = (Places::new(), 0_u64);
    while !bytes.is_empty() {
        let stream = Uuid::from_bytes(take(&mut bytes)?);
        let ranges = u32::from_be_bytes(take(&mut bytes)?);
        let numbers: &mut BTreeSet<u64> = places.entry(stream).or_default();
        for _ in 0..ranges {
            let first = u64::from_be_bytes(take(&mut bytes)?);
            let count = u64::from_be_bytes(take(&mut bytes)?);
            total = total.checked_add(count).filter(|total| *total <= PLACES_MAX)?;
            numbers.extend(first..first.checked_add(count)?);
        }
    }
    Some(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn outside_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn what_is_written_is_read(numbers in proptest::collection::btree_set(any::<u64>(), 0..50), run in 0..300_u64) {
            let mut places = Places::from([(Uuid::now_v7(), (run..run + 300).collect())]);
            if !numbers.is_empty() {
                places.insert(Uuid::now_v7(), numbers);
            }
            prop_assert_eq!(decode(&encode(&places)), Some(places));
        }
    }
}

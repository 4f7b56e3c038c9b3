//! The file of a backup: frames behind a line that says what it is, packed with zstd, and a hash over all of it.
//!
//! ```text
//! "PICKET-HUB-BACKUP 1\n"        as it is; everything after it is one zstd stream (RFC 8878) with checksums
//! 'H' header                     JSON: when, by which version, of which database
//! 'T' table                      JSON: its name and columns; its rows follow
//! 'R' rows                       cells one behind the other: a tag, and what belongs to it (big-endian)
//! 'D' totals                     JSON: rows of each table
//! 'S' signature                  JSON: the hub's word for the SHA-256 of all frames before
//! ```
//!
//! A frame is its letter, the length of what follows as `u32`, big-endian, and that. A file without its 'S' was cut off.

use crate::shared::Value;
use crate::{DbError, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};

/// The first line of a file.
const MAGIC: &[u8] = b"PICKET-HUB-BACKUP 1\n";
/// After how many bytes a frame of rows ends.
const FRAME_BYTES: usize = 256 << 10;
/// The longest frame that is read: one row with the largest value that a database keeps.
const FRAME_MAX_BYTES: u32 = 260 << 20;
/// How much memory unpacking may ask for, as a power of two.
const WINDOW_LOG_MAX: u32 = 27;
/// How hard it is packed: zstd's own default.
const LEVEL: i32 = 3;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHeader {
    /// When what is in it was so.
    pub created_at: Timestamp,
    /// The version of Picket that wrote it.
    pub version: String,
    /// Which database it was of: `sqlite` or `postgres`.
    pub backend: String,
    /// The schema of that.
    pub schema: i64,
    /// The public key of the hub whose it is, in base64.
    pub command_key: String,
}

/// What is in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackupTotals {
    /// How many rows of each table.
    pub tables: BTreeMap<String, u64>,
    /// The highest place of an event that was given out.
    pub event_place: i64,
    /// The highest place of a change of findings, for each tenant.
    pub change_places: BTreeMap<i32, i64>,
    /// On which days (days since 1970, UTC) events were received.
    pub days: std::collections::BTreeSet<i32>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TableFrame {
    pub(super) name: String,
    pub(super) columns: Vec<String>,
}

/// Something of a backup, as it is read.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    Header(BackupHeader),
    Table(TableFrame),
    Rows(Vec<u8>),
    Totals(BackupTotals),
    Signature(String),
}

fn failed(error: &std::io::Error) -> DbError {
    let (operation, why) = ("write the backup", error.to_string());
    match error.kind() {
        std::io::ErrorKind::StorageFull => DbError::Full { operation, why },
        _ => DbError::Io { operation, why },
    }
}

fn damaged(why: impl std::fmt::Display) -> DbError {
    DbError::backup(format!("it is damaged or was cut off ({why}); take another one"))
}

/// Writes a backup.
pub struct BackupWriter<W: Write> {
    out: zstd::stream::write::Encoder<'static, W>,
    hash: Sha256,
    rows: Vec<u8>,
}

impl<W: Write> std::fmt::Debug for BackupWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupWriter").finish_non_exhaustive()
    }
}

impl<W: Write> BackupWriter<W> {
    /// Begins a backup.
    ///
    /// # Errors
    /// When nothing can be written.
    pub fn new(mut out: W, header: &BackupHeader) -> Result<Self> {
        out.write_all(MAGIC).map_err(|error| failed(&error))?;
        let begin = || {
            let mut encoder = zstd::stream::write::Encoder::new(out, LEVEL)?;
            encoder.include_checksum(true)?;
            Ok(encoder)
        };
        let out = begin().map_err(|error| failed(&error))?;
        let mut writer = Self { out, hash: Sha256::new(), rows: Vec::new() };
        writer.json(b'H', header)?;
        Ok(writer)
    }

    fn frame(&mut self, letter: u8, bytes: &[u8]) -> Result<()> {
        let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= FRAME_MAX_BYTES);
        let length = length.ok_or_else(|| DbError::invalid("write the backup", "a row is too long"))?;
        let mut head = vec![letter];
        head.extend(length.to_be_bytes());
        for part in [&head, bytes] {
            self.hash.update(part);
            self.out.write_all(part).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    fn json(&mut self, letter: u8, value: &impl Serialize) -> Result<()> {
        let text =
            serde_json::to_vec(value).map_err(|error| DbError::invalid("write the backup", error.to_string()))?;
        self.frame(letter, &text)
    }

    fn flush_rows(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        self.frame(b'R', &rows)?;
        self.rows = rows;
        self.rows.clear();
        Ok(())
    }

    pub(super) fn table(&mut self, name: &str, columns: Vec<String>) -> Result<()> {
        self.flush_rows()?;
        self.json(b'T', &TableFrame { name: name.to_owned(), columns })
    }

    pub(super) fn row(&mut self, cells: &[Value]) -> Result<()> {
        for cell in cells {
            encode(&mut self.rows, cell);
        }
        if self.rows.len() >= FRAME_BYTES { self.flush_rows() } else { Ok(()) }
    }

    pub(super) fn totals(&mut self, totals: &BackupTotals) -> Result<()> {
        self.flush_rows()?;
        self.json(b'D', totals)
    }

    /// The SHA-256 of all that was written: what is to be signed.
    pub fn digest(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }

    /// Ends a backup with the hub's word for [`BackupWriter::digest`].
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self, signature: &str) -> Result<W> {
        self.frame(b'S', signature.as_bytes())?;
        self.out.finish().map_err(|error| failed(&error))
    }
}

fn encode(out: &mut Vec<u8>, cell: &Value) {
    let mut long = |tag: u8, bytes: &[u8]| {
        out.push(tag);
        out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend(bytes);
    };
    match cell {
        Value::Text(text) => long(b't', text.as_bytes()),
        Value::Json(text) => long(b'j', text.as_bytes()),
        Value::Bytes(bytes) => long(b'b', bytes),
        Value::Null => out.push(b'0'),
        Value::Bool(false) => out.push(b'n'),
        Value::Bool(true) => out.push(b'y'),
        Value::Int(number) => {
            out.push(b'i');
            out.extend(number.to_be_bytes());
        }
        Value::Time(time) => {
            out.push(b'm');
            out.extend(time.as_microsecond().to_be_bytes());
        }
        Value::Uuid(id) => {
            out.push(b'u');
            out.extend(id.as_bytes());
        }
    }
}

/// The next so many bytes.
fn take<'b>(bytes: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn number(bytes: &mut &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(take(bytes, 8)?.try_into().ok()?))
}

/// One cell from the front of a frame of rows; none when it is not one.
pub(super) fn decode(bytes: &mut &[u8]) -> Option<Value> {
    let tag = take(bytes, 1)?.first().copied()?;
    let long = |bytes: &mut &[u8]| {
        let length = u32::from_be_bytes(take(bytes, 4)?.try_into().ok()?);
        take(bytes, usize::try_from(length).ok()?).map(<[u8]>::to_vec)
    };
    Some(match tag {
        b'0' => Value::Null,
        b'n' => Value::Bool(false),
        b'y' => Value::Bool(true),
        b'i' => Value::Int(number(bytes)?),
        b'm' => Value::Time(Timestamp::from_microsecond(number(bytes)?).ok()?),
        b'u' => Value::Uuid(uuid::Uuid::from_slice(take(bytes, 16)?).ok()?),
        b't' => Value::Text(String::from_utf8(long(bytes)?).ok()?),
        b'j' => Value::Json(String::from_utf8(long(bytes)?).ok()?),
        b'b' => Value::Bytes(long(bytes)?),
        _ => return None,
    })
}

/// Reads a backup, frame by frame.
pub(super) struct BackupReader<R: Read> {
    source: zstd::stream::read::Decoder<'static, BufReader<R>>,
    hash: Sha256,
    ended: bool,
}

impl<R: Read> BackupReader<R> {
    pub(super) fn new(mut source: R) -> Result<Self> {
        let mut magic = [0; MAGIC.len()];
        let read = source.read_exact(&mut magic);
        if read.is_err() || magic != MAGIC {
            let why = if magic.starts_with(b"PICKET-HUB-BACKUP ") {
                "it was written by a later version of Picket; use that one"
            } else {
                "it is no backup of a hub"
            };
            return Err(DbError::backup(why));
        }
        let begin = || {
            let mut decoder = zstd::stream::read::Decoder::new(source)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Ok(decoder.single_frame())
        };
        let source = begin().map_err(|error: std::io::Error| damaged(error))?;
        Ok(Self { source, hash: Sha256::new(), ended: false })
    }

    /// The SHA-256 of what was read so far.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }

    /// The next frame; none behind the signature.
    pub(super) fn next(&mut self) -> Result<Option<Frame>> {
        if self.ended {
            let mut rest = [0; 1];
            // Reads on to the end: there the checksum is compared.
            return match self.source.read(&mut rest) {
                Ok(0) => Ok(None),
                Ok(_) => Err(damaged("something follows the signature")),
                Err(error) => Err(damaged(error)),
            };
        }
        let mut head = [0; 5];
        self.source.read_exact(&mut head).map_err(damaged)?;
        let [letter, length @ ..] = head;
        let length = u32::from_be_bytes(length);
        if length > FRAME_MAX_BYTES {
            return Err(damaged("a frame is longer than any that is written"));
        }
        // Memory is taken as bytes come, not as a length promises them.
        let mut bytes = Vec::new();
        let read = (&mut self.source).take(u64::from(length)).read_to_end(&mut bytes).map_err(damaged)?;
        if u32::try_from(read).ok() != Some(length) {
            return Err(damaged("it ends within a frame"));
        }
        if letter != b'S' {
            self.hash.update(head);
            self.hash.update(&bytes);
        }
        let json = |error: serde_json::Error| damaged(error);
        Ok(Some(match letter {
            b'H' => Frame::Header(serde_json::from_slice(&bytes).map_err(json)?),
            b'T' => Frame::Table(serde_json::from_slice(&bytes).map_err(json)?),
            b'R' => Frame::Rows(bytes),
            b'D' => Frame::Totals(serde_json::from_slice(&bytes).map_err(json)?),
            b'S' => {
                self.ended = true;
                Frame::Signature(String::from_utf8(bytes).map_err(damaged)?)
            }
            _ => return Err(damaged("a frame of an unknown kind")),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> BackupHeader {
        BackupHeader {
            created_at: Timestamp::UNIX_EPOCH,
            version: "1".into(),
            backend: "sqlite".into(),
            schema: 1,
            command_key: String::new(),
        }
    }

    fn written() -> Vec<u8> {
        let mut writer = BackupWriter::new(Vec::new(), &header()).unwrap();
        writer.table("settings", vec!["key".into()]).unwrap();
        for n in 0..2000 {
            writer.row(&[Value::Text(format!("a key {n}"))]).unwrap();
        }
        writer.totals(&BackupTotals::default()).unwrap();
        writer.finish("signed").unwrap()
    }

    fn read_all(bytes: &[u8]) -> Result<usize> {
        let mut reader = BackupReader::new(bytes)?;
        let mut frames = 0;
        while reader.next()?.is_some() {
            frames += 1;
        }
        Ok(frames)
    }

    #[test]
    fn what_was_written_is_read_and_what_was_cut_off_is_refused() {
        let bytes = written();
        assert_eq!(read_all(&bytes).unwrap(), 5);
        for length in [0, 5, MAGIC.len(), bytes.len() / 2, bytes.len() - 1] {
            assert!(read_all(&bytes[..length]).is_err(), "{length} bytes of {}", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn a_cell_is_read_as_it_was_written(number: i64, text: String, bytes: Vec<u8>, id: u128, micros in -1_000_000_000_000_i64..4_000_000_000_000_000) {
            let row = [
                Value::Null, Value::Bool(true), Value::Bool(false), Value::Int(number), Value::Text(text.clone()),
                Value::Json(text), Value::Bytes(bytes), Value::Uuid(uuid::Uuid::from_u128(id)),
                Value::Time(Timestamp::from_microsecond(micros).unwrap()),
            ];
            let mut encoded = Vec::new();
            row.iter().for_each(|cell| encode(&mut encoded, cell));
            let mut rest = encoded.as_slice();
            for cell in &row {
                let read = decode(&mut rest);
                prop_assert_eq!(read.as_ref(), Some(cell));
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn bytes_from_anywhere_are_refused_and_never_panic(bytes: Vec<u8>) {
            let mut rest = bytes.as_slice();
            while decode(&mut rest).is_some() {}
            prop_assert!(read_all(&bytes).is_err());
            let mut file = MAGIC.to_vec();
            file.extend(zstd::encode_all(bytes.as_slice(), 1).unwrap());
            prop_assert!(read_all(&file).is_err());
        }

        #[test]
        fn a_bit_that_turned_is_refused_or_changes_nothing(at in 0_usize..10_000, bit in 0_u8..8) {
            let good = written();
            let mut bytes = good.clone();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let frames = |bytes: &[u8]| {
                let mut reader = BackupReader::new(bytes).ok()?;
                let mut frames = Vec::new();
                while let Some(frame) = reader.next().ok()? {
                    frames.push(frame);
                }
                Some(frames)
            };
            let read = frames(&bytes);
            prop_assert!(read.is_none() || read == frames(&good));
        }
    }
}

//! Delivering events: a batch of lines, compressed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The media type of a batch: events as JSON objects ([`crate::Event`]), one a line, in one zstd frame (RFC 8878).
pub const EVENTS_MEDIA_TYPE: &str = "application/vnd.picket.events+zstd";
/// The header that says how many bytes the batch has before compression. A receiver refuses a number over
/// [`MAX_BATCH_BYTES`] before it reserves memory, and a frame that says another one.
pub const RAW_BYTES_HEADER: &str = "picket-raw-bytes";
/// The header that says how many events the batch has.
pub const RECORDS_HEADER: &str = "picket-records";

/// The largest batch before compression, in bytes.
pub const MAX_BATCH_BYTES: usize = 4 << 20;
/// The most events of a batch.
pub const MAX_BATCH_RECORDS: usize = 4096;

/// The answer to a batch: **all of it is stored**, by now or before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsAnswer {
    /// How many events of the batch were new.
    pub stored: u64,
    /// How many the hub had already.
    pub duplicates: u64,
    /// The hub's time.
    pub hub_time: Timestamp,
}

//! The sealed store: SQLite tables whose payloads only this machine can read.
//!
//! # What lies where
//! One folder, one database (`picket.db`) in WAL mode with `synchronous=FULL`. Each table has four columns: `id` (given by
//! the writer), `at` (milliseconds since 1970), `sealed` (the payload under AES-256-GCM, bound to table, id and time; see
//! `picket_seal`) and `sha256` (over table, id, time and sealed bytes, so that damage shows without the key). Nothing
//! else about a row is in clear. `meta` names the device, proves the key, and remembers the highest ids that were deleted
//! and which events the last delivery brought.
//!
//! # Who writes
//! Rows are inserted by one thread of one process, which holds `store.lock`. It takes rows from a bounded queue and commits
//! at most 256 at a time, or what came within 100 ms; whoever waits for durability makes it hurry. A batch that
//! cannot be written is lost, counted and told to those who wait; the writer goes on. [`Maintenance`] in another process
//! deletes and re-seals rows in small transactions beside it, never inserts; replacing the file ([`restore`],
//! [`recover()`]) needs the lock.
//!
//! # Why not `SQLCipher`, whole-file `.enc`, or checksums alone
//! A whole encrypted file cannot be written in place or be read while it is written. `SQLCipher` would bring a second
//! cryptographic library into the process. A checksum says that a disk decayed, not that somebody changed a row: the
//! seal says that. What this store does not see is a row that was removed whole; the audit log is for that.

mod backup;
mod carve;
mod clock;
mod delivered;
mod error;
mod export;
mod files;
mod log;
mod maintenance;
mod queue;
mod reader;
mod recover;
mod rehearsal;
mod replace;
mod retention;
mod schema;
mod settings;
mod store;
mod table;
mod verify;
mod writer;

pub use backup::{BackupReport, RestoreReport, backup, restore};
pub use clock::{Clock, SystemClock};
pub use delivered::Origin;
pub use error::{Result, StoreError};
pub use export::{ExportReport, Form, MAX_COLUMNS, export, export_lines};
pub use maintenance::{CleanupReport, Maintenance, NeededKey, Progress, RekeyReport, Watch};
pub use queue::{BATCH_DELAY, BATCH_ROWS, Counters, QUEUE_BYTES, QUEUE_ROWS, Receipt};
pub use reader::{Range, Reader, Row, Stats, TableStats};
pub use recover::{MissingRows, RecoverReport, recover};
pub use rehearsal::rehearse_clean_up;
pub use replace::is_present;
pub use retention::Size;
pub use schema::{SCHEMA_READS_FROM, SCHEMA_WRITES};
pub use settings::{DataSettings, Policy, RetentionSettings};
pub use store::{DATABASE, Store, StoreOptions, keyring, writer_process};
pub use table::Table;
pub use verify::{Finding, VerifyReport, verify};

#[cfg(test)]
mod tests;

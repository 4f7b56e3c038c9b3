//! The durable queue between what happens and whoever is told of it, with a ledger that adds up.
//!
//! # The promise
//! `emitted = acknowledged + queued + gaps`, in events, for each class, at every instant ([`Ledger`]). Everything that is
//! handed to an [`Outbox`] is in it from that instant; what was given up before ([`Outbox::account_gap`]) is, too. A folded
//! record weighs as many events as it stands for. Whatever becomes a gap is told to the receiver by a gap record, which
//! no quota takes: events stored at the receiver's plus the counts of the gap records it got are what was emitted.
//!
//! # What is durable when
//! One thread writes. It commits at most 100 ms after the first record or at 256 of them, at once if somebody waits. Records,
//! books and marks are of one transaction (SQLite, WAL, `synchronous=FULL`). [`Outbox::emit`] returns before that,
//! [`Outbox::emit_durable`] and [`Outbox::flush`] after.
//!
//! - **Killed process:** what was accepted and not committed is lost, at most one group commit (more while the disk is
//!   full), and counted: `outbox.accepted` holds how many were accepted, and the next process makes the difference a gap
//!   of reason `corruption`.
//! - **Power cut:** the same events are lost, and that file may not have reached the disk: they are then not in the books
//!   at all, neither emitted nor missing. Nothing for which `emit_durable` or `flush` returned is lost.
//! - **Damage:** every row is sealed together with its columns and opened before it is handed out, evicted or dropped. One
//!   that does not open makes all be looked at; damaged ones go to quarantine and are counted from the books, which do
//!   not trust a damaged row's own word. A database that SQLite cannot read is replaced by a new one with every row that
//!   still opens; the old file is kept as `outbox.db.damaged-<seconds>`. `outbox.ledger` beside it tells what SQLite
//!   forgot without a word, as it does after a flipped bit in its log.
//! - **Full disk:** records wait in memory within [`Limits`]; beyond, the lowest class is given up first and counted. A
//!   reserve of 4 MiB lets acknowledgements and gaps still be written. A failing disk is treated the same.
//!
//! # Identity
//! (boot id, sequence). The sequence counts over process restarts; a new kernel boot, a new database, and any doubt
//! about the past (commits forgotten, damage) begin a new boot id. So none is given twice.
//!
//! # Handing out
//! [`Outbox::next_batch`] hands out what is most urgent, but leaves each class a share (a half for high, a quarter for
//! normal, an eighth each for low and for gap records; what a lane does not use goes by urgency). What was handed out and
//! not acknowledged is handed out again as it was, also after a restart, and is out of reach of the quotas till then: it
//! may be with the receiver already, and an event must not be both stored and missing. For the same reason a gap record
//! grows only as long as it was never handed out.
//!
//! # Quotas
//! Bytes (class low goes first, then normal, then high, the oldest first; gap records are not counted) and age. Age is
//! time that passed, measured by time since boot; between boots the wall clock is believed for 24 hours at most.
//! A clock that jumps by years evicts nothing; a machine that was off for a week keeps records longer, within the bytes.

mod backoff;
mod batch;
mod breaker;
mod clock;
mod damage;
mod database;
mod delays;
pub mod delivery;
mod draft;
mod engine;
mod error;
mod inspect;
mod intake;
mod lane;
mod ledger;
mod marks;
mod outbox;
mod reserve;
mod settings;
mod state;
mod status;
mod work;

pub use backoff::{Backoff, random};
pub use batch::{Batch, EncodedBatch, Record};
pub use breaker::{Admission, Breaker, BreakerState};
pub use clock::{Clock, ManualClock, SystemClock, kernel_boot};
pub use delays::{DELAY_BOUNDS_MS, Delays};
pub use draft::{Draft, FormatError, Gap};
pub use engine::Options;
pub use error::OutboxError;
pub use inspect::{clean, inspect, keys, reseal_books};
pub use ledger::{Account, Ledger};
pub use outbox::Outbox;
pub use settings::{BatchLimits, Limits, OutboxSettings};
pub use state::{BootAccount, STATE_FORM, STATE_READS_FROM};
pub use status::{QueueStatus, Queued};
pub use work::CleanRequest;

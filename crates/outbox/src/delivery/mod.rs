//! Delivery: batches go to the uplink, and are acknowledged only when it says that they are stored.
//!
//! - A batch that failed is sent again as it was: the receiver may have stored it and only its answer was lost, and it
//!   tells events apart by their ids. Nothing that may have arrived is evicted or counted as missing.
//! - A batch that the receiver will never take is halved until the event that it does not take is alone; that one becomes
//!   a gap. A receiver that takes nothing at all costs one event for each wait, not the queue.
//! - Waits are exponential with full jitter ([`crate::Backoff`]), never shorter than the receiver asked for, and behind
//!   a circuit breaker ([`crate::Breaker`]).

mod courier;
mod thread;

pub use courier::{Courier, DeliverySettings, DeliveryStatus, Queue, Step};
pub use thread::Delivery;

use crate::batch::EncodedBatch;
use picket_protocol::trace::TraceContext;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The way to the receiver. An implementation has a time limit of its own for everything it does.
pub trait Uplink: Send {
    /// Sends a batch and waits until the receiver has stored it. `cause` is what the attempt is called in every log.
    ///
    /// # Errors
    /// Why it is not known to be stored, and when to try again.
    fn send(&self, batch: &EncodedBatch, cause: &TraceContext) -> Result<Accepted, UplinkError>;
}

/// The receiver has stored the batch, all of it, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted;

/// Why a batch is not known to be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct UplinkError {
    /// What follows from it.
    pub kind: UplinkErrorKind,
    /// How long the receiver asks not to be called (`Retry-After`, RFC 9110 §10.2.3).
    pub retry_after: Option<Duration>,
    /// The whole in words, without secrets.
    pub detail: String,
}

/// What follows from a failure to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UplinkErrorKind {
    /// Nobody answered, or the answer was lost.
    Unreachable,
    /// The receiver has too much to do (429, 503).
    Busy,
    /// The receiver does not know or trust this device (401, 403).
    Refused,
    /// The receiver will never take this batch (400, 413, 422).
    Rejected,
    /// The receiver failed (5xx), or answered what makes no sense.
    Broken,
}

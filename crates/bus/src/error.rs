//! What goes wrong on a bus.

use crate::subject::SubjectError;
use std::time::Duration;

/// Shorthand for the results of this crate.
pub type Result<T, E = BusError> = std::result::Result<T, E>;

/// What went wrong, and what to do. Secrets are in none of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The settings cannot be used.
    #[error("NATS: {what}; {help}")]
    Settings {
        /// What is wrong with them.
        what: String,
        /// The way out.
        help: String,
    },
    /// No server could be reached, or none would have us.
    #[error("cannot connect to NATS at {servers}: {reason}")]
    Connect {
        /// The servers' addresses, without what was in them of user names and passwords.
        servers: String,
        /// What the last one said.
        reason: String,
    },
    /// There is no connection now. It is being made again.
    #[error("NATS is not connected; it is tried again, and so should this be")]
    Disconnected,
    /// There was no answer in time. It may have been done all the same: do it again with the same id.
    #[error("NATS did not answer within {} s; try again with the same id", .0.as_secs_f32())]
    TimedOut(Duration),
    /// NATS has it, and none of those who handle it has answered in time: it may be done all the same, or be done later.
    #[error("NATS has it, and no hub has answered within {} s; see whether a hub with bus.events runs", .0.as_secs_f32())]
    Unanswered(Duration),
    /// A queue holds as much as it may.
    #[error("the queue {queue} is full; slow down, or raise its limits")]
    Full {
        /// Its name.
        queue: String,
    },
    /// A message is longer than may be sent.
    #[error("a message of {bytes} bytes is longer than the {limit} that may be sent")]
    TooLong {
        /// Its length, headers included.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The server would not do it.
    #[error("NATS refused to {operation}: {reason}")]
    Refused {
        /// What was asked, as a verb and its object.
        operation: String,
        /// What it said.
        reason: String,
    },
    /// A subject cannot be used.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
}

impl BusError {
    /// Whether the same may work a little later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Disconnected | Self::TimedOut(_) | Self::Unanswered(_) | Self::Full { .. } | Self::Connect { .. }
        )
    }
}

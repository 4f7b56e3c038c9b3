//! From the sensor to the agent: a bounded queue, a Unix socket, acknowledgements.
//!
//! [`SensorServer`] is the sensor's side. Its [`sink`](SensorServer::sink) takes what the watchers see and never blocks;
//! a queue with limits in bytes and events ([`Limits`]) keeps each event until the agent has called it durable. What
//! does not fit goes, the lowest class first and the oldest of it, and is counted in a gap that never goes:
//! `emitted = acknowledged + queued + shed` holds at every instant. [`SensorClient`] is the agent's side: it connects
//! again and again, hands each run of events to a callback that returns when they are durable, and acknowledges them
//! then.
//!
//! | what ends | what happens |
//! |---|---|
//! | the agent, however | the queue keeps everything; the next agent says how far the last one got |
//! | the sensor, in good order | the queue is written to its state folder; the next one goes on with the same numbers |
//! | the sensor, killed | its queue is lost; the next one begins a new incarnation with a gap of unknown count |
//!
//! Delivery is at least once. Numbers tell copies apart as far back as the agent's [`Mark`] reaches; a crash of the agent
//! between making events durable and writing its mark brings one run of events again.

mod backoff;
mod client;
mod mark;
mod queue;
mod server;
mod spool;

pub use backoff::Backoff;
pub use client::{ClientOptions, ClientStatus, DeliverError, Link, SensorClient};
pub use picket_protocol::sensor::{Counters, Mark};
pub use queue::Limits;
pub use server::{Drained, SensorServer, ServerError, ServerOptions};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whatever became of a thread that held the lock: what is behind it is kept whole by each holder.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

//! How replicas of the hub tell each other, in the process or through NATS JetStream; and how an agent hands its batches to
//! them there ([`NatsPoster`]).
//!
//! [`Bus`] is the trait; [`MemoryBus`] and [`NatsBus`] are the two behind it, and the same contract tests hold both to it.
//! Two things are told:
//!
//! - **Fan-out** ([`Bus::publish`], [`Bus::subscribe`]): a wake-up that every replica hears, if it listens. It is kept
//!   nowhere. A subscriber that is too slow, or was away, loses messages and is told so ([`Heard::Lost`],
//!   [`Heard::Interrupted`]): the database is the record, and it looks there.
//! - **Work** ([`Bus::queue`]): an item is handled by one of several consumers, comes again until it is acknowledged, and is
//!   taken only once for each id within the queue's window. With NATS it survives the death of everybody; in the process
//!   it is a queue in memory and ends with the process.
//!
//! What is lost on the bus costs latency, never an event: whoever enqueues keeps the thing until it is answered.

mod bus;
mod error;
mod memory;
mod nats;
mod subject;

pub use bus::{
    Bus, Delivery, Depth, Enqueued, Health, Heard, Item, MAX_MESSAGE, Queue, QueueSpec, Settle, Subscription,
};
pub use error::{BusError, Result};
pub use memory::MemoryBus;
pub use nats::{HEADER_ID, HEADER_REPLY, NatsAuth, NatsBus, NatsPoster, NatsSettings, NatsTls, Parcel, Secret};
pub use subject::{Pattern, Subject, SubjectError, tenant_name};

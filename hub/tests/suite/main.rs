//! The hub as a whole, over real TLS: one test program, so that it is linked once.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails ends the test")]

mod abuse;
mod again;
mod audited;
mod copies;
mod fleet;
mod judge;
mod people;
mod poison;
mod relayed;
mod replicas;
mod scopes;
mod sockets;
mod trials;
mod users;
mod viewers;
mod watched;
mod webhooks;
mod wire;

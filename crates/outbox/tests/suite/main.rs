//! The outbox from outside: what it promises, and what it keeps when things break.
#![expect(clippy::unwrap_used, reason = "what fails in a test is to panic there")]

mod bench;
mod damage;
mod killed;
mod model;
mod outage;
mod promises;

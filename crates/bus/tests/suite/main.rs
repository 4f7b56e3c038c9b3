//! What both buses promise, told in sentences, and what only the one over NATS can show.
#![expect(clippy::disallowed_methods, reason = "tests put files into folders of their own")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails ends the test")]

mod contract;
mod identity;
mod outage;
mod support;
mod sync;

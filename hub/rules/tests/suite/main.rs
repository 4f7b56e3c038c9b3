//! What an engine of rules does, told in sentences.
#![expect(clippy::unwrap_used, reason = "a step that fails ends the test")]
#![expect(clippy::format_collect, reason = "rules of a test are short texts")]

mod correlations;
mod cost;
mod oracle;
mod pack;
mod sets;
mod support;
mod validation;
mod views;

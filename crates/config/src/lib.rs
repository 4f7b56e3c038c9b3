//! Layered configuration that knows where every value came from and reports every error at once.
//!
//! The layers, later over earlier: built-in defaults, one file (YAML, JSON or TOML), what the hub gave, the environment,
//! command-line flags. Each layer is read into a tree of [`Node`]s that remember their origin; the trees are merged; the result is
//! read into a typed struct declared with [`settings!`]. Reading never stops at the first problem: an operator who
//! mistyped three keys is told of three, each with file, line and key.
//!
//! A key that nobody declared is a [`Gravity::Unknown`] problem, not an error: a machine that was rolled back to an
//! older version must still start on the configuration of the newer one. `picket config check` fails on them all the
//! same.
//!
//! The struct's doc comments are the manual: [`Setting::document`] lists every key with its text, type and default, and
//! [`Setting::schema`] is the JSON schema.

mod collections;
mod layers;
mod macros;
mod node;
mod parse;
mod setting;
mod values;

pub use layers::{Effective, Layers, Resolved, documentation};
pub use node::{Node, Origin, Value};
pub use setting::{Fields, Gravity, KeyDoc, Problem, Problems, Setting};
pub use values::{ByteSize, Choice, Confidential, Interval, LoopbackAddr};

#[doc(hidden)]
pub mod private {
    pub use serde_json::{Map, Value, json};

    /// The key that a field's identifier stands for: `r#type` is `type`.
    pub fn key(identifier: &'static str) -> &'static str {
        identifier.strip_prefix("r#").unwrap_or(identifier)
    }
}

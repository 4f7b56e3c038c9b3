//! The engine behind [`RuleEngine`](crate::RuleEngine): the only place that knows `rsigma`.
//!
//! `rsigma-parser` reads rules and conditions, `rsigma-eval` matches single events with an index of which rules an event can
//! come near at all. Filters are merged into the rules they are about, before these are compiled; correlations are ours.

mod compile;
mod engine;
mod event;
mod plan;
mod read;
mod set;
mod shard;
mod state;

pub use engine::{Settings, SigmaEngine};
pub use read::validate;
pub(crate) use read::{condition, timespan};

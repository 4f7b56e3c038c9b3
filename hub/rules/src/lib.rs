//! Sigma rules: what makes of events a finding.
//!
//! The hub knows the trait [`RuleEngine`] and the words around it; [`SigmaEngine`] is the engine behind it. The crates that
//! parse and match Sigma (`rsigma-parser`, `rsigma-eval`) are known to `sigma/` only: they are young and change often.
//!
//! - [`EventView`] makes of an event's JSON what a rule can ask for: Sigma's field names, and every original field by its
//!   dotted path. It is a pure function of its input.
//! - A [`Shard`] is one kind of events (file, network, alert, config, other). Each has its own lock and its own state, so
//!   that replicas can lease them apart. Within a shard only rules of the event's own log source are asked.
//! - Correlations are ours (`correlate.rs`): their state is a function of the events of the last
//!   [`RuleEngine::warm_up_window`], bounded in bytes, and their time comes from the event and never from a clock. So a
//!   replay of the same events in the same order gives the same matches.
//! - [`validate()`] says everything that is wrong with a rule, where, and what to do.
//! - [`pack()`] is the starter pack: rules of our own for what Picket's sensors see.
//!
//! Sigma's specification is version 2 (<https://github.com/SigmaHQ/sigma-specification>).

mod check;
mod correlate;
mod cost;
mod engine;
mod found;
mod health;
mod modifiers;
mod pack;
mod problem;
mod reach;
mod rule;
mod shard;
mod sigma;
mod view;
mod yaml;

pub use engine::{DryRun, DryRunLimits, Figures, Replaced, RuleEngine, WarmUp};
pub use found::MAX_EVIDENCE;
pub use found::{Correlated, CorrelationKind, Entity, EntityKind, FieldMatch, HUB_AGENT, Level, Match, MatchKind};
pub use health::{Budget, RuleHealth, RuleState, Suspension};
pub use pack::{PackRule, pack};
pub use problem::{Place, Problem, Severity, Validation};
pub use rule::{
    MAX_DEPTH, MAX_DOCUMENTS, MAX_GROUP_ENTRIES, MAX_NODES, MAX_REGEX_BYTES, MAX_REGEXES, MAX_RULES, MAX_SELECTIONS,
    MAX_SOURCE_BYTES, MAX_SOURCE_COMPILED, MAX_WINDOW, Origin, RuleKey, RuleSource,
};
pub use shard::Shard;
pub use sigma::{Settings, SigmaEngine, validate};
pub use view::{EventView, MAX_EVENT_DEPTH, Product, Received, ViewError};

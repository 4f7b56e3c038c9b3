//! Becoming the next version: trust, fetch, stage, trial, gate, commit, revert.
//!
//! The order of an update is in [`journal`]; what may run is in [`trust`]; which version is wanted in [`decide`]; whether
//! a new version is kept in [`gate`]. [`engine`] does the steps. Three sentences hold whatever happens:
//!
//! - the judge is never the judged: a new version is started, watched and kept or thrown out by the proven one;
//! - at every instant, what boot would start is a proven, complete version;
//! - one atomic rename commits.

pub mod archive;
mod child;
pub mod clock;
pub mod config;
pub mod decide;
mod defer;
pub mod engine;
mod failpoint;
pub mod fetch;
pub mod fetcher;
pub mod gate;
pub mod held;
pub mod history;
pub mod hooks;
pub mod journal;
pub mod listing;
pub mod machine;
pub mod plan;
pub mod portable;
pub mod progress;
pub mod request;
pub mod rollout;
pub mod sandbox;
pub mod schedule;
pub mod self_test;
mod snapshot;
pub mod state;
pub mod trust;
pub mod windows;

/// A random id that sorts by time: a UUID of version 7.
pub fn random_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

pub use clock::Clock;
pub use config::{AutoUpdate, UpdateSettings};
pub use engine::{Engine, EngineError, Report};

//! What runs on a machine all day: it measures, answers for its health, and drains when told to stop.
//!
//! The life of the agent is `Config → build() → App → spawn() → drain on signal`, see [`app`]. Two things hold from the
//! first moment to the last: health answers on a thread of its own, and nothing outside this machine can keep the agent
//! from starting.

pub mod app;
mod checks;
mod collect;
pub mod config;
#[cfg(feature = "faults")]
mod fault;
mod identity;
mod local_api;
mod notify;
mod port_holder;

pub use app::{App, BuildError, Running};
pub use config::{Config, HealthSettings, MetricsSettings};
pub use port_holder::PortHolder;

//! Logs, metrics and health: how Picket tells what it does.
//!
//! One subscriber for logs ([`logs`]), one registry for metrics ([`metrics`]), one registry for health checks
//! ([`health`]). The rooms record; they do not know who listens.

pub mod health;
pub mod logs;
pub mod metrics;

pub use health::{CheckSpec, Finding, Health};
pub use logs::{LogFormat, LogLevel, LogOptions};
pub use metrics::Metrics;

//! Logs, metrics and health: how Picket tells what it does.
//!
//! One subscriber for logs ([`logs`]), one registry for metrics ([`metrics`]), one registry for health checks
//! ([`health`]), one layer that measures operations ([`operations`]). The rooms record; they do not know who listens.

mod export;
pub mod health;
pub mod histograms;
mod json;
pub mod logs;
pub mod metrics;
pub mod operations;
#[cfg(feature = "otel")]
pub mod otel;
mod scrape;

pub use export::{OtlpSettings, adopt};
pub use health::{CheckSpec, Finding, Health};
pub use histograms::OperationMetrics;
pub use logs::{ComponentLevel, LineSink, Listeners, LogControl, LogFormat, LogLevel, LogOptions, LoggingSettings};
pub use metrics::Metrics;
pub use operations::{OperationRecord, OperationSink};
pub use scrape::{Labels, Scrape};

//! What runs on a machine all day: it measures, answers for its health, and drains when told to stop.
//!
//! The life of the agent is `Config → build() → App → spawn() → drain on signal`, see [`app`]. Two things hold from the
//! first moment to the last: health answers on a thread of its own, and nothing outside this machine can keep the agent
//! from starting.

pub mod app;
mod checks;
pub mod collect;
mod communications;
pub mod config;
mod events;
#[cfg(feature = "faults")]
mod fault;
mod heard;
pub mod hub;
mod identity;
mod keep;
mod local_api;
mod monitoring;
mod notify;
pub mod reload;
#[cfg(feature = "faults")]
pub mod stamp;
mod update_watch;
mod watch;
pub mod watchdog;
mod works;

pub use app::{App, BuildError, Running};
pub use collect::CollectSettings;
pub use config::{
    Config, HealthSettings, HubConfig, KeepConfig, ListenerSlot, MetricsSettings, MonitorConfig, ProcessLog,
    SensorLink, WatchConfig,
};
pub use events::{EventSettings, SinkKind};
pub use identity::agent_id;
pub use watchdog::LimitSettings;

//! What sees files and connections with the few privileges that takes, and has no network.
//!
//! On Linux the agent's eyes are a process of their own: [`Sensor`] holds the capabilities and can open no connection,
//! the agent has the network and no capability. What [`Watcher`]s see goes through `picket-sensorlink`'s bounded queue to
//! the agent, which keeps it. The watchers themselves are handed in ([`Plan`]), so that the same ones run inside the
//! agent where there is only one process.
//!
//! ```text
//! Config → start() → Sensor → run_until_signal(): SIGHUP or a changed file reads the configuration again,
//!                                                 SIGTERM stops the watchers, lets the agent take what is left,
//!                                                 writes the rest for the next life
//! ```

mod life;
mod notify;
mod watcher;

pub use life::{Config, Sensor, SensorError};
pub use picket_sensorlink::Limits;
pub use watcher::{Blind, Plan, Reading, Start, Watcher};

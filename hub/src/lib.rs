//! What manages a fleet: it enrols machines, hears them, judges what it hears, and answers people.

mod activity;
pub mod api;
pub mod app;
pub mod authority;
pub mod bus;
pub mod clock;
pub mod config;
pub mod life;
pub mod notify;
mod place;
pub mod refusal;
pub mod security;
pub mod server;
pub mod state;
pub mod watch;
mod wire;

/// What the hub keeps, for whoever looks after it.
pub use picket_hub_db as db;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Base64 (RFC 4648 §4), as the wire's documents have it.
pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Reads what [`encode`] writes.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

//! The kinds of events: what a judge leases, and what rules are sorted by.

use serde::{Deserialize, Serialize};

/// One kind of events. Each has its own lock, its own correlations and its own cursor in the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shard {
    /// Events of files.
    File,
    /// Events of connections.
    Network,
    /// Alerts of metrics.
    Alert,
    /// Changes of an agent's configuration.
    Config,
    /// Gaps, and whatever a newer agent may send.
    Other,
}

impl Shard {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::File, Self::Network, Self::Alert, Self::Config, Self::Other];

    /// The shard of an event by its `type`.
    pub fn of_type(event_type: &str) -> Self {
        match event_type {
            "file" => Self::File,
            "network" => Self::Network,
            "alert" => Self::Alert,
            "config" => Self::Config,
            _ => Self::Other,
        }
    }

    /// The word for it in leases, subjects and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Network => "network",
            Self::Alert => "alert",
            Self::Config => "config",
            Self::Other => "other",
        }
    }

    /// Its place in [`Shard::ALL`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

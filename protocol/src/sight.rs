//! How much a watcher sees: what `/health` says of files and network.

use serde::{Deserialize, Serialize};

/// How much one watcher sees, and by which means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// What is watched: `files` or `network`.
    pub source: String,
    /// How much of it is seen.
    pub level: SightLevel,
    /// By which means: `fanotify`, `inotify`, `sock_diag`, `proc`.
    pub method: String,
    /// In words: what is not seen, why, and what would change that. Empty where all is.
    pub detail: String,
}

/// How much a watcher sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SightLevel {
    /// All that the platform can tell.
    Full,
    /// Less than it could: no privilege, an old kernel, a limit that was met.
    Reduced,
    /// Nothing, though it was asked for.
    Blind,
    /// Nothing was asked for.
    Off,
}

impl SightLevel {
    /// The word on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Reduced => "reduced",
            Self::Blind => "blind",
            Self::Off => "off",
        }
    }
}

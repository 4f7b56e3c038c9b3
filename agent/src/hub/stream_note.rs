//! The note from which stream on the hub has everything.

use serde::{Deserialize, Serialize};
use std::path::Path;
use uuid::Uuid;

/// The longest note, in bytes.
const MAX_BYTES: u64 = 4 << 10;

/// From which stream on the hub has everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StreamNote {
    /// The agent that the machine is at that hub.
    pub(super) agent_id: Uuid,
    /// The stream.
    pub(super) stream: Uuid,
}

impl StreamNote {
    /// The note at `path`. One that cannot be read is none: then a stream begins anew.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let bytes = picket_durable::read_untrusted(path, MAX_BYTES).ok()??;
        serde_json::from_slice(&bytes).ok()
    }
}

//! What outlives the process: the alerts that are open, and what happened to them that perhaps nobody was told yet.
//!
//! It is one small document, written before anybody is told of a change and again after everybody was. So an alert has one
//! life, whatever happens to the process: at the next start it goes on under its id, or is told as cleared. Whoever was
//! being told when the process was killed may be told twice.

use crate::alert::Alert;
use picket_protocol::event::AlertEvent;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// The longest document, in bytes: 256 alerts, each with eight tags of the greatest length in it and in its message, every
/// character of them escaped, and as many events.
const MAX_BYTES: u64 = 32 << 20;

/// The document, as it was read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory {
    /// The alerts that were open, in the order they began.
    pub open: Vec<Alert>,
    /// What happened to alerts, and may not have been told, in the order it happened.
    pub untold: Vec<AlertEvent>,
}

/// The document cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file cannot be.
    #[error("cannot read the alerts that were open")]
    File(#[from] picket_durable::Error),
    /// It is no such document.
    #[error("the document of open alerts is damaged")]
    Damaged(#[from] serde_json::Error),
}

#[derive(Serialize)]
struct Written<'a> {
    open: &'a [Alert],
    untold: &'a [AlertEvent],
}

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    open: Vec<Value>,
    #[serde(default)]
    untold: Vec<Value>,
}

impl Memory {
    /// Reads the document; where there is none, nothing was open.
    ///
    /// # Errors
    /// When it cannot be read or is no JSON. An entry that makes no sense to this version is left out and told in the log.
    pub fn load(path: &Path) -> Result<Self, MemoryError> {
        let bytes = picket_durable::read_if_present(path, MAX_BYTES)?;
        bytes.map_or_else(|| Ok(Self::default()), |bytes| Ok(Self::parse(&bytes)?))
    }

    fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let read: Read = serde_json::from_slice(bytes)?;
        let total = read.open.len() + read.untold.len();
        let open: Vec<Alert> = read.open.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect();
        let untold: Vec<AlertEvent> =
            read.untold.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect();
        let lost = total - open.len() - untold.len();
        if lost > 0 {
            tracing::warn!(lost, "alerts of the agent before make no sense to this version");
        }
        Ok(Self { open, untold })
    }

    /// Writes the document, durably; only its owner can read it.
    ///
    /// # Errors
    /// When the file cannot be written; the one before is untouched then.
    pub fn save(path: &Path, open: &[Alert], untold: &[AlertEvent]) -> Result<(), picket_durable::Error> {
        picket_durable::write_json(path, &Written { open, untold }, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entry_that_makes_no_sense_does_not_take_the_others_with_it() {
        let alert = serde_json::json!({
            "id": "018bcfe5-6800-7000-8000-000000000001", "threshold": "cpu_usage", "metric": "cpu_usage",
            "unit": "percent", "level": "warning", "worst": "critical", "value": 75.0, "bound": 70.0, "message": "m",
            "raised_at": "2026-11-21T00:00:00Z", "changed_at": "2026-11-21T00:00:00Z",
        });
        let text = serde_json::json!({ "open": [{ "id": 7 }, alert], "untold": ["?"], "new": 1 }).to_string();
        let memory = Memory::parse(text.as_bytes()).unwrap();
        assert_eq!((memory.open.len(), memory.untold.len()), (1, 0));
        assert_eq!(memory.open[0].unit, "percent");
    }

    #[test]
    fn where_nothing_was_written_nothing_was_open_and_what_was_written_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alerts.json");
        assert_eq!(Memory::load(&path).unwrap(), Memory::default());
        Memory::save(&path, &[], &[]).unwrap();
        assert_eq!(Memory::load(&path).unwrap(), Memory::default());
        picket_durable::write_atomic(&path, b"{", 0o600).unwrap();
        assert!(matches!(Memory::load(&path), Err(MemoryError::Damaged(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}\":,a-z0-9]{0,80}") {
            let _ = Memory::parse(&bytes);
            let _ = Memory::parse(format!("{{\"open\":[{text}]}}").as_bytes());
        }
    }
}

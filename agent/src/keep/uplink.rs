//! The uplink of a machine without a hub: its own store.
//!
//! Events leave the outbox as they will for a hub, and are acknowledged once the store has committed them. So the books
//! are kept the same way with and without a hub, and `picket data` shows what happened.

use picket_outbox::EncodedBatch;
use picket_outbox::delivery::{Accepted, Uplink, UplinkError, UplinkErrorKind};
use picket_store::{Store, StoreError, Table};
use serde::Deserialize;
use std::sync::Arc;

/// Stores batches on this machine.
pub(super) struct LocalUplink {
    store: Arc<Store>,
}

/// As much of an event as decides where it is kept.
#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(rename = "type", borrow)]
    name: std::borrow::Cow<'a, str>,
    details: Details,
}

#[derive(Deserialize)]
struct Details {
    timestamp: jiff::Timestamp,
}

impl LocalUplink {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    fn keep(&self, lines: &[u8]) -> Result<(), UplinkError> {
        let mut rows = Vec::new();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            // An event of a later version than this reader has a place all the same: it is kept as it is.
            let kind = serde_json::from_slice::<Kind<'_>>(line).ok();
            let table = match kind.as_ref().map(|kind| kind.name.as_ref()) {
                Some("alert") => Table::Alerts,
                _ => Table::Events,
            };
            let at = kind.map_or_else(jiff::Timestamp::now, |kind| kind.details.timestamp);
            rows.push((table, at, line.to_vec()));
        }
        let receipt = self.store.append_all(rows).map_err(|error| failed(&error))?;
        receipt.wait().map_err(|error| failed(&error))
    }
}

impl Uplink for LocalUplink {
    fn send(&self, batch: &EncodedBatch) -> Result<Accepted, UplinkError> {
        let lines = zstd::bulk::decompress(&batch.bytes, batch.uncompressed_bytes).map_err(|error| UplinkError {
            kind: UplinkErrorKind::Broken,
            retry_after: None,
            detail: format!("a batch cannot be unpacked: {error}"),
        })?;
        self.keep(&lines).map(|()| Accepted)
    }
}

fn failed(error: &StoreError) -> UplinkError {
    let kind = match error {
        StoreError::QueueFull { .. } => UplinkErrorKind::Busy,
        _ => UplinkErrorKind::Broken,
    };
    UplinkError { kind, retry_after: None, detail: super::told(error) }
}

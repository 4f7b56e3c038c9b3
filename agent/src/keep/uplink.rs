//! The uplink of a machine without a hub: its own store.
//!
//! Events leave the outbox as they will for a hub, and are acknowledged once the store has committed them. So the books
//! are kept the same way with and without a hub, and `picket data` shows what happened. What was committed before a kill and
//! not acknowledged comes again, as it would to a hub; the store tells it by its id and keeps it once.

use picket_outbox::EncodedBatch;
use picket_outbox::delivery::{Accepted, UplinkError, UplinkErrorKind};
use picket_store::{Origin, Store, StoreError, Table};
use serde::Deserialize;
use std::sync::Arc;

/// Stores batches on this machine.
pub(crate) struct LocalUplink {
    store: Arc<Store>,
}

/// As much of an event as decides where it is kept.
#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(rename = "type", borrow)]
    name: std::borrow::Cow<'a, str>,
    details: Details,
}

/// What tells an event from all others.
#[derive(Deserialize)]
struct Identity {
    boot_id: uuid::Uuid,
    seq: u64,
}

#[derive(Deserialize)]
struct Details {
    timestamp: jiff::Timestamp,
}

impl LocalUplink {
    pub(crate) fn new(store: &Arc<Store>) -> Self {
        Self { store: Arc::clone(store) }
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
            let identity = serde_json::from_slice::<Identity>(line).ok();
            let origin = identity.map(|identity| Origin { stream: identity.boot_id, number: identity.seq });
            rows.push((origin, table, at, line.to_vec()));
        }
        let receipt = self.store.append_delivered(rows).map_err(|error| failed(&error))?;
        receipt.wait().map_err(|error| failed(&error))
    }
}

impl LocalUplink {
    /// Stores a batch, as the hub does with one that is sent.
    ///
    /// # Errors
    /// Why it is not known to be stored.
    pub(crate) fn take(&self, batch: &EncodedBatch) -> Result<Accepted, UplinkError> {
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use picket_outbox::{BatchLimits, Options, Outbox, OutboxSettings, SystemClock};
    use picket_protocol::event::{ConfigEvent, EventBody};
    use picket_seal::{Keyring, Sealer};
    use picket_store::{Range, StoreOptions};
    use std::path::Path;
    use std::time::Duration;

    pub(crate) fn open(dir: &Path) -> (Arc<Store>, Outbox) {
        let keyring = Arc::new(Keyring::open_or_create(&dir.join("store.key")).unwrap());
        let store = Store::open(StoreOptions::new(dir.join("store"), Arc::clone(&keyring))).unwrap();
        let outbox = Outbox::open(Options {
            folder: dir.join("outbox"),
            sealer: Arc::new(Sealer::new(keyring).unwrap()),
            limits: OutboxSettings::default().limits(),
            kernel_boot: "boot".to_owned(),
            clock: Arc::new(SystemClock),
        });
        (Arc::new(store), outbox.unwrap())
    }

    pub(crate) fn emit(outbox: &Outbox, count: usize) {
        for _ in 0..count {
            let body = EventBody::Config(ConfigEvent {
                timestamp: jiff::Timestamp::now(),
                sha256: String::new(),
                cause: "start".to_owned(),
                changed: Vec::new(),
                needs_restart: Vec::new(),
            });
            assert!(outbox.emit_event(body));
        }
        outbox.flush(Duration::from_secs(20)).unwrap();
    }

    pub(crate) fn kept(store: &Store) -> usize {
        store.reader().unwrap().collect(Table::Events, &Range::default()).unwrap().len()
    }

    #[test]
    fn what_was_stored_before_a_kill_and_not_acknowledged_is_stored_once() {
        let dir = tempfile::tempdir().unwrap();
        let limits = BatchLimits { records: 700, bytes: 1 << 20 };
        let send = |store: &Arc<Store>, outbox: &Outbox| {
            let batch = outbox.next_batch(limits).unwrap().unwrap();
            LocalUplink::new(store).take(&batch.encode("device").unwrap()).unwrap();
            batch
        };
        let (store, outbox) = open(dir.path());
        emit(&outbox, 600);
        // Committed, and then the process is gone before the queue hears of it; three times over.
        for _ in 0..3 {
            assert_eq!(send(&store, &outbox).records.len(), 600);
        }
        assert_eq!((kept(&store), store.counters().rows_repeated), (600, 1200));
        drop((store, outbox));
        let (store, outbox) = open(dir.path());
        emit(&outbox, 50);
        let batch = send(&store, &outbox);
        assert_eq!((batch.records.len(), kept(&store)), (600, 600), "the same run again");
        assert!(outbox.acknowledge(&batch).unwrap());
        // What is new is stored, whatever came twice before.
        let rest = send(&store, &outbox);
        assert!(rest.records.len() >= 50);
        assert_eq!(kept(&store), 600 + rest.records.len());
        assert!(outbox.acknowledge(&rest).unwrap());
    }
}

//! What the tests share: an outbox on a bench, with clocks to turn and a receiver that counts.

use picket_outbox::{Batch, BatchLimits, Draft, Limits, ManualClock, Options, Outbox, OutboxError};
use picket_protocol::event::{Event, EventBody, EventId, Priority};
use picket_seal::{Keyring, Sealer};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub const WAIT: Duration = Duration::from_secs(60);
pub const ALL: BatchLimits = BatchLimits { bytes: 4 << 20, records: 10_000 };

pub struct Bench {
    pub dir: tempfile::TempDir,
    pub clock: Arc<ManualClock>,
    pub kernel_boot: String,
    pub limits: Limits,
}

impl Bench {
    pub fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    /// In memory where the system has that: for tests of thousands of commits, whose subject is not the disk.
    pub fn quick() -> Self {
        Self::at(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    fn at(dir: tempfile::TempDir) -> Self {
        let clock = Arc::new(ManualClock::new("2026-11-21T12:00:00Z".parse().unwrap()));
        let limits = picket_outbox::OutboxSettings::default().limits();
        Self { dir, clock, kernel_boot: "boot-1".into(), limits }
    }

    pub fn folder(&self) -> std::path::PathBuf {
        self.dir.path().join("outbox")
    }

    pub fn options(&self) -> Options {
        Options {
            folder: self.folder(),
            sealer: Arc::new(sealer(self.dir.path())),
            limits: self.limits,
            kernel_boot: self.kernel_boot.clone(),
            clock: Arc::clone(&self.clock) as _,
        }
    }

    pub fn open(&self) -> Outbox {
        // A process that another test starts holds a copy of our lock from fork to exec.
        let (_sender, never) = std::sync::mpsc::channel::<()>();
        for _ in 0..500 {
            match Outbox::open(self.options()) {
                Err(OutboxError::Lock(_)) => drop(never.recv_timeout(Duration::from_millis(10))),
                other => return other.unwrap(),
            }
        }
        panic!("the outbox stays locked")
    }
}

pub fn sealer(dir: &Path) -> Sealer {
    Sealer::new(Arc::new(Keyring::open_or_create(&dir.join("key")).unwrap())).unwrap()
}

/// A record of `weight` events whose body is about `bytes` long.
pub fn draft(class: Priority, weight: u64, bytes: usize) -> Draft {
    let body = serde_json::json!({ "type": "config", "details": {
        "timestamp": "2026-11-21T12:00:00Z", "sha256": "x".repeat(bytes), "cause": "planted plaintext", "changed": [] } });
    Draft { class, weight, at_ms: 1_795_262_400_000, body: serde_json::to_vec(&body).unwrap() }
}

/// What a hub does with what it gets: keeps every event once, by its id.
#[derive(Default)]
pub struct Receiver {
    pub stored: HashMap<EventId, (Event, u64)>,
    pub duplicates: usize,
}

impl Receiver {
    pub fn receive(&mut self, batch: &Batch) {
        let lines = batch.lines("agent-123");
        assert_eq!(lines.split(|byte| *byte == b'\n').count(), batch.records.len() + 1);
        let events = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        for (line, record) in events.zip(&batch.records) {
            let event: Event = serde_json::from_slice(line).unwrap();
            assert_eq!(event.id, record.id);
            match self.stored.insert(event.id, (event.clone(), record.weight)) {
                None => {}
                Some((before, _)) => {
                    assert_eq!(before, event, "one id for two events");
                    self.duplicates += 1;
                }
            }
        }
    }

    /// Events stored, and events told to be missing.
    pub fn totals(&self) -> (u64, u64) {
        let stored = self.stored.values().map(|(_, weight)| weight).sum();
        let missing = self.stored.values().filter_map(|(event, _)| match &event.body {
            EventBody::Gap(gap) => gap.count,
            _ => None,
        });
        (stored, missing.sum())
    }

    pub fn drain(&mut self, outbox: &Outbox) {
        while let Some(batch) = outbox.next_batch(ALL).unwrap() {
            self.receive(&batch);
            assert!(outbox.acknowledge(&batch).unwrap());
        }
    }
}

//! What the agent keeps: the sealed store, the outbox, and the way from one to the other while there is no hub.
//!
//! None of it can keep the agent from starting. A missing key, a store of a later version or a disk that gives nothing is a
//! health check that fails and says what to do; the agent measures and answers all the same.

pub(crate) mod uplink;

use crate::checks;
use crate::config::{Config, KeepConfig};
use crate::hub::CertStore;
use crate::hub::keeper::{Destination, destination};
use crate::hub::state::Standing;
use crate::hub::uplink::{Switch, Switched, Target};
use picket_durable::LockError;
use picket_outbox::delivery::{Delivery, DeliverySettings, DeliveryStatus};
use picket_outbox::{Options, Outbox, OutboxError, QueueStatus, SystemClock};
use picket_protocol::hub::{MAX_BATCH_BYTES, MAX_BATCH_RECORDS};
use picket_seal::{Keyring, Sealer};
use picket_store::{Policy, Store, StoreError, StoreOptions, Table};
use picket_telemetry::{Finding, Health};
use serde::Serialize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the agent waits at its start for a command that has the store or the queue to itself: `data recover` and
/// `restore`, `cache clean`. Most take less; the service manager's deadline for a start is thirty seconds.
const HELD_LIMIT: Duration = Duration::from_secs(8);
/// How long between two attempts.
const HELD_PAUSE: Duration = Duration::from_millis(100);

/// Store, outbox and delivery, each where it could be opened.
pub(crate) struct Kept {
    pub(crate) store: Option<Arc<Store>>,
    pub(crate) outbox: Option<Arc<Outbox>>,
    /// Where events go.
    pub(crate) switch: Arc<Switch>,
    delivery: Mutex<Option<Delivery>>,
}

/// How delivery and queue stand: `GET /queue`.
#[derive(Debug, Serialize)]
pub(crate) struct QueueReport {
    /// The queue and its books.
    pub(crate) queue: QueueStatus,
    /// The delivery, where there is one.
    pub(crate) delivery: Option<DeliveryStatus>,
}

impl Kept {
    /// Opens what can be opened and tells `health` of the rest.
    pub(crate) fn open(config: &Config, health: &Health) -> Self {
        let keep = &config.keep;
        let keyring = match picket_store::keyring(&keep.store_key, &keep.store_dir) {
            Ok(keyring) => keyring,
            Err(error) => {
                let finding = Finding::fail(told(&error));
                health.set(checks::STORE, finding.clone());
                health.set(checks::OUTBOX, finding);
                let switch = Arc::new(Switch::new(Target::Nowhere, None));
                return Self { store: None, outbox: None, switch, delivery: Mutex::new(None) };
            }
        };
        let store = open_store(keep, &keyring, health);
        let outbox = open_outbox(keep, &keyring, health);
        let switch = Arc::new(Switch::new(first_target(config), store.as_ref().map(uplink::LocalUplink::new)));
        let delivery = outbox.as_ref().and_then(|outbox| deliver(config, &switch, outbox));
        if let Some(store) = &store {
            let store = Arc::clone(store);
            health.probe(checks::STORE, move || store_finding(&store));
        }
        if let Some(outbox) = &outbox {
            let outbox = Arc::clone(outbox);
            health.probe(checks::OUTBOX, move || outbox_finding(&outbox.status()));
        }
        Self { store, outbox, switch, delivery: Mutex::new(delivery) }
    }

    /// Keeps nothing. For tests.
    #[cfg(test)]
    pub(crate) fn nothing() -> Self {
        let switch = Arc::new(Switch::new(Target::Nowhere, None));
        Self { store: None, outbox: None, switch, delivery: Mutex::new(None) }
    }

    /// Where events go has changed: what failed before is no reason to wait.
    pub(crate) fn hurry(&self) {
        if let Some(delivery) = self.delivery.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            delivery.hurry();
        }
    }

    /// How queue and delivery stand.
    pub(crate) fn queue(&self) -> Option<QueueReport> {
        let queue = self.outbox.as_ref()?.status();
        let delivery = self.delivery.lock().unwrap_or_else(PoisonError::into_inner);
        Some(QueueReport { queue, delivery: delivery.as_ref().map(Delivery::status) })
    }

    /// Takes over settings that changed.
    pub(crate) fn configure(&self, keep: &KeepConfig) {
        if let Some(store) = &self.store {
            store.set_policy(Policy::from(&keep.data));
        }
    }

    /// Keeps one value, if there is a store and room in its queue.
    pub(crate) fn record<T: Serialize + ?Sized>(&self, table: Table, at: jiff::Timestamp, value: &T) {
        let Some(store) = &self.store else { return };
        // A row that is refused is counted by the store, and its check tells.
        if let Err(error) = store.append_json(table, at, value) {
            tracing::debug!(table = table.as_str(), %error, "a row is not kept");
        }
    }

    /// Keeps one value and waits until it is durable: for what must not be missing after a power cut.
    pub(crate) fn record_durable<T: Serialize + ?Sized>(&self, table: Table, at: jiff::Timestamp, value: &T) {
        let Some(store) = &self.store else { return };
        if let Err(error) = store.append_json(table, at, value).and_then(|receipt| receipt.wait()) {
            tracing::warn!(table = table.as_str(), error = told(&error), "a row is not kept");
        }
    }

    /// Delivers what waits within `limit`, and makes everything durable. Says whether every event is.
    pub(crate) fn stop(&self, limit: Duration) -> bool {
        let delivery = self.delivery.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(delivery) = delivery {
            delivery.stop(limit);
        }
        let flushed = self.outbox.as_ref().map_or(Ok(()), |outbox| outbox.flush(limit));
        if let Err(error) = &flushed {
            tracing::warn!(error = told(error), "not every event is durable");
        }
        if let Some(store) = &self.store
            && let Err(error) = store.flush()
        {
            tracing::warn!(error = told(&error), "not every row is durable");
        }
        flushed.is_ok()
    }
}

fn open_store(keep: &KeepConfig, keyring: &Arc<Keyring>, health: &Health) -> Option<Arc<Store>> {
    let open = || {
        let mut options = StoreOptions::new(&keep.store_dir, Arc::clone(keyring));
        options.policy = Policy::from(&keep.data);
        Store::open(options)
    };
    match patiently(HELD_LIMIT, open, |error| matches!(error, StoreError::InUse { .. })) {
        Ok(store) => Some(Arc::new(store)),
        Err(error) => {
            let finding = match &error {
                StoreError::InUse { path, holder } => held(path, *holder),
                error => told(error),
            };
            tracing::error!(error = finding, "nothing is kept in the store");
            health.set(checks::STORE, Finding::fail(finding));
            None
        }
    }
}

/// Opens what another process may have for a moment.
fn patiently<T, E>(limit: Duration, open: impl Fn() -> Result<T, E>, is_held: impl Fn(&E) -> bool) -> Result<T, E> {
    let began = std::time::Instant::now();
    loop {
        match open() {
            Err(error) if is_held(&error) && began.elapsed() < limit => std::thread::sleep(HELD_PAUSE),
            outcome => return outcome,
        }
    }
}

/// Who has what lies at `path`, and what to do.
fn held(path: &Path, holder: Option<u32>) -> String {
    let who = match holder {
        Some(pid) => {
            // What it was started as (proc(5)): for people, who see at once whether it is a command of theirs.
            let line =
                picket_durable::read_bounded(Path::new(&format!("/proc/{pid}/cmdline")), 4096).unwrap_or_default();
            let words: Vec<String> =
                line.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(printable).collect();
            if words.is_empty() { format!("process {pid}") } else { format!("process {pid} ({})", words.join(" ")) }
        }
        None => "another process".to_owned(),
    };
    let seconds = HELD_LIMIT.as_secs();
    format!(
        "{} has been in use by {who} for {seconds} s; when that has ended, restart the agent: picket service restart",
        path.display()
    )
}

/// A word of another process's, without what a terminal would obey.
fn printable(word: &[u8]) -> String {
    String::from_utf8_lossy(word).chars().filter(|c| !c.is_control()).take(60).collect()
}

fn open_outbox(keep: &KeepConfig, keyring: &Arc<Keyring>, health: &Health) -> Option<Arc<Outbox>> {
    let opened = Sealer::new(Arc::clone(keyring)).map_err(|error| told(&error)).and_then(|sealer| {
        let sealer = Arc::new(sealer);
        let open = || {
            Outbox::open(Options {
                folder: keep.outbox_dir.clone(),
                sealer: Arc::clone(&sealer),
                limits: keep.outbox.limits(),
                kernel_boot: picket_outbox::kernel_boot(),
                clock: Arc::new(SystemClock),
            })
        };
        let is_held = |error: &OutboxError| matches!(error, OutboxError::Lock(LockError::Held { .. }));
        patiently(HELD_LIMIT, open, is_held).map_err(|error| match &error {
            OutboxError::Lock(LockError::Held { holder, .. }) => held(&keep.outbox_dir, *holder),
            error => told(error),
        })
    });
    match opened {
        Ok(outbox) => Some(Arc::new(outbox)),
        Err(error) => {
            tracing::error!(error, "no event is kept");
            health.set(checks::OUTBOX, Finding::fail(error));
            None
        }
    }
}

/// Where events go until the hub's thread has looked: a machine without an identity has no reason to wait for that.
fn first_target(config: &Config) -> Target {
    let enrolled = CertStore::new(&config.hub.certs_dir).current().is_some();
    let standing = if enrolled { Standing::Enrolled } else { Standing::None };
    match destination(config.hub.uplink.via, &standing) {
        Destination::Store => Target::Store,
        Destination::Hub | Destination::Nowhere => Target::Nowhere,
    }
}

/// Events go from the outbox to wherever the switch says.
fn deliver(config: &Config, switch: &Arc<Switch>, outbox: &Arc<Outbox>) -> Option<Delivery> {
    let mut settings = DeliverySettings::new(&config.keep.outbox, &config.device_id);
    // What a hub takes at once.
    settings.batch.bytes = settings.batch.bytes.min(MAX_BATCH_BYTES);
    settings.batch.records = settings.batch.records.min(MAX_BATCH_RECORDS);
    let uplink = Box::new(Switched(Arc::clone(switch)));
    match Delivery::start(Arc::clone(outbox), uplink, settings, Arc::new(SystemClock)) {
        Ok(delivery) => Some(delivery),
        Err(error) => {
            tracing::error!(error = told(&error), "events wait in the outbox");
            None
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn store_finding(store: &Store) -> Finding {
    let counters = store.counters();
    let (written, lost) = (counters.rows_written, counters.rows_failed + counters.rows_refused);
    let finding = match (&counters.last_error, &counters.retention_error) {
        (Some(error), _) => Finding::warn(format!("rows cannot be written ({lost} lost so far): {error}")),
        (None, Some(error)) => Finding::warn(format!("old rows cannot be removed: {error}")),
        (None, None) if lost > 0 => Finding::pass(format!("{written} rows written, {lost} lost since the start")),
        (None, None) => Finding::pass(format!("{written} rows written")),
    };
    finding.figure("rows_written", written).figure("rows_lost", lost)
}

/// The books must add up; what nobody can store at present is a warning, for the disk may be at fault.
fn outbox_finding(status: &QueueStatus) -> Finding {
    let total = status.ledger.total();
    let finding = if !status.ledger_holds {
        Finding::fail("the books of events do not add up; keep the outbox folder and report this")
    } else if let Some(trouble) = &status.trouble {
        Finding::warn(format!("events wait in memory: {trouble}"))
    } else {
        let gaps = total.gap_total();
        Finding::pass(format!("{} events, {gaps} missing and accounted for, {} waiting", total.emitted, total.queued))
    };
    finding.figure("emitted", total.emitted).figure("gaps", total.gap_total()).figure("queued", total.queued)
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_durable::Lock;
    use std::sync::mpsc::channel;

    fn keep(dir: &Path) -> KeepConfig {
        KeepConfig {
            store_dir: dir.join("store"),
            store_key: dir.join("store.key"),
            outbox_dir: dir.join("outbox"),
            data: picket_store::DataSettings::default(),
            outbox: picket_outbox::OutboxSettings::default(),
        }
    }

    #[test]
    fn a_store_and_a_queue_that_a_command_has_for_a_moment_are_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let keep = keep(dir.path());
        let keyring = picket_store::keyring(&keep.store_key, &keep.store_dir).unwrap();
        let health = Health::default();
        drop((open_store(&keep, &keyring, &health).unwrap(), open_outbox(&keep, &keyring, &health).unwrap()));
        for lock in [keep.store_dir.join("store.lock"), keep.outbox_dir.join("outbox.lock")] {
            assert!(lock.exists(), "{}", lock.display());
            let held = Lock::acquire(&lock).unwrap();
            let (begun, begins) = channel();
            std::thread::scope(|scope| {
                let opening = scope.spawn(|| {
                    begun.send(()).unwrap();
                    (open_store(&keep, &keyring, &health).is_some(), open_outbox(&keep, &keyring, &health).is_some())
                });
                begins.recv().unwrap();
                // The first attempt finds it held, whichever is first: this holds it for some pauses.
                assert!(!ended_within(&opening, HELD_PAUSE * 3));
                drop(held);
                assert_eq!(opening.join().unwrap(), (true, true));
            });
        }
    }

    /// Whether the thread ended within `limit`.
    fn ended_within<T>(thread: &std::thread::ScopedJoinHandle<'_, T>, limit: Duration) -> bool {
        let (_keep, never) = channel::<()>();
        let _ = never.recv_timeout(limit);
        thread.is_finished()
    }

    #[test]
    fn who_keeps_a_store_from_the_agent_is_named_after_a_bounded_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let _held = Lock::acquire(&path).unwrap();
        let began = std::time::Instant::now();
        let limit = HELD_PAUSE * 3;
        let outcome = patiently(limit, || Lock::acquire(&path), |error| matches!(error, LockError::Held { .. }));
        assert!(began.elapsed() >= limit);
        let Err(LockError::Held { holder, .. }) = outcome else { panic!("{outcome:?}") };
        let told = held(&path, holder);
        let own = format!("process {} (", std::process::id());
        assert!(told.contains(&own) && told.contains("picket service restart"), "{told}");
    }

    #[test]
    fn a_note_is_on_disk_when_it_has_been_made() {
        let dir = tempfile::tempdir().unwrap();
        let keep = keep(dir.path());
        let keyring = picket_store::keyring(&keep.store_key, &keep.store_dir).unwrap();
        let store = open_store(&keep, &keyring, &Health::default());
        let switch = Arc::new(Switch::new(Target::Nowhere, None));
        let kept = Kept { store, outbox: None, switch, delivery: Mutex::new(None) };
        kept.record_durable(Table::ConfigBackups, jiff::Timestamp::now(), &"a note");
        let reader = picket_store::Reader::open(&keep.store_dir, &keyring).unwrap();
        assert_eq!(reader.collect(Table::ConfigBackups, &picket_store::Range::default()).unwrap().len(), 1);
    }
}

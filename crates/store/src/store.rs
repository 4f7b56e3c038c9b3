//! The store as the agent holds it: open, append, flush, close.

use crate::clock::{Clock, Doubt, SystemClock};
use crate::delivered::Delivered;
use crate::error::{Doing as _, Result, StoreError};
use crate::queue::{Counters, Pending, Queue, Receipt};
use crate::schema::{self, Access, Look};
use crate::writer::{self, Writer};
use crate::{Origin, Policy, Reader, Table, replace};
use jiff::Timestamp;
use picket_durable::{Lock, LockError};
use picket_seal::{KeyError, Keyring, MAX_RECORD_BYTES, Sealer};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The database's name in the store's folder.
pub const DATABASE: &str = "picket.db";
const LOCK: &str = "store.lock";
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// How a store is opened.
pub struct StoreOptions {
    /// The store's folder; it is made if it is not there. The database in it is [`DATABASE`].
    pub dir: PathBuf,
    /// The keys of this device.
    pub keyring: Arc<Keyring>,
    /// What is kept, and for how long.
    pub policy: Policy,
    /// The clocks that retention goes by.
    pub clock: Arc<dyn Clock>,
}

impl StoreOptions {
    /// A store in `dir` under `keyring`, with the default policy and the machine's clocks.
    pub fn new(dir: impl Into<PathBuf>, keyring: Arc<Keyring>) -> Self {
        Self { dir: dir.into(), keyring, policy: Policy::default(), clock: Arc::new(SystemClock::new()) }
    }
}

/// The open store. There is one in all processes; its writer is a thread that ends with it.
///
/// Appending never blocks on the disk. Rows are durable when their [`Receipt`] or a [`Store::flush`] after them says so.
pub struct Store {
    path: PathBuf,
    sealer: Arc<Sealer>,
    queue: Arc<Queue>,
    policy: Arc<Mutex<Policy>>,
    /// The last row whose fate a flush has told.
    told: AtomicU64,
    thread: Option<JoinHandle<()>>,
    _lock: Lock,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The keys of the store in `dir`: read, or made where there is neither a key file nor a store. A store whose key file
/// is gone gets no new one, which would be another device's.
///
/// # Errors
/// [`KeyError::Missing`] as [`StoreError::Key`] when there is a store and no key; else those of [`Keyring::open`].
pub fn keyring(key_file: &Path, dir: &Path) -> Result<Arc<Keyring>> {
    let keyring = match Keyring::open(key_file) {
        Err(KeyError::Missing(_)) if !replace::is_present(dir) => Keyring::create(key_file),
        other => other,
    };
    Ok(Arc::new(keyring?))
}

/// Takes the lock of the one writer of the store in `dir`.
///
/// # Errors
/// [`StoreError::InUse`] when another process, or another [`Store`] of this one, has it.
pub(crate) fn lock(dir: &Path) -> Result<Lock> {
    Lock::acquire(&dir.join(LOCK)).map_err(|error| lock_error(error, dir))
}

/// Why what lies at `path` cannot be had alone.
pub(crate) fn lock_error(error: LockError, path: &Path) -> StoreError {
    match error {
        LockError::Held { holder, .. } => StoreError::InUse { path: path.to_owned(), holder },
        LockError::Io { path, source } => picket_durable::Error::new("lock", path, source).into(),
    }
}

/// Which process writes to the store in `dir` at present: `None` nobody, `Some(None)` one that cannot be told.
pub fn writer_process(dir: &Path) -> Option<Option<u32>> {
    Lock::holder(&dir.join(LOCK))
}

/// Makes an empty database file that is its owner's alone, and opens it with the schema made.
pub(crate) fn open_database(path: &Path, keyring: &Keyring, sealer: &Sealer) -> Result<rusqlite::Connection> {
    match schema::look(path)? {
        // SQLite gives its log and its index the mode of the database.
        Look::Fresh => drop(picket_durable::create_new(path, FILE_MODE)?),
        Look::Store => {}
    }
    let mut connection = schema::connect(path, Access::Write)?;
    schema::prepare(&mut connection, path, keyring, sealer)?;
    Ok(connection)
}

impl Store {
    /// Opens the store, makes it if it is not there, and starts its writer.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::NotAStore`], [`StoreError::Damaged`], [`StoreError::OtherDevice`],
    /// [`StoreError::KeyMissing`], [`StoreError::WrongKey`], [`StoreError::TooNew`]: nothing was changed then.
    pub fn open(options: StoreOptions) -> Result<Self> {
        picket_durable::create_dir(&options.dir, FOLDER_MODE)?;
        let path = schema::real_path(&options.dir.join(DATABASE))?;
        let lock = lock(&options.dir)?;
        replace::finish(&path)?;
        if let Err(error) = replace::tidy(&path) {
            tracing::warn!(%error, "what an interrupted run left beside the store stays there");
        }
        let sealer = Arc::new(Sealer::new(Arc::clone(&options.keyring))?);
        let connection = open_database(&path, &options.keyring, &sealer)?;
        let next = writer::next_ids(&connection, &path)?;
        let doubt = Doubt::new(writer::newest_ms(&connection, &path)?, &*options.clock);
        let delivered = Delivered::load(&connection, &path)?;
        let queue = Arc::new(Queue::default());
        let policy = Arc::new(Mutex::new(options.policy));
        let writer = Writer {
            connection,
            path: path.clone(),
            sealer: Arc::clone(&sealer),
            queue: Arc::clone(&queue),
            policy: Arc::clone(&policy),
            clock: options.clock,
            next,
            delivered,
            doubt,
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| StoreError::from(picket_durable::Error::new("start the writer of", &path, source)))?;
        Ok(Self { path, sealer, queue, policy, told: AtomicU64::new(0), thread: Some(thread), _lock: lock })
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Queues one row. `payload` is JSON, by convention an object.
    ///
    /// # Errors
    /// [`StoreError::QueueFull`], [`StoreError::TooLong`], [`StoreError::Closed`]: the row was not queued.
    pub fn append(&self, table: Table, at: Timestamp, payload: impl Into<Vec<u8>>) -> Result<Receipt> {
        self.append_all([(table, at, payload.into())])
    }

    /// Queues one value as JSON.
    ///
    /// # Errors
    /// Those of [`Store::append`], and [`StoreError::Json`].
    pub fn append_json<T: Serialize + ?Sized>(&self, table: Table, at: Timestamp, value: &T) -> Result<Receipt> {
        let payload = serde_json::to_vec(value).map_err(|error| StoreError::Json(error.to_string()))?;
        self.append(table, at, payload)
    }

    /// Queues all rows or none, in one piece.
    ///
    /// # Errors
    /// Those of [`Store::append`].
    pub fn append_all(&self, rows: impl IntoIterator<Item = (Table, Timestamp, Vec<u8>)>) -> Result<Receipt> {
        self.append_delivered(rows.into_iter().map(|(table, at, plain)| (None, table, at, plain)))
    }

    /// Queues all rows or none. A row whose origin one of the last two runs had, also of an earlier process, is durable
    /// already and not stored again: whoever did not hear that a run was stored brings it again as it was.
    ///
    /// # Errors
    /// Those of [`Store::append`].
    pub fn append_delivered(
        &self,
        rows: impl IntoIterator<Item = (Option<Origin>, Table, Timestamp, Vec<u8>)>,
    ) -> Result<Receipt> {
        let rows = rows.into_iter().map(|(origin, table, at, plain)| match plain.len() {
            length if length > MAX_RECORD_BYTES => Err(StoreError::TooLong(length)),
            _ => Ok(Pending { table, at: at.as_millisecond(), plain, origin, run: 0 }),
        });
        self.queue.push(rows.collect::<Result<_>>()?)
    }

    /// Queues one row and waits until it is durable.
    ///
    /// # Errors
    /// Those of [`Store::append`] and [`Receipt::wait`].
    pub fn append_durable(&self, table: Table, at: Timestamp, payload: impl Into<Vec<u8>>) -> Result<()> {
        self.append(table, at, payload)?.wait()
    }

    /// Waits until everything queued so far is durable.
    ///
    /// # Errors
    /// Why some row that was queued since the last flush is not. Of several callers one is told; who must know of its own
    /// rows asks its receipts.
    pub fn flush(&self) -> Result<()> {
        let receipt = self.queue.receipt_since(self.told.load(Ordering::Acquire));
        let outcome = receipt.wait();
        self.told.fetch_max(receipt.last(), Ordering::AcqRel);
        outcome
    }

    /// A reader of its own connection; it sees what is committed.
    ///
    /// # Errors
    /// When the database cannot be opened.
    pub fn reader(&self) -> Result<Reader> {
        Reader::connect(&self.path, Arc::clone(&self.sealer))
    }

    /// What the writer did so far.
    pub fn counters(&self) -> Counters {
        self.queue.counters()
    }

    /// Puts another policy in force.
    pub fn set_policy(&self, policy: Policy) {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = policy;
        self.sweep();
    }

    /// Asks for a round of retention now instead of within a minute; does not wait for it.
    pub fn sweep(&self) {
        self.queue.ask_sweep();
    }

    /// Writes what waits and ends the writer.
    ///
    /// # Errors
    /// Those of [`Store::flush`].
    pub fn close(mut self) -> Result<()> {
        let outcome = self.flush();
        self.end();
        outcome
    }

    fn end(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has said so to all who wait.
            let _ = thread.join();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.end();
    }
}

/// Opens a store's file for reading without being its writer.
pub(crate) fn open_reader(dir: &Path, keyring: &Arc<Keyring>) -> Result<Reader> {
    let database = dir.join(DATABASE);
    if !dir.is_dir() {
        return Err(StoreError::Absent(database));
    }
    let path = schema::real_path(&database)?;
    replace::settle(dir, &path)?;
    if schema::look(&path)? == Look::Fresh {
        return Err(StoreError::Absent(database));
    }
    let sealer = Arc::new(Sealer::new(Arc::clone(keyring))?);
    let reader = Reader::connect(&path, Arc::clone(&sealer))?;
    schema::check(reader.connection(), &path, keyring, &sealer)?;
    // The first look at the data finds a file that cannot be read at all.
    reader.connection().query_row("SELECT count(*) FROM meta", [], |_| Ok(())).doing("read", &path)?;
    Ok(reader)
}

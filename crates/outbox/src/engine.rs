//! The queue without its thread: each call is one transaction, and damage is dealt with in between.

use crate::batch::Batch;
use crate::clock::Clock;
use crate::damage::{self, Contents};
use crate::database::{self, Tables};
use crate::draft::{Draft, Gap};
use crate::error::{OutboxError, Trouble};
use crate::marks::LedgerFile;
use crate::reserve::Reserve;
use crate::settings::{BatchLimits, Limits};
use crate::state::{State, StateError, wire_boot};
use crate::work::{CleanRequest, Memory, Work};
use picket_durable::Lock;
use picket_protocol::event::{EventId, GapReason, Priority};
use picket_seal::Sealer;
use rusqlite::{Connection, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// How often one operation deals with damage and begins again before it gives up.
const ATTEMPTS: usize = 4;
/// After so many commits the ledger file is synced; SQLite's own checkpoint comes about as often.
const SYNC_EVERY: u64 = 256;
/// Free pages that are given back to the file system at once.
const VACUUM_PAGES: i64 = 512;

/// Where an outbox lies and what it works with.
#[derive(Clone)]
pub struct Options {
    /// The folder; it is made with mode 0700 if it is not there.
    pub folder: PathBuf,
    /// Seals the records.
    pub sealer: Arc<Sealer>,
    /// The limits of the queue.
    pub limits: Limits,
    /// The kernel's boot id (`/proc/sys/kernel/random/boot_id`): a new one begins a new boot on the wire.
    pub kernel_boot: String,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
}

/// The files of an outbox.
pub(crate) struct Files {
    pub(crate) folder: PathBuf,
}

impl Files {
    pub(crate) fn database(&self) -> PathBuf {
        self.folder.join("outbox.db")
    }
    pub(crate) fn ledger(&self) -> PathBuf {
        self.folder.join("outbox.ledger")
    }
    pub(crate) fn accepted(&self) -> PathBuf {
        self.folder.join("outbox.accepted")
    }
    pub(crate) fn lock(&self) -> PathBuf {
        self.folder.join("outbox.lock")
    }
    pub(crate) fn wish(&self) -> PathBuf {
        self.folder.join("clean.wish")
    }
    fn reserve(&self) -> PathBuf {
        self.folder.join("outbox.reserve")
    }
    /// A new database while it is filled.
    fn building(&self) -> PathBuf {
        self.folder.join("outbox.db.building")
    }
    /// A new database, complete, that is to take the place of the damaged one.
    fn new_database(&self) -> PathBuf {
        self.folder.join("outbox.db.new")
    }
}

/// The queue, for one thread.
pub(crate) struct Engine {
    pub(crate) options: Options,
    pub(crate) files: Files,
    pub(crate) memory: Memory,
    db: Connection,
    ledger_file: LedgerFile,
    reserve: Reserve,
    _lock: Lock,
}

impl Engine {
    /// Opens the outbox, deals with whatever damage it finds, and begins a boot on the wire if this is a new one or if
    /// the past is in doubt.
    pub(crate) fn open(options: Options) -> Result<Self, OutboxError> {
        let files = Files { folder: options.folder.clone() };
        picket_durable::create_dir(&files.folder, 0o700)?;
        let lock = Lock::acquire(&files.lock())?;
        finish_replacement(&files)?;
        let (ledger_file, remembered) = LedgerFile::open(&files.ledger(), &options.sealer)?;
        let mut reserve = Reserve::open(&files.reserve());
        let path = files.database();
        make_private(&path)?;
        let connected = database::connect(&path).or_else(|trouble| match trouble {
            Trouble::Full if reserve.give() => database::connect(&path),
            other => Err(other),
        });
        let (db, mut structure) = match connected {
            Ok(db) => (db, None),
            Err(trouble @ (Trouble::Structure(_) | Trouble::Row)) => (nowhere(&path)?, Some(trouble)),
            Err(trouble) => return Err(trouble.into_error("open", &path)),
        };
        let found = match &structure {
            None => Tables { db: &db, sealer: &options.sealer }.state(),
            Some(_) => Err(StateError::Damaged),
        };
        let past = choose(found, remembered, &options.kernel_boot, &files)?;
        let memory = Memory::new(past.state);
        let mut engine = Self { options, files, memory, db, ledger_file, reserve, _lock: lock };
        if let Some(trouble) = structure.take() {
            engine.replace_database(&trouble)?;
        }
        engine.begin(past.standing)?;
        Ok(engine)
    }

    /// Makes books and rows agree, and begins or goes on with a boot.
    fn begin(&mut self, standing: Standing) -> Result<(), OutboxError> {
        let kernel_boot = self.options.kernel_boot.clone();
        self.attempt("begin", false, |work, clock| {
            let same_boot = work.memory.state.kernel_boot == kernel_boot;
            let mut doubt = !matches!(standing, Standing::Sound | Standing::New);
            work.memory.state.aged.advance(milliseconds(clock), work.wall.as_millisecond(), same_boot);
            if standing == Standing::Behind {
                work.remove_departed()?;
            }
            match Contents::claimed(work.tables) {
                Ok(contents) if contents.agrees(&work.memory.state) => work.memory.stats = contents.stats,
                Ok(_) | Err(Trouble::Row) => {
                    doubt = true;
                    work.scrub()?;
                }
                Err(trouble) => return Err(trouble),
            }
            if doubt || !same_boot || work.memory.state.boots.is_empty() {
                work.begin_boot(wire_boot(&kernel_boot, Uuid::now_v7()));
            }
            if standing == Standing::Lost {
                work.tell(&Gap::own(GapReason::Corruption, Priority::Normal, None))?;
            }
            work.memory.state.kernel_boot.clone_from(&kernel_boot);
            work.enforce_quotas()
        })
    }

    /// Adds records and gaps. All of it is durable when this returns.
    pub(crate) fn commit(&mut self, drafts: &[Draft], gaps: &[Gap]) -> Result<Vec<EventId>, OutboxError> {
        self.attempt("write to", !drafts.is_empty(), |work, _| {
            let ids = drafts.iter().map(|draft| work.insert(draft)).collect::<Result<Vec<_>, _>>()?;
            gaps.iter().try_for_each(|gap| work.account(gap))?;
            work.enforce_quotas()?;
            Ok(ids)
        })
    }

    /// Evicts what has become too old; gives room back to the file system. To be called now and then.
    pub(crate) fn tick(&mut self) -> Result<(), OutboxError> {
        self.pass_time();
        let oldest = self.memory.state.aged.ms.saturating_sub(self.options.limits.max_age_ms);
        let first = self.oldest_aged()?;
        if first.is_some_and(|aged| aged < oldest) {
            self.attempt("evict from", false, |work, _| work.enforce_quotas())?;
        }
        self.give_room_back();
        self.reserve.take();
        Ok(())
    }

    /// The age mark of the oldest record.
    pub(crate) fn oldest_aged(&self) -> Result<Option<i64>, OutboxError> {
        let tables = Tables { db: &self.db, sealer: &self.options.sealer };
        let mut oldest = None;
        for lane in crate::lane::Lane::ALL {
            if self.memory.stats[lane.index()].records > 0 {
                let first = tables.first_aged(lane, self.memory.state.lanes[lane.index()].removed_to);
                let first = first.map_err(|trouble| trouble.into_error("read", &self.files.database()))?;
                oldest = oldest.into_iter().chain(first).min();
            }
        }
        Ok(oldest)
    }

    /// Hands out records; the same ones until they are acknowledged or released.
    pub(crate) fn next_batch(&mut self, limits: BatchLimits) -> Result<Option<Batch>, OutboxError> {
        if self.memory.state.lease.is_none() && self.memory.stats.iter().all(|stat| stat.records == 0) {
            return Ok(None);
        }
        self.attempt("take from", false, |work, _| work.lease(limits))
    }

    /// The receiver has stored `batch`.
    pub(crate) fn acknowledge(&mut self, batch: &Batch) -> Result<bool, OutboxError> {
        self.attempt("acknowledge in", false, |work, _| work.acknowledge(batch))
    }

    /// `batch` certainly did not reach the receiver.
    pub(crate) fn release(&mut self, batch: &Batch) -> Result<bool, OutboxError> {
        self.attempt("release in", false, |work, _| Ok(work.release(batch)))
    }

    /// The receiver will never take `batch`.
    pub(crate) fn give_up(&mut self, batch: &Batch, reason: GapReason) -> Result<bool, OutboxError> {
        self.attempt("give up in", false, |work, _| work.give_up(batch, reason))
    }

    /// Drops queued records and counts them as shed. Says how many events those were.
    pub(crate) fn clean(&mut self, request: CleanRequest) -> Result<u64, OutboxError> {
        self.attempt("clean", false, |work, _| work.clean(request))
    }

    /// Ends the present stream and begins another. Says which.
    pub(crate) fn begin_stream(&mut self) -> Result<Uuid, OutboxError> {
        let boot = wire_boot(&self.options.kernel_boot, Uuid::now_v7());
        self.attempt("begin a stream in", false, |work, _| {
            work.begin_boot(boot);
            Ok(boot)
        })
    }

    /// Makes the database as full as it is now, or lets it grow again: what a full disk does, for tests.
    pub(crate) fn limit_growth(&mut self, full: bool) -> Result<(), OutboxError> {
        let pages: i64 = if full { 1 } else { 1_073_741_823 };
        let set = self.db.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()));
        set.map_err(|error| Trouble::from(error).into_error("limit", &self.files.database()))
    }

    /// Puts everything into the database file proper and syncs it: before the process ends.
    pub(crate) fn settle(&mut self) {
        let _ = self.db.pragma_update_and_check(None, "wal_checkpoint", "TRUNCATE", |_| Ok(()));
        let _ = self.ledger_file.sync();
    }

    /// The wall clock, in milliseconds since 1970.
    pub(crate) fn wall_ms(&self) -> i64 {
        self.options.clock.wall().as_millisecond()
    }

    fn pass_time(&mut self) {
        let clock = &self.options.clock;
        self.memory.state.aged.advance(milliseconds(clock.as_ref()), clock.wall().as_millisecond(), true);
    }

    /// One transaction: what `operation` does and the state after it, or neither. Damage is dealt with, and then it
    /// is tried again.
    fn attempt<T>(
        &mut self,
        operation: &'static str,
        grows: bool,
        act: impl Fn(&mut Work<'_>, &dyn Clock) -> Result<T, Trouble>,
    ) -> Result<T, OutboxError> {
        let (mut scrubbed, mut replaced) = (false, false);
        for _ in 0..ATTEMPTS {
            let trouble = match self.transact(&act) {
                Ok(done) => return Ok(done),
                Err(trouble) => trouble,
            };
            match trouble {
                Trouble::Row if !scrubbed => {
                    scrubbed = true;
                    tracing::warn!(folder = %self.files.folder.display(), "a record of the outbox is damaged; looking at all");
                    match self.transact(&|work: &mut Work<'_>, _: &dyn Clock| work.scrub()) {
                        Ok(()) => {}
                        Err(trouble @ (Trouble::Structure(_) | Trouble::Row)) => self.replace_database(&trouble)?,
                        Err(trouble) => return Err(trouble.into_error("scrub", &self.files.database())),
                    }
                }
                Trouble::Row | Trouble::Structure(_) if !replaced => {
                    replaced = true;
                    self.replace_database(&trouble)?;
                }
                // Room for new records is not what the reserve is for.
                Trouble::Full if !grows && self.reserve.give() => {}
                other => return Err(other.into_error(operation, &self.files.database())),
            }
        }
        Err(Trouble::Row.into_error(operation, &self.files.database()))
    }

    fn transact<T>(&mut self, act: &impl Fn(&mut Work<'_>, &dyn Clock) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let before = self.memory.clone();
        if !self.memory.state.boots.is_empty() {
            self.pass_time();
        }
        let clock = Arc::clone(&self.options.clock);
        let result = (|| {
            let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let tables = Tables { db: &transaction, sealer: &self.options.sealer };
            let (limits, wall) = (self.options.limits, clock.wall());
            let mut work = Work { tables, memory: &mut self.memory, limits, wall };
            let done = act(&mut work, clock.as_ref())?;
            self.memory.state.commit += 1;
            let json = serde_json::to_vec(&self.memory.state).map_err(|_| Trouble::Row)?;
            tables.put_state(&json)?;
            transaction.commit()?;
            Ok((done, json))
        })();
        match result {
            Ok((done, json)) => {
                self.note_commit(&json);
                Ok(done)
            }
            Err(trouble) => {
                self.memory = before;
                Err(trouble)
            }
        }
    }

    fn note_commit(&mut self, json: &[u8]) {
        let mut noted = self.ledger_file.write(&self.options.sealer, json);
        if self.memory.state.commit.is_multiple_of(SYNC_EVERY) {
            noted = noted.and_then(|()| self.ledger_file.sync());
        }
        if let Err(error) = noted {
            tracing::warn!(%error, source = %error.source, "the ledger file of the outbox cannot be written");
        }
    }

    /// Builds a new database of the rows that can still be read, and sets the damaged one aside.
    fn replace_database(&mut self, trouble: &Trouble) -> Result<(), OutboxError> {
        let path = self.files.database();
        tracing::error!(database = %path.display(), ?trouble, "the outbox's database is damaged; saving what can be read");
        // The connection must be gone before its file gets another name.
        self.db = nowhere(&path)?;
        let salvaged = self.build().or_else(|trouble| match trouble {
            // A new one without the old rows is small; they are counted as missing, and the file is kept.
            Trouble::Full => self.build_empty(),
            other => Err(other),
        });
        let salvaged = salvaged.map_err(|trouble| trouble.into_error("rebuild", &path))?;
        picket_durable::rename(&self.files.building(), &self.files.new_database())?;
        finish_replacement(&self.files)?;
        self.db = database::connect(&path).map_err(|trouble| trouble.into_error("open", &path))?;
        tracing::warn!(records = salvaged, "the outbox's database was rebuilt");
        self.memory.state.set_aside += 1;
        let kernel_boot = self.options.kernel_boot.clone();
        let rebooks = |work: &mut Work<'_>, _: &dyn Clock| {
            work.scrub()?;
            work.begin_boot(wire_boot(&kernel_boot, Uuid::now_v7()));
            Ok(())
        };
        self.transact(&rebooks).map_err(|trouble| trouble.into_error("rebuild", &path))
    }

    fn build(&self) -> Result<u64, Trouble> {
        let db = self.fresh()?;
        let to = Tables { db: &db, sealer: &self.options.sealer };
        let salvaged = damage::salvage(&self.files.database(), to, &self.memory.state)?;
        db.close().map_err(|(_, error)| Trouble::from(error))?;
        Ok(salvaged)
    }

    fn build_empty(&self) -> Result<u64, Trouble> {
        self.fresh()?.close().map_err(|(_, error)| Trouble::from(error))?;
        Ok(0)
    }

    /// A new, empty database without a log of its own, so that it is one file.
    fn fresh(&self) -> Result<Connection, Trouble> {
        let building = self.files.building();
        remove_with_log(&building);
        make_private(&building).map_err(|error| Trouble::Io(rusqlite::Error::ToSqlConversionFailure(error.into())))?;
        let db = database::connect(&building)?;
        db.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))?;
        Ok(db)
    }

    /// Gives free pages back once there are many: after an outage the file would stay as large as it ever was.
    fn give_room_back(&self) {
        let free: i64 = self.db.pragma_query_value(None, "freelist_count", |row| row.get(0)).unwrap_or(0);
        if free > 4 * VACUUM_PAGES {
            let _ = self.db.execute_batch(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"));
        }
    }
}

fn milliseconds(clock: &dyn Clock) -> i64 {
    i64::try_from(clock.since_boot().as_millis()).unwrap_or(i64::MAX)
}

/// What is known of the past.
struct Past {
    state: State,
    standing: Standing,
}

/// How far the database can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It says what was committed last.
    Sound,
    /// It says something, but nothing beside it confirms that this was the last.
    Unconfirmed,
    /// It forgot commits; the state is from the file beside it.
    Behind,
    /// It is new.
    New,
    /// All that is left are the rows that can still be read.
    Lost,
}

/// Which of the two memories of the past to go by.
fn choose(
    found: Result<Option<State>, StateError>,
    remembered: Option<State>,
    kernel_boot: &str,
    files: &Files,
) -> Result<Past, OutboxError> {
    let path = files.database();
    let past = match (found, remembered) {
        (Err(StateError::Later(form)), _) => return Err(OutboxError::Later { path, form }),
        (Ok(Some(db)), Some(file)) if file.books == db.books && file.commit > db.commit => {
            Past { state: file, standing: Standing::Behind }
        }
        (Ok(Some(db)), Some(file)) if file.books == db.books => Past { state: db, standing: Standing::Sound },
        (Ok(Some(db)), _) => Past { state: db, standing: Standing::Unconfirmed },
        (_, Some(file)) => Past { state: file, standing: Standing::Behind },
        (Ok(None), None) => Past { state: State::new(kernel_boot), standing: Standing::New },
        (Err(StateError::Damaged), None) if has_content(&files.ledger()) => return Err(OutboxError::OtherKeys(path)),
        (Err(StateError::Damaged), None) => Past { state: State::new(kernel_boot), standing: Standing::Lost },
    };
    Ok(past)
}

/// Whether something other than zeros was ever written to the ledger file.
fn has_content(path: &Path) -> bool {
    picket_durable::read_bounded(path, 1 << 20).is_ok_and(|bytes| bytes.iter().any(|byte| *byte != 0))
}

/// A stand-in for a connection that must be closed.
fn nowhere(path: &Path) -> Result<Connection, OutboxError> {
    Connection::open_in_memory().map_err(|error| Trouble::from(error).into_error("close", path))
}

/// Makes an empty file of mode 0600, which SQLite takes for an empty database; its log gets the same mode.
fn make_private(path: &Path) -> Result<(), picket_durable::Error> {
    if path.exists() { Ok(()) } else { picket_durable::create_new(path, 0o600).map(|_| ()) }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove_with_log(path: &Path) {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let _ = std::fs::remove_file(beside(path, suffix));
    }
}

/// Puts a complete new database in the place of the damaged one, which is kept as `outbox.db.damaged-<seconds>`; of
/// those only the newest, for they can be as large as the quota. Does nothing if there is no new one.
fn finish_replacement(files: &Files) -> Result<(), OutboxError> {
    let (path, new) = (files.database(), files.new_database());
    if !new.exists() {
        return Ok(());
    }
    if path.exists() {
        for entry in std::fs::read_dir(&files.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("outbox.db.damaged-") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let aside = beside(&path, &format!(".damaged-{}", jiff::Timestamp::now().as_second()));
        let log = beside(&path, "-wal");
        if log.exists() {
            picket_durable::rename(&log, &beside(&aside, "-wal"))?;
        }
        let _ = std::fs::remove_file(beside(&path, "-shm"));
        picket_durable::rename(&path, &aside)?;
    } else {
        // The old one has its new name already; what is left of its log must not be taken for the new one's.
        for suffix in ["-wal", "-shm"] {
            picket_durable::remove_if_present(&beside(&path, suffix))?;
        }
    }
    Ok(picket_durable::rename(&new, &path)?)
}

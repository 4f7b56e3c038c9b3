//! What the store promises, on real files.

mod damage;
mod hardship;
mod replacement;
mod upkeep;

use crate::clock::tests::HandClock;
use crate::*;
use jiff::Timestamp;
use picket_seal::Keyring;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A folder with a key file and room for a store.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) keyring: Arc<Keyring>,
}

pub(crate) const NOW_MS: i64 = 1_800_000_000_000;

pub(crate) fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap()
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keyring = keyring(&dir.path().join("store.key"), &dir.path().join("store")).unwrap();
        Self { dir, keyring }
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder().join(DATABASE)
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.dir.path().join("store.key")
    }

    pub(crate) fn options(&self) -> StoreOptions {
        StoreOptions::new(self.folder(), Arc::clone(&self.keyring))
    }

    pub(crate) fn open(&self) -> Store {
        Store::open(self.options()).unwrap()
    }

    pub(crate) fn reader(&self) -> Reader {
        Reader::open(&self.folder(), &self.keyring).unwrap()
    }

    /// A closed store with `count` events a second apart.
    pub(crate) fn filled(count: i64) -> Self {
        let bench = Self::new();
        let store = bench.open();
        fill(&store, Table::Events, 0, count);
        store.close().unwrap();
        bench
    }
}

pub(crate) fn fill(store: &Store, table: Table, from: i64, count: i64) {
    for chunk in (from..from + count).collect::<Vec<_>>().chunks(200) {
        let rows = chunk.iter().map(|i| (table, at(NOW_MS + i * 1000), payload(*i)));
        store.append_all(rows).unwrap().wait().unwrap();
    }
}

pub(crate) fn payload(i: i64) -> Vec<u8> {
    format!(r#"{{"number":{i},"text":"{}"}}"#, "planted-plaintext ".repeat(12)).into_bytes()
}

fn contains(path: &Path, needle: &[u8]) -> bool {
    let bytes = picket_durable::read_if_present(path, 1 << 30).unwrap().unwrap_or_default();
    bytes.windows(needle.len()).any(|window| window == needle)
}

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[test]
fn what_is_flushed_is_there_in_order_after_the_store_was_closed() {
    let bench = Bench::filled(1000);
    let rows = bench.reader().collect(Table::Events, &Range::default()).unwrap();
    assert_eq!(rows.len(), 1000);
    for (i, row) in (0..).zip(&rows) {
        assert_eq!((row.id, row.at, &row.payload), (i + 1, at(NOW_MS + i * 1000), &payload(i)));
    }
    let store = bench.open();
    store.append_durable(Table::Events, at(NOW_MS), *b"{}").unwrap();
    let last = Range { limit: Some(1), ..Range::default() };
    assert_eq!(store.reader().unwrap().collect(Table::Events, &last).unwrap()[0].payload, payload(0));
    assert_eq!(store.counters().rows_written, 1);
}

#[test]
fn a_range_is_half_open_and_can_be_read_from_its_end() {
    let bench = Bench::filled(2000);
    let reader = bench.reader();
    let range = Range { since: Some(at(NOW_MS + 10_000)), until: Some(at(NOW_MS + 1_000_000)), ..Range::default() };
    let rows = reader.collect(Table::Events, &range).unwrap();
    assert_eq!((rows.len(), rows[0].id, rows[989].id), (990, 11, 1000));
    let last = reader.collect(Table::Events, &Range { newest_first: true, limit: Some(700), ..range }).unwrap();
    assert_eq!((last.len(), last[0].id, last[699].id), (700, 1000, 301));
    assert_eq!(reader.collect(Table::Logs, &range).unwrap(), []);
}

#[test]
fn rows_come_in_the_order_in_which_they_were_written_where_the_clock_is_not_asked() {
    let bench = Bench::new();
    let store = bench.open();
    for i in 0..1200_i64 {
        let receipt = store.append(Table::ConfigBackups, at(NOW_MS - i * 1000), payload(i)).unwrap();
        if i == 1199 {
            receipt.wait().unwrap();
        }
    }
    for newest_first in [false, true] {
        let range = Range { newest_first, as_written: true, ..Range::default() };
        let rows = bench.reader().collect(Table::ConfigBackups, &range).unwrap();
        let mut ids: Vec<i64> = (1..=1200).collect();
        if newest_first {
            ids.reverse();
        }
        assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), ids);
    }
}

#[test]
fn a_run_that_was_written_in_part_is_completed_when_it_is_brought_again() {
    let bench = Bench::new();
    let stream = uuid::Uuid::now_v7();
    let run = |from: u64, to: u64| {
        (from..to).map(move |number| {
            let origin = Origin { stream, number };
            (Some(origin), Table::Events, at(NOW_MS), payload(i64::try_from(number).unwrap()))
        })
    };
    let store = bench.open();
    store.append_delivered(run(0, 300)).unwrap().wait().unwrap();
    drop(store);
    // Another process, which has more of it; and a third one, to which the second did not say so.
    for _ in 0..2 {
        let store = bench.open();
        store.append_delivered(run(0, 700)).unwrap().wait().unwrap();
        assert_eq!(bench.reader().collect(Table::Events, &Range::default()).unwrap().len(), 700);
    }
    // The same number in another stream is another event, and rows without an origin are all kept.
    let store = bench.open();
    let other = Origin { stream: uuid::Uuid::now_v7(), number: 5 };
    store.append_delivered([(Some(other), Table::Events, at(NOW_MS), payload(5))]).unwrap().wait().unwrap();
    for _ in 0..2 {
        store.append_durable(Table::Events, at(NOW_MS), payload(5)).unwrap();
    }
    assert_eq!(bench.reader().collect(Table::Events, &Range::default()).unwrap().len(), 703);
}

#[test]
fn planted_plaintext_is_in_no_file_while_the_store_is_open_nor_after() {
    let bench = Bench::new();
    let store = bench.open();
    fill(&store, Table::Events, 0, 300);
    store.append_durable(Table::ConfigBackups, at(NOW_MS), "planted-plaintext ".repeat(10_000)).unwrap();
    let files = ["", "-wal", "-shm"].map(|suffix| beside(&bench.database(), suffix));
    let search = |must_be_there: &[PathBuf]| {
        for file in must_be_there {
            let meta = file.metadata().unwrap();
            assert!(meta.len() > 0 && meta.permissions().mode() & 0o777 == 0o600, "{}", file.display());
            assert!(!contains(file, b"planted"), "{}", file.display());
            // The search itself finds what is in clear.
        }
    };
    search(&files);
    store.close().unwrap();
    search(&files[..1]);
    assert!(contains(&files[0], b"CREATE TABLE events"));
    assert_eq!(bench.folder().metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_second_store_on_the_same_folder_is_refused_and_told_who_has_it() {
    let bench = Bench::new();
    let first = bench.open();
    let error = Store::open(bench.options()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { holder: Some(pid), .. } if pid == std::process::id()), "{error}");
    assert_eq!(writer_process(&bench.folder()), Some(Some(std::process::id())));
    drop(first);
    bench.open();
}

#[test]
fn the_wrong_key_a_missing_one_and_another_devices_are_told_apart_and_nothing_is_changed() {
    let bench = Bench::filled(10);
    let before = picket_durable::read_bounded(&bench.database(), 1 << 30).unwrap();
    let open =
        |keyring: &Arc<Keyring>| Store::open(StoreOptions::new(bench.folder(), Arc::clone(keyring))).unwrap_err();

    let other = Bench::new();
    assert!(matches!(open(&other.keyring), StoreError::OtherDevice { file, .. } if file == bench.keyring.device()));

    // The same device id, another key: only the proving record tells.
    let theirs = picket_durable::read_text(&other.key_file(), 4096).unwrap();
    let forged = theirs.replace(&other.keyring.device().to_string(), &bench.keyring.device().to_string());
    let forged_file = bench.dir.path().join("forged.key");
    picket_durable::write_atomic(&forged_file, forged.as_bytes(), 0o600).unwrap();
    let forged = Arc::new(Keyring::open(&forged_file).unwrap());
    assert!(matches!(open(&forged), StoreError::WrongKey(_)));

    // An older copy of the right key file.
    let older = bench.dir.path().join("older.key");
    let renumbered = picket_durable::read_text(&bench.key_file(), 4096).unwrap().replace(": 1", ": 7");
    let renumbered = renumbered.replace("\"schema\": 7", "\"schema\": 1");
    picket_durable::write_atomic(&older, renumbered.as_bytes(), 0o600).unwrap();
    let older = Arc::new(Keyring::open(&older).unwrap());
    assert!(matches!(open(&older), StoreError::KeyMissing { key: 1, .. }));

    picket_durable::rename(&bench.key_file(), &bench.dir.path().join("away")).unwrap();
    let error = keyring(&bench.key_file(), &bench.folder()).unwrap_err();
    assert!(matches!(&error, StoreError::Key(source) if matches!(**source, picket_seal::KeyError::Missing(_))));
    assert!(!bench.key_file().exists(), "no new key is made for an old store");
    assert_eq!(picket_durable::read_bounded(&bench.database(), 1 << 30).unwrap(), before);
}

#[test]
fn what_is_no_store_is_left_as_it_is() {
    let bench = Bench::new();
    std::fs::create_dir(bench.folder()).unwrap();
    for (content, what) in [
        (b"not a database at all, but long enough to look like one: ".repeat(10), "text"),
        (vec![0; 5000], "zeroes"),
        (b"SQLite format 3\0short".to_vec(), "a stump"),
    ] {
        picket_durable::write_atomic(&bench.database(), &content, 0o600).unwrap();
        assert!(matches!(Store::open(bench.options()), Err(StoreError::NotAStore { .. })), "{what}");
        assert_eq!(picket_durable::read_bounded(&bench.database(), 1 << 20).unwrap(), content, "{what}");
    }
    std::fs::remove_file(bench.database()).unwrap();
    rusqlite::Connection::open(bench.database()).unwrap().execute_batch("CREATE TABLE x(y)").unwrap();
    assert!(matches!(Store::open(bench.options()), Err(StoreError::NotAStore { .. })));
    std::fs::remove_file(bench.database()).unwrap();
    picket_durable::write_atomic(&beside(&bench.database(), "-wal"), b"rows", 0o600).unwrap();
    assert!(matches!(Store::open(bench.options()), Err(StoreError::Damaged { .. })));
}

#[test]
fn an_empty_file_is_schema_0_and_becomes_a_store() {
    let bench = Bench::new();
    std::fs::create_dir(bench.folder()).unwrap();
    drop(picket_durable::create_new(&bench.database(), 0o600).unwrap());
    bench.open().close().unwrap();
    assert_eq!(bench.reader().stats().unwrap().schema, SCHEMA_WRITES);
}

#[test]
fn a_file_of_the_next_release_is_worked_with_if_it_only_adds_and_keeps_its_number() {
    let bench = Bench::filled(3);
    let change = |sql: &str| rusqlite::Connection::open(bench.database()).unwrap().execute_batch(sql).unwrap();
    change(
        "ALTER TABLE events ADD COLUMN severity INTEGER NOT NULL DEFAULT 0; CREATE TABLE newer(id INTEGER PRIMARY KEY); \
         PRAGMA user_version=2",
    );
    let store = bench.open();
    store.append_durable(Table::Events, at(NOW_MS), *b"{}").unwrap();
    store.close().unwrap();
    let reader = bench.reader();
    assert_eq!(reader.collect(Table::Events, &Range::default()).unwrap().len(), 4);
    assert_eq!(reader.stats().unwrap().schema, 2);
    drop(reader);

    change("PRAGMA user_version=3");
    assert!(matches!(Store::open(bench.options()), Err(StoreError::TooNew { file: 3, reads: 1, .. })));
    change("PRAGMA user_version=2; ALTER TABLE events RENAME COLUMN sealed TO body");
    assert!(matches!(Store::open(bench.options()), Err(StoreError::Damaged { .. })));
    change("ALTER TABLE events RENAME COLUMN body TO sealed");
    let keyring = Arc::clone(&bench.keyring);
    let path = bench.database();
    let connection = schema::connect(&path, schema::Access::Write).unwrap();
    schema::set_meta(&connection, &path, "reads_from", b"2").unwrap();
    drop(connection);
    let refused = Reader::open(&bench.folder(), &keyring).unwrap_err();
    assert!(matches!(refused, StoreError::TooNew { file: 2, .. }), "{refused}");
}

#[test]
fn old_rows_go_by_the_age_of_their_table_and_ids_are_never_given_twice() {
    let bench = Bench::new();
    let clock = Arc::new(HandClock::at(NOW_MS));
    let mut options = bench.options();
    options.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    let store = Store::open(options).unwrap();
    for table in Table::ALL {
        fill(&store, table, 0, 1000);
    }
    let count = |table| bench.reader().collect(table, &Range::default()).unwrap().len();
    clock.pass(Duration::from_secs(8 * 86_400));
    store.sweep();
    picket_testkit::wait_until("a week's rows are gone", || count(Table::CommunicationLogs) == 0);
    assert_eq!(count(Table::Metrics), 1000);
    clock.pass(Duration::from_secs(100 * 86_400));
    store.sweep();
    picket_testkit::wait_until("all rows that may go are gone", || count(Table::Alerts) == 0);
    assert_eq!(Table::ALL.map(count), [0, 0, 0, 1000, 0, 1000, 0, 0]);
    store.append_durable(Table::Alerts, at(NOW_MS), *b"{}").unwrap();
    store.close().unwrap();
    let store = bench.open();
    store.append_durable(Table::Events, at(NOW_MS), *b"{}").unwrap();
    let id = |table| store.reader().unwrap().collect(table, &Range::default()).unwrap()[0].id;
    assert_eq!((id(Table::Alerts), id(Table::Events)), (1001, 1001));
}

#[test]
fn a_clock_that_leaps_for_a_while_deletes_nothing() {
    let bench = Bench::new();
    let clock = Arc::new(HandClock::at(NOW_MS + 1_000_000));
    let mut options = bench.options();
    options.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    options.policy = Policy::default().with_keep(Table::Logs, Some(Duration::from_secs(1)));
    let store = Store::open(options).unwrap();
    fill(&store, Table::Events, 0, 500);
    fill(&store, Table::Logs, 0, 500);
    let count = |table| bench.reader().collect(table, &Range::default()).unwrap().len();
    store.sweep();
    picket_testkit::wait_until("logs are gone", || count(Table::Logs) == 0);
    clock.set(NOW_MS + 10 * 365 * 86_400_000);
    fill(&store, Table::Logs, 0, 1);
    store.sweep();
    picket_testkit::wait_until("the clock is doubted", || store.counters().clock_doubted);
    assert_eq!((count(Table::Events), count(Table::Logs)), (500, 1));
    clock.set(NOW_MS + 2_800_000);
    store.sweep();
    picket_testkit::wait_until("the round after the leap", || count(Table::Logs) == 0);
    assert_eq!(count(Table::Events), 500);
}

#[test]
fn a_store_over_its_size_loses_its_oldest_rows_and_gives_the_space_back() {
    let bench = Bench::new();
    let store = bench.open();
    fill(&store, Table::ConfigBackups, 0, 200);
    fill(&store, Table::Metrics, 0, 6000);
    fill(&store, Table::Events, 6000, 6000);
    let before = bench.reader().size().unwrap();
    let limit = before.used_bytes() / 2;
    store.set_policy(Policy::default().with_max_bytes(Some(limit)));
    picket_testkit::wait_until("the store is small", || {
        let size = bench.reader().size().unwrap();
        size.used_bytes() <= limit && size.pages < before.pages * 3 / 4
    });
    let count = |table| bench.reader().collect(table, &Range::default()).unwrap().len();
    assert_eq!((count(Table::Metrics), count(Table::ConfigBackups)), (0, 200));
    assert!((4000..6000).contains(&count(Table::Events)), "{}", count(Table::Events));
    assert!(store.counters().rows_expired > 6000);
}

#[test]
fn a_payload_too_long_is_refused_before_it_can_spoil_a_batch() {
    let bench = Bench::new();
    let store = bench.open();
    let error = store.append(Table::Logs, at(0), vec![0; picket_seal::MAX_RECORD_BYTES + 1]).unwrap_err();
    assert!(matches!(error, StoreError::TooLong(_)));
    store.append_durable(Table::Logs, at(0), vec![b' '; picket_seal::MAX_RECORD_BYTES]).unwrap();
    let rows = store.reader().unwrap().collect(Table::Logs, &Range::default()).unwrap();
    assert_eq!(rows[0].payload.len(), picket_seal::MAX_RECORD_BYTES);
}

#[test]
fn what_is_in_the_store_is_told_in_numbers_that_add_up() {
    let bench = Bench::filled(500);
    let stats = bench.reader().stats().unwrap();
    let events = &stats.tables[Table::Events.index()];
    let payload: usize = (0..500).map(|i| payload(i).len()).sum();
    assert_eq!((events.rows, events.payload_bytes), (500, payload as u64));
    assert_eq!((events.oldest, events.newest), (Some(at(NOW_MS)), Some(at(NOW_MS + 499_000))));
    assert!(events.bytes > events.payload_bytes && events.bytes < stats.file_bytes, "{stats:?}");
    let since = Range { since: Some(at(NOW_MS + 490_000)), ..Range::default() };
    assert_eq!(bench.reader().count(Table::Events, &since).unwrap(), 10);
}

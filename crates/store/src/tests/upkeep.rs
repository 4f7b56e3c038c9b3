//! Rekeying, backups, exports and clean-up, beside a writer at work.

use super::*;
use crate::maintenance::Progress;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn numbers(reader: &Reader, table: Table) -> Vec<i64> {
    let rows = reader.collect(table, &Range::default()).unwrap();
    rows.iter()
        .map(|row| serde_json::from_slice::<serde_json::Value>(&row.payload).unwrap()["number"].as_i64().unwrap())
        .collect()
}

#[test]
fn a_rekeying_by_another_process_does_not_stop_the_writer_and_leaves_nothing_under_the_old_key() {
    let bench = Bench::new();
    let store = bench.open();
    fill(&store, Table::Events, 0, 1500);
    fill(&store, Table::Logs, 0, 10);
    let done = AtomicBool::new(false);
    let (report, written) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut next = 1500;
            while !done.load(Ordering::Acquire) || next < 1600 {
                fill(&store, Table::Events, next, 10);
                next += 10;
            }
            next
        });
        // What another process has: a keyring of its own, read from the file.
        let elsewhere = Arc::new(Keyring::open(&bench.key_file()).unwrap());
        let report =
            Maintenance::open(&bench.folder(), &elsewhere).unwrap().rekey(false, &mut |_| false, &mut go_on).unwrap();
        done.store(true, Ordering::Release);
        (report, writing.join().unwrap())
    });
    assert_eq!((report.key, &report.retired[..], report.resumed), (2, &[1][..], false));
    assert!(report.rows >= 1510 && report.kept.is_empty() && report.damaged.is_empty());
    store.close().unwrap();
    let fresh = Arc::new(Keyring::open(&bench.key_file()).unwrap());
    assert_eq!(fresh.list().iter().map(|key| key.id).collect::<Vec<_>>(), [2]);
    let reader = Reader::open(&bench.folder(), &fresh).unwrap();
    assert_eq!(numbers(&reader, Table::Events), (0..written).collect::<Vec<_>>());
    assert!(verify(&bench.folder(), Some(&fresh), &mut go_on).unwrap().is_whole());
}

#[test]
fn an_interrupted_rekeying_is_taken_up_with_the_same_key() {
    let bench = Bench::filled(1000);
    let mut steps = 0;
    let stopped = Maintenance::open(&bench.folder(), &bench.keyring).unwrap().rekey(false, &mut |_| false, &mut |_| {
        steps += 1;
        if steps == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(StoreError::Stopped)));
    let keyring = Arc::new(Keyring::open(&bench.key_file()).unwrap());
    assert_eq!(keyring.list().len(), 2);
    assert!(verify(&bench.folder(), Some(&keyring), &mut go_on).unwrap().is_whole());
    let report =
        Maintenance::open(&bench.folder(), &keyring).unwrap().rekey(false, &mut |_| false, &mut go_on).unwrap();
    assert_eq!((report.key, report.resumed, &report.retired[..]), (2, true, &[1][..]));
    assert!(report.rows < 1000, "{}", report.rows);
    assert_eq!(bench.reader().collect(Table::Events, &Range::default()).unwrap().len(), 1000);
}

#[test]
fn an_interrupted_rekeying_that_is_run_again_for_a_new_key_ends_with_one_and_with_every_row_under_it() {
    let bench = Bench::filled(1000);
    let mut steps = 0;
    let stopped = Maintenance::open(&bench.folder(), &bench.keyring).unwrap().rekey(false, &mut |_| false, &mut |_| {
        steps += 1;
        if steps == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(StoreError::Stopped)));
    let interrupted = Keyring::open(&bench.key_file()).unwrap().list().pop().unwrap();
    let keyring = Arc::new(Keyring::open(&bench.key_file()).unwrap());
    let mut most = 0;
    let report = Maintenance::open(&bench.folder(), &keyring).unwrap().rekey(true, &mut |_| false, &mut |_| {
        // The old keys are there for as long as a row is under them.
        most = most.max(Keyring::open(&bench.key_file()).unwrap().list().len());
        ControlFlow::Continue(())
    });
    let report = report.unwrap();
    assert_eq!((report.key, report.resumed, report.rows, &report.retired[..], most), (3, false, 1000, &[1, 2][..], 3));
    assert!(report.made.unwrap() > interrupted.created);
    let fresh = Arc::new(Keyring::open(&bench.key_file()).unwrap());
    assert_eq!(fresh.list().iter().map(|key| key.id).collect::<Vec<_>>(), [3]);
    assert!(verify(&bench.folder(), Some(&fresh), &mut go_on).unwrap().is_whole());
}

#[test]
fn a_key_that_something_else_needs_is_forgotten_by_the_next_run_which_makes_no_other_key() {
    let bench = Bench::filled(20);
    let rekey = |needed: bool| {
        let keyring = Arc::new(Keyring::open(&bench.key_file()).unwrap());
        Maintenance::open(&bench.folder(), &keyring).unwrap().rekey(false, &mut |_| needed, &mut go_on).unwrap()
    };
    let first = rekey(true);
    assert_eq!((first.key, &first.needed[..], &first.retired[..]), (2, &[1][..], &[][..]));
    let second = rekey(false);
    assert_eq!((second.key, second.resumed, second.rows), (2, true, 0));
    assert_eq!((&second.needed[..], &second.retired[..]), (&[][..], &[1][..]));
    assert_eq!(rekey(false).key, 3);
}

#[test]
fn a_key_that_a_damaged_row_needs_is_kept() {
    let bench = Bench::filled(20);
    let connection = rusqlite::Connection::open(bench.database()).unwrap();
    connection.execute("UPDATE events SET sha256=zeroblob(32), at=at+1 WHERE id=7", []).unwrap();
    drop(connection);
    let report =
        Maintenance::open(&bench.folder(), &bench.keyring).unwrap().rekey(false, &mut |_| false, &mut go_on).unwrap();
    assert_eq!(
        (&report.kept[..], &report.retired[..], &report.damaged[..]),
        (&[1][..], &[][..], &[(Table::Events, 7)][..])
    );
}

#[test]
fn a_writer_that_cannot_read_a_rotated_key_file_writes_nothing_under_the_old_key() {
    let bench = Bench::new();
    let store = bench.open();
    store.append_durable(Table::Logs, at(0), *b"{}").unwrap();
    let elsewhere = Arc::new(Keyring::open(&bench.key_file()).unwrap());
    Maintenance::open(&bench.folder(), &elsewhere).unwrap().rekey(false, &mut |_| false, &mut go_on).unwrap();
    let away = bench.dir.path().join("away");
    picket_durable::rename(&bench.key_file(), &away).unwrap();
    assert!(matches!(store.append_durable(Table::Logs, at(0), *b"{}"), Err(StoreError::KeyMissing { key: 2, .. })));
    picket_durable::rename(&away, &bench.key_file()).unwrap();
    store.append_durable(Table::Logs, at(0), *b"{}").unwrap();
    picket_durable::rename(&bench.key_file(), &away).unwrap();
    store.append_durable(Table::Logs, at(0), *b"{}").unwrap();
    assert!(store.counters().key_error.is_some_and(|error| error.contains("missing")));
}

#[test]
fn a_writer_whose_key_file_is_an_older_copy_again_seals_nothing_under_the_old_key() {
    let bench = Bench::new();
    let store = bench.open();
    store.append_durable(Table::Logs, at(0), *b"{}").unwrap();
    let old = picket_durable::read_bounded(&bench.key_file(), 4096).unwrap();
    let elsewhere = Arc::new(Keyring::open(&bench.key_file()).unwrap());
    Maintenance::open(&bench.folder(), &elsewhere).unwrap().rekey(false, &mut |_| false, &mut go_on).unwrap();
    let new = picket_durable::read_bounded(&bench.key_file(), 4096).unwrap();
    // Put back before the writer ever saw the new one: only the store itself tells of the rotation.
    picket_durable::write_atomic(&bench.key_file(), &old, 0o600).unwrap();
    assert!(matches!(store.append_durable(Table::Logs, at(0), *b"{}"), Err(StoreError::KeyMissing { key: 2, .. })));
    picket_durable::write_atomic(&bench.key_file(), &new, 0o600).unwrap();
    store.append_durable(Table::Logs, at(0), *b"{}").unwrap();
    // Put back afterwards: the newest key stays in use, and it is told.
    picket_durable::write_atomic(&bench.key_file(), &old, 0o600).unwrap();
    store.append_durable(Table::Logs, at(0), *b"{}").unwrap();
    assert!(store.counters().key_error.is_some_and(|error| error.contains("older copy")));
    picket_durable::write_atomic(&bench.key_file(), &new, 0o600).unwrap();
    drop(store);
    let fresh = Arc::new(Keyring::open(&bench.key_file()).unwrap());
    let reader = Reader::open(&bench.folder(), &fresh).unwrap();
    assert_eq!(reader.collect(Table::Logs, &Range::default()).unwrap().len(), 3);
}

#[test]
fn a_person_can_clean_up_beside_the_writer_and_gets_the_space_back() {
    let bench = Bench::new();
    let store = bench.open();
    fill(&store, Table::Events, 0, 5000);
    fill(&store, Table::ConfigBackups, 0, 10);
    let mut maintenance = Maintenance::open(&bench.folder(), &bench.keyring).unwrap();
    let policy = Policy::default().at_most(Duration::from_secs(86_400));
    let now = NOW_MS + 86_400_000 + 4_000_000;
    let report = maintenance.clean_up(policy, now, &mut go_on).unwrap();
    assert_eq!(report.removed, [(Table::Events, 4000)]);
    assert!(report.freed_bytes > 1 << 20, "{}", report.freed_bytes);
    fill(&store, Table::Events, 5000, 1);
    assert_eq!(numbers(&store.reader().unwrap(), Table::Events), (4000..5001).collect::<Vec<_>>());
}

const DAY: i64 = 86_400_000;

/// Puts `count` events of the time `ms` into a store.
fn put(store: &Store, table: Table, ms: i64, count: i64) {
    for chunk in (0..count).collect::<Vec<_>>().chunks(200) {
        store.append_all(chunk.iter().map(|i| (table, at(ms), payload(*i)))).unwrap().wait().unwrap();
    }
}

fn clean(bench: &Bench, policy: &Policy, now: i64) -> Vec<(Table, u64)> {
    let told = rehearse_clean_up(&bench.folder(), &bench.keyring, policy.clone(), now, &mut go_on).unwrap();
    let mut maintenance = Maintenance::open(&bench.folder(), &bench.keyring).unwrap();
    let done = maintenance.clean_up(policy.clone(), now, &mut go_on).unwrap();
    assert_eq!(told.removed, done.removed, "what is told beforehand is what is done");
    done.removed
}

#[test]
fn rows_from_the_future_grow_old_from_when_they_are_first_seen() {
    let bench = Bench::new();
    let store = bench.open();
    // Nothing is written after them, in one table; in the other, present rows are.
    put(&store, Table::Events, NOW_MS + 5000 * DAY, 700);
    put(&store, Table::Logs, NOW_MS + 5000 * DAY, 700);
    put(&store, Table::Logs, NOW_MS, 300);
    store.close().unwrap();
    let policy = Policy::default();
    assert_eq!(clean(&bench, &policy, NOW_MS), []);
    assert_eq!(clean(&bench, &policy, NOW_MS + 29 * DAY), []);
    // The rows that were written later are too old: so are those from the future before them. The others are, too, since
    // thirty days have passed.
    let gone = clean(&bench, &policy, NOW_MS + 31 * DAY);
    assert_eq!(gone, [(Table::Logs, 1000), (Table::Events, 700)]);
    // Ids are not given again.
    let store = bench.open();
    store.append_durable(Table::Events, at(NOW_MS), *b"{}").unwrap();
    assert_eq!(bench.reader().collect(Table::Events, &Range::default()).unwrap()[0].id, 701);
}

#[test]
fn a_clock_that_is_behind_for_a_while_makes_no_row_old() {
    let bench = Bench::new();
    let store = bench.open();
    put(&store, Table::Events, NOW_MS, 300);
    store.close().unwrap();
    let policy = Policy::default();
    // A machine without a battery begins in 1970: every row is from the future.
    assert_eq!(clean(&bench, &policy, 0), []);
    assert_eq!(clean(&bench, &policy, NOW_MS + DAY), []);
    assert_eq!(numbers(&bench.reader(), Table::Events).len(), 300);
}

#[test]
fn under_the_limit_of_size_rows_from_the_future_go_before_present_ones() {
    let bench = Bench::new();
    let store = bench.open();
    put(&store, Table::Metrics, NOW_MS + 5000 * DAY, 3000);
    put(&store, Table::Events, NOW_MS, 3000);
    store.close().unwrap();
    let limit = bench.reader().size().unwrap().used_bytes() * 2 / 3;
    let policy = Policy::default().with_max_bytes(Some(limit));
    let gone = clean(&bench, &policy, NOW_MS);
    let [(Table::Metrics, rows)] = gone[..] else { panic!("{gone:?}") };
    assert!((1500..3000).contains(&rows), "{rows}");
    assert_eq!(numbers(&bench.reader(), Table::Events).len(), 3000);
    // Once they are all gone, the oldest present rows go.
    let gone = clean(&bench, &policy.with_max_bytes(Some(limit / 4)), NOW_MS);
    assert_eq!(gone[0], (Table::Metrics, 3000 - rows));
    assert!(gone[1].0 == Table::Events && gone[1].1 < 3000, "{gone:?}");
    assert!(!files(&bench).iter().any(|name| name.contains("copy")));
}

fn backed_up(bench: &Bench) -> Vec<u8> {
    let mut sealed = Vec::new();
    let report = backup(&bench.folder(), &bench.keyring, &mut sealed, &mut go_on).unwrap();
    assert_eq!(report.bytes, sealed.len() as u64);
    sealed
}

fn files(bench: &Bench) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(bench.folder()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    // A reader that was the last leaves an empty log behind: it may not write, so it may not remove it.
    names.retain(|name| !name.ends_with("-wal") && !name.ends_with("-shm"));
    names.sort();
    names
}

#[test]
fn a_backup_taken_while_the_writer_works_is_one_moment_and_comes_back_whole() {
    let bench = Bench::new();
    let store = bench.open();
    fill(&store, Table::Events, 0, 3000);
    let done = AtomicBool::new(false);
    let sealed = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = 3000;
            while !done.load(Ordering::Acquire) {
                fill(&store, Table::Events, next, 10);
                next += 10;
            }
        });
        let sealed = backed_up(&bench);
        done.store(true, Ordering::Release);
        sealed
    });
    assert!(
        !sealed.windows(7).any(|window| window == b"planted") && !sealed.windows(6).any(|window| window == b"SQLite")
    );
    let name = Path::new("b.enc");
    let in_use = restore(&bench.folder(), &bench.keyring, None, name, &*sealed, &mut go_on);
    assert!(matches!(in_use, Err(StoreError::InUse { .. })));
    store.close().unwrap();

    let report = restore(&bench.folder(), &bench.keyring, None, name, &*sealed, &mut go_on).unwrap();
    let restored = numbers(&bench.reader(), Table::Events);
    assert_eq!(restored, (0..i64::try_from(restored.len()).unwrap()).collect::<Vec<_>>());
    assert!(restored.len() >= 3000 && report.rows == restored.len() as u64 && !report.resealed);
    assert_eq!(report.kept, [beside(&bench.database().canonicalize().unwrap(), ".before-restore")]);
    bench.open().close().unwrap();
    let again = restore(&bench.folder(), &bench.keyring, None, name, &*sealed, &mut go_on).unwrap();
    assert!(again.kept[0].ends_with("picket.db.before-restore-2"));
    let mode = bench.database().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(files(&bench), ["picket.db", "picket.db.before-restore", "picket.db.before-restore-2", "store.lock"]);
}

#[test]
fn a_cut_or_changed_or_foreign_backup_changes_nothing() {
    let bench = Bench::filled(2000);
    let sealed = backed_up(&bench);
    let before = picket_durable::read_bounded(&bench.database(), 1 << 30).unwrap();
    let attempt = |bytes: &[u8]| {
        let error = restore(&bench.folder(), &bench.keyring, None, Path::new("b.enc"), bytes, &mut go_on).unwrap_err();
        assert_eq!(picket_durable::read_bounded(&bench.database(), 1 << 30).unwrap(), before);
        error
    };
    assert!(attempt(&sealed[..sealed.len() - 1]).to_string().contains("b.enc"));
    attempt(&sealed[..200_000]);
    attempt(&[]);
    let mut changed = sealed.clone();
    changed[100_000] ^= 1;
    attempt(&changed);
    let other = Bench::filled(1);
    let error = attempt(&backed_up(&other));
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains(&other.keyring.device().to_string()), "{source}");
    assert_eq!(files(&bench), ["picket.db", "store.lock"]);
}

#[test]
fn a_backup_of_damaged_rows_says_so_when_it_is_made_and_gives_back_all_others() {
    let bench = Bench::filled(200);
    let connection = rusqlite::Connection::open(bench.database()).unwrap();
    connection.execute("UPDATE events SET sha256=zeroblob(32), at=at+1 WHERE id IN (7, 200)", []).unwrap();
    drop(connection);
    let mut sealed = Vec::new();
    let report = backup(&bench.folder(), &bench.keyring, &mut sealed, &mut go_on).unwrap();
    let bad: Vec<String> = report.findings.iter().take(2).map(ToString::to_string).collect();
    assert!(bad[0].starts_with("row 7 of events") && bad[1].starts_with("row 200 of events"), "{bad:?}");
    assert_eq!(report.rows, 200);
    let other = Bench::new();
    let keys = Arc::new(Keyring::open(&bench.key_file()).unwrap());
    for (to, theirs) in [(&bench, None), (&other, Some(&keys))] {
        let name = Path::new("b.enc");
        let report = restore(&to.folder(), &to.keyring, theirs, name, &*sealed, &mut go_on).unwrap();
        assert_eq!((report.rows, report.findings.len() >= 2), (198, true));
        assert_eq!(
            report.missing,
            [
                MissingRows { table: Table::Events, first: 7, last: 7, known: true },
                MissingRows { table: Table::Events, first: 200, last: 200, known: true },
            ]
        );
        assert!(verify(&to.folder(), Some(&to.keyring), &mut go_on).unwrap().is_whole());
        assert_eq!(numbers(&to.reader(), Table::Events).len(), 198);
        assert!(!files(to).iter().any(|name| name.contains("unproven")), "{:?}", files(to));
    }
}

#[test]
fn another_devices_backup_comes_with_its_key_file_and_is_sealed_anew() {
    let theirs = Bench::filled(700);
    let sealed = backed_up(&theirs);
    let ours = Bench::new();
    let keys = Arc::new(Keyring::open(&theirs.key_file()).unwrap());
    let report = restore(&ours.folder(), &ours.keyring, Some(&keys), Path::new("b.enc"), &*sealed, &mut go_on).unwrap();
    assert!(report.resealed && report.rows == 700 && report.newest == Some(at(NOW_MS + 699_000)));
    let store = ours.open();
    fill(&store, Table::Events, 700, 1);
    assert_eq!(numbers(&ours.reader(), Table::Events), (0..701).collect::<Vec<_>>());
}

fn exported(bench: &Bench, tables: &[Table], form: Form) -> String {
    let mut out = Vec::new();
    export(&bench.reader(), tables, &Range::default(), form, &mut out, &mut go_on).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn exports_hold_every_row_in_each_form() {
    let bench = Bench::new();
    let store = bench.open();
    for (i, json) in
        [r#"{"cpu":{"load":0.5},"name":"=cmd"}"#, r#"{"cpu":{"load":-1,"n":2}}"#, "not json"].iter().enumerate()
    {
        store.append_durable(Table::Metrics, at(i64::try_from(i).unwrap()), *json).unwrap();
    }
    fill(&store, Table::Events, 0, 2);
    let csv = exported(&bench, &[Table::Metrics], Form::Csv);
    assert_eq!(
        csv.lines().collect::<Vec<_>>(),
        [
            "id,at,cpu.load,cpu.n,data,name",
            "1,1970-01-01T00:00:00Z,0.5,,,'=cmd",
            "2,1970-01-01T00:00:00.001Z,-1,2,,",
            "3,1970-01-01T00:00:00.002Z,,,not json,",
        ]
    );
    let all = exported(&bench, &Table::ALL, Form::Json);
    let all: serde_json::Value = serde_json::from_str(&all).unwrap();
    assert_eq!(all.as_object().unwrap().len(), 8);
    assert_eq!(all["metrics"][1]["data"]["cpu"]["n"], 2);
    assert_eq!(all["logs"], serde_json::json!([]));
    let lines = exported(&bench, &Table::ALL, Form::Ndjson);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[4]["table"], &lines[4]["id"]), (5, &"events".into(), &2.into()));
}

/// Keeps nothing and counts.
struct Sink(u64);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.split(|byte| *byte == b'\n').count() as u64 - 1;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_export_of_many_rows_needs_no_more_memory_than_one_of_few() {
    fn resident() -> u64 {
        let text = picket_durable::read_text(Path::new("/proc/self/statm"), 4096).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }
    let bench = Bench::new();
    let store = bench.open();
    fill(&store, Table::Metrics, 0, 60_000);
    store.close().unwrap();
    let reader = bench.reader();
    let mut most = 0;
    let mut before = 0;
    let mut watch = |progress: Progress| {
        if progress.done == 1024 {
            before = resident();
        }
        most = most.max(resident());
        ControlFlow::Continue(())
    };
    let mut sink = Sink(0);
    let all = Range::default();
    export(&reader, &[Table::Metrics], &all, Form::Ndjson, &mut sink, &mut watch).unwrap();
    assert_eq!(sink.0, 60_000);
    // 60,000 rows have 14 MB of payload; other tests of this process have their rows at the same time.
    assert!(most < before + (60 << 20), "{before} {most}");
}

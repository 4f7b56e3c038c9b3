//! A new database in the place of the old one, stopped at each step.

use super::upkeep::go_on;
use super::*;
use crate::replace::{Step, UNPROVEN, stepwise};
use std::collections::BTreeSet;

/// A store as a crash leaves it: the last rows are in its log alone.
fn crashed(rows: i64) -> Bench {
    let bench = Bench::filled(rows / 2);
    let store = bench.open();
    fill(&store, Table::Events, rows / 2, rows - rows / 2);
    let files = ["", "-wal"].map(|part| {
        let path = beside(&bench.database(), part);
        (picket_durable::read_bounded(&path, 1 << 30).unwrap(), path)
    });
    store.close().unwrap();
    for (bytes, path) in files {
        picket_durable::write_atomic(&path, &bytes, 0o600).unwrap();
    }
    bench
}

fn ids(bench: &Bench) -> Vec<i64> {
    bench.reader().collect(Table::Events, &Range::default()).unwrap().iter().map(|row| row.id).collect()
}

fn names(bench: &Bench) -> BTreeSet<String> {
    let entries = std::fs::read_dir(bench.folder()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with("-shm")).collect()
}

/// Puts a new database with `rows` rows where `recover` puts one together, as it does.
fn put_together(bench: &Bench, rows: i64) -> PathBuf {
    let new = bench.folder().join(UNPROVEN);
    let other = Bench::new();
    let options = StoreOptions::new(other.folder(), Arc::clone(&bench.keyring));
    let store = Store::open(options).unwrap();
    fill(&store, Table::Events, 0, rows);
    store.close().unwrap();
    std::fs::copy(other.database(), &new).unwrap();
    new
}

#[test]
fn stopped_at_any_step_the_next_open_has_the_new_rows_and_the_old_ones_lie_whole_beside_them() {
    type Open = fn(&Bench);
    let openers: [(&str, Open); 4] = [
        ("the agent", |bench| bench.open().close().unwrap()),
        ("a reader", |bench| drop(bench.reader())),
        ("a clean-up", |bench| drop(Maintenance::open(&bench.folder(), &bench.keyring).unwrap())),
        ("verify", |bench| {
            assert!(verify(&bench.folder(), Some(&bench.keyring), &mut go_on).unwrap().is_whole());
        }),
    ];
    for stop in [Step::Ready, Step::DatabaseKept, Step::LogKept, Step::IndexGone, Step::InPlace] {
        for (who, open) in openers {
            let bench = crashed(60);
            let new = put_together(&bench, 90);
            let mut reached = |step| if step == stop { Err(StoreError::Stopped) } else { Ok(()) };
            assert!(matches!(stepwise(&new, &bench.database(), ".damaged", &mut reached), Err(StoreError::Stopped)));
            assert!(is_present(&bench.folder()));
            open(&bench);
            assert_eq!(ids(&bench).len(), 90, "{stop:?}, {who}");
            let names = names(&bench);
            assert!(!names.iter().any(|name| name.contains("next") || name.contains("unproven")), "{names:?}");
            assert!(names.contains("picket.db.damaged") && names.contains("picket.db.damaged-wal"), "{names:?}");
            assert!(!names.contains("picket.db.damaged-2"), "{stop:?}, {who}: {names:?}");
            // What is kept is the old store with its log: all of its rows.
            for part in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(beside(&bench.database(), part));
            }
            for part in ["", "-wal"] {
                picket_durable::rename(
                    &beside(&bench.database(), &format!(".damaged{part}")),
                    &beside(&bench.database(), part),
                )
                .unwrap();
            }
            assert_eq!(ids(&bench).len(), 60, "{stop:?}, {who}");
        }
    }
}

#[test]
fn before_the_first_step_the_old_store_is_complete_and_what_was_begun_is_removed() {
    let bench = crashed(60);
    let new = put_together(&bench, 90);
    picket_durable::write_atomic(&beside(&new, ".bad"), b"half", 0o600).unwrap();
    bench.open().close().unwrap();
    assert_eq!(ids(&bench).len(), 60);
    assert_eq!(names(&bench), ["picket.db", "picket.db-wal", "store.lock"].map(String::from).into());
}

#[test]
fn a_log_without_its_database_is_replaced_step_by_step_too() {
    for stop in [Step::Ready, Step::LogKept, Step::IndexGone] {
        let bench = crashed(60);
        let new = put_together(&bench, 50);
        std::fs::remove_file(bench.database()).unwrap();
        let mut reached = |step| if step == stop { Err(StoreError::Stopped) } else { Ok(()) };
        stepwise(&new, &bench.database(), ".damaged", &mut reached).unwrap_err();
        // There is a store, so no key is made for it.
        assert!(is_present(&bench.folder()), "{stop:?}");
        bench.open().close().unwrap();
        assert_eq!(ids(&bench).len(), 50, "{stop:?}");
        assert!(names(&bench).contains("picket.db.damaged-wal"));
    }
}

#[test]
fn a_new_database_whose_rows_are_in_its_log_is_not_put_in_place() {
    let bench = crashed(60);
    let new = put_together(&bench, 10);
    picket_durable::write_atomic(&beside(&new, "-wal"), b"rows", 0o600).unwrap();
    let error = stepwise(&new, &bench.database(), ".damaged", &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    bench.open().close().unwrap();
    assert_eq!(ids(&bench).len(), 60);
}

#[test]
fn the_copy_of_a_backup_that_was_killed_goes_with_the_next_run_and_one_under_way_stays() {
    let bench = Bench::filled(5);
    let leave = |process: u32, parts: &[&str]| {
        for part in parts {
            let path = bench.folder().join(format!("picket.db.copy-{process}{part}"));
            picket_durable::write_atomic(&path, b"sealed rows", 0o600).unwrap();
        }
    };
    let left = |bench: &Bench| names(bench).into_iter().filter(|name| name.contains("copy")).collect::<Vec<_>>();
    let under_way = bench.folder().join("picket.db.copy-7.lock");
    let runs: [&dyn Fn(); 3] = [
        &|| drop(backup(&bench.folder(), &bench.keyring, std::io::sink(), &mut go_on).unwrap()),
        &|| drop(recover(&bench.folder(), &bench.keyring, &mut go_on).unwrap()),
        &|| bench.open().close().unwrap(),
    ];
    for run in runs {
        leave(4_000_000, &["", "-wal", "-journal", ".lock"]);
        leave(4_000_001, &["-wal"]);
        leave(7, &[""]);
        let lock = picket_durable::Lock::acquire(&under_way).unwrap();
        run();
        assert_eq!(left(&bench), ["picket.db.copy-7", "picket.db.copy-7.lock"]);
        drop(lock);
        run();
        assert_eq!(left(&bench), [] as [&str; 0]);
    }
}

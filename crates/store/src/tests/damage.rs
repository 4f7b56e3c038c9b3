//! Flipped bits, broken pages, cut logs: what is found, and what is saved.

use super::upkeep::go_on;
use super::*;
use proptest::prelude::*;

fn read(path: &Path) -> Vec<u8> {
    picket_durable::read_bounded(path, 1 << 30).unwrap()
}

fn put(path: &Path, bytes: &[u8]) {
    picket_durable::write_atomic(path, bytes, 0o600).unwrap();
}

fn everything(bench: &Bench) -> Result<Vec<Row>> {
    let reader = Reader::open(&bench.folder(), &bench.keyring)?;
    let mut rows = Vec::new();
    for table in Table::ALL {
        rows.extend(reader.collect(table, &Range::default())?);
    }
    Ok(rows)
}

/// A store with rows in several tables, one of them longer than a page.
fn mixed() -> (Bench, Vec<Row>) {
    let bench = Bench::new();
    let store = bench.open();
    fill(&store, Table::Events, 0, 300);
    fill(&store, Table::Metrics, 0, 40);
    store.append_durable(Table::ConfigBackups, at(NOW_MS), vec![b'1'; 30_000]).unwrap();
    store.close().unwrap();
    let rows = everything(&bench).unwrap();
    (bench, rows)
}

#[test]
fn a_whole_store_is_called_whole_with_and_without_the_key() {
    let (bench, rows) = mixed();
    for key in [None, Some(&bench.keyring)] {
        let report = verify(&bench.folder(), key, &mut go_on).unwrap();
        assert_eq!((report.findings.len(), report.rows, report.opened), (0, rows.len() as u64, key.is_some()));
    }
    let other = Bench::new();
    assert!(matches!(verify(&bench.folder(), Some(&other.keyring), &mut go_on), Err(StoreError::OtherDevice { .. })));
}

#[test]
fn a_changed_row_is_named_with_its_table_and_what_was_forged_needs_the_key_to_show() {
    let (bench, _) = mixed();
    let connection = rusqlite::Connection::open(bench.database()).unwrap();
    connection.execute("UPDATE events SET at=at+1 WHERE id=17", []).unwrap();
    let (at, sealed): (i64, Vec<u8>) = connection
        .query_row("SELECT at, sealed FROM metrics WHERE id=3", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    // A row put in the place of another, with a checksum that holds.
    let forged = crate::table::digest(Table::Metrics, 9, at, &sealed);
    connection
        .execute("UPDATE metrics SET at=?1, sealed=?2, sha256=?3 WHERE id=9", (at, &sealed, &forged[..]))
        .unwrap();
    drop(connection);
    let named = |key| {
        let report = verify(&bench.folder(), key, &mut go_on).unwrap();
        let rows = report.findings.iter().map(|finding| match finding {
            Finding::Row { table, id, .. } => (*table, *id),
            other => panic!("{other}"),
        });
        rows.collect::<Vec<_>>()
    };
    assert_eq!(named(None), [(Table::Events, 17)]);
    assert_eq!(named(Some(&bench.keyring)), [(Table::Metrics, 9), (Table::Events, 17)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 0, ..ProptestConfig::default() })]
    #[test]
    fn a_flipped_bit_anywhere_is_found_or_changes_nothing(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        use std::sync::OnceLock;
        static WHOLE: OnceLock<(Bench, Vec<Row>, Vec<u8>)> = OnceLock::new();
        let (bench, rows, bytes) = WHOLE.get_or_init(|| {
            let (bench, rows) = mixed();
            let bytes = read(&bench.database());
            (bench, rows, bytes)
        });
        let mut flipped = bytes.clone();
        let index = at.index(flipped.len());
        flipped[index] ^= 1 << bit;
        put(&bench.database(), &flipped);
        let found = verify(&bench.folder(), Some(&bench.keyring), &mut go_on);
        match found {
            Ok(report) if report.is_whole() => {
                prop_assert_eq!(&everything(bench).unwrap(), rows, "offset {}", index);
            }
            Ok(_) => {}
            // A schema number that is too high is a later version's, as far as anybody can tell.
            Err(error) => prop_assert!(matches!(error, StoreError::TooNew { .. }), "offset {}: {:?}", index, error),
        }
        // And whatever was hit, all but the rows of one page come back.
        put(&bench.database(), &flipped);
        let report = recover(&bench.folder(), &bench.keyring, &mut go_on).unwrap();
        prop_assert!(report.rows() + 20 >= rows.len() as u64, "offset {}: {:?}", index, report);
        let saved = everything(bench).unwrap();
        prop_assert!(saved.iter().all(|row| rows.contains(row)));
        prop_assert!(verify(&bench.folder(), Some(&bench.keyring), &mut go_on).unwrap().is_whole());
        for kept in report.kept {
            std::fs::remove_file(kept).unwrap();
        }
    }
}

#[test]
fn a_column_of_another_type_costs_its_row_and_no_other() {
    let (bench, rows) = mixed();
    let connection = rusqlite::Connection::open(bench.database()).unwrap();
    for sql in [
        "UPDATE events SET sealed=CAST(sealed AS TEXT) WHERE id=11",
        "UPDATE events SET at=at+0.5 WHERE id=300",
        "UPDATE events SET sealed=7 WHERE id=13",
    ] {
        connection.execute(sql, []).unwrap();
    }
    drop(connection);
    for key in [None, Some(&bench.keyring)] {
        let report = verify(&bench.folder(), key, &mut go_on).unwrap();
        let named: Vec<i64> = report
            .findings
            .iter()
            .filter_map(|finding| match finding {
                Finding::Row { table: Table::Events, id, .. } => Some(*id),
                _ => None,
            })
            .collect();
        assert_eq!((named, report.rows), (vec![11, 13, 300], rows.len() as u64));
    }
    for newest_first in [false, true] {
        let (mut whole, mut damaged) = (0, 0);
        let range = Range { newest_first, ..Range::default() };
        let reader = bench.reader();
        let count = |row: Result<Row>| {
            if row.is_ok() {
                whole += 1;
            } else {
                damaged += 1;
            }
            Ok(std::ops::ControlFlow::Continue(()))
        };
        reader.rows(Table::Events, &range, count).unwrap();
        assert_eq!((whole, damaged), (297, 3));
    }
    let exported =
        export(&bench.reader(), &[Table::Events], &Range::default(), Form::Json, std::io::sink(), &mut go_on);
    assert_eq!(exported.map(|report| (report.rows, report.damaged)).unwrap(), (297, 3));
    let report =
        Maintenance::open(&bench.folder(), &bench.keyring).unwrap().rekey(false, &mut |_| false, &mut go_on).unwrap();
    assert_eq!(report.damaged, [(Table::Events, 11), (Table::Events, 13), (Table::Events, 300)]);
}

#[test]
fn a_record_of_the_meta_table_that_was_changed_is_found_even_if_nobody_asks_for_it() {
    let (bench, _) = mixed();
    let connection = rusqlite::Connection::open(bench.database()).unwrap();
    for (sql, key) in [
        ("INSERT INTO meta VALUES('high:events', x'00', zeroblob(32))", "high:events"),
        ("UPDATE meta SET value=CAST('1' AS TEXT) WHERE key='reads_from'", "reads_from"),
    ] {
        connection.execute(sql, []).unwrap();
        for keyring in [None, Some(&bench.keyring)] {
            let report = verify(&bench.folder(), keyring, &mut go_on).unwrap();
            let told = |finding: &Finding| matches!(finding, Finding::File { what } if what.contains(key));
            assert!(report.findings.iter().any(told), "{report:?}");
        }
    }
}

#[test]
fn a_schema_that_was_tampered_with_runs_no_code_and_a_value_beyond_measure_is_damage() {
    let (bench, _) = mixed();
    let connection = crate::schema::connect(&bench.database(), crate::schema::Access::Write).unwrap();
    connection.execute_batch("PRAGMA writable_schema=ON").unwrap();
    let tampered = connection.execute("UPDATE sqlite_schema SET sql=sql WHERE name='meta'", []);
    assert!(tampered.is_err(), "defensive");
    drop(connection);
    let connection = rusqlite::Connection::open(bench.database()).unwrap();
    connection.execute_batch("CREATE VIEW all_events AS SELECT * FROM events;").unwrap();
    connection.execute_batch("CREATE TRIGGER grow AFTER INSERT ON logs BEGIN DELETE FROM events; END;").unwrap();
    connection.execute("UPDATE events SET sealed=zeroblob(30000000) WHERE id=9", []).unwrap();
    drop(connection);
    let connection = crate::schema::connect(&bench.database(), crate::schema::Access::Write).unwrap();
    assert!(connection.query_row("SELECT count(*) FROM all_events", [], |_| Ok(())).is_err());
    drop(connection);
    let store = bench.open();
    store.append_durable(Table::Logs, at(0), *b"{}").unwrap();
    store.close().unwrap();
    let report = verify(&bench.folder(), Some(&bench.keyring), &mut go_on).unwrap();
    assert!(!report.is_whole() && report.rows >= 300, "{report:?}");
}

#[test]
fn broken_pages_of_any_kind_cost_the_rows_on_them_and_no_others() {
    let (bench, rows) = mixed();
    let whole = read(&bench.database());
    let pages = whole.len() / 4096;
    for page in 0..pages {
        let mut broken = whole.clone();
        broken[page * 4096..(page + 1) * 4096].fill(0xa5);
        put(&bench.database(), &broken);
        let seen = verify(&bench.folder(), Some(&bench.keyring), &mut go_on).map(|report| report.is_whole());
        let report = recover(&bench.folder(), &bench.keyring, &mut go_on).unwrap();
        let saved = everything(&bench).unwrap();
        assert!(saved.iter().all(|row| rows.contains(row)), "page {page}");
        assert!(saved.len() + 12 >= rows.len(), "page {page}: {} of {}", saved.len(), rows.len());
        assert!(saved.len() == rows.len() || !seen.unwrap_or(false), "page {page} lost rows unseen");
        let lost: u64 = report.missing_rows();
        // Every row that is gone is told of, at the ends of tables, too; or that of a page nobody knows what was on it.
        assert_eq!(lost, (rows.len() - saved.len()) as u64, "page {page}: {report:?}");
        assert!(!report.is_complete() || saved.len() == rows.len(), "page {page}: {report:?}");
        assert_eq!(read(&report.kept[0]), broken, "the damaged file is as it was");
        assert_eq!(report.rows(), saved.len() as u64);
        std::fs::remove_file(&report.kept[0]).unwrap();
    }
}

#[test]
fn rows_lost_in_the_middle_are_reported_as_a_range() {
    let bench = Bench::filled(500);
    let mut bytes = read(&bench.database());
    // The page of row 250: its payload is sealed, but its checksum is known.
    let connection = rusqlite::Connection::open(bench.database()).unwrap();
    let sha: Vec<u8> = connection.query_row("SELECT sha256 FROM events WHERE id=250", [], |row| row.get(0)).unwrap();
    drop(connection);
    let offset = bytes.windows(32).position(|window| window == sha).unwrap() / 4096 * 4096;
    bytes[offset..offset + 4096].fill(0);
    put(&bench.database(), &bytes);
    let seen = verify(&bench.folder(), Some(&bench.keyring), &mut go_on).unwrap();
    let unreadable = seen.findings.iter().find_map(|finding| match finding {
        Finding::Unreadable { table: Table::Events, after: Some(after), before: Some(before) } => {
            Some((*after, *before))
        }
        _ => None,
    });
    let report = recover(&bench.folder(), &bench.keyring, &mut go_on).unwrap();
    let [range] = &report.missing[..] else { panic!("{report:?}") };
    assert!(range.table == Table::Events && (range.first..=range.last).contains(&250));
    assert_eq!(report.rows() + report.missing_rows(), 500);
    assert_eq!(unreadable, Some((range.first - 1, range.last + 1)), "{seen:?}");
}

/// The number of the page, from 0, on which the row's checksum lies.
fn page_of(bench: &Bench, table: Table, id: i64) -> usize {
    let connection = rusqlite::Connection::open(bench.database()).unwrap();
    let sql = format!("SELECT sha256 FROM {table} WHERE id=?1");
    let sha: Vec<u8> = connection.query_row(&sql, [id], |row| row.get(0)).unwrap();
    read(&bench.database()).windows(32).position(|window| window == sha).unwrap() / 4096
}

#[test]
fn rows_lost_at_the_beginning_and_at_the_end_of_a_table_are_told_of_and_their_ids_are_not_given_again() {
    for (id, damage) in [(1, 0), (500, 0), (500, 0xa5)] {
        let bench = Bench::filled(500);
        let page = page_of(&bench, Table::Events, id);
        let mut bytes = read(&bench.database());
        bytes[page * 4096..(page + 1) * 4096].fill(damage);
        put(&bench.database(), &bytes);
        let report = recover(&bench.folder(), &bench.keyring, &mut go_on).unwrap();
        let [range] = &report.missing[..] else { panic!("{report:?}") };
        assert!(range.known && (range.first..=range.last).contains(&id), "{report:?}");
        assert_eq!((report.rows() + report.lost_rows, report.missing_rows()), (500, report.lost_rows));
        assert!(!report.is_complete());
        assert_eq!(report.zeroed_pages.len(), usize::from(damage == 0));
        let store = bench.open();
        fill(&store, Table::Events, 500, 1);
        store.close().unwrap();
        assert_eq!(everything(&bench).unwrap().last().unwrap().id, 501);
    }
}

#[test]
fn a_database_whose_end_was_cut_off_is_known_for_one() {
    let bench = Bench::filled(500);
    let bytes = read(&bench.database());
    put(&bench.database(), &bytes[..bytes.len() - 3 * 4096]);
    let report = recover(&bench.folder(), &bench.keyring, &mut go_on).unwrap();
    assert!(report.cut_pages == 3 && !report.is_complete(), "{report:?}");
    let whole = recover(&bench.folder(), &bench.keyring, &mut go_on).unwrap();
    assert!(whole.is_complete() && whole.rows() == report.rows(), "{whole:?}");
}

#[test]
fn ids_out_of_order_are_damage_and_nobody_reads_in_a_circle() {
    let bench = Bench::filled(300);
    let mut bytes = read(&bench.database());
    let page = page_of(&bench, Table::Events, 300) * 4096;
    let number = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    // The last cell of the page: two bytes of length, then the id.
    let cell = page + number(page + 8 + 2 * (number(page + 3) - 1));
    assert_eq!(bytes[cell + 2..cell + 4], [0x82, 0x2c], "row 300");
    bytes[cell + 2] = 0x80;
    put(&bench.database(), &bytes);
    let (done, ended) = std::sync::mpsc::channel();
    let (folder, keyring) = (bench.folder(), Arc::clone(&bench.keyring));
    std::thread::spawn(move || {
        let _ = done.send(verify(&folder, Some(&keyring), &mut go_on).unwrap());
    });
    let report = ended.recv_timeout(Duration::from_secs(60)).expect("it comes to an end");
    let told = |finding: &Finding| matches!(finding, Finding::File { what } if what.contains("out of order"));
    assert!(report.findings.iter().any(told), "{report:?}");
    let report = recover(&bench.folder(), &bench.keyring, &mut go_on).unwrap();
    assert_eq!((report.rows(), report.lost_rows), (299, 1), "{report:?}");
}

#[test]
fn what_was_removed_before_is_not_called_lost() {
    let bench = Bench::filled(3000);
    let mut maintenance = Maintenance::open(&bench.folder(), &bench.keyring).unwrap();
    let policy = Policy::default().at_most(Duration::from_secs(1000));
    maintenance.clean_up(policy, NOW_MS + 3_000_000, &mut go_on).unwrap();
    drop(maintenance);
    let connection = rusqlite::Connection::open(bench.database()).unwrap();
    connection.execute("DELETE FROM events WHERE id BETWEEN 2400 AND 2900", []).unwrap();
    drop(connection);
    let report = recover(&bench.folder(), &bench.keyring, &mut go_on).unwrap();
    assert!(report.is_complete() && report.lost_rows == 0, "{report:?}");
    assert_eq!(report.missing, [MissingRows { table: Table::Events, first: 2400, last: 2900, known: false }]);
}

#[test]
fn rows_that_are_only_in_the_log_are_salvaged_and_a_log_cut_anywhere_keeps_what_was_before_the_cut() {
    let bench = Bench::new();
    let store = bench.open();
    fill(&store, Table::Events, 0, 600);
    // As after a crash: a copy of the files while they are in use.
    let (database, log) = (read(&bench.database()), read(&beside(&bench.database(), "-wal")));
    store.close().unwrap();
    assert!(log.len() > 100_000);
    for cut in [log.len(), log.len() - 1, log.len() / 2, 5000, 40, 0] {
        std::fs::remove_dir_all(bench.folder()).unwrap();
        std::fs::create_dir(bench.folder()).unwrap();
        put(&bench.database(), &database);
        put(&beside(&bench.database(), "-wal"), &log[..cut]);
        let salvaged = recover(&bench.folder(), &bench.keyring, &mut go_on).unwrap();
        let rows = everything(&bench).unwrap();
        assert_eq!(salvaged.rows(), rows.len() as u64);
        // SQLite itself, from the same bytes, has the same rows.
        std::fs::remove_file(bench.database()).unwrap();
        put(&bench.database(), &database);
        put(&beside(&bench.database(), "-wal"), &log[..cut]);
        bench.open().close().unwrap();
        assert_eq!(everything(&bench).unwrap(), rows, "cut at {cut}");
        assert!(cut < log.len() || rows.len() == 600);
    }
}

#[test]
fn a_log_whose_database_is_gone_gives_its_rows_back() {
    let bench = Bench::new();
    let store = bench.open();
    fill(&store, Table::Events, 0, 100);
    let log = read(&beside(&bench.database(), "-wal"));
    store.close().unwrap();
    std::fs::remove_file(bench.database()).unwrap();
    assert!(matches!(recover(&bench.folder(), &bench.keyring, &mut go_on), Err(StoreError::Absent(_))));
    put(&beside(&bench.database(), "-wal"), &log);
    let report = recover(&bench.folder(), &bench.keyring, &mut go_on).unwrap();
    assert_eq!((report.rows(), everything(&bench).unwrap().len()), (100, 100));
    assert_eq!(report.kept.len(), 1);
    assert_eq!(read(&report.kept[0]), log);
    assert!(verify(&bench.folder(), Some(&bench.keyring), &mut go_on).unwrap().is_whole());
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_refused_and_nobody_waits_on_it() {
    use rustix::fs::{CWD, FileType, mknodat};
    for name in ["picket.db", "picket.db-wal"] {
        let bench = Bench::filled(3);
        let path = bench.folder().join(name);
        let _ = std::fs::remove_file(&path);
        mknodat(CWD, &path, FileType::Fifo, 0o600.into(), 0).unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        let (folder, keyring) = (bench.folder(), Arc::clone(&bench.keyring));
        std::thread::spawn(move || {
            let verified = verify(&folder, Some(&keyring), &mut go_on).is_ok_and(|report| report.is_whole());
            let recovered = recover(&folder, &keyring, &mut go_on).is_ok();
            let _ = done.send((verified, recovered));
        });
        let outcome = ended.recv_timeout(Duration::from_secs(60)).expect("nobody hangs");
        assert!(!outcome.1 && (name != "picket.db" || !outcome.0), "{name}: {outcome:?}");
    }
}

#[test]
fn recovery_is_refused_while_the_store_is_in_use_and_with_another_devices_keys() {
    let bench = Bench::new();
    let store = bench.open();
    fill(&store, Table::Events, 0, 5);
    assert!(matches!(recover(&bench.folder(), &bench.keyring, &mut go_on), Err(StoreError::InUse { .. })));
    store.close().unwrap();
    let other = Bench::new();
    assert!(matches!(recover(&bench.folder(), &other.keyring, &mut go_on), Err(StoreError::WrongKey(_))));
    assert_eq!(everything(&bench).unwrap().len(), 5);
}

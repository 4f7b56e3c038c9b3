//! Killed processes and full disks.
//!
//! A child is this test binary itself, asked for one test that acts as the child where it finds its order in a file.

use super::*;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

const FOLDER: &str = "PICKET_STORE_TEST_FOLDER";

#[expect(clippy::disallowed_methods, reason = "a child of a test is told what to do by its environment")]
fn order() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

#[expect(clippy::disallowed_methods, reason = "the child is this very binary")]
fn itself() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn child(test: &str, folder: &Path) -> Child {
    Command::new(itself())
        .args(["--exact", &format!("tests::hardship::{test}"), "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn options(folder: &Path) -> StoreOptions {
    let keyring = keyring(&folder.join("store.key"), &folder.join("store")).unwrap();
    StoreOptions::new(folder.join("store"), keyring)
}

#[test]
fn every_row_whose_flush_returned_outlives_kill_9() {
    if let Some(folder) = order() {
        let store = Store::open(options(&folder)).unwrap();
        let before = store.reader().unwrap().stats().unwrap().tables[Table::Events.index()].rows;
        for i in i64::try_from(before).unwrap().. {
            let _ = store.append(Table::Events, at(NOW_MS + i), payload(i)).unwrap();
            if i % 7 == 0 {
                store.flush().unwrap();
                println!("durable {i}");
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=4 {
        let mut child = child("every_row_whose_flush_returned_outlives_kill_9", dir.path());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut durable = -1;
        for line in lines.map_while(Result::ok).filter(|line| line.contains("durable")).take(10 * round) {
            durable = line.rsplit(' ').next().unwrap().parse().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(durable > 0);
        let options = options(dir.path());
        let reader = Reader::open(&options.dir, &options.keyring).unwrap();
        let rows = reader.collect(Table::Events, &Range::default()).unwrap();
        assert!(i64::try_from(rows.len()).unwrap() > durable, "{} rows, {durable} promised", rows.len());
        for (i, row) in (0..).zip(&rows) {
            assert_eq!((row.id, &row.payload), (i + 1, &payload(i)));
        }
        let report = verify(&options.dir, Some(&options.keyring), &mut super::upkeep::go_on).unwrap();
        assert!(report.is_whole(), "{report:?}");
    }
}

#[test]
fn a_full_disk_costs_the_batches_that_do_not_fit_and_writing_goes_on_when_there_is_room() {
    const TEST: &str = "a_full_disk_costs_the_batches_that_do_not_fit_and_writing_goes_on_when_there_is_room";
    if let Some(folder) = order() {
        // In a mount namespace of its own: a file system of 3 MiB, gone with this process.
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "none"]).arg(&folder).status();
        assert!(mounted.unwrap().success());
        let ballast = folder.join("ballast");
        picket_durable::write_atomic(&ballast, &vec![0; 1 << 20], 0o600).unwrap();
        let store = Store::open(options(&folder)).unwrap();
        let mut written = 0i64;
        let error = loop {
            match store.append_durable(Table::Events, at(NOW_MS + written), payload(written)) {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert!(error.is_disk_full(), "{error:?}");
        assert!(written > 100 && store.counters().disk_full && store.counters().rows_failed == 1);
        assert!(store.append(Table::Events, at(0), payload(0)).unwrap().wait().unwrap_err().is_disk_full());
        std::fs::remove_file(&ballast).unwrap();
        // The kernel may take a moment to count the room that was made.
        picket_testkit::wait_until("there is room again", || {
            store.append_durable(Table::Events, at(NOW_MS + written), payload(written)).is_ok()
        });
        let counters = store.counters();
        assert!(!counters.disk_full && counters.last_error.is_none() && counters.rows_failed >= 2);
        let rows = store.reader().unwrap().collect(Table::Events, &Range::default()).unwrap();
        assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), (1..=written + 1).collect::<Vec<_>>());
        // Nobody flushed since: closing tells of the batches that were lost.
        assert!(store.close().unwrap_err().is_disk_full());
        println!("endured");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let user = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    let output = Command::new("unshare")
        .arg(user)
        .arg(itself())
        .args(["--exact", &format!("tests::hardship::{TEST}"), "--nocapture"])
        .env(FOLDER, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("endured"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

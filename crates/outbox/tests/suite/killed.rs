//! A real process, killed again and again while it emits and delivers; and one that runs into a real full disk.
#![expect(clippy::disallowed_methods, reason = "the test starts itself as the process that is killed")]

use crate::bench::{ALL, Bench, Receiver, WAIT, draft};
use picket_outbox::{BatchLimits, Outbox};
use picket_protocol::event::{Event, EventId, GapReason, Priority};
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Where the child finds its folder.
const FOLDER: &str = "PICKET_OUTBOX_TEST_FOLDER";

fn child(test: &str, folder: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn told_folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// One line, whole, at once: what is said before the kill is said.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

/// The process that is killed: does nothing unless it was started by the test below.
#[test]
fn the_process_that_is_killed() {
    let Some(folder) = told_folder() else { return };
    let bench = Bench::new();
    let mut options = bench.options();
    options.sealer = std::sync::Arc::new(crate::bench::sealer(folder.parent().unwrap()));
    options.folder = folder;
    let outbox = Outbox::open(options).unwrap();
    say(&format!("\nstart {}\n", outbox.ledger().total().emitted));
    let mut accepted = 0_u64;
    for round in 0_u64.. {
        for n in 0..40_u64 {
            let class = Priority::ALL[usize::try_from((round + n) % 3).unwrap()];
            if outbox.emit(draft(class, 1 + n % 3, 100)) {
                accepted += 1 + n % 3;
            }
        }
        say(&format!("accepted {accepted}\n"));
        if round % 5 == 0 {
            let id = outbox.emit_durable(draft(Priority::High, 1, 10), WAIT).unwrap();
            accepted += 1;
            say(&format!("durable {} {}\n", id.boot_id, id.seq));
        }
        if round % 7 == 3
            && let Some(batch) = outbox.next_batch(BatchLimits { bytes: 1 << 20, records: 60 }).unwrap()
        {
            // What goes over the pipe is what the receiver gets.
            let lines = String::from_utf8(batch.lines("agent-123")).unwrap();
            for (line, record) in lines.lines().zip(&batch.records) {
                say(&format!("event {} {line}\n", record.weight));
            }
            assert!(outbox.acknowledge(&batch).unwrap());
        }
    }
}

#[test]
fn whenever_it_is_killed_nothing_is_lost_uncounted_and_no_id_is_given_twice() {
    let bench = Bench::new();
    drop(bench.open());
    let mut receiver = Receiver::default();
    let mut durable: Vec<EventId> = Vec::new();
    let mut accepted_in_all = 0;
    let mut lost_with_kills = 0;
    for round in 0..12_u32 {
        let mut process = child("killed::the_process_that_is_killed", &bench.folder());
        let (mut accepted, mut start, mut lines) = (0, None, 0);
        for line in BufReader::new(process.stdout.take().unwrap()).lines() {
            let line = line.unwrap_or_default();
            let mut words = line.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("start"), Some(emitted), None) => start = emitted.parse::<u64>().ok(),
                (Some("accepted"), Some(count), None) => accepted = count.parse().unwrap(),
                (Some("durable"), Some(boot), Some(seq)) => {
                    durable.push(EventId { boot_id: boot.parse().unwrap(), seq: seq.parse().unwrap() });
                }
                (Some("event"), Some(weight), Some(json)) => {
                    // The pipe can end in the middle of a line.
                    let Ok(event) = serde_json::from_str::<Event>(json) else { continue };
                    if let Some((before, _)) =
                        receiver.stored.insert(event.id, (event.clone(), weight.parse().unwrap()))
                    {
                        assert_eq!(before, event, "one id for two events");
                    }
                }
                _ => continue,
            }
            lines += 1;
            // At another point each time.
            if lines == 3 + round * 37 {
                process.kill().unwrap();
            }
        }
        process.wait().unwrap();
        let start = start.unwrap();
        assert!(start >= accepted_in_all, "{start} < {accepted_in_all}");
        accepted_in_all = start + accepted;
        let outbox = bench.open();
        let ledger = outbox.ledger();
        assert!(ledger.holds(), "{ledger:?}");
        assert!(ledger.total().emitted >= accepted_in_all, "{} < {accepted_in_all}", ledger.total().emitted);
        assert!(ledger.total().emitted <= accepted_in_all + 200, "more than what was under way");
        accepted_in_all = ledger.total().emitted;
        lost_with_kills = ledger.total().gap_total();
    }
    let outbox = bench.open();
    receiver.drain(&outbox);
    let (stored, missing) = receiver.totals();
    assert_eq!(stored + missing, accepted_in_all);
    assert_eq!(missing, lost_with_kills);
    assert!(durable.len() > 12 && durable.iter().all(|id| receiver.stored.contains_key(id)), "a durable event is gone");
    let classes: HashMap<Priority, usize> = receiver.stored.values().fold(HashMap::new(), |mut all, (event, _)| {
        *all.entry(event.class).or_default() += 1;
        all
    });
    assert_eq!(classes.len(), 3);
}

/// The process on a small file system of its own: does nothing unless it was started by the test below.
#[test]
fn the_process_whose_disk_is_full() {
    let Some(folder) = told_folder() else { return };
    let mut bench = Bench::new();
    bench.limits.memory_records = 400;
    let mut options = bench.options();
    options.folder = folder.join("disk/outbox");
    options.sealer = std::sync::Arc::new(crate::bench::sealer(&folder));
    let outbox = Outbox::open(options.clone()).unwrap();
    let mut emitted = 0_u64;
    let mut emit = |outbox: &Outbox, class, count| {
        for _ in 0..count {
            outbox.emit(draft(class, 1, 900));
            emitted += 1;
        }
    };
    // More than the file system holds; in pieces that the memory holds, until the disk takes no more.
    for _ in 0..400 {
        emit(&outbox, Priority::Normal, 100);
        if outbox.flush(std::time::Duration::from_secs(2)).is_err() {
            break;
        }
    }
    assert!(outbox.status().trouble.is_some(), "the disk is not full");
    // A process that ends now, and one that begins on a full disk.
    drop(outbox);
    let outbox = Outbox::open(options.clone()).unwrap();
    assert!(outbox.ledger().holds() && outbox.ledger().total().emitted == emitted);
    let mut emit = |outbox: &Outbox, class, count| {
        for _ in 0..count {
            outbox.emit(draft(class, 1, 900));
            emitted += 1;
        }
    };
    emit(&outbox, Priority::Normal, 300);
    assert!(outbox.flush(std::time::Duration::from_secs(2)).is_err(), "the disk is not full any more");
    emit(&outbox, Priority::Normal, 600);
    emit(&outbox, Priority::High, 5);
    let ledger = outbox.ledger();
    assert!(ledger.holds() && ledger.normal.gaps[&GapReason::DiskFull] > 0);
    assert_eq!((ledger.high.gap_total(), ledger.high.queued), (0, 5), "the higher class takes the lower one's place");
    // Delivered and acknowledged on a full disk, which gives room.
    let mut receiver = Receiver::default();
    let batch = outbox.next_batch(ALL).unwrap().unwrap();
    receiver.receive(&batch);
    assert!(outbox.acknowledge(&batch).unwrap());
    receiver.drain(&outbox);
    outbox.flush(WAIT).unwrap();
    receiver.drain(&outbox);
    let (stored, missing) = receiver.totals();
    assert_eq!(stored + missing, emitted);
    assert!(outbox.ledger().holds() && outbox.status().trouble.is_none());
    drop(outbox);
    assert!(Outbox::open(options).unwrap().ledger().holds());
    say("\nsurvived\n");
}

#[test]
fn a_full_disk_costs_the_lowest_class_and_is_left_by_delivering() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("disk")).unwrap();
    drop(crate::bench::sealer(dir.path()));
    let script = "mount -t tmpfs -o size=24m,mode=0700 none \"$1/disk\" && exec \"$2\" killed::the_process_whose_disk_is_full \
                  --exact --nocapture --test-threads=1";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(FOLDER, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("\nsurvived"), "{said}");
}

/// The process whose writes fail: does nothing unless it was started by the test below.
#[test]
fn the_process_whose_disk_fails() {
    let Some(folder) = told_folder() else { return };
    let bench = Bench::new();
    let mut options = bench.options();
    options.folder = folder.join("outbox");
    options.sealer = std::sync::Arc::new(crate::bench::sealer(&folder));
    let outbox = Outbox::open(options).unwrap();
    let mut emitted = 0;
    while outbox.status().trouble.is_none() {
        (0..100).for_each(|_| {
            outbox.emit(draft(Priority::Normal, 1, 900));
        });
        emitted += 100;
        let _ = outbox.flush(std::time::Duration::from_millis(500));
    }
    assert!(!outbox.status().trouble.unwrap().contains("full"));
    assert!(outbox.ledger().holds() && outbox.ledger().total().emitted == emitted);
    say(&format!("\nemitted {emitted}\n"));
}

#[test]
fn a_disk_that_fails_keeps_events_in_memory_and_the_next_process_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    drop(crate::bench::sealer(dir.path()));
    // Beyond the limit write(2) fails with EFBIG, which SQLite calls an I/O error, as it does EIO.
    let script = "trap '' XFSZ; ulimit -f 10240; exec \"$1\" killed::the_process_whose_disk_fails --exact --nocapture \
                  --test-threads=1";
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .env(FOLDER, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let emitted: u64 = said.lines().find_map(|line| line.strip_prefix("emitted ")).unwrap().parse().unwrap();
    let bench = Bench::new();
    let mut options = bench.options();
    options.folder = dir.path().join("outbox");
    options.sealer = std::sync::Arc::new(crate::bench::sealer(dir.path()));
    let outbox = Outbox::open(options).unwrap();
    let ledger = outbox.ledger();
    assert!(ledger.holds() && ledger.total().emitted == emitted, "{ledger:?} {emitted}");
    let mut receiver = Receiver::default();
    receiver.drain(&outbox);
    let (stored, missing) = receiver.totals();
    assert_eq!(stored + missing, emitted);
}

//! Flipped bytes and torn files: it opens, tells what is missing, and never gives an id twice.

use crate::bench::{ALL, Bench, Receiver, WAIT, draft};
use picket_outbox::{BatchLimits, Outbox};
use picket_protocol::event::{EventId, GapReason, Priority};
use proptest::prelude::*;
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The files of an outbox that a kill leaves behind, and the ids that were given.
struct Image {
    bench: Bench,
    emitted: u64,
    acknowledged: Receiver,
    ids: HashSet<EventId>,
}

/// An outbox with records in every lane, in the database proper and in its log, some handed out, some acknowledged.
fn image() -> Image {
    let bench = Bench::new();
    let mut acknowledged = Receiver::default();
    let mut ids = HashSet::new();
    let mut fill = |outbox: &Outbox, count: u64| {
        for n in 0..count {
            let class = Priority::ALL[usize::try_from(n % 3).unwrap()];
            ids.insert(outbox.emit_durable(draft(class, 1 + n % 4, 300), WAIT).unwrap());
        }
    };
    let outbox = bench.open();
    fill(&outbox, 30);
    outbox.account_gap(picket_outbox::Gap {
        reason: GapReason::RateLimit,
        class: Priority::Low,
        source: "files".into(),
        count: Some(9),
        since: None,
        detail: "x".into(),
    });
    drop(outbox);
    let outbox = bench.open();
    let few = BatchLimits { bytes: 1 << 20, records: 8 };
    let batch = outbox.next_batch(few).unwrap().unwrap();
    acknowledged.receive(&batch);
    outbox.acknowledge(&batch).unwrap();
    fill(&outbox, 15);
    outbox.next_batch(few).unwrap().unwrap();
    let emitted = outbox.ledger().total().emitted;
    let copy = Bench::new();
    copy_folder(bench.dir.path(), copy.dir.path());
    drop(outbox);
    Image { bench: copy, emitted, acknowledged, ids }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else if !entry.path().to_string_lossy().ends_with("-shm") {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[derive(Debug, Clone)]
enum Harm {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Zero(prop::sample::Index, usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), 0..8u8).prop_map(|(at, bit)| Harm::Flip(at, bit)),
        1 => any::<prop::sample::Index>().prop_map(Harm::Cut),
        1 => (any::<prop::sample::Index>(), 1..5000usize).prop_map(|(at, len)| Harm::Zero(at, len)),
    ]
}

fn do_harm(path: &Path, harm: &Harm) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    if len == 0 {
        return;
    }
    match harm {
        Harm::Flip(at, bit) => {
            let at = at.index(len) as u64;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
        }
        Harm::Cut(at) => file.set_len(at.index(len) as u64).unwrap(),
        Harm::Zero(at, count) => {
            let at = at.index(len);
            file.write_all_at(&vec![0; (*count).min(len - at)], at as u64).unwrap();
        }
    }
}

/// What must hold whatever one file went through.
fn check(image: &Image, work: &Bench) -> Result<(), TestCaseError> {
    let outbox = work.open();
    let ledger = outbox.ledger();
    prop_assert!(ledger.holds(), "{ledger:?}");
    prop_assert_eq!(ledger.total().emitted, image.emitted);
    let mut receiver = Receiver { stored: image.acknowledged.stored.clone(), duplicates: 0 };
    receiver.drain(&outbox);
    let fresh = outbox.emit_durable(draft(Priority::High, 1, 1), WAIT).unwrap();
    prop_assert!(!image.ids.contains(&fresh), "{fresh:?} was given before");
    receiver.drain(&outbox);
    let ledger = outbox.ledger();
    prop_assert!(ledger.holds() && ledger.total().queued == 0 && outbox.status().untold == 0);
    let (stored, missing) = receiver.totals();
    prop_assert_eq!(stored + missing, image.emitted + 1, "stored {} missing {}", stored, missing);
    drop(outbox);
    // And it is sound from now on.
    let again = work.open();
    prop_assert_eq!(again.ledger(), ledger);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn one_file_may_be_harmed_anywhere_and_what_is_missing_is_counted(
        file in prop::sample::select(vec!["outbox.db", "outbox.db-wal", "outbox.db", "outbox.db-wal", "outbox.ledger", "outbox.accepted"]),
        harms in proptest::collection::vec(harm(), 1..4),
    ) {
        thread_local!(static IMAGE: Image = image());
        IMAGE.with(|image| {
            let work = Bench::quick();
            copy_folder(image.bench.dir.path(), work.dir.path());
            for harm in &harms {
                do_harm(&work.folder().join(file), harm);
            }
            check(image, &work)
        })?;
    }
}

#[test]
fn a_lost_database_is_counted_from_the_file_beside_it() {
    let image = image();
    for name in ["outbox.db", "outbox.db-wal"] {
        std::fs::remove_file(image.bench.folder().join(name)).unwrap();
    }
    let outbox = image.bench.open();
    let total = outbox.ledger().total();
    assert_eq!((total.emitted, total.queued), (image.emitted, 0));
    assert!(total.gaps[&GapReason::Corruption] > 0);
}

#[test]
fn a_database_that_is_no_database_is_set_aside_and_kept() {
    let image = image();
    let path = image.bench.folder().join("outbox.db");
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0xff; 4096], 0).unwrap();
    std::fs::remove_file(image.bench.folder().join("outbox.db-wal")).unwrap();
    let outbox = image.bench.open();
    assert_eq!(outbox.status().set_aside, 1);
    let names: Vec<String> = std::fs::read_dir(image.bench.folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().any(|name| name.starts_with("outbox.db.damaged-")), "{names:?}");
    assert!(outbox.ledger().holds());
}

#[test]
fn with_nothing_left_of_the_books_the_records_that_can_be_read_still_arrive() {
    let image = image();
    let folder = image.bench.folder();
    std::fs::remove_file(folder.join("outbox.ledger")).unwrap();
    let db = rusqlite::Connection::open(folder.join("outbox.db")).unwrap();
    db.execute_batch("UPDATE state_a SET body = x'00'; UPDATE state_b SET body = x'00'").unwrap();
    drop(db);
    let outbox = image.bench.open();
    assert!(outbox.ledger().holds() && outbox.status().unknown_gaps == 1);
    let mut receiver = Receiver::default();
    receiver.drain(&outbox);
    assert!(receiver.totals().0 > 50, "{:?}", receiver.totals());
}

#[test]
fn another_devices_outbox_is_refused_and_left_as_it_is() {
    let image = image();
    std::fs::remove_file(image.bench.dir.path().join("key")).unwrap();
    let path = image.bench.folder().join("outbox.db");
    let before = picket_durable::read_bounded(&path, 64 << 20).unwrap();
    let error = Outbox::open(image.bench.options()).err().unwrap();
    assert!(matches!(error, picket_outbox::OutboxError::OtherKeys(_)), "{error:?}");
    // The log may have been carried over into the database; no record is gone.
    let after = picket_durable::read_bounded(&path, 64 << 20).unwrap();
    assert!(after.len() >= before.len());
}

#[test]
fn a_record_that_does_not_open_goes_to_quarantine_and_the_others_go_on() {
    let bench = Bench::new();
    let outbox = bench.open();
    (0..20).for_each(|_| assert!(outbox.emit(draft(Priority::Normal, 2, 50))));
    outbox.flush(WAIT).unwrap();
    let other = rusqlite::Connection::open(bench.folder().join("outbox.db")).unwrap();
    other
        .execute_batch(
            "UPDATE lane_normal SET weight = 5 WHERE id = 3; UPDATE lane_normal SET body = zeroblob(99) WHERE id = 7",
        )
        .unwrap();
    let mut receiver = Receiver::default();
    receiver.drain(&outbox);
    let status = outbox.status();
    assert_eq!((receiver.totals(), status.quarantined), ((36, 4), 2));
    assert_eq!(status.ledger.normal.gaps, [(GapReason::Corruption, 4)].into());
    assert!(status.ledger_holds);
    assert!(outbox.next_batch(ALL).unwrap().is_none());
}

//! What the outbox promises while nothing breaks.

use crate::bench::{ALL, Bench, Receiver, WAIT, draft, sealer};
use picket_outbox::{BatchLimits, CleanRequest, Gap, Outbox, OutboxError};
use picket_protocol::event::{EventBody, GapEvent, GapReason, Priority};
use std::time::Duration;

const YEARS_10: Duration = Duration::from_secs(10 * 365 * 86_400);

fn gap(reason: GapReason, count: Option<u64>) -> Gap {
    let detail = "lost on purpose".to_owned();
    Gap { reason, class: Priority::Normal, source: "files".into(), count, since: None, detail }
}

#[test]
fn what_was_emitted_arrives_once_and_the_books_add_up() {
    let bench = Bench::new();
    let outbox = bench.open();
    for _ in 0..300 {
        assert!(outbox.emit(draft(Priority::Normal, 1, 50)));
    }
    assert!(outbox.emit(draft(Priority::High, 7, 50)));
    assert!(outbox.ledger().holds() && outbox.ledger().total().queued == 307);
    outbox.flush(WAIT).unwrap();
    let mut receiver = Receiver::default();
    receiver.drain(&outbox);
    assert_eq!(receiver.totals(), (307, 0));
    let ledger = outbox.ledger();
    assert_eq!((ledger.high.acknowledged, ledger.normal.acknowledged, ledger.total().queued), (7, 300, 0));
    assert!(ledger.holds() && receiver.duplicates == 0);
}

#[test]
fn a_sequence_goes_on_over_restarts_and_begins_anew_with_a_boot() {
    let mut bench = Bench::new();
    let first = bench.open().emit_durable(draft(Priority::Low, 1, 1), WAIT).unwrap();
    let second = bench.open().emit_durable(draft(Priority::Low, 1, 1), WAIT).unwrap();
    assert_eq!((first.seq, second.seq, first.boot_id), (1, 2, second.boot_id));
    bench.kernel_boot = "boot-2".into();
    bench.clock.reboot();
    let third = bench.open().emit_durable(draft(Priority::Low, 1, 1), WAIT).unwrap();
    assert_eq!(third.seq, 1);
    assert_ne!(third.boot_id, first.boot_id);
    assert_eq!(bench.open().status().boots.len(), 2);
}

#[test]
fn a_stream_that_begins_has_books_of_its_own_and_takes_nothing_from_the_one_before() {
    let bench = Bench::new();
    let outbox = bench.open();
    let before = outbox.emit_durable(draft(Priority::Normal, 1, 10), WAIT).unwrap();
    let handed_out = outbox.next_batch(ALL).unwrap().unwrap();
    let stream = outbox.begin_stream().unwrap();
    let after = outbox.emit_durable(draft(Priority::Normal, 3, 10), WAIT).unwrap();
    assert!(stream != before.boot_id && (after.boot_id, after.seq) == (stream, 1));
    // What was handed out of the one before is handed out as it was, and is acknowledged in its books.
    assert_eq!(outbox.next_batch(ALL).unwrap().unwrap().records, handed_out.records);
    assert!(outbox.acknowledge(&handed_out).unwrap());
    let status = outbox.status();
    let books: Vec<_> = status.boots.iter().map(|boot| (boot.boot, boot.ledger.normal.clone())).collect();
    assert_eq!((books[0].0, books[0].1.acknowledged, books[0].1.queued), (before.boot_id, 1, 0));
    assert_eq!((books[1].0, books[1].1.emitted, books[1].1.queued), (stream, 3, 3));
    assert!(status.ledger_holds);
    drop(outbox);
    // The process that comes after goes on with it.
    let next = bench.open().emit_durable(draft(Priority::Low, 1, 1), WAIT).unwrap();
    assert_eq!((next.boot_id, next.seq), (stream, 2));
}

#[test]
fn what_was_handed_out_is_handed_out_again_until_it_is_acknowledged() {
    let bench = Bench::new();
    let outbox = bench.open();
    (0..10).for_each(|_| assert!(outbox.emit(draft(Priority::Normal, 1, 10))));
    outbox.flush(WAIT).unwrap();
    let few = BatchLimits { bytes: 1 << 20, records: 8 };
    let batch = outbox.next_batch(few).unwrap().unwrap();
    outbox.emit_durable(draft(Priority::High, 1, 10), WAIT).unwrap();
    assert_eq!(outbox.next_batch(ALL).unwrap().unwrap().records, batch.records);
    drop(outbox);
    let outbox = bench.open();
    let again = outbox.next_batch(ALL).unwrap().unwrap();
    assert_eq!(again.records, batch.records);
    assert!(outbox.acknowledge(&again).unwrap());
    assert!(!outbox.acknowledge(&again).unwrap(), "an acknowledgement counts once");
    let rest = outbox.next_batch(ALL).unwrap().unwrap();
    assert_eq!((rest.records.len(), rest.records[0].class), (3, Priority::High));
    assert!(outbox.release(&rest).unwrap());
    assert!(!outbox.acknowledge(&rest).unwrap(), "what was released is not acknowledged");
    assert_eq!(outbox.next_batch(few).unwrap().unwrap().records.len(), 3);
    assert!(outbox.ledger().holds());
}

#[test]
fn over_its_size_it_gives_up_the_oldest_of_the_lowest_class_and_tells_of_it() {
    let mut bench = Bench::new();
    bench.limits.max_bytes = 100_000;
    let outbox = bench.open();
    for class in [Priority::High, Priority::Low, Priority::Normal] {
        for _ in 0..40 {
            outbox.emit(draft(class, 2, 1200));
            outbox.flush(WAIT).unwrap();
        }
    }
    let status = outbox.status();
    let ledger = &status.ledger;
    assert_eq!(ledger.high.queued, 80, "high has room");
    assert_eq!(ledger.low.queued, 0);
    assert!(ledger.normal.queued > 40 && ledger.normal.gap_total() > 0);
    assert_eq!(ledger.low.gaps, [(GapReason::QuotaBytes, 80)].into());
    assert!(ledger.holds() && status.bytes <= 100_000);
    let mut receiver = Receiver::default();
    receiver.drain(&outbox);
    let (stored, missing) = receiver.totals();
    assert_eq!((stored + missing, missing), (240, outbox.ledger().total().gap_total()));
    let gaps = receiver.stored.values().filter(|(event, _)| matches!(event.body, EventBody::Gap(_))).count();
    assert_eq!(gaps, 2, "one record a class and reason, as long as none was handed out");
    assert_eq!(outbox.status().untold, 0);
}

#[test]
fn what_is_too_old_goes_and_what_is_handed_out_stays() {
    let bench = Bench::new();
    let outbox = bench.open();
    (0..5).for_each(|_| assert!(outbox.emit(draft(Priority::Low, 1, 10))));
    outbox.flush(WAIT).unwrap();
    let batch = outbox.next_batch(BatchLimits { bytes: 1 << 20, records: 2 }).unwrap().unwrap();
    assert_eq!(batch.records.len(), 2);
    bench.clock.advance(Duration::from_secs(8 * 86_400));
    outbox.emit_durable(draft(Priority::Low, 1, 10), WAIT).unwrap();
    let ledger = outbox.ledger();
    assert_eq!((ledger.low.gaps[&GapReason::QuotaAge], ledger.low.queued), (3, 3));
    drop(outbox);
    let outbox = bench.open();
    assert_eq!(outbox.next_batch(ALL).unwrap().unwrap().records, batch.records);
    let mut receiver = Receiver::default();
    receiver.drain(&outbox);
    assert_eq!(receiver.totals(), (3, 3));
}

#[test]
fn a_clock_that_jumps_ten_years_evicts_nothing() {
    let mut bench = Bench::new();
    let outbox = bench.open();
    outbox.emit_durable(draft(Priority::Low, 1, 10), WAIT).unwrap();
    let noon: jiff::Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    for wall in [noon + YEARS_10, noon - YEARS_10] {
        bench.clock.set_wall(wall);
        outbox.emit_durable(draft(Priority::Low, 1, 10), WAIT).unwrap();
    }
    drop(outbox);
    for (boot, wall) in [("boot-2", noon + YEARS_10), ("boot-3", noon - YEARS_10), ("boot-4", noon + YEARS_10)] {
        bench.kernel_boot = boot.into();
        bench.clock.reboot();
        bench.clock.set_wall(wall);
        let outbox = bench.open();
        outbox.emit_durable(draft(Priority::Low, 1, 10), WAIT).unwrap();
        assert_eq!(outbox.ledger().low.gap_total(), 0);
    }
    assert_eq!(bench.open().ledger().low.queued, 6);
}

#[test]
fn what_was_given_up_elsewhere_is_in_the_books_and_is_told() {
    let bench = Bench::new();
    let outbox = bench.open();
    outbox.account_gap(gap(GapReason::RateLimit, Some(40)));
    outbox.account_gap(gap(GapReason::RateLimit, Some(2)));
    outbox.account_gap(gap(GapReason::KernelOverflow, None));
    let event = GapEvent {
        timestamp: "2026-11-21T12:00:00Z".parse().unwrap(),
        reason: GapReason::KernelOverflow,
        source: "network".into(),
        count: Some(3),
        since: None,
        detail: "x".into(),
    };
    outbox.emit_event(EventBody::Gap(event));
    let ledger = outbox.ledger();
    assert!(ledger.holds());
    assert_eq!((ledger.normal.emitted, ledger.normal.gap_total()), (45, 45));
    outbox.flush(WAIT).unwrap();
    let status = outbox.status();
    assert_eq!((status.queued.gaps, status.unknown_gaps, status.untold), (3, 1, 45));
    let mut receiver = Receiver::default();
    receiver.drain(&outbox);
    assert_eq!(receiver.totals(), (0, 45));
}

#[test]
fn a_gap_record_that_was_handed_out_grows_no_more() {
    let bench = Bench::new();
    let outbox = bench.open();
    outbox.account_gap(gap(GapReason::RateLimit, Some(1)));
    outbox.flush(WAIT).unwrap();
    let mut receiver = Receiver::default();
    receiver.receive(&outbox.next_batch(ALL).unwrap().unwrap());
    outbox.account_gap(gap(GapReason::RateLimit, Some(2)));
    outbox.flush(WAIT).unwrap();
    receiver.drain(&outbox);
    assert_eq!(receiver.totals(), (0, 3));
    assert_eq!((receiver.stored.len(), receiver.duplicates), (2, 1));
}

#[test]
fn what_the_receiver_will_never_take_becomes_a_gap() {
    let bench = Bench::new();
    let outbox = bench.open();
    outbox.emit_durable(draft(Priority::High, 4, 10), WAIT).unwrap();
    let batch = outbox.next_batch(ALL).unwrap().unwrap();
    assert!(outbox.give_up(&batch, GapReason::Format).unwrap());
    assert_eq!(outbox.ledger().high.gaps, [(GapReason::Format, 4)].into());
    let mut receiver = Receiver::default();
    receiver.drain(&outbox);
    assert_eq!(receiver.totals(), (0, 4));
}

#[test]
fn cleaning_drops_a_class_and_those_below_it_and_counts_them() {
    let bench = Bench::new();
    let outbox = bench.open();
    for class in Priority::ALL {
        (0..3).for_each(|_| assert!(outbox.emit(draft(class, 1, 10))));
    }
    outbox.flush(WAIT).unwrap();
    let hour = CleanRequest { class: Priority::High, older_than_seconds: 3600 };
    assert_eq!(outbox.clean(hour).unwrap(), 0);
    let all = CleanRequest { class: Priority::Normal, older_than_seconds: 0 };
    // Another process asks the one that runs.
    let asked = picket_outbox::clean(bench.options(), all, WAIT).unwrap();
    assert_eq!(asked, 6);
    let ledger = outbox.ledger();
    assert_eq!((ledger.high.queued, ledger.normal.gaps[&GapReason::Shed], ledger.low.queued), (3, 3, 0));
    drop(outbox);
    let high = CleanRequest { class: Priority::High, older_than_seconds: 0 };
    assert_eq!(picket_outbox::clean(bench.options(), high, WAIT).unwrap(), 3);
    assert!(bench.open().ledger().holds());
}

#[test]
fn another_process_can_look_while_the_agent_writes_and_cannot_open_it() {
    let bench = Bench::new();
    let outbox = bench.open();
    let sealer = crate::bench::sealer(bench.dir.path());
    outbox.emit_durable(draft(Priority::High, 3, 10), WAIT).unwrap();
    let seen = picket_outbox::inspect(&bench.folder(), &sealer).unwrap().unwrap();
    assert_eq!((seen.ledger.high.queued, seen.queued.total(), seen.ledger_holds), (3, 1, true));
    assert!(matches!(picket_outbox::Outbox::open(bench.options()), Err(OutboxError::Lock(_))));
    assert!(picket_outbox::inspect(&bench.dir.path().join("elsewhere"), &sealer).unwrap().is_none());
}

#[test]
fn nothing_that_was_emitted_can_be_read_in_its_files() {
    let bench = Bench::new();
    let outbox = bench.open();
    (0..20).for_each(|_| assert!(outbox.emit(draft(Priority::High, 3, 10))));
    outbox.flush(WAIT).unwrap();
    for entry in std::fs::read_dir(bench.folder()).unwrap().flatten() {
        use std::os::unix::fs::PermissionsExt as _;
        let bytes = picket_durable::read_bounded(&entry.path(), 64 << 20).unwrap();
        assert!(!bytes.windows(17).any(|window| window == b"planted plaintext"), "{}", entry.path().display());
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", entry.path().display());
    }
}

#[test]
fn an_event_too_long_for_the_wire_is_counted() {
    let bench = Bench::new();
    let outbox = bench.open();
    assert!(!outbox.emit(draft(Priority::Normal, 2, 70_000)));
    assert_eq!(outbox.ledger().normal.gaps, [(GapReason::Format, 2)].into());
    assert!(outbox.ledger().holds());
}

#[test]
fn an_old_key_is_named_until_the_last_record_under_it_is_delivered() {
    let bench = Bench::new();
    let options = bench.options();
    let keyring = std::sync::Arc::clone(options.sealer.keyring());
    let keys = || picket_outbox::keys(&bench.folder()).unwrap().into_iter().collect::<Vec<_>>();
    assert!(keys().is_empty());
    let outbox = picket_outbox::Outbox::open(options).unwrap();
    outbox.emit_durable(draft(Priority::High, 1, 10), WAIT).unwrap();
    assert_eq!(keys(), [1]);
    assert_eq!(keyring.rotate().unwrap(), 2);
    let batch = outbox.next_batch(ALL).unwrap().unwrap();
    assert_eq!(keys(), [1, 2], "the books are under the new key, the record is not");
    assert!(outbox.acknowledge(&batch).unwrap());
    assert_eq!(keys(), [2]);
    // Another process rotates, and has a queue in which nothing happens written anew.
    crate::bench::sealer(bench.dir.path()).keyring().rotate().unwrap();
    picket_outbox::reseal_books(bench.options(), WAIT).unwrap();
    assert_eq!(keys(), [3]);
    drop(outbox);
    crate::bench::sealer(bench.dir.path()).keyring().rotate().unwrap();
    picket_outbox::reseal_books(bench.options(), WAIT).unwrap();
    assert_eq!(keys(), [4]);
}

/// Changes the state of a closed queue as a hand would.
fn change_state(bench: &Bench, change: impl Fn(&mut serde_json::Value)) {
    let db = rusqlite::Connection::open(bench.folder().join("outbox.db")).unwrap();
    let sealer = sealer(bench.dir.path());
    for table in ["state_a", "state_b"] {
        let place = picket_seal::Place { table, row: 1, context: b"" };
        let sql = format!("SELECT body FROM {table}");
        let body: Vec<u8> = db.query_row(&sql, [], |row| row.get(0)).unwrap();
        let mut state = serde_json::from_slice(&sealer.open(place, &body).unwrap()).unwrap();
        change(&mut state);
        let body = sealer.seal(place, state.to_string().as_bytes()).unwrap();
        db.execute(&format!("UPDATE {table} SET body=?1"), [body]).unwrap();
    }
}

#[test]
fn a_queue_of_the_next_release_that_only_adds_is_gone_on_with_and_keeps_what_was_added() {
    let bench = Bench::quick();
    let outbox = bench.open();
    outbox.emit_durable(draft(Priority::Normal, 1, 50), WAIT).unwrap();
    drop(outbox);
    change_state(&bench, |state| {
        state["form"] = (picket_outbox::STATE_FORM + 1).into();
        state["reads_from"] = picket_outbox::STATE_FORM.into();
        state["newer"] = serde_json::json!({ "kept": [1, 2] });
    });
    let db = rusqlite::Connection::open(bench.folder().join("outbox.db")).unwrap();
    for lane in ["lane_gaps", "lane_high", "lane_normal", "lane_low"] {
        db.execute_batch(&format!("ALTER TABLE {lane} ADD COLUMN newer INTEGER NOT NULL DEFAULT 0")).unwrap();
    }
    db.execute_batch("CREATE TABLE newer(id INTEGER PRIMARY KEY)").unwrap();
    drop(db);
    let outbox = bench.open();
    outbox.emit_durable(draft(Priority::High, 1, 50), WAIT).unwrap();
    let mut receiver = Receiver::default();
    receiver.drain(&outbox);
    let total = outbox.ledger().total();
    assert_eq!((total.emitted, total.acknowledged, total.queued, total.gap_total()), (2, 2, 0, 0));
    drop(outbox);
    let (form, kept) = (picket_outbox::STATE_FORM + 1, serde_json::json!({ "kept": [1, 2] }));
    change_state(&bench, |state| assert_eq!((&state["form"], &state["newer"]), (&form.into(), &kept)));
}

#[test]
fn a_queue_of_a_release_that_did_more_than_add_is_refused_and_stays_as_it_is() {
    for (form, reads_from) in [(1, Some(2)), (1, None), (2, Some(1))] {
        let form = picket_outbox::STATE_FORM + form;
        let bench = Bench::quick();
        let outbox = bench.open();
        outbox.emit_durable(draft(Priority::Normal, 1, 50), WAIT).unwrap();
        drop(outbox);
        change_state(&bench, |state| {
            state["form"] = form.into();
            match reads_from {
                Some(oldest) => state["reads_from"] = oldest.into(),
                None => drop(state.as_object_mut().unwrap().remove("reads_from")),
            }
        });
        let Err(error) = Outbox::open(bench.options()) else { panic!("form {form} was opened") };
        assert!(matches!(error, OutboxError::Later { form: found, .. } if found == form), "{error}");
        assert!(error.to_string().contains("later version"), "{error}");
        // The version that wrote it goes on where it was.
        change_state(&bench, |state| {
            assert_eq!(state["form"], form);
            state["form"] = picket_outbox::STATE_FORM.into();
        });
        let outbox = bench.open();
        let mut receiver = Receiver::default();
        receiver.drain(&outbox);
        assert_eq!(receiver.totals(), (1, 0));
    }
}

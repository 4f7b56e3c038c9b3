//! The queue of events, through the binary: how it stands, what is dropped, and the keys it needs.

use crate::data::{filled, key_file, picket, store_dir};
use picket_outbox::{Limits, ManualClock, Options, Outbox};
use picket_protocol::event::Priority;
use picket_seal::Sealer;
use picket_testkit::Prefix;
use std::sync::Arc;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(30);

/// Fills the queue of a prefix as an agent does, and leaves it.
pub(crate) fn queued(prefix: &Prefix, classes: &[(Priority, u64)]) {
    let keyring = picket_store::keyring(&key_file(prefix), &store_dir(prefix)).unwrap();
    let outbox = Outbox::open(Options {
        folder: prefix.path("var/lib/picket/outbox"),
        sealer: Arc::new(Sealer::new(keyring).unwrap()),
        limits: Limits { max_bytes: 1 << 20, max_age_ms: i64::MAX, memory_bytes: 1 << 20, memory_records: 4096 },
        kernel_boot: picket_outbox::kernel_boot(),
        clock: Arc::new(ManualClock::new(jiff::Timestamp::now())),
    })
    .unwrap();
    for (class, count) in classes {
        for i in 0..*count {
            let body = format!(r#"{{"type":"later","details":{{"n":{i}}}}}"#).into_bytes();
            let draft = picket_outbox::Draft { class: *class, weight: 1, at_ms: 0, body };
            outbox.emit_durable(draft, WAIT).unwrap();
        }
    }
}

#[test]
fn dropped_events_are_in_the_books_as_missing_and_the_books_add_up() {
    let prefix = filled(1);
    queued(&prefix, &[(Priority::Low, 5), (Priority::Normal, 4), (Priority::High, 3)]);
    let status = || picket(&prefix, &["cache", "status", "--json"]).expect(0).json();
    let queue = status()["queue"].clone();
    assert_eq!(queue["queued"], serde_json::json!({ "gaps": 0, "high": 3, "normal": 4, "low": 5 }));
    assert!(queue["bytes"].as_u64().unwrap() > 0 && queue["oldest_seconds"].is_number(), "{queue}");
    let asked = picket(&prefix, &["cache", "clean"]).expect(2);
    assert!(asked.stderr.contains("12 queued events") && asked.stderr.contains("--yes"), "{}", asked.stderr);
    assert_eq!(status()["queue"]["ledger"], queue["ledger"]);
    let old = ["cache", "clean", "--yes", "--older-than", "7d", "--json"];
    assert_eq!(picket(&prefix, &old).expect(0).json()["dropped"], 0);
    let low = picket(&prefix, &["cache", "clean", "--yes", "--class", "low"]).expect(0);
    assert_eq!(low.stdout, "dropped 5 events\n");
    assert_eq!(picket(&prefix, &["cache", "clean", "--yes", "--json"]).expect(0).json()["dropped"], 7);
    let queue = status()["queue"].clone();
    let ledger = |class: &str| {
        let account = &queue["ledger"][class];
        (account["emitted"].as_u64().unwrap(), account["queued"].as_u64().unwrap(), account["gaps"]["shed"].as_u64())
    };
    assert_eq!([ledger("low"), ledger("normal"), ledger("high")], [(5, 0, Some(5)), (4, 0, Some(4)), (3, 0, Some(3))]);
    assert_eq!((&queue["ledger_holds"], &queue["untold"]), (&true.into(), &12.into()), "{queue}");
    let shown = picket(&prefix, &["cache", "status"]).expect(0).stdout;
    assert!(shown.contains("the books hold") && shown.contains("12 missing: shed"), "{shown}");
}

#[test]
fn an_old_key_stays_while_a_queued_event_needs_it() {
    let prefix = filled(10);
    queued(&prefix, &[(Priority::High, 1)]);
    let rekey = || picket(&prefix, &["data", "rekey", "--json"]).expect(0).json();
    let first = rekey();
    assert_eq!((&first["needed"], &first["retired"]), (&serde_json::json!([1]), &serde_json::json!([])), "{first}");
    let queue = picket(&prefix, &["cache", "status", "--json"]).expect(0).json();
    assert_eq!(queue["queue"]["ledger"]["high"]["queued"], 1);
    picket(&prefix, &["cache", "clean", "--yes"]).expect(0);
    let second = rekey();
    assert_eq!((&second["key"], &second["retired"]), (&2.into(), &serde_json::json!([1])), "{second}");
    picket(&prefix, &["cache", "status"]).expect(0);
}

//! What a rule can ask of an event.

use picket_hub_rules::{EntityKind, EventView, Product, Received, Shard};
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{AGENT, event, event_of, inbound, second};

#[test]
fn a_file_event_has_the_fields_of_sigmas_taxonomy() {
    let view = event(
        1,
        0,
        "file",
        json!({
            "action": "renamed", "path": "/etc/cron.d/x", "path_from": "/tmp/x", "kind": "file", "sha256": "ab12",
            "meta": {"size": 3, "mode": 0o104_755, "uid": 0},
            "actor": {"pid": 7, "exe": "/usr/bin/mv", "uid": 0},
        }),
    );
    let expected = [
        ("TargetFilename", json!("/etc/cron.d/x")),
        ("SourceFilename", json!("/tmp/x")),
        ("Image", json!("/usr/bin/mv")),
        ("User", json!("0")),
        ("ProcessId", json!(7)),
        ("Hashes", json!("SHA256=AB12")),
        ("FileMode", json!("4755")),
        ("FileSize", json!(3)),
        ("AgentId", json!(AGENT.to_string())),
    ];
    for (name, value) in expected {
        assert_eq!(view.field(name), Some(&value), "{name}");
    }
    assert_eq!((view.shard(), view.entity().kind), (Shard::File, EntityKind::File));
    assert_eq!(view.entity().value, "/etc/cron.d/x");
}

#[test]
fn every_original_field_is_there_by_its_dotted_path() {
    let view = event(1, 0, "file", json!({"action": "created", "path": "/a", "meta": {"mode": 420}}));
    assert_eq!(view.field("details.meta.mode"), Some(&json!(420)));
    assert_eq!(view.field("device_id"), Some(&json!("web-1")));
    assert_eq!(view.field("details.nothing.there"), None);
}

#[test]
fn a_connection_says_who_began_it_only_where_it_is_known() {
    let view = inbound(1, 0, "198.51.100.7", 22);
    assert_eq!(view.field("Initiated"), Some(&json!("false")));
    assert_eq!(view.field("DestinationPort"), Some(&json!(22)));
    assert_eq!(view.entity().value, "198.51.100.7", "the other side is what it is about");
    let unknown = event(2, 0, "network", json!({"action": "opened", "direction": "unknown", "dst_ip": "10.1.1.1"}));
    assert_eq!(unknown.field("Initiated"), None);
}

#[test]
fn an_unknown_type_of_event_has_its_dotted_fields_and_its_own_shard() {
    let view = event(1, 0, "process", json!({"exe": "/bin/sh"}));
    assert_eq!(view.shard(), Shard::Other);
    assert_eq!(view.field("Type"), Some(&json!("process")));
    assert_eq!(view.field("details.exe"), Some(&json!("/bin/sh")));
}

#[test]
fn an_agents_clock_that_runs_ahead_counts_as_the_time_of_receipt_and_one_behind_is_believed() {
    assert_eq!(event_of(AGENT, 1, 500, 100, "gap", json!({})).at(), second(100));
    assert_eq!(event_of(AGENT, 1, 50, 100, "gap", json!({})).at(), second(50));
}

#[test]
fn a_folded_event_weighs_as_many_as_it_stands_for() {
    let fold = json!({"count": 12, "first": second(0).to_string(), "last": second(9).to_string()});
    assert_eq!(event(1, 0, "file", json!({"action": "created", "path": "/a", "fold": fold})).weight(), 12);
    assert_eq!(event(1, 0, "file", json!({"action": "created", "path": "/a"})).weight(), 1);
}

#[test]
fn what_is_too_long_too_deep_or_no_object_is_refused_in_words() {
    let received = Received { id: Uuid::nil(), agent: AGENT, at: second(0), product: Product::Linux };
    let long = vec![b' '; (64 << 10) + 1];
    let deep = format!("{}1{}", "{\"a\":".repeat(40), "}".repeat(40));
    for (json, word) in [(long.as_slice(), "bytes"), (deep.as_bytes(), "deeply"), (b"[]", "object"), (b"{", "EOF")] {
        let error = EventView::parse(received, json).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        Just(json!("2026-11-21T12:00:00Z")),
    ];
    let key = prop_oneof![
        Just("details".to_owned()),
        Just("type".to_owned()),
        Just("action".to_owned()),
        Just("actor".to_owned()),
        Just("meta".to_owned()),
        Just("mode".to_owned()),
        Just("fold".to_owned()),
        Just("count".to_owned()),
        Just("timestamp".to_owned()),
        Just("direction".to_owned()),
        ".{0,8}",
    ];
    leaf.prop_recursive(6, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let received = Received { id: Uuid::nil(), agent: AGENT, at: second(0), product: Product::Linux };
        let _ = EventView::parse(received, &bytes);
    }

    #[test]
    fn no_value_makes_it_or_the_pack_panic(value in value(), kind in prop_oneof![Just("file"), Just("network"), Just("alert"), Just("config"), Just("gap"), Just("x")]) {
        use picket_hub_rules::RuleEngine;
        thread_local!(static ENGINE: picket_hub_rules::SigmaEngine = crate::support::engine(
            &picket_hub_rules::pack().iter().map(|rule| rule.source(1)).collect::<Vec<_>>()));
        let whole = json!({"type": kind, "details": value, "seq": 1});
        let received = Received { id: Uuid::nil(), agent: AGENT, at: second(0), product: Product::Linux };
        if let Ok(view) = EventView::of(received, whole) {
            ENGINE.with(|engine| { engine.evaluate(view.shard(), &view); });
        }
    }
}

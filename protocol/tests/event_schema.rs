//! The published schema and the types say the same: every event that can be written is valid, and what is missing or
//! foreign is refused by both or by neither.
#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

use jiff::Timestamp;
use jsonschema::Validator;
use picket_protocol::event::{
    Actor, AlertAction, AlertEvent, AlertLevel, Confidence, ConfigEvent, Direction, EVENT_SCHEMA, Event, EventBody,
    EventId, FileAction, FileEvent, FileKind, FileMeta, FileMethod, Fold, GapEvent, GapReason, NetworkAction,
    NetworkEvent, NetworkMethod, Protocol, schema,
};
use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use std::net::IpAddr;
use uuid::Uuid;

/// The schema as a validator; `closed`, a field that it does not name is refused.
fn validator(closed: bool) -> Validator {
    let mut schema = schema();
    if closed {
        let close = |object: &mut Value| {
            if object["properties"].is_object() {
                object["additionalProperties"] = false.into();
            }
        };
        schema["$defs"].as_object_mut().unwrap().values_mut().for_each(close);
        close(&mut schema);
    }
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

fn time() -> impl Strategy<Value = Timestamp> {
    // From 1970 to 9999, to the nanosecond.
    (0..253_402_207_199_i64, 0..1_000_000_000_i32).prop_map(|(s, ns)| Timestamp::new(s, ns).unwrap())
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn fold() -> impl Strategy<Value = Option<Fold>> {
    of((any::<u64>(), time(), time()).prop_map(|(count, first, last)| Fold { count, first, last }))
}

fn actor() -> impl Strategy<Value = Option<Actor>> {
    let fields = (any::<u32>(), of(any::<String>()), of(any::<u32>()), of(any::<String>()));
    of(fields.prop_map(|(pid, exe, uid, user)| Actor { pid, exe, uid, user }))
}

fn confidence() -> impl Strategy<Value = Confidence> {
    select(vec![Confidence::Observed, Confidence::Inferred])
}

fn digest() -> impl Strategy<Value = String> {
    "[0-9a-f]{64}"
}

fn file() -> impl Strategy<Value = EventBody> {
    let meta = (any::<u64>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>(), time());
    let meta =
        meta.prop_map(|(size, mode, uid, gid, inode, modified)| FileMeta { size, mode, uid, gid, inode, modified });
    let action = select(vec![
        FileAction::Created,
        FileAction::Modified,
        FileAction::Deleted,
        FileAction::Renamed,
        FileAction::Attributes,
    ]);
    let kind = select(vec![FileKind::File, FileKind::Directory, FileKind::Symlink, FileKind::Other, FileKind::Unknown]);
    let method = select(vec![FileMethod::Fanotify, FileMethod::Inotify, FileMethod::Native, FileMethod::Rescan]);
    let names = (any::<String>(), of("[A-Za-z0-9+/]{4}"), of(any::<String>()));
    (time(), action, names, kind, of(meta), of(digest()), actor(), method, confidence(), fold()).prop_map(
        |(timestamp, action, (path, path_base64, path_from), kind, meta, sha256, actor, method, confidence, fold)| {
            EventBody::File(FileEvent {
                timestamp,
                action,
                path,
                path_base64,
                path_from,
                kind,
                meta,
                sha256,
                actor,
                method,
                confidence,
                fold,
            })
        },
    )
}

fn network() -> impl Strategy<Value = EventBody> {
    let action = select(vec![NetworkAction::Opened, NetworkAction::Closed]);
    let direction = select(vec![Direction::Inbound, Direction::Outbound, Direction::Unknown]);
    let method = select(vec![
        NetworkMethod::SockDestroy,
        NetworkMethod::SockDiag,
        NetworkMethod::ProcPoll,
        NetworkMethod::Table,
    ]);
    let what = (time(), action, direction, select(vec![Protocol::Tcp, Protocol::Udp]), method, confidence());
    let ends = (any::<IpAddr>(), any::<u16>(), any::<IpAddr>(), any::<u16>());
    let more = (of(any::<String>()), actor(), of(any::<u32>()), of(any::<u64>()), of(any::<u64>()), fold());
    (what, ends, more).prop_map(|(what, (src_ip, src_port, dst_ip, dst_port), more)| {
        let (timestamp, action, direction, protocol, method, confidence) = what;
        let (remote_name, actor, uid, bytes_sent, bytes_received, fold) = more;
        EventBody::Network(NetworkEvent {
            timestamp,
            action,
            direction,
            protocol,
            src_ip,
            src_port,
            dst_ip,
            dst_port,
            remote_name,
            actor,
            uid,
            bytes_sent,
            bytes_received,
            method,
            confidence,
            fold,
        })
    })
}

fn alert() -> impl Strategy<Value = EventBody> {
    let action =
        select(vec![AlertAction::Raised, AlertAction::Lowered, AlertAction::Acknowledged, AlertAction::Cleared]);
    let level = select(vec![AlertLevel::Warning, AlertLevel::Critical]);
    let figures = (-1e12..1e12_f64, -1e12..1e12_f64);
    let texts = (any::<String>(), any::<String>(), of(any::<String>()), of(any::<String>()));
    (time(), uuid(), action, level, figures, texts, btree_map(any::<String>(), any::<String>(), 0..3)).prop_map(
        |(timestamp, alert_id, action, level, (value, threshold), (metric, message, by, note), tags)| {
            EventBody::Alert(AlertEvent {
                timestamp,
                alert_id,
                action,
                level,
                metric,
                tags,
                value,
                threshold,
                message,
                by,
                note,
            })
        },
    )
}

fn gap() -> impl Strategy<Value = EventBody> {
    let reason = select(GapReason::ALL.to_vec());
    (time(), reason, any::<String>(), of(any::<u64>()), of(time()), any::<String>()).prop_map(
        |(timestamp, reason, source, count, since, detail)| {
            EventBody::Gap(GapEvent { timestamp, reason, source, count, since, detail })
        },
    )
}

fn config() -> impl Strategy<Value = EventBody> {
    let keys = || vec(any::<String>(), 0..3);
    (time(), digest(), any::<String>(), keys(), keys()).prop_map(
        |(timestamp, sha256, cause, changed, needs_restart)| {
            EventBody::Config(ConfigEvent { timestamp, sha256, cause, changed, needs_restart })
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let body = prop_oneof![file(), network(), alert(), gap(), config()];
    (any::<String>(), uuid(), 1..u64::MAX, body).prop_map(|(device_id, boot_id, seq, body)| {
        let class = body.class();
        Event { schema: EVENT_SCHEMA, device_id, id: EventId { boot_id, seq }, class, body }
    })
}

/// Every object of `value` by its pointer, with each of its fields taken away in turn.
fn without_each_field(value: &Value) -> Vec<(String, Value)> {
    let mut pointers = Vec::new();
    let mut open = vec![(String::new(), value)];
    while let Some((pointer, value)) = open.pop() {
        for (name, child) in value.as_object().into_iter().flatten() {
            // Tags are free: there is nothing to miss in them.
            if !pointer.ends_with("/tags") {
                pointers.push((pointer.clone(), name.clone()));
                open.push((format!("{pointer}/{name}"), child));
            }
        }
    }
    let without = |(pointer, name): (String, String)| {
        let mut less = value.clone();
        less.pointer_mut(&pointer).unwrap().as_object_mut().unwrap().remove(&name);
        (format!("{pointer}/{name}"), less)
    };
    pointers.into_iter().map(without).collect()
}

#[test]
fn every_event_that_can_be_written_is_valid_and_what_it_may_lack_is_what_the_reader_does_without() {
    let validator = validator(true);
    proptest!(ProptestConfig::with_cases(512), |(event in event())| {
        let json = serde_json::to_value(&event).unwrap();
        let problems: Vec<String> = validator.iter_errors(&json).map(|e| format!("{}: {e}", e.instance_path())).collect();
        prop_assert!(problems.is_empty(), "{problems:?} in {json}");
        for (field, less) in without_each_field(&json) {
            let read = serde_json::from_value::<Event>(less.clone()).is_ok();
            prop_assert_eq!(validator.is_valid(&less), read, "without {}: {}", field, less);
        }
    });
}

#[test]
fn what_is_no_event_is_refused() {
    let validator = validator(false);
    let good = json!({
        "schema": 1, "device_id": "agent-123", "boot_id": "01938b7e-0000-7000-8000-000000000000", "seq": 17,
        "class": "normal", "type": "network",
        "details": {
            "timestamp": "2026-11-21T12:34:56Z", "action": "opened", "direction": "inbound", "protocol": "tcp",
            "src_ip": "1.1.1.1", "src_port": 40000, "dst_ip": "10.0.0.1", "dst_port": 22, "method": "sock_diag",
            "confidence": "inferred",
        },
    });
    assert!(validator.is_valid(&good), "{:?}", validator.iter_errors(&good).map(|e| e.to_string()).collect::<Vec<_>>());
    let cases: [(&str, Value); 11] = [
        ("/schema", 2.into()),
        ("/type", "weather".into()),
        ("/type", "file".into()),
        ("/class", "urgent".into()),
        ("/seq", 0.into()),
        ("/boot_id", "seventeen".into()),
        ("/details/timestamp", "2026-11-21T13:34:56+01:00".into()),
        ("/details/timestamp", "yesterday".into()),
        ("/details/src_ip", "1.1.1.1.1".into()),
        ("/details/dst_port", 65_536.into()),
        ("/details/action", "attempted".into()),
    ];
    for (pointer, value) in cases {
        let mut wrong = good.clone();
        *wrong.pointer_mut(pointer).unwrap() = value.clone();
        assert!(!validator.is_valid(&wrong), "{pointer} = {value} was taken");
    }
    let mut newer = good;
    newer["details"]["from_the_future"] = true.into();
    assert!(validator.is_valid(&newer), "a field of a later version is no reason to refuse an event");
}

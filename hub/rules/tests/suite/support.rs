//! Events and rules for the sentences.

use jiff::{SignedDuration, Timestamp};
use picket_hub_rules::{
    EventView, Match, Origin, Product, Received, Replaced, RuleEngine, RuleKey, RuleSource, Settings, SigmaEngine,
};
use serde_json::{Value, json};
use uuid::Uuid;

pub const AGENT: Uuid = Uuid::from_u128(0xa);

/// `n` seconds after the beginning of our time.
pub fn second(n: i64) -> Timestamp {
    "2026-11-21T12:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(n)
}

/// An event of agent A, received when it happened.
pub fn event(number: u128, at: i64, event_type: &str, details: Value) -> EventView {
    event_of(AGENT, number, at, at, event_type, details)
}

pub fn event_of(agent: Uuid, number: u128, at: i64, received: i64, event_type: &str, details: Value) -> EventView {
    let mut details = details;
    details["timestamp"] = json!(second(at).to_string());
    let whole = json!({
        "schema": 1, "device_id": "web-1", "boot_id": Uuid::nil(), "seq": u64::try_from(number).unwrap_or(u64::MAX), "class": "normal",
        "type": event_type, "details": details,
    });
    let received = Received { id: Uuid::from_u128(number), agent, at: second(received), product: Product::Linux };
    EventView::parse(received, &serde_json::to_vec(&whole).unwrap()).unwrap()
}

pub fn file(number: u128, at: i64, action: &str, path: &str) -> EventView {
    event(
        number,
        at,
        "file",
        json!({"action": action, "path": path, "kind": "file", "method": "fanotify", "confidence": "observed"}),
    )
}

pub fn inbound(number: u128, at: i64, from: &str, port: u16) -> EventView {
    event(number, at, "network", connection("inbound", from, port))
}

pub fn connection(direction: &str, from: &str, port: u16) -> Value {
    json!({"action": "opened", "direction": direction, "protocol": "tcp", "src_ip": from, "src_port": 40_000,
           "dst_ip": "10.0.0.1", "dst_port": port, "method": "sock_diag", "confidence": "inferred"})
}

pub fn id(n: u128) -> Uuid {
    Uuid::from_u128(0x4000_0000_0000_0000_0000 + n)
}

pub fn key(n: u128) -> RuleKey {
    RuleKey { id: id(n), version: 1 }
}

pub fn source(n: u128, yaml: &str) -> RuleSource {
    RuleSource { key: key(n), yaml: yaml.replace("@ID", &id(n).to_string()), origin: Origin::Api("ann".into()) }
}

/// A rule about files whose path contains a word.
pub fn about(n: u128, word: &str) -> RuleSource {
    source(
        n,
        &format!(
            "title: About {word}\nid: @ID\nname: about_{n}\nlogsource: {{product: linux, category: file_event}}\n\
             detection:\n  selection:\n    TargetFilename|contains: '{word}'\n  condition: selection\nlevel: high\n"
        ),
    )
}

pub fn engine(rules: &[RuleSource]) -> SigmaEngine {
    let engine = SigmaEngine::new(Settings::default());
    let Replaced { refused, .. } = engine.replace(rules, &[]);
    assert!(refused.is_empty(), "{refused:#?}");
    engine
}

/// The titles of what an event matches.
pub fn titles(engine: &SigmaEngine, event: &EventView) -> Vec<String> {
    matches(engine, event).into_iter().map(|matched| matched.title).collect()
}

pub fn matches(engine: &SigmaEngine, event: &EventView) -> Vec<Match> {
    engine.evaluate(event.shard(), event)
}

//! What judging costs: rules loaded, events a second, memory.
//!
//! Argument: a folder of Sigma rules (a checkout of the public corpus), searched for `.yml`; without one, the starter pack alone is
//! measured. Every rule of the folder must load.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads files and its arguments directly")]
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::unwrap_used, reason = "a step that fails ends the benchmark")]

use jiff::{SignedDuration, Timestamp};
use picket_hub_rules::{
    EventView, Origin, Product, Received, RuleEngine, RuleKey, RuleSource, Settings, Shard, SigmaEngine, pack, validate,
};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long each kind of events is judged.
const RUN: Duration = Duration::from_secs(3);

fn main() {
    let folder = std::env::args().skip(1).find(|word| !word.starts_with("--"));
    let pack: Vec<RuleSource> = pack().iter().map(|rule| rule.source(1)).collect();
    measure("starter pack", &pack);
    if let Some(folder) = folder {
        let mut corpus = Vec::new();
        collect(Path::new(&folder), &mut corpus);
        let linux: Vec<RuleSource> =
            corpus.iter().filter(|rule| !rule.yaml.contains("product: windows")).cloned().collect();
        measure("corpus without Windows, and the pack", &[linux, pack].concat());
        measure("corpus, whole", &corpus);
    }
}

fn collect(folder: &Path, rules: &mut Vec<RuleSource>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, rules);
        } else if path.extension().is_some_and(|extension| extension == "yml") {
            let yaml = std::fs::read_to_string(&path).unwrap();
            let found = validate(&yaml);
            for problem in found.errors() {
                println!("refused {}: {problem}", path.display());
            }
            let id = found.ids.first().copied().unwrap_or_default();
            let origin = Origin::File(path.display().to_string());
            rules.push(RuleSource { key: RuleKey { id, version: 1 }, yaml, origin });
        }
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn measure(name: &str, rules: &[RuleSource]) {
    let before = resident();
    let began = Instant::now();
    let engine = SigmaEngine::new(Settings { products: vec![Product::Linux], ..Settings::default() });
    let replaced = engine.replace(rules, &[]);
    let took = began.elapsed();
    println!("== {name}: {} of {} sources loaded in {:.2} s", replaced.loaded, rules.len(), took.as_secs_f64());
    for (rule, why) in replaced.refused.iter().take(10) {
        println!("   refused {}: {}", rule.id, why[0]);
    }
    let asked: Vec<String> =
        Shard::ALL.iter().map(|shard| format!("{} {}", shard.as_str(), engine.figures(*shard).rules)).collect();
    println!("   asked: {}; memory of the set: {} MiB", asked.join(", "), (resident().saturating_sub(before)) >> 10);
    for (kind, shard, events) in [
        ("file", Shard::File, events("file", &file)),
        ("network", Shard::Network, events("network", &network)),
        ("gap", Shard::Other, events("gap", &|_| json!({"reason": "rate_limit", "source": "files", "detail": "x"}))),
    ] {
        let views: Vec<EventView> =
            events.iter().map(|(received, json)| EventView::parse(*received, json).unwrap()).collect();
        let (rate, matches) = run(&engine, shard, views.len(), |n| views[n].clone());
        let (whole, _) = run(&engine, shard, events.len(), |n| EventView::parse(events[n].0, &events[n].1).unwrap());
        println!(
            "   {kind}: {rate:.0} events/s judged, {whole:.0} read and judged, {matches:.3} matches an event, suspended: {}",
            engine.take_suspensions().len()
        );
    }
    let mut costly = engine.health();
    costly.sort_by_key(|health| std::cmp::Reverse(health.mean_nanos));
    for health in costly.iter().take(3) {
        println!("   {:>7} ns in the mean, {:>8} at most: {}", health.mean_nanos, health.max_nanos, health.title);
    }
}

/// Judges events for a while: how many a second, and how many matches an event.
fn run(engine: &SigmaEngine, shard: Shard, count: usize, event: impl Fn(usize) -> EventView) -> (f64, f64) {
    let (began, mut judged, mut matches) = (Instant::now(), 0u64, 0u64);
    while began.elapsed() < RUN {
        for n in 0..count {
            matches += engine.evaluate(shard, &event(n)).len() as u64;
        }
        judged += count as u64;
    }
    (judged as f64 / began.elapsed().as_secs_f64(), matches as f64 / judged as f64)
}

/// A thousand events of a kind, as an agent sends them.
fn events(kind: &str, details: &dyn Fn(u64) -> Value) -> Vec<(Received, Vec<u8>)> {
    let start: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    (0..1000u64)
        .map(|n| {
            let at = start + SignedDuration::from_millis(i64::try_from(n).unwrap() * 20);
            let mut details = details(n);
            details["timestamp"] = json!(at.to_string());
            let whole = json!({
                "schema": 1, "device_id": format!("agent-{}", n % 10), "boot_id": Uuid::nil(), "seq": n, "class": "normal",
                "type": kind, "details": details,
            });
            let agent = Uuid::from_u128(u128::from(n % 10));
            let received = Received { id: Uuid::from_u128(u128::from(n)), agent, at, product: Product::Linux };
            (received, serde_json::to_vec(&whole).unwrap())
        })
        .collect()
}

fn file(n: u64) -> Value {
    let folders = ["/var/lib/app/data", "/home/ann/work", "/usr/lib/python3/dist-packages", "/tmp", "/etc/nginx"];
    let place = usize::try_from(n).unwrap() % folders.len();
    let action = ["created", "modified", "deleted", "attributes"][usize::try_from(n / 5).unwrap() % 4];
    json!({
        "action": action,
        "path": format!("{}/file-{n}.dat", folders[place]), "kind": "file", "sha256": format!("{n:064x}"),
        "meta": {"size": n, "mode": 0o100_644, "uid": 1000, "gid": 1000, "inode": n, "modified": "2026-11-21T12:00:00Z"},
        "actor": {"pid": 4000 + n, "exe": "/usr/bin/python3.11", "uid": 1000, "user": "ann"},
        "method": "fanotify", "confidence": "observed",
    })
}

fn network(n: u64) -> Value {
    let port = [443, 5432, 22, 8080][usize::try_from(n).unwrap() % 4];
    json!({
        "action": if n.is_multiple_of(2) { "opened" } else { "closed" }, "direction": if n.is_multiple_of(3) { "inbound" } else { "outbound" },
        "protocol": "tcp", "src_ip": format!("10.0.{}.{}", n % 7, n % 200), "src_port": 30_000 + n, "dst_ip": "10.1.0.5",
        "dst_port": port, "remote_name": "db.example.net",
        "actor": {"pid": 700 + n, "exe": "/usr/sbin/nginx", "uid": 33}, "method": "sock_diag", "confidence": "inferred",
    })
}

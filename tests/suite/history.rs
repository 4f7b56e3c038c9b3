//! The history of updates: what it keeps of each decision, how much of it, and the form in which scripts read it.

use crate::update::Fleet;
use picket_testkit::Fault;
use serde_json::{Value, json};
use snapbox::{Data, assert_data_eq};
use std::fs;
use std::path::Path;

/// A journal as versions wrote it that knew less.
fn old_journal(id: &str) -> Value {
    json!({
        "schema": 1, "id": id, "kind": "release", "trigger": "schedule", "from": "0.8.0", "to": "0.9.0",
        "sha256": "0".repeat(64), "artifact": null, "was_wanted": true, "started": "2026-01-02T03:00:00Z",
        "entries": [
            { "step": "gate", "mark": "began", "at": "2026-01-02T03:00:10Z" },
            { "step": "revert", "mark": "began", "at": "2026-01-02T03:00:20Z" },
            { "step": "settle", "mark": "done", "at": "2026-01-02T03:00:30Z" },
        ],
        "baseline": { "answered": true, "checks": { "collector": "pass" } },
        "evidence": {
            "watched_ms": 10000, "checks": { "collector": "fail" }, "candidate_fetch": "ok",
            "hooks": [{ "hook": "/etc/picket/health.d/wanted/10-disk", "required": false, "ok": true, "detail": "exit status: 0" }],
        },
        "verdict": { "verdict": "fail", "reason": "health is worse than before: collector", "fault": "version" },
        "outcome": "rolled-back", "reason": "health is worse than before: collector",
    })
}

/// A journal as this version writes it.
fn journal(id: &str) -> Value {
    let check =
        |scope: &str, status: &str, message: &str| json!({ "scope": scope, "status": status, "message": message });
    let view =
        |state: &str, restarts: u32| json!({ "state": state, "run": "r", "restarts": restarts, "detail": state });
    let mut journal = old_journal(id);
    journal["entries"] = json!([
        { "step": "fetch", "mark": "began", "at": "2026-01-02T03:00:00Z" },
        { "step": "fetch", "mark": "done", "at": "2026-01-02T03:00:01Z", "took_ms": 1250 },
        { "step": "gate", "mark": "began", "at": "2026-01-02T03:00:10Z" },
        { "step": "revert", "mark": "began", "at": "2026-01-02T03:00:20Z" },
        { "step": "revert", "mark": "done", "at": "2026-01-02T03:00:21Z", "took_ms": 640 },
        { "step": "settle", "mark": "began", "at": "2026-01-02T03:00:21Z" },
        { "step": "settle", "mark": "done", "at": "2026-01-02T03:00:30Z", "took_ms": 15 },
    ]);
    let hub = |connected: bool, mut check: Value| {
        check["connected"] = connected.into();
        check
    };
    journal["hook_user"] = "backup".into();
    journal["before_began"] = true.into();
    journal["tellings"] = 1.into();
    journal["evidence"] = json!({
        "self_test": "9 checks passed; writes closed, network closed",
        "started_as": view("starting", 0), "ended_as": view("restarting", 1),
        "ready_after_ms": 812, "watched_ms": 10250, "restarts": 1,
        "checks_before": {
            "collector": check("local", "pass", "3 samples"),
            "hub_connection": hub(true, check("external", "pass", "heard 3 s ago")),
        },
        "checks_after": {
            "collector": check("local", "fail", "no sample"),
            "hub_connection": hub(false, check("external", "warn", "not connected for the moment")),
        },
        "candidate_fetch": "connection refused", "judge_fetch": "ok",
        "hooks": [{
            "hook": "/etc/picket/update.d/before/10-drain", "kind": "before", "required": true, "ok": true,
            "detail": "exit status: 0", "output": "drained", "ms": 37,
        }],
    });
    journal
}

fn keep(fleet: &Fleet, journal: &Value) {
    let dir = fleet.prefix.path("var/lib/picket-update/history");
    fs::create_dir_all(&dir).unwrap();
    let name = format!("{}.json", journal["id"].as_str().unwrap());
    fs::write(dir.join(name), journal.to_string()).unwrap();
}

#[test]
fn the_history_has_the_form_that_is_documented_also_for_journals_of_older_versions() {
    let fleet = Fleet::new();
    keep(&fleet, &old_journal("019b7c00-0000-7000-8000-00000000000a"));
    keep(&fleet, &journal("019b7c00-0000-7000-8000-00000000000b"));
    let history = fleet.prefix.picket(&["update", "history", "--json"]).expect(0).stdout;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/golden/update-history.json");
    assert_data_eq!(history, Data::read_from(&golden, Some(snapbox::data::DataFormat::Text)));
    let one = fleet.prefix.picket(&["update", "history", "00000000000b", "--json"]).expect(0).json();
    assert_eq!(one["evidence"]["hub"]["candidate"]["reached"], false);
    let text = fleet.prefix.picket(&["update", "history", "00000000000b"]).expect(0).stdout;
    for told in [
        "collector: pass before, fail after (no sample)",
        "Restarts: 1",
        "reached by the old version: yes; by the new one: no (connection refused)",
        "| drained",
        "fetch, begun 2026-01-02T03:00:00Z: 1.250 s",
    ] {
        assert!(text.contains(told), "{told:?} is missing in:\n{text}");
    }
    assert!(fleet.prefix.picket(&["update", "history", "019b7c00"]).expect(2).stderr.contains("is of 2 updates"));
    fleet.prefix.picket(&["update", "history", "ffff"]).expect(2);
}

#[test]
fn fifty_updates_are_kept_and_a_release_that_was_taken_back_is_told_with_what_spoke_against_it() {
    let fleet = Fleet::new();
    let dir = fleet.prefix.path("var/lib/picket-update/history");
    for number in 0..50 {
        keep(&fleet, &old_journal(&format!("00000000-0000-7000-8000-0000000000{number:02}")));
    }
    let kept = || fs::read_dir(&dir).unwrap().count();
    assert_eq!(kept(), 50);
    fleet.release("2.0.0", Fault::Unhealthy);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(20);
    assert_eq!(kept(), 50);
    fleet.release("3.0.0", Fault::Crash);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(20);
    assert_eq!(kept(), 50);
    for gone in ["00", "01"] {
        assert!(!dir.join(format!("00000000-0000-7000-8000-0000000000{gone}.json")).exists(), "not the oldest went");
    }

    let history = fleet.prefix.picket(&["update", "history", "--limit", "100", "--json"]).expect(0).json();
    assert_eq!(history.as_array().unwrap().len(), 50);
    let (crashed, sick) = (&history[0]["evidence"], &history[1]["evidence"]);
    assert!(crashed["restarts"].as_u64().unwrap() >= 1, "{crashed}");
    assert_eq!(sick["restarts"], 0);
    let collector = sick["checks"].as_array().unwrap().iter().find(|check| check["name"] == "collector").unwrap();
    assert_eq!(
        (&collector["before"], &collector["after"], &collector["worse"]),
        (&"pass".into(), &"fail".into(), &true.into())
    );
    assert!(!collector["said_after"].as_str().unwrap().is_empty());
    let worse = sick["checks"].as_array().unwrap().iter().filter(|check| check["worse"] == true).count();
    assert_eq!(worse, 1, "{sick}");
    assert_eq!(sick["release_server"]["judge"]["reached"], true);
    assert_eq!(sick["hub"], json!({ "judge": null, "candidate": null }));
    let phases = history[1]["phases"].as_array().unwrap();
    for step in ["fetch", "stage", "preflight", "snapshot", "trial", "gate", "revert", "settle"] {
        let phase = phases.iter().find(|phase| phase["step"] == step).unwrap_or_else(|| panic!("{step}: {phases:?}"));
        assert!(phase["ms"].is_u64(), "{phase}");
    }
    let text = fleet.prefix.picket(&["update", "history"]).expect(0).stdout;
    assert!(text.contains("collector: pass before, fail after"), "{text}");
}

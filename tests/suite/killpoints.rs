//! The updater ended as by a crash at every journalled step, and the machine started again: always a proven, healthy
//! version, a truthful status, and a later update that needs no hand.

use crate::update::Fleet;
use picket_testkit::{Fault, build, wait_until};
use serde_json::Value;

/// Every place that a good update passes, in order.
const FORWARD: [&str; 38] = [
    "fetch-began-before",
    "fetch-began-after",
    "fetch-downloaded",
    "fetch-done-before",
    "fetch-done-after",
    "stage-began-before",
    "stage-began-after",
    "stage-unpacked",
    "stage-done-before",
    "stage-done-after",
    "preflight-began-before",
    "preflight-began-after",
    "preflight-done-before",
    "preflight-done-after",
    "snapshot-began-before",
    "snapshot-began-after",
    "snapshot-done-before",
    "snapshot-done-after",
    "trial-began-before",
    "trial-began-after",
    "trial-started",
    "trial-done-before",
    "trial-done-after",
    "gate-began-after",
    "gate-decided",
    "gate-done-before",
    "gate-done-after",
    "commit-began-after",
    "commit-previous-linked",
    "commit-switched",
    "commit-registered",
    "commit-trial-ended",
    "commit-done-after",
    "settle-began-after",
    "settle-remembered",
    "settle-told",
    "settle-done-after",
    "settle-archived",
];

/// Every place that a bad update passes on its way back.
const BACK: [&str; 8] = [
    "gate-decided",
    "revert-began-before",
    "revert-began-after",
    "revert-trial-ended",
    "revert-restarted",
    "revert-done-after",
    "settle-remembered",
    "settle-archived",
];

/// From here on the new version has passed, and recovery finishes what was begun.
fn is_past_the_verdict(place: &str) -> bool {
    place == "gate-done-after" || place.starts_with("commit-") || place.starts_with("settle-")
}

fn crash_at(place: &str, fault: Fault) {
    let mut fleet = Fleet::new();
    fleet.vendor.release(&build("2.0.0", fault));
    // The supervisor hands its environment to the updater it starts.
    fleet.prefix.cut_power();
    fleet.prefix.set("PICKET_FAILPOINT", place);
    fleet.prefix.boot();
    // The updater ends at the place, and so does the recovery that the supervisor starts for it, where it passes there.
    let gone = fleet.prefix.picket(&["update", "apply", "--yes"]);
    assert!(gone.stderr.contains("the updater ended without finishing"), "{place} was never reached: {gone:?}");
    fleet.prefix.cut_power();
    fleet.prefix.unset("PICKET_FAILPOINT");
    fleet.prefix.boot();

    let expected = if fault == Fault::None && is_past_the_verdict(place) { "2.0.0" } else { "1.0.0" };
    assert_settled(&fleet, place, expected);
    // Whatever happened, a good release is taken without a hand being lent.
    fleet.vendor.release(&build("3.0.0", Fault::None));
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    assert_eq!(fleet.prefix.running_version().as_deref(), Some("3.0.0"), "{place}");
}

fn assert_settled(fleet: &Fleet, place: &str, expected: &str) {
    let prefix = &fleet.prefix;
    wait_until(&format!("{place}: version {expected} to answer"), || {
        prefix.running_version().as_deref() == Some(expected)
    });
    assert_eq!(prefix.current(), expected, "{place}");
    let status = prefix.status();
    assert_eq!(status["running"], Value::Null, "{place}: something is still under way");
    assert_eq!(status["current"], expected, "{place}");
    if let Some(last) = status["last"].as_object() {
        let committed = last["outcome"] == "committed";
        assert_eq!(committed, expected == "2.0.0", "{place}: the status does not tell the truth: {last:?}");
    }
    let doctor = prefix.picket(&["doctor", "--json"]).expect(0).json();
    assert_eq!(doctor["ok"], true, "{place}: {doctor}");
    assert!(!prefix.path("opt/picket/versions/.staging").exists() || expected == "1.0.0", "{place}");
}

/// One test a step, so that they run side by side.
fn crash_in(step: &str) {
    let places = FORWARD.iter().filter(|place| place.starts_with(step));
    places.for_each(|place| crash_at(place, Fault::None));
}

#[test]
fn a_crash_while_fetching_leaves_the_proven_version() {
    crash_in("fetch-");
}

#[test]
fn a_crash_while_staging_leaves_the_proven_version() {
    crash_in("stage-");
}

#[test]
fn a_crash_while_looking_ahead_leaves_the_proven_version() {
    crash_in("preflight-");
    crash_in("snapshot-");
}

#[test]
fn a_crash_while_starting_the_trial_leaves_the_proven_version() {
    crash_in("trial-");
}

#[test]
fn a_crash_at_the_gate_leaves_the_proven_version() {
    crash_in("gate-");
}

#[test]
fn a_crash_while_committing_leaves_the_new_version() {
    crash_in("commit-");
}

#[test]
fn a_crash_while_settling_leaves_the_new_version() {
    crash_in("settle-");
}

#[test]
fn a_crash_at_any_step_of_going_back_leaves_the_proven_version() {
    for place in BACK {
        crash_at(place, Fault::Crash);
    }
}

#[test]
fn every_place_in_the_code_is_on_one_of_the_lists() {
    let source = ["update/src/engine/mod.rs", "update/src/engine/trial.rs", "update/src/engine/prepare.rs"]
        .into_iter()
        .chain(["update/src/engine/settle.rs", "update/src/journal/store.rs"])
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect::<String>();
    for piece in source.split("reach(\"").skip(1) {
        let place = piece.split('"').next().unwrap();
        assert!(FORWARD.contains(&place) || BACK.contains(&place), "{place} is tried by no test");
    }
}

//! Power cuts at every phase of an update: after the next boot a proven version is healthy, and the status is true.

use picket_testkit::{Behaviour, Fault, Machine, wait_until};
use serde_json::Value;

const DROP_IN: &str = "/etc/systemd/system/picket-update.service.d/50-hold.conf";
const HELD: &str = "/run/picket-update/held";

/// Starts an update and cuts the power when the updater stands at `place`.
fn cut_at(machine: &Machine, place: &str) {
    let text = format!("[Service]\nEnvironment=PICKET_FAILPOINT={place}=hold:{HELD}\n");
    machine.put(text.as_bytes(), DROP_IN, 0o644);
    machine.sh("systemctl daemon-reload");
    let mut apply = machine.start(&["picket", "update", "apply", "--yes"]);
    wait_until(&format!("the updater to stand at {place}"), || machine.run(&["test", "-e", HELD]).code == 0);
    machine.cut_power();
    let _ = apply.kill();
    apply.wait().unwrap();
}

/// Boots; expects `version`, a last update that ended like this, and that the next good release is taken.
fn assert_settled(machine: &Machine, version: &str, outcome: &Value) {
    machine.boot();
    machine.assert_on(version);
    assert_eq!(&machine.status()["last"]["outcome"], outcome, "{}", machine.status());
    let doctor = machine.picket(&["doctor", "--json"]).expect(0).json();
    assert_eq!(doctor["ok"], true, "{doctor}");
    assert_eq!(machine.sh("systemctl --failed --no-legend"), "");
    machine.sh(&format!("rm -f {DROP_IN} && systemctl daemon-reload"));
    machine.release("4.0.0", Fault::None);
    machine.picket(&["update", "apply", "--yes"]).expect(0);
    machine.assert_on("4.0.0");
}

fn installed_with(test: &str, fault: Fault) -> Machine {
    let machine = Machine::installed(test, "");
    machine.release("2.0.0", fault);
    machine
}

#[test]
fn during_the_download() {
    let machine = installed_with("cut-load", Fault::None);
    machine.server.misbehave(".tar.xz", Behaviour::StallAfter(1_000_000));
    let mut apply = machine.start(&["picket", "update", "apply", "--yes"]);
    wait_until("a part to have arrived", || machine.server.body_bytes() > 500_000);
    machine.cut_power();
    let _ = apply.kill();
    apply.wait().unwrap();
    machine.server.behave();
    assert_settled(&machine, "1.0.0", &"interrupted".into());
}

#[test]
fn after_staging() {
    let machine = installed_with("cut-stage", Fault::None);
    cut_at(&machine, "stage-done-after");
    assert_settled(&machine, "1.0.0", &"interrupted".into());
}

#[test]
fn during_the_trial() {
    let machine = installed_with("cut-trial", Fault::None);
    cut_at(&machine, "gate-began-after");
    assert_settled(&machine, "1.0.0", &"interrupted".into());
}

#[test]
fn when_the_verdict_is_known_and_nothing_is_switched_yet() {
    let machine = installed_with("cut-known", Fault::None);
    cut_at(&machine, "commit-began-after");
    assert_settled(&machine, "2.0.0", &"committed".into());
}

#[test]
fn at_the_commit_just_before_the_switch() {
    let machine = installed_with("cut-prev", Fault::None);
    cut_at(&machine, "commit-previous-linked");
    assert_settled(&machine, "2.0.0", &"committed".into());
}

#[test]
fn at_the_commit_just_after_the_switch() {
    let machine = installed_with("cut-switch", Fault::None);
    cut_at(&machine, "commit-switched");
    assert_settled(&machine, "2.0.0", &"committed".into());
}

#[test]
fn during_the_revert() {
    let machine = installed_with("cut-revert", Fault::Crash);
    cut_at(&machine, "revert-trial-ended");
    assert_settled(&machine, "1.0.0", &"rolled-back".into());
}

#[test]
fn again_and_again_at_any_moment() {
    let machine = installed_with("cut-any", Fault::None);
    // Wherever the updater is by then: each cut comes one step later than the one before.
    for step in ["fetch", "stage", "preflight", "trial", "gate"] {
        let mut apply = machine.start(&["picket", "update", "apply", "2.0.0", "--yes"]);
        let reached = || {
            let status = machine.run(&["picket", "update", "status", "--json"]);
            status.code == 0 && (status.json()["running"]["step"] == step || status.json()["current"] == "2.0.0")
        };
        wait_until(&format!("the step {step}"), reached);
        machine.cut_power();
        let _ = apply.kill();
        apply.wait().unwrap();
        machine.boot();
        wait_until("a version to answer", || machine.running_version().is_some());
        let running = machine.running_version().unwrap();
        assert_eq!(machine.current(), running);
        assert_eq!(machine.status()["running"], Value::Null);
    }
    machine.picket(&["update", "apply", "2.0.0", "--yes"]).expect(0);
    machine.assert_on("2.0.0");
}

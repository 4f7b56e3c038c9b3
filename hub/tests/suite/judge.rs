//! From an agent's event to a finding, through the whole hub.

use crate::fleet::{Fleet, Machine, eventually};
use crate::people::{person, unlimited};
use jiff::SignedDuration;
use picket_hub::app::rules::new_rule;
use picket_hub::state::Hub;
use picket_hub_db::{Finding, FindingFilter, PageRequest, RuleOrigin, TenantId};
use picket_hub_rules::{RuleState, Suspension};
use picket_protocol::hub::{EventsAnswer, ProblemCode};
use serde_json::{Value, json};
use std::time::Duration;

pub async fn findings(fleet: &Fleet) -> Vec<Finding> {
    let db = &fleet.running.hub().db;
    let page = db.findings(TenantId::DEFAULT, &FindingFilter::default(), &PageRequest::first(1000)).await;
    page.unwrap().items
}

/// A line in which somebody changes `path`.
pub fn changed(machine: &Machine, seq: u64, path: &str) -> String {
    json!({
        "schema": 1, "device_id": "x", "boot_id": machine.boot, "seq": seq, "class": "normal", "type": "file",
        "details": {
            "timestamp": "2026-11-21T12:00:00Z", "action": "modified", "path": path,
            "kind": "file", "method": "fanotify", "confidence": "observed",
        },
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_authorized_keys_becomes_one_finding_with_its_events_as_evidence() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let keys = "/root/.ssh/authorized_keys";
    machine.send(&fleet, &changed(&machine, 1, keys)).await.ok::<EventsAnswer>();
    machine.send(&fleet, &changed(&machine, 2, "/tmp/harmless")).await.ok::<EventsAnswer>();
    machine.send(&fleet, &changed(&machine, 3, keys)).await.ok::<EventsAnswer>();
    // A duplicate is no evidence.
    machine.send(&fleet, &changed(&machine, 3, keys)).await.ok::<EventsAnswer>();
    let found = eventually(async || {
        let found = findings(&fleet).await;
        found.first().filter(|finding| finding.event_count == 2).cloned()
    })
    .await;
    assert_eq!(findings(&fleet).await.len(), 1);
    assert_eq!(found.agent, Some(machine.id));
    assert_eq!(found.entity.unwrap().value, keys);
    let evidence = fleet.running.hub().db.evidence(TenantId::DEFAULT, found.id, &PageRequest::first(10)).await.unwrap();
    assert_eq!(evidence.items.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_and_not_judged_before_a_restart_is_judged_after_it_and_once() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    for seq in 1..=20 {
        machine.send(&fleet, &changed(&machine, seq, &format!("/etc/cron.d/job-{seq}"))).await.ok::<EventsAnswer>();
    }
    // Wherever the judge is by now.
    let fleet = fleet.restart().await;
    let all = eventually(async || {
        let found = findings(&fleet).await;
        (found.iter().map(|finding| finding.event_count).sum::<u64>() >= 20).then_some(found)
    })
    .await;
    assert_eq!(all.iter().map(|finding| finding.event_count).sum::<u64>(), 20);
    let fleet = fleet.restart().await;
    machine.send(&fleet, &changed(&machine, 21, "/etc/cron.d/last")).await.ok::<EventsAnswer>();
    let sum = eventually(async || {
        let sum = findings(&fleet).await.iter().map(|finding| finding.event_count).sum::<u64>();
        (sum > 20).then_some(sum)
    })
    .await;
    assert_eq!(sum, 21);
}

/// A rule of the operator's own.
const RULE: &str = r"title: A file of the test
id: 6f1c1f0e-5d0e-4c5e-9c39-0c2f6ab0a001
status: test
description: Somebody changed the test's file.
logsource:
    product: linux
    category: file_change
detection:
    selection:
        TargetFilename|endswith: /test-file
    condition: selection
level: high
";

/// Looks at `rules.d` now, and not at the next turn of the hub's own. What changed may have been taken by that one already.
pub async fn look(hub: &Hub) {
    hub.put_files().await.unwrap();
    hub.load_rules().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_of_rules_d_is_in_force_without_a_restart() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let dir = fleet.dir.path().join("rules.d");
    picket_durable::create_dir(&dir, 0o755).unwrap();
    picket_durable::write_atomic(&dir.join("test.yml"), RULE.as_bytes(), 0o644).unwrap();
    let hub = fleet.running.hub();
    look(hub).await;
    machine.send(&fleet, &changed(&machine, 1, "/srv/test-file")).await.ok::<EventsAnswer>();
    let found = eventually(async || findings(&fleet).await.pop()).await;
    assert_eq!((found.title.as_str(), found.rule_version), ("A file of the test", 1));
    // The file goes, and the rule with it.
    picket_durable::remove_if_present(&dir.join("test.yml")).unwrap();
    look(hub).await;
    assert_eq!(hub.db.rule(TenantId::DEFAULT, &found.rule).await.unwrap(), None);
}

/// A rule of one file.
pub const ONE: &str = r"title: A file of the test
id: 6f1c1f0e-5d0e-4c5e-9c39-0c2f6ab0a002
status: test
description: Somebody changed the test's file.
logsource:
    product: linux
    category: file_change
detection:
    selection:
        TargetFilename|endswith: /test-file
    condition: selection
level: low
";
/// A rule that needs three events of that file within two minutes.
pub const THREE: &str = r"title: A file of the test, again and again
id: 6f1c1f0e-5d0e-4c5e-9c39-0c2f6ab0a003
status: test
description: Somebody keeps changing the test's file.
correlation:
    type: event_count
    rules:
        - 6f1c1f0e-5d0e-4c5e-9c39-0c2f6ab0a002
    group-by:
        - TargetFilename
    timespan: 2m
    condition:
        gte: 3
    generate: true
level: high
";

#[tokio::test(flavor = "multi_thread")]
async fn a_correlation_holds_over_an_outage_of_the_hub_that_is_longer_than_its_window() {
    let fleet = Fleet::start().await;
    let dir = fleet.dir.path().join("rules.d");
    picket_durable::create_dir(&dir, 0o755).unwrap();
    picket_durable::write_atomic(&dir.join("one.yml"), ONE.as_bytes(), 0o644).unwrap();
    picket_durable::write_atomic(&dir.join("three.yml"), THREE.as_bytes(), 0o644).unwrap();
    let hub = fleet.running.hub();
    look(hub).await;
    let machine = fleet.machine().await;
    machine.send(&fleet, &changed(&machine, 1, "/srv/test-file")).await.ok::<EventsAnswer>();
    machine.send(&fleet, &changed(&machine, 2, "/srv/test-file")).await.ok::<EventsAnswer>();
    eventually(async || findings(&fleet).await.first().filter(|finding| finding.event_count == 2).cloned()).await;
    // The machine sees the third a moment after the second, and can deliver it when the hub is back, an hour later.
    fleet.forward(Duration::from_secs(3600));
    let fleet = fleet.restart().await;
    machine.send(&fleet, &changed(&machine, 3, "/srv/test-file")).await.ok::<EventsAnswer>();
    let again = |found: Vec<Finding>| found.into_iter().find(|finding| finding.title.ends_with("again and again"));
    let found = eventually(async || again(findings(&fleet).await)).await;
    assert_eq!(found.event_count, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_rules_that_is_out_of_reach_takes_no_rule_along() {
    let fleet = Fleet::start().await;
    let (hub, dir) = (fleet.running.hub(), fleet.dir.path().join("rules.d"));
    let id = "6f1c1f0e-5d0e-4c5e-9c39-0c2f6ab0a001";
    let there = async || hub.db.rule(TenantId::DEFAULT, id).await.unwrap().is_some();
    picket_durable::create_dir(&dir, 0o755).unwrap();
    picket_durable::write_atomic(&dir.join("test.yml"), RULE.as_bytes(), 0o644).unwrap();
    hub.put_files().await.unwrap();
    assert!(there().await);
    // The folder is gone, as when what it lies on is not mounted; then the file cannot be read.
    picket_durable::rename(&dir, &fleet.dir.path().join("away")).unwrap();
    hub.put_files().await.unwrap();
    assert!(there().await);
    // The hub looks by itself, too: it must never see the folder without the file.
    let unreadable = fleet.dir.path().join("unreadable");
    picket_durable::create_dir(&unreadable, 0o755).unwrap();
    picket_durable::write_atomic(&unreadable.join("test.yml"), b"\xff\xfe", 0o644).unwrap();
    picket_durable::rename(&unreadable, &dir).unwrap();
    hub.put_files().await.unwrap();
    assert!(there().await && hub.rules.refused().contains_key("test.yml"));
    // That the database has other rules says nothing of files.
    hub.db.delete_rule(TenantId::DEFAULT, "nothing").await.unwrap();
    hub.load_rules().await.unwrap();
    assert!(hub.rules.refused().contains_key("test.yml"));
    picket_durable::remove_if_present(&dir.join("test.yml")).unwrap();
    hub.put_files().await.unwrap();
    assert!(!there().await, "the folder is there, and the file is not");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_in_force_before_the_pack_over_every_restart_and_the_pack_is_back_without_it() {
    let fleet = Fleet::start().await;
    let dir = fleet.dir.path().join("rules.d");
    picket_durable::create_dir(&dir, 0o755).unwrap();
    let of_pack = picket_hub_rules::pack()[0].yaml;
    let id = picket_hub_rules::validate(of_pack).ids[0].to_string();
    let own = format!("{of_pack}\n# Looked at here.\n");
    picket_durable::write_atomic(&dir.join("own.yml"), own.as_bytes(), 0o644).unwrap();
    let kept = async |fleet: &Fleet| fleet.running.hub().db.rule(TenantId::DEFAULT, &id).await.unwrap().unwrap();
    look(fleet.running.hub()).await;
    let first = kept(&fleet).await;
    assert_eq!((first.origin, first.version, &first.source), (RuleOrigin::File, 2, &own));
    let fleet = fleet.restart().await.restart().await;
    assert_eq!(kept(&fleet).await, first, "nothing is written where nothing changed");
    picket_durable::remove_if_present(&dir.join("own.yml")).unwrap();
    look(fleet.running.hub()).await;
    let back = kept(&fleet).await;
    assert_eq!((back.origin, back.version, back.source.as_str()), (RuleOrigin::Pack, 3, of_pack));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_id_a_rule_of_the_api_has_is_named_and_in_force_once_that_one_is_gone() {
    let fleet = Fleet::start().await;
    let (hub, dir) = (fleet.running.hub(), fleet.dir.path().join("rules.d"));
    let new = new_rule(RULE, RuleOrigin::Api).unwrap();
    hub.db.put_rule(TenantId::DEFAULT, &new, Some(0), "ada", fleet.now()).await.unwrap();
    picket_durable::create_dir(&dir, 0o755).unwrap();
    let own = format!("{RULE}# The file's.\n");
    picket_durable::write_atomic(&dir.join("test.yml"), own.as_bytes(), 0o644).unwrap();
    picket_durable::write_atomic(&dir.join("twice.yml"), RULE.as_bytes(), 0o644).unwrap();
    look(hub).await;
    let told = hub.rules.refused_files();
    assert!(
        told.len() == 2 && told[0].starts_with("test.yml") && told[0].contains("DELETE /api/v1/rules/"),
        "{told:?}"
    );
    assert!(told[1].contains("test.yml has the id"), "{told:?}");
    let kept = async || hub.db.rule(TenantId::DEFAULT, &new.id).await.unwrap().unwrap();
    assert_eq!(kept().await.origin, RuleOrigin::Api);
    hub.db.delete_rule(TenantId::DEFAULT, &new.id).await.unwrap();
    hub.rule_removed(&new.id).await.unwrap();
    assert_eq!((kept().await.origin, kept().await.source), (RuleOrigin::File, own));
    assert_eq!(hub.rules.refused_files().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_removes_no_rule_that_another_one_has_a_file_of() {
    let fleet = Fleet::start().await;
    let (hub, dir) = (fleet.running.hub(), fleet.dir.path().join("rules.d"));
    let id = "6f1c1f0e-5d0e-4c5e-9c39-0c2f6ab0a001";
    let there = async || hub.db.rule(TenantId::DEFAULT, id).await.unwrap().is_some();
    let other = "rule-files/another-replica";
    let write = async |ids: &[&str]| {
        let value = serde_json::to_vec(ids).unwrap();
        hub.db.put_setting(TenantId::DEFAULT, other, &value, None, fleet.now()).await.unwrap();
    };
    write(&[id]).await;
    picket_durable::create_dir(&dir, 0o755).unwrap();
    picket_durable::write_atomic(&dir.join("test.yml"), RULE.as_bytes(), 0o644).unwrap();
    hub.put_files().await.unwrap();
    assert!(there().await);
    picket_durable::remove_if_present(&dir.join("test.yml")).unwrap();
    hub.put_files().await.unwrap();
    assert!(there().await, "the other one has it still");
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_has_been_gone_for_a_week_takes_its_rules_along_and_one_that_runs_says_so_daily() {
    let fleet = Fleet::start().await;
    let (hub, dir) = (fleet.running.hub(), fleet.dir.path().join("rules.d"));
    picket_durable::create_dir(&dir, 0o755).unwrap();
    picket_durable::write_atomic(&dir.join("one.yml"), ONE.as_bytes(), 0o644).unwrap();
    look(hub).await;
    // Another machine had a rule that is here, too, one of its own, and one in the place of one of the pack.
    let of_pack = picket_hub_rules::pack()[0].yaml;
    let sources = [ONE.to_owned(), RULE.to_owned(), format!("{of_pack}\n# Looked at there.\n")];
    let theirs = sources.map(|source| new_rule(&source, RuleOrigin::File).unwrap());
    for rule in &theirs[1..] {
        hub.db.put_rule(TenantId::DEFAULT, rule, None, "hub", fleet.now()).await.unwrap();
    }
    let other = "rule-files/another-replica";
    let value = serde_json::to_vec(&theirs.each_ref().map(|rule| &rule.id)).unwrap();
    hub.db.put_setting(TenantId::DEFAULT, other, &value, None, fleet.now()).await.unwrap();
    let origins = async || {
        let mut origins = Vec::new();
        for rule in &theirs {
            origins.push(hub.db.rule(TenantId::DEFAULT, &rule.id).await.unwrap().map(|kept| kept.origin));
        }
        origins
    };
    let lists = async || hub.db.settings(TenantId::DEFAULT, "rule-files/").await.unwrap();
    fleet.forward(DAY * 6);
    hub.put_files().await.unwrap();
    assert_eq!(origins().await, [Some(RuleOrigin::File); 3], "it may come back");
    let said = lists().await.into_iter().find(|list| list.key != other).unwrap().updated_at;
    assert!(fleet.now().duration_since(said) < SignedDuration::from_hours(1), "nothing changed here, and it is said");
    fleet.forward(DAY);
    hub.put_files().await.unwrap();
    assert_eq!(origins().await, [Some(RuleOrigin::File), None, Some(RuleOrigin::Pack)]);
    let left = lists().await;
    assert!(left.len() == 1 && left[0].key != other, "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_removes_the_rule_of_a_file_that_no_machine_has_any_more() {
    let fleet = unlimited().await;
    let (hub, ada) = (fleet.running.hub(), person(&fleet, "ada", &[("*", None)]).await);
    let rule = new_rule(RULE, RuleOrigin::File).unwrap();
    hub.db.put_rule(TenantId::DEFAULT, &rule, None, "hub", fleet.now()).await.unwrap();
    let said = async |days: u32| {
        let (key, value) = ("rule-files/another-replica", serde_json::to_vec(&[&rule.id]).unwrap());
        hub.db.put_setting(TenantId::DEFAULT, key, &value, None, fleet.now() - DAY * days).await.unwrap();
    };
    let path = format!("/api/v1/rules/{}", rule.id);
    said(6).await;
    let refused = ada.ask(&fleet, "DELETE", &path, None).await.problem();
    assert!(refused.code == ProblemCode::Conflict && refused.detail.contains("would come back"), "{refused}");
    said(7).await;
    assert_eq!(ada.ask(&fleet, "DELETE", &path, None).await.status, 204);
    assert_eq!(hub.db.rule(TenantId::DEFAULT, &rule.id).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_rules_says_of_each_how_it_is_doing() {
    let fleet = unlimited().await;
    let (hub, ada) = (fleet.running.hub(), person(&fleet, "ada", &[("rules.read", None)]).await);
    // It asks for a rule that is not there.
    let refused = new_rule(THREE, RuleOrigin::Api).unwrap();
    hub.db.put_rule(TenantId::DEFAULT, &refused, None, "ada", fleet.now()).await.unwrap();
    hub.rules_changed().await.unwrap();
    let held = hub.rules.health().into_iter().find(|health| health.state == RuleState::Active).unwrap().rule;
    hub.rules.engine().suspend(held);
    hub.note_suspension(held, &Suspension::Held).await;
    let all: Value = ada.get(&fleet, "/api/v1/rules?limit=1000").await.ok();
    let all = all["items"].as_array().unwrap();
    let of = |id: &str| all.iter().find(|rule| rule["id"] == id).unwrap();
    let refused = of(&refused.id);
    assert!(refused["state"].is_null() && refused["why"].is_string(), "{refused}");
    let held = of(&held.id.to_string());
    assert!(held["state"] == "suspended" && held["why"].as_str().unwrap().contains("held back"), "{held}");
    let count = |state: &str| all.iter().filter(|rule| rule["state"] == state && rule["why"].is_null()).count();
    assert_eq!(count("active") + count("unreached"), all.len() - 2);
    for rule in all {
        let one: Value = ada.get(&fleet, &format!("/api/v1/rules/{}", rule["id"].as_str().unwrap())).await.ok();
        assert_eq!((&one["state"], &one["why"]), (&rule["state"], &rule["why"]));
    }
}

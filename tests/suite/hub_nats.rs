//! An agent whose events go to its hub through NATS, with each of the three away for a while.

use crate::agent::Foreground;
use crate::hub::{Hub, LOGS, every_finding_is_followed_to_its_delivery};
use picket_testkit::{NatsServer, Prefix, wait_until};
use std::fs;

#[test]
fn what_an_agent_sees_reaches_its_hub_through_nats_whoever_of_them_is_away() {
    let mut nats = NatsServer::start();
    let mut hub = Hub::made();
    let file = hub.prefix.path("etc/picket/hub.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let bus = format!("bus: {{nats: [\"{}\"], events: true, accept_unknown_sync: true}}\n", nats.url());
    fs::write(&file, format!("{text}{bus}")).unwrap();
    hub.start();
    let token = hub.prefix.path("token").display().to_string();
    hub.picket(&["hub", "token", "create", "--out", &token]).expect(0);

    let watched = tempfile::tempdir().unwrap();
    let keys_of = |user: &str| watched.path().join(user).join(".ssh/authorized_keys");
    for user in ["ann", "ben", "eva", "tom"] {
        fs::create_dir_all(keys_of(user).parent().unwrap()).unwrap();
    }
    let uplink = format!("uplink: {{via: nats, nats: {{servers: [\"{}\"]}}}}", nats.url());
    let watch = format!("file_monitor: {{paths: [\"{}\"]}}", watched.path().display());
    let machine = Prefix::with_config(&format!("{uplink}\n{watch}\n{LOGS}update:\n  releases: http://127.0.0.1:9\n"));
    machine.run_with(&hub.build.exe, &["enroll", "--token-file", &token, "--name", "web-1"]).expect(0);
    let walked = machine.run_with(&hub.build.exe, &["test-connection"]).expect(0);
    assert!(walked.stderr.contains("nats") || walked.stdout.contains("nats"), "{}{}", walked.stdout, walked.stderr);

    let mut agent = Foreground::start(&hub.build, machine, &[]);
    wait_until("the watcher to see", || {
        agent.prefix.health("/health").is_some_and(|(_, health)| health["checks"]["files"]["status"] == "pass")
    });
    let change = |user: &str| fs::write(keys_of(user), "ssh-ed25519 AAAA").unwrap();
    change("ann");
    findings(&hub, 1);
    nats.kill();
    change("ben");
    nats.start_again();
    findings(&hub, 2);
    hub.stop();
    change("eva");
    hub.start();
    findings(&hub, 3);
    change("tom");
    findings(&hub, 4);
    let told = agent.stopped_log();
    hub.stop();
    assert_eq!(hub.said("a finding"), 4, "each of them, and none twice");
    every_finding_is_followed_to_its_delivery(&hub, &told);
}

fn findings(hub: &Hub, count: usize) {
    wait_until("a finding", || hub.said("a finding") >= count);
}

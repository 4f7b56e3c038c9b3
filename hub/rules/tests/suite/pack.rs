//! Every rule of the starter pack fires on what it is about, and not on its neighbour.

use picket_hub_rules::{EventView, pack, validate};
use serde_json::{Value, json};
use std::collections::BTreeSet;

use crate::support::{engine, event, event_of, file, inbound, titles};

fn pack_engine() -> picket_hub_rules::SigmaEngine {
    engine(&pack().iter().map(|rule| rule.source(1)).collect::<Vec<_>>())
}

fn by(path: &str, exe: &str) -> EventView {
    event(1, 0, "file", json!({"action": "modified", "path": path, "kind": "file", "actor": {"pid": 7, "exe": exe}}))
}

fn with_mode(action: &str, path: &str, mode: u32) -> EventView {
    let meta = json!({"size": 10, "mode": mode, "uid": 0, "gid": 0, "inode": 5, "modified": "2026-11-21T12:00:00Z"});
    event(1, 0, "file", json!({"action": action, "path": path, "kind": "file", "meta": meta}))
}

fn emptied(path: &str, size: u64) -> EventView {
    let meta =
        json!({"size": size, "mode": 0o100_640, "uid": 0, "gid": 0, "inode": 5, "modified": "2026-11-21T12:00:00Z"});
    event(1, 0, "file", json!({"action": "modified", "path": path, "kind": "file", "meta": meta}))
}

fn outbound(exe: &str, to: &str, port: u16) -> EventView {
    event(
        1,
        0,
        "network",
        json!({
            "action": "opened", "direction": "outbound", "protocol": "tcp", "src_ip": "10.0.0.1", "src_port": 40_000,
            "dst_ip": to, "dst_port": port, "actor": {"pid": 7, "exe": exe},
        }),
    )
}

fn of(event_type: &str, details: Value) -> EventView {
    event(1, 0, event_type, details)
}

/// An event of the hub's own.
fn of_hub(event_type: &str) -> EventView {
    let details = json!({"agent_id": uuid::Uuid::from_u128(7)});
    event_of(picket_hub_rules::HUB_AGENT, 1, 0, 0, event_type, details)
}

#[test]
fn what_the_hub_tells_of_an_agent_is_about_that_agent() {
    assert_eq!(of_hub("cloned_identity").entity().value, uuid::Uuid::from_u128(7).to_string());
    let claim = of("cloned_identity", json!({"agent_id": uuid::Uuid::from_u128(7)}));
    assert_ne!(claim.entity().value, uuid::Uuid::from_u128(7).to_string(), "an agent tells of itself alone");
}

/// By title: an event that fires it, and one next to it that must not.
fn cases() -> Vec<(&'static str, EventView, EventView)> {
    let created = |path: &str| file(1, 0, "created", path);
    vec![
        (
            "SSH Keys Of An Account Changed",
            created("/home/ann/.ssh/authorized_keys"),
            created("/home/ann/.ssh/known_hosts"),
        ),
        ("Sudo Rights Changed", created("/etc/sudoers.d/zz"), created("/etc/sudoers.d/README.dpkg-new")),
        ("Accounts Or Passwords Changed", by("/etc/shadow", "/usr/bin/vim"), by("/etc/shadow", "/usr/bin/passwd")),
        ("Scheduled Job Installed", created("/etc/cron.d/x"), created("/etc/cron.d/.placeholder")),
        ("Service Unit Installed", created("/etc/systemd/system/x.service"), created("/etc/systemd/system/notes.txt")),
        ("Library Preloaded Into Every Program", created("/etc/ld.so.preload"), created("/etc/ld.so.cache")),
        ("Script Dropped In A Web Root", created("/var/www/html/x.php"), created("/var/www/html/x.png")),
        (
            "Program Dropped In A Temporary Folder",
            with_mode("created", "/dev/shm/x", 0o100_755),
            with_mode("created", "/tmp/x", 0o100_644),
        ),
        (
            "File In A Temporary Folder Made Executable",
            with_mode("attributes", "/tmp/x", 0o100_711),
            with_mode("attributes", "/tmp/x", 0o100_600),
        ),
        (
            "Program In A Temporary Folder Speaks To The Network",
            outbound("/tmp/.x/miner", "10.0.0.9", 443),
            outbound("/usr/bin/curl", "10.0.0.9", 443),
        ),
        ("SSH Server Reconfigured", created("/etc/ssh/sshd_config.d/50-x.conf"), created("/etc/ssh/ssh_config")),
        (
            "Authentication Modules Changed",
            created("/usr/lib/x86_64-linux-gnu/security/pam_evil.so"),
            created("/usr/lib/x86_64-linux-gnu/libpam.so.0"),
        ),
        (
            "Kernel Module Installed",
            created("/lib/modules/6.1.0/extra/x.ko.zst"),
            created("/lib/modules/6.1.0/modules.dep"),
        ),
        (
            "Set-User-ID Program Appeared",
            with_mode("created", "/usr/local/bin/x", 0o104_755),
            with_mode("created", "/usr/local/bin/x", 0o102_755),
        ),
        (
            "Set-User-ID Bit Set",
            with_mode("attributes", "/home/ann/sh", 0o104_755),
            with_mode("attributes", "/home/ann/sh", 0o100_755),
        ),
        ("Log Deleted", file(1, 0, "deleted", "/var/log/wtmp"), file(1, 0, "deleted", "/var/log/nginx/access.log")),
        ("Log Emptied", emptied("/var/log/auth.log", 0), emptied("/var/log/auth.log", 4096)),
        ("Login Scripts Changed", created("/etc/profile.d/x.sh"), created("/etc/skel/.profile")),
        (
            "Name Resolution Changed",
            by("/etc/hosts", "/usr/bin/vim"),
            by("/etc/resolv.conf", "/usr/sbin/NetworkManager"),
        ),
        (
            "Shell Or Interpreter Connects To A Rare Port",
            outbound("/usr/bin/python3.11", "198.51.100.7", 4444),
            outbound("/usr/bin/python3.11", "198.51.100.7", 443),
        ),
        (
            "Management Port Reached From Outside",
            inbound(1, 0, "198.51.100.7", 6379),
            inbound(1, 0, "192.168.3.4", 6379),
        ),
        (
            "Events Were Lost",
            of("gap", json!({"reason": "kernel_overflow", "source": "files", "detail": "x"})),
            of("gap", json!({"reason": "rate_limit", "source": "files", "detail": "x"})),
        ),
        (
            "Sensor Was Blind",
            of("gap", json!({"reason": "unwatched", "source": "files", "detail": "x"})),
            of("gap", json!({"reason": "shed", "source": "files", "detail": "x"})),
        ),
        (
            "Agent Reconfigured",
            of("config", json!({"sha256": "00", "cause": "signal", "changed": ["files.paths"]})),
            of("config", json!({"sha256": "00", "cause": "start", "changed": []})),
        ),
        ("One Identity Used By Two Machines", of_hub("cloned_identity"), of("cloned_identity", json!({}))),
        ("Suspicious Input To The Hub", of_hub("suspicious_input"), of("suspicious_input", json!({}))),
        ("Passwords Or Tokens Of The Hub Tried", of_hub("authentication_abuse"), of("authentication_abuse", json!({}))),
        ("Detection Rule Suspended", of_hub("rule_suspended"), of("rule_suspended", json!({}))),
        (
            "Metric Crossed Its Critical Threshold",
            of("alert", json!({"action": "raised", "level": "critical", "metric": "disk", "value": 99.0})),
            of("alert", json!({"action": "cleared", "level": "critical", "metric": "disk", "value": 20.0})),
        ),
    ]
}

#[test]
fn every_rule_of_the_pack_is_valid_without_a_warning() {
    for rule in pack() {
        let found = validate(rule.yaml);
        assert!(found.problems.is_empty(), "{}: {:#?}", rule.name, found.problems);
    }
}

#[test]
fn every_rule_of_the_pack_fires_on_what_it_is_about_and_not_on_its_neighbour() {
    for (title, fires, neighbour) in cases() {
        let engine = pack_engine();
        assert!(
            titles(&engine, &fires).contains(&title.to_owned()),
            "{title} did not fire: {:?}",
            titles(&engine, &fires)
        );
        assert!(!titles(&engine, &neighbour).contains(&title.to_owned()), "{title} fired on its neighbour");
    }
}

#[test]
fn every_title_of_the_pack_has_its_sentence() {
    let told: BTreeSet<String> = cases().into_iter().map(|(title, ..)| title.to_owned()).collect();
    let correlated = [
        "Many SSH Connections From One Address",
        "Many Ports Tried By One Address",
        "Access And Rights Changed Within Minutes",
        // They only count.
        "Inbound Connection To SSH",
        "Inbound Connection",
    ];
    for rule in pack() {
        let titles = rule.yaml.lines().filter_map(|line| line.strip_prefix("title: "));
        for title in titles {
            assert!(told.contains(title) || correlated.contains(&title), "no sentence about \"{title}\"");
        }
    }
}

#[test]
fn every_rule_of_the_pack_says_what_may_look_like_it_and_how_bad_it_is() {
    for rule in pack() {
        for needed in ["description:", "falsepositives:", "level:", "tags:", "attack."] {
            assert!(rule.yaml.contains(needed), "{} lacks {needed}", rule.name);
        }
    }
}

#[test]
fn twenty_ssh_connections_of_one_address_within_two_minutes_are_one_match_and_nineteen_are_none() {
    let engine = pack_engine();
    let mut found = Vec::new();
    for n in 0..40 {
        let from = if n % 2 == 0 { "198.51.100.7" } else { "198.51.100.8" };
        found.extend(titles(&engine, &inbound(n, i64::try_from(n).unwrap() / 2, from, 22)));
        if n == 37 {
            assert_eq!(found, Vec::<String>::new(), "nineteen each are none");
        }
    }
    assert_eq!(found, ["Many SSH Connections From One Address"; 2]);
}

#[test]
fn fifteen_ports_tried_by_one_address_within_a_minute_are_one_match() {
    let engine = pack_engine();
    let scan = |ports: u16| (0..ports).map(|n| inbound(u128::from(n), i64::from(n), "10.9.9.9", 1000 + n));
    let found: Vec<String> = scan(15).flat_map(|event| titles(&engine, &event)).collect();
    assert_eq!(found, ["Many Ports Tried By One Address"]);
    let same = pack_engine();
    let found: Vec<String> = (0..60).flat_map(|n| titles(&same, &inbound(n, 1, "10.9.9.9", 1000))).collect();
    assert_eq!(found, Vec::<String>::new(), "one port is no scan");
}

#[test]
fn keys_and_sudo_rights_within_ten_minutes_are_a_foothold_and_apart_they_are_not() {
    let engine = pack_engine();
    assert!(
        !titles(&engine, &file(1, 0, "created", "/root/.ssh/authorized_keys")).iter().any(|t| t.contains("Minutes"))
    );
    let both = titles(&engine, &file(2, 300, "created", "/etc/sudoers.d/x"));
    assert_eq!(both, ["Sudo Rights Changed", "Access And Rights Changed Within Minutes"]);
    let apart = pack_engine();
    titles(&apart, &file(1, 0, "created", "/root/.ssh/authorized_keys"));
    assert_eq!(titles(&apart, &file(2, 700, "created", "/etc/sudoers.d/x")), ["Sudo Rights Changed"]);
}

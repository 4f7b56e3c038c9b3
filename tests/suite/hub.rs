//! The hub as a process, and an agent of its: from the keys to a finding.

use crate::agent::Foreground;
use picket_testkit::{Build, Fault, Prefix, build, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::process::{Child, Command};

/// An agent's log that a program reads and that names each delivery.
pub(crate) const LOGS: &str = "log_format: json\nlog_levels: {outbox: debug}\n";

/// A hub in the foreground.
pub struct Hub {
    pub prefix: Prefix,
    pub build: Build,
    /// Where it listens for agents, and for people.
    pub ports: [u16; 2],
    child: Option<Child>,
}

impl Hub {
    /// Keys, configuration and administrator, and nothing that runs.
    pub fn made() -> Self {
        let (build, prefix) = (build("1.0.0", Fault::None), Prefix::new("http://127.0.0.1:9"));
        fs::write(prefix.path("password"), "correct horse battery\n").unwrap();
        let password = prefix.path("password").display().to_string();
        let init = ["hub", "init", "--name", "127.0.0.1", "--password-file", &password, "--json"];
        let made = prefix.run_with(&build.exe, &init).expect(0).json();
        assert_eq!(made["made"].as_array().unwrap().len(), 5);
        let ports = [free_port(), free_port()];
        let file = prefix.path("etc/picket/hub.yaml");
        let text = fs::read_to_string(&file).unwrap();
        let listen = format!(
            "listen: {{agents: \"127.0.0.1:{}\", api: \"127.0.0.1:{}\"}}\nheartbeat: 1s\nlog_level: debug\nlog_format: json\n",
            ports[0], ports[1]
        );
        fs::write(&file, format!("{text}{listen}")).unwrap();
        Self { prefix, build, ports, child: None }
    }

    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.prefix.path("hub.log")).unwrap();
        let before = self.said("the hub serves");
        let child = Command::new(&self.build.exe)
            .args(["hub", "serve"])
            .env("PICKET_PREFIX", self.prefix.path(""))
            .env("NO_COLOR", "1")
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        wait_until("the hub to serve", || self.said("the hub serves") > before);
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            assert!(child.wait().unwrap().success());
        }
    }

    pub fn picket(&self, arguments: &[&str]) -> picket_testkit::Ran {
        self.prefix.run_with(&self.build.exe, arguments)
    }

    /// How often the log has these words.
    pub(crate) fn said(&self, words: &str) -> usize {
        fs::read_to_string(self.prefix.path("hub.log")).unwrap_or_default().matches(words).count()
    }
}

/// Follows each finding of the hub's log back to the agent's: by the place of its event to the batch that brought it, and by
/// that one's correlation id to the delivery.
pub(crate) fn every_finding_is_followed_to_its_delivery(hub: &Hub, agent: &str) {
    let lines = |text: &str| -> Vec<Value> { text.lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    let (hub, agent) = (lines(&fs::read_to_string(hub.prefix.path("hub.log")).unwrap()), lines(agent));
    let said = |log: &[Value], message: &str| -> Vec<Value> {
        log.iter().filter(|line| line["message"] == message).cloned().collect()
    };
    let (stored, delivered) = (said(&hub, "events are stored"), said(&agent, "events are delivered"));
    for finding in said(&hub, "a finding") {
        let (boot, seq) = finding["correlation_id"].as_str().unwrap().split_once(':').unwrap();
        let seq: u64 = seq.parse().unwrap();
        let brings = |line: &&Value| {
            let told = &line["metadata"];
            let places = told["first_seq"].as_u64().unwrap()..=told["last_seq"].as_u64().unwrap();
            told["boot_id"] == boot && places.contains(&seq)
        };
        let ids = |lines: &[Value]| -> BTreeSet<String> {
            lines.iter().filter(brings).map(|line| line["correlation_id"].as_str().unwrap().to_owned()).collect()
        };
        assert!(!ids(&stored).is_disjoint(&ids(&delivered)), "{finding}\n{stored:?}\n{delivered:?}");
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_machine_enrols_and_what_it_sees_becomes_a_finding_also_when_the_hub_was_away() {
    let mut hub = Hub::made();
    hub.start();
    let token = hub.prefix.path("token").display().to_string();
    hub.picket(&["hub", "token", "create", "--tag", "web", "--out", &token]).expect(0);
    let watched = tempfile::tempdir().unwrap();
    let keys_of = |user: &str| watched.path().join(user).join(".ssh/authorized_keys");
    for user in ["ann", "ben", "eva", "tom"] {
        fs::create_dir_all(keys_of(user).parent().unwrap()).unwrap();
    }
    let paths = format!(
        "file_monitor: {{paths: [\"{}\"]}}\n{LOGS}update:\n  releases: http://127.0.0.1:9\n",
        watched.path().display()
    );
    let machine = Prefix::with_config(&paths);
    let enrolled = machine.run_with(&hub.build.exe, &["enroll", "--token-file", &token, "--name", "web-1"]).expect(0);
    assert!(enrolled.stdout.contains("web-1"), "{}", enrolled.stdout);
    // The token is used up, and its words say what to do.
    let other = Prefix::new("http://127.0.0.1:9");
    let refused = other.run_with(&hub.build.exe, &["enroll", "--token-file", &token]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("token create"), "{}", refused.stderr);

    machine.run_with(&hub.build.exe, &["test-connection"]).expect(0);
    machine.run_with(&hub.build.exe, &["cert", "check"]).expect(0);
    let mut agent = Foreground::start(&hub.build, machine, &[]);
    wait_until("the watcher to see", || {
        agent.prefix.health("/health").is_some_and(|(_, health)| health["checks"]["files"]["status"] == "pass")
    });
    fs::write(keys_of("ann"), "ssh-ed25519 AAAA").unwrap();
    wait_until("a finding", || hub.said("a finding") == 1);

    hub.stop();
    for user in ["ben", "eva", "tom"] {
        fs::write(keys_of(user), "ssh-ed25519 BBBB").unwrap();
    }
    hub.start();
    // Each of them, and none twice.
    wait_until("what was seen meanwhile", || hub.said("a finding") >= 4);
    let told = agent.stopped_log();
    hub.stop();
    assert_eq!(hub.said("a finding"), 4);
    every_finding_is_followed_to_its_delivery(&hub, &told);
    hub.picket(&["hub", "audit-verify"]).expect(0);
}

#[test]
fn a_block_is_lifted_on_the_machine_of_the_hub() {
    let hub = Hub::made();
    assert_eq!(hub.picket(&["hub", "block", "list", "--json"]).expect(0).json(), serde_json::json!([]));
    let db = rusqlite::Connection::open(hub.prefix.path("var/lib/picket-hub/hub.db")).unwrap();
    db.execute("INSERT INTO blocks VALUES (1, 'address', '2001:db8::/64', NULL, 'test', 0, 'hub')", []).unwrap();
    drop(db);
    let listed = hub.picket(&["hub", "block", "list", "--json"]).expect(0).json();
    assert_eq!(listed[0]["value"], "2001:db8::/64");
    for (who, said) in [("2001:db8::7", "lifted"), ("2001:db8::/64", "no block"), ("admin", "no block")] {
        let lifted = hub.picket(&["hub", "block", "lift", who]).expect(0);
        assert!(lifted.stderr.contains(said) || lifted.stdout.contains(said), "{who}: {lifted:?}");
    }
    assert_eq!(hub.picket(&["hub", "block", "list", "--json"]).expect(0).json(), serde_json::json!([]));
    let unknown = hub.picket(&["hub", "block", "lift", "nobody"]).expect(1);
    assert!(unknown.stderr.contains("nobody is called so"), "{}", unknown.stderr);
    // What was done on the machine is written down, too.
    assert_eq!(hub.picket(&["hub", "audit-verify", "--json"]).expect(0).json()["problems"], serde_json::json!([]));
}

#[test]
fn a_hub_without_keys_or_with_a_torn_database_says_what_to_do_and_ends() {
    let empty = Prefix::new("http://127.0.0.1:9");
    let build = build("1.0.0", Fault::None);
    fs::write(empty.path("etc/picket/hub.yaml"), "names: [127.0.0.1]\n").unwrap();
    let refused = empty.run_with(&build.exe, &["hub", "serve"]).expect(9);
    assert!(refused.stderr.contains("picket hub init"), "{}", refused.stderr);
    // Where there is no hub at all, every command says the same.
    for words in [&["hub", "backup", "there"][..], &["hub", "ca", "status"], &["hub", "token", "list"]] {
        let refused = empty.run_with(&build.exe, words).expect(9);
        assert!(refused.stderr.contains("picket hub init"), "{words:?}: {}", refused.stderr);
    }

    let hub = Hub::made();
    let database = hub.prefix.path("var/lib/picket-hub/hub.db");
    let mut bytes = fs::read(&database).unwrap();
    bytes[..4096].fill(0x5a);
    fs::write(&database, bytes).unwrap();
    let torn = hub.picket(&["hub", "serve"]).expect(8);
    assert!(torn.stderr.contains("damaged") || torn.stderr.contains("not a database"), "{}", torn.stderr);
}

#[test]
fn keys_that_are_lost_are_replaced_when_somebody_says_so_and_the_hub_starts_again() {
    let mut hub = Hub::made();
    let keys = hub.prefix.path("var/lib/picket-hub/keys");
    // As it is once a machine is enrolled.
    fs::write(keys.join("machines-enrolled"), "").unwrap();
    for lost in ["command.key", "seal.key"] {
        fs::remove_file(keys.join(lost)).unwrap();
        for words in [&["hub", "serve"][..], &["hub", "init"]] {
            let refused = hub.picket(words).expect(9);
            assert!(refused.stderr.contains("picket hub init --replace-lost-keys"), "{words:?}: {}", refused.stderr);
        }
    }
    let made = hub.picket(&["hub", "init", "--replace-lost-keys", "--json"]).expect(0).json();
    assert_eq!(made["made"], serde_json::json!(["command_key", "seal_key"]));
    hub.start();
    hub.stop();
    // Another key than the one that secrets are sealed with: not one that a hub starts with, nor for ever tries.
    let other = Hub::made();
    fs::copy(other.prefix.path("var/lib/picket-hub/keys/seal.key"), keys.join("seal.key")).unwrap();
    let refused = hub.picket(&["hub", "serve"]).expect(9);
    assert!(refused.stderr.contains("were not sealed with"), "{}", refused.stderr);
}

#[test]
fn every_command_of_the_hub_takes_another_configuration() {
    let hub = Hub::made();
    let other = hub.prefix.path("other.yaml").display().to_string();
    let database = hub.prefix.path("other.db");
    fs::write(&other, format!("names: [127.0.0.1]\ndatabase: \"sqlite:{}\"\n", database.display())).unwrap();
    let users = |more: &[&str]| {
        let words = [&["hub", "user", "list", "--json"], more].concat();
        hub.picket(&words).expect(0).json().as_array().unwrap().len()
    };
    assert_eq!((users(&[]), users(&["--config", &other])), (1, 0));
    let refused = hub.picket(&["hub", "token", "list", "--set", "heartbeat=never"]).expect(78);
    assert!(refused.stderr.contains("heartbeat") && refused.stderr.contains("picket doctor"), "{}", refused.stderr);
}

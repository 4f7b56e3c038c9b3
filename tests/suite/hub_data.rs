//! The hub's data as a whole, and its root: backups, restores, the way to PostgreSQL, another root in the place of one.

use crate::agent::Foreground;
use crate::hub::Hub;
use picket_testkit::postgres::Postgres;
use picket_testkit::{Prefix, wait_until};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

/// A machine that is enrolled, watches a folder, and its agent.
fn machine(hub: &Hub, name: &str) -> (tempfile::TempDir, Foreground) {
    let watched = tempfile::tempdir().unwrap();
    let token = hub.prefix.path(&format!("token-{name}")).display().to_string();
    hub.picket(&["hub", "token", "create", "--out", &token]).expect(0);
    let config = format!(
        "file_monitor: {{paths: [\"{}\"]}}\nupdate:\n  releases: http://127.0.0.1:9\n",
        watched.path().display()
    );
    let prefix = Prefix::with_config(&config);
    prefix.run_with(&hub.build.exe, &["enroll", "--token-file", &token, "--name", name]).expect(0);
    let agent = Foreground::start(&hub.build, prefix, &[]);
    wait_until("the watcher to see", || {
        agent.prefix.health("/health").is_some_and(|(_, health)| health["checks"]["files"]["status"] == "pass")
    });
    (watched, agent)
}

/// How many events of files with such a name the hub's file has.
fn stored(hub: &Hub, name: &str) -> i64 {
    let file = hub.prefix.path("var/lib/picket-hub/hub.db");
    let database = rusqlite::Connection::open(file).unwrap();
    let sql = "SELECT count(*) FROM events WHERE data LIKE '%' || ?1 || '%'";
    database.query_row(sql, [name], |row| row.get(0)).unwrap()
}

fn database_in_config(hub: &Hub, address: &str) {
    let secret = hub.prefix.path("database-address");
    fs::write(&secret, format!("{address}\n")).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let file = hub.prefix.path("etc/picket/hub.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}database_file: {}\n", secret.display())).unwrap();
}

#[test]
fn a_backup_of_a_hub_that_runs_is_put_back_and_its_agents_go_on() {
    let mut hub = Hub::made();
    hub.start();
    let (watched, mut agent) = machine(&hub, "web-1");
    fs::write(watched.path().join("before-backup"), "x").unwrap();
    wait_until("the event to be stored", || stored(&hub, "before-backup") > 0);

    let file = hub.prefix.path("hub.backup");
    let path = file.display().to_string();
    let made = hub.picket(&["hub", "backup", &path, "--json"]).expect(0).json();
    assert_eq!(made["keys_included"], Value::Bool(false));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = hub.picket(&["hub", "backup", &path]);
    assert_ne!(again.code, 0, "an existing file is not written over");

    // The agent renews after the backup: its new certificate must be known afterwards, too.
    agent.prefix.run_with(&hub.build.exe, &["cert", "renew", "--force"]).expect(0);
    fs::write(watched.path().join("after-backup"), "x").unwrap();
    wait_until("the event to be stored", || stored(&hub, "after-backup") > 0);
    let busy = hub.picket(&["hub", "restore", &path, "--replace"]).expect(5);
    assert!(busy.stderr.contains("a hub runs on it"), "{}", busy.stderr);
    hub.stop();
    let kept = hub.picket(&["hub", "restore", &path]);
    assert!(kept.code != 0 && kept.stderr.contains("--replace"), "{}", kept.stderr);

    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let torn = hub.prefix.path("torn.backup").display().to_string();
    fs::write(&torn, bytes).unwrap();
    hub.picket(&["hub", "restore", &torn, "--replace"]).expect(8);
    let stranger = Hub::made();
    let refused = stranger.picket(&["hub", "restore", &path, "--replace"]).expect(30);
    assert!(refused.stderr.contains("--other-keys"), "{}", refused.stderr);

    let restored = hub.picket(&["hub", "restore", &path, "--replace", "--json"]).expect(0).json();
    assert!(restored["kept"].as_str().unwrap().contains("hub.db.replaced-"));
    assert!(stored(&hub, "before-backup") > 0 && stored(&hub, "after-backup") == 0);
    hub.picket(&["hub", "audit-verify"]).expect(0);
    hub.start();
    agent.prefix.run_with(&hub.build.exe, &["test-connection"]).expect(0);
    fs::write(watched.path().join("after-restore"), "x").unwrap();
    wait_until("the event to be stored", || stored(&hub, "after-restore") > 0);
    agent.stop();
    hub.stop();
}

#[test]
fn a_hub_moves_to_postgres_while_its_agents_send_and_none_of_it_is_lost_or_doubled() {
    let server = Postgres::start_new(false);
    server.create_database("hub");
    let mut hub = Hub::made();
    hub.start();
    let (watched, mut agent) = machine(&hub, "web-1");
    for n in 0..20 {
        fs::write(watched.path().join(format!("early-{n}")), "x").unwrap();
    }
    wait_until("the first events", || stored(&hub, "early-19") > 0);
    let address = hub.prefix.path("address");
    fs::write(&address, server.url("hub")).unwrap();
    let address = address.display().to_string();
    let moved = hub.picket(&["hub", "migrate", "--to-file", &address, "--json"]).expect(0);
    assert!(moved.stderr.contains("the old database is closed"), "{}", moved.stderr);
    // The old hub still runs, and takes nothing.
    for n in 0..20 {
        fs::write(watched.path().join(format!("late-{n}")), "x").unwrap();
    }
    let refused = hub.picket(&["hub", "token", "list"]).expect(78);
    assert!(refused.stderr.contains("moved to postgres://"), "{}", refused.stderr);
    hub.stop();
    let refused = hub.picket(&["hub", "serve"]).expect(78);
    assert!(refused.stderr.contains("hub.yaml"), "{}", refused.stderr);
    database_in_config(&hub, &server.url("hub"));
    hub.start();
    let count = |name: &str| {
        let sql = format!("SELECT count(DISTINCT data->>'path') FROM events WHERE data::text LIKE '%/{name}-%'");
        server.sql("hub", &sql).parse::<u64>().unwrap()
    };
    wait_until("what was seen meanwhile", || count("late") == 20);
    assert_eq!(count("early"), 20);
    let doubled = "SELECT count(*) - count(DISTINCT (agent_id, boot_id, seq)) FROM events";
    assert_eq!(server.sql("hub", doubled), "0");
    let books = "SELECT sum(records) - (SELECT count(*) FROM events) FROM streams";
    assert_eq!(server.sql("hub", books), "0");
    hub.picket(&["hub", "audit-verify"]).expect(0);
    agent.stop();
    hub.stop();
}

#[test]
fn another_root_takes_the_place_of_the_first_and_no_agent_is_left_behind() {
    let mut hub = Hub::made();
    hub.start();
    let (_watched, mut agent) = machine(&hub, "web-1");
    let status = |hub: &Hub| hub.picket(&["hub", "ca", "status", "--json"]).expect(0).json();
    assert_eq!(status(&hub)["rolling"], Value::Bool(false));
    let rolled = hub.picket(&["hub", "ca", "roll", "--json"]).expect(0).json();
    assert_eq!(rolled["was_begun"], Value::Bool(false));
    let waiting = status(&hub);
    assert_eq!((&waiting["waiting"], waiting["pins"].as_array().unwrap().len()), (&Value::from(1), 2));
    assert_eq!(waiting["agents"][0]["name"], "web-1");
    let refused = hub.picket(&["hub", "ca", "finish"]).expect(21);
    assert!(refused.stderr.contains("1 agents know only the old root"), "{}", refused.stderr);

    // A start takes it up at once; the agent is asked to renew when it is there.
    hub.stop();
    hub.start();
    wait_until("the agent to know the new root", || status(&hub)["waiting"] == 0);
    agent.prefix.run_with(&hub.build.exe, &["test-connection"]).expect(0);
    // Somebody new comes in while both are in force.
    let (_other, mut newcomer) = machine(&hub, "web-2");
    assert_eq!(status(&hub)["waiting"], 0);
    hub.picket(&["hub", "ca", "finish"]).expect(0);
    hub.stop();
    hub.start();
    for agent in [&mut agent, &mut newcomer] {
        agent.prefix.run_with(&hub.build.exe, &["test-connection"]).expect(0);
        agent.prefix.run_with(&hub.build.exe, &["cert", "renew", "--force"]).expect(0);
        agent.stop();
    }
    hub.picket(&["hub", "audit-verify"]).expect(0);
    hub.stop();
}

#[test]
fn an_agent_that_was_away_during_all_of_it_is_told_so_keeps_what_it_has_and_enrols_again() {
    let mut hub = Hub::made();
    hub.start();
    let (_watched, mut agent) = machine(&hub, "web-1");
    agent.stop();
    hub.stop();
    hub.picket(&["hub", "ca", "roll"]).expect(0);
    hub.picket(&["hub", "ca", "finish", "--force"]).expect(0);
    hub.start();
    let refused = agent.prefix.run_with(&hub.build.exe, &["test-connection"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stdout.contains("enrol again with a new token"), "{}", refused.stdout);
    agent.prefix.run_with(&hub.build.exe, &["cert", "check"]).expect(0);
    let token = hub.prefix.path("token").display().to_string();
    hub.picket(&["hub", "token", "create", "--out", &token]).expect(0);
    agent.prefix.run_with(&hub.build.exe, &["enroll", "--token-file", &token, "--force"]).expect(0);
    agent.prefix.run_with(&hub.build.exe, &["test-connection"]).expect(0);
    hub.stop();
}

#[test]
fn the_backup_of_another_hub_is_taken_over_by_who_says_that_it_is_meant() {
    let first = Hub::made();
    first.picket(&["hub", "user", "add", "bob", "--grant", "agents.read"]).expect(0);
    let path = first.prefix.path("hub.backup").display().to_string();
    first.picket(&["hub", "backup", &path]).expect(0);
    let mut other = Hub::made();
    let restored = other.picket(&["hub", "restore", &path, "--replace", "--other-keys"]).expect(0);
    assert!(restored.stdout.contains("hub.db.replaced-"), "{}", restored.stdout);
    let people = other.picket(&["hub", "user", "list", "--json"]).expect(0).json();
    assert!(people.as_array().unwrap().iter().any(|user| user["name"] == "bob"), "{people}");
    let file = other.prefix.path("var/lib/picket-hub/hub.db");
    let database = rusqlite::Connection::open(file).unwrap();
    let entries = "SELECT count(*) FROM audit WHERE action = 'hub.restore'";
    assert_eq!(database.query_row(entries, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    drop(database);
    other.start();
    other.stop();
}

#[test]
fn what_was_taken_back_stays_so_although_the_database_is_gone_and_the_backup_is_older() {
    let hub = Hub::made();
    hub.picket(&["hub", "user", "add", "bob", "--grant", "agents.read", "--grant", "events.read"]).expect(0);
    let path = hub.prefix.path("hub.backup").display().to_string();
    hub.picket(&["hub", "backup", &path]).expect(0);
    hub.picket(&["hub", "user", "revoke", "bob", "agents.read"]).expect(0);
    for file in ["hub.db", "hub.db-wal", "hub.db-shm"] {
        let _ = fs::remove_file(hub.prefix.path("var/lib/picket-hub").join(file));
    }
    let restored = hub.picket(&["hub", "restore", &path, "--json"]).expect(0).json();
    assert_eq!(restored["kept"], Value::Null);
    let people = hub.picket(&["hub", "user", "list", "--json"]).expect(0).json();
    let bob = people.as_array().unwrap().iter().find(|user| user["name"] == "bob").unwrap();
    assert_eq!(bob["permissions"], serde_json::json!(["events.read"]));
    hub.picket(&["hub", "audit-verify"]).expect(0);
}

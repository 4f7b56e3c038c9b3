//! What is kept, through the binary: look, export, clean, verify, save, restore.

use crate::agent::Foreground;
use picket_seal::Keyring;
use picket_store::{Store, StoreOptions, Table};
use picket_testkit::{Build, Prefix, Ran, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::{BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PLANTED: &str = "planted-plaintext";

pub(crate) fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_picket"))
}

fn prefix() -> Prefix {
    let prefix = Prefix::new("http://127.0.0.1:9");
    fs::create_dir_all(prefix.path("var/lib/picket")).unwrap();
    prefix
}

pub(crate) fn picket(prefix: &Prefix, arguments: &[&str]) -> Ran {
    prefix.run_with(exe(), arguments)
}

fn agent(prefix: Prefix) -> Foreground {
    let target = "x86_64-unknown-linux-gnu".parse().unwrap();
    let build = Build { version: String::new(), exe: exe().to_owned(), archive: PathBuf::new(), target };
    Foreground::start(&build, prefix, &["--set", "collection_interval=1s"])
}

pub(crate) fn store_dir(prefix: &Prefix) -> PathBuf {
    prefix.path("var/lib/picket/store")
}

fn database(prefix: &Prefix) -> PathBuf {
    store_dir(prefix).join("picket.db")
}

pub(crate) fn key_file(prefix: &Prefix) -> PathBuf {
    prefix.path("var/lib/picket/store.key")
}

/// The store of a prefix, as an agent opens it.
fn open(prefix: &Prefix) -> Store {
    let keyring = picket_store::keyring(&key_file(prefix), &store_dir(prefix)).unwrap();
    Store::open(StoreOptions::new(store_dir(prefix), keyring)).unwrap()
}

fn payload(i: i64) -> Vec<u8> {
    format!(r#"{{"number":{i},"text":"{}"}}"#, PLANTED.repeat(REPEATED)).into_bytes()
}

/// How often the planted text is in a payload: rows of somewhat more than this times 17 bytes.
const REPEATED: usize = 40;

/// Puts `count` rows, a second apart and the last of just now, into a table.
fn fill(store: &Store, table: Table, count: i64) {
    let now = jiff::Timestamp::now().as_millisecond();
    for chunk in (0..count).collect::<Vec<_>>().chunks(256) {
        let at = |i: i64| jiff::Timestamp::from_millisecond(now - (count - i) * 1000).unwrap();
        store.append_all(chunk.iter().map(|i| (table, at(*i), payload(*i)))).unwrap().wait().unwrap();
    }
}

/// A prefix whose store has `count` events and no agent.
pub(crate) fn filled(count: i64) -> Prefix {
    let prefix = prefix();
    let store = open(&prefix);
    fill(&store, Table::Events, count);
    store.close().unwrap();
    prefix
}

fn stats(prefix: &Prefix) -> Value {
    picket(prefix, &["data", "stats", "--json"]).expect(0).json()
}

fn rows(stats: &Value, table: Table) -> u64 {
    let tables = stats["tables"].as_array().unwrap();
    tables.iter().find(|entry| entry["table"] == table.as_str()).unwrap()["rows"].as_u64().unwrap()
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Flips one bit in the payload of the first row of the last page of rows.
fn flip_a_bit(database: &Path) {
    let mut bytes = fs::read(database).unwrap();
    let page = bytes.chunks(4096).rposition(|page| page[0] == 0x0d && page[4] > 3).unwrap();
    // The first cell ends with the page; its last 32 bytes are the checksum, before it is the sealed payload.
    bytes[(page + 1) * 4096 - 100] ^= 0x10;
    fs::write(database, bytes).unwrap();
}

#[test]
fn what_the_agent_keeps_can_be_looked_at_and_taken_out_while_it_runs() {
    let mut agent = agent(prefix());
    wait_until("some samples of every group", || {
        let ran = picket(&agent.prefix, &["data", "stats", "--json"]);
        ran.code == 0 && rows(&ran.json(), Table::Metrics) > 20 && rows(&ran.json(), Table::Events) > 0
    });
    let prefix = &agent.prefix;
    let told = stats(prefix);
    assert_eq!((&told["in_use"], &told["key"], &told["schema"]), (&true.into(), &1.into(), &1.into()));
    assert_eq!(told["retention_seconds"]["metrics"], 30 * 86_400);
    assert_eq!(told["retention_seconds"]["config_backups"], Value::Null);
    let metrics = &told["tables"][0];
    assert!(
        metrics["payload_bytes"].as_u64().unwrap() > 1000 && metrics["bytes"].as_u64().unwrap() > 4096,
        "{metrics}"
    );
    assert!(metrics["oldest"].as_str().unwrap() < metrics["newest"].as_str().unwrap());
    let shown = picket(prefix, &["data", "stats"]).expect(0).stdout;
    assert!(shown.contains("an agent writes to it") && shown.contains("config_backups"), "{shown}");

    let csv = prefix.path("metrics.csv");
    picket(prefix, &["data", "export-metrics", "--output", &text(&csv)]).expect(0);
    assert_eq!(csv.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let lines = fs::read_to_string(&csv).unwrap();
    assert!(lines.starts_with("id,at,metric,value,unit,kind,object\n"), "{lines}");
    assert!(lines.lines().all(|line| line.split(',').count() == 7), "{lines}");
    for name in [",cpu_usage,", ",memory_used,", ",disk_usage,", ",load1,", ",percent,mount,/"] {
        assert!(lines.contains(name), "{name} is missing in\n{lines}");
    }
    let again = picket(prefix, &["data", "export-metrics", "--output", &text(&csv)]).expect(1);
    assert!(
        again.stderr.contains("exists; nothing was written") && again.stderr.contains("--force"),
        "{}",
        again.stderr
    );
    assert_eq!(fs::read_to_string(&csv).unwrap(), lines);
    let json = prefix.path("out.json");
    let forced = ["data", "export-json", "--output", &text(&csv), "--format", "ndjson", "--force", "--json"];
    let report = picket(prefix, &forced).expect(0).json();
    let ndjson = fs::read_to_string(&csv).unwrap();
    assert_eq!(report["rows"].as_u64().unwrap(), ndjson.lines().count() as u64);
    assert!(ndjson.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["table"].is_string()));
    picket(prefix, &["data", "export-logs", "--output", &text(&json)]).expect(0);
    let logs: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert!(logs["events"].as_array().is_some_and(|events| !events.is_empty()) && logs["logs"].is_array(), "{logs}");
    let all = picket(prefix, &["data", "export-json", "--since", "1h"]).expect(0).json();
    assert_eq!(all.as_object().unwrap().len(), Table::ALL.len());
    let none = picket(prefix, &["data", "export-json", "--until", "2020-01-01T00:00:00Z"]).expect(0).json();
    assert!(none.as_object().unwrap().values().all(|rows| rows == &serde_json::json!([])), "{none}");

    picket(prefix, &["data", "verify"]).expect(0);
    let backup = prefix.path("all.enc");
    picket(prefix, &["data", "backup", "--output", &text(&backup)]).expect(0);
    for command in [&["data", "recover"][..], &["data", "restore", "--yes", &text(&backup)]] {
        let refused = picket(prefix, command).expect(5);
        assert!(refused.stderr.contains("picket service stop"), "{}", refused.stderr);
    }
    let queue = picket(prefix, &["cache", "status", "--json"]).expect(0).json();
    assert_eq!((&queue["live"], &queue["queue"]["ledger_holds"]), (&true.into(), &true.into()));
    assert_eq!(queue["delivery"]["breaker"], "closed");
    picket(prefix, &["cache", "clean", "--yes"]).expect(0);

    let rekeyed = picket(prefix, &["data", "rekey", "--json"]).expect(0).json();
    assert_eq!((&rekeyed["key"], &rekeyed["retired"]), (&2.into(), &serde_json::json!([1])), "{rekeyed}");
    let before = rows(&stats(prefix), Table::Metrics);
    wait_until("samples under the new key", || rows(&stats(prefix), Table::Metrics) > before + 3);
    agent.stop();
    let prefix = &agent.prefix;
    picket(prefix, &["data", "verify"]).expect(0);
    let queue = picket(prefix, &["cache", "status", "--json"]).expect(0).json();
    assert_eq!((&queue["live"], &queue["queue"]["ledger_holds"]), (&false.into(), &true.into()));
}

#[test]
fn nothing_that_is_kept_or_backed_up_can_be_read_without_the_key() {
    let prefix = prefix();
    let store = open(&prefix);
    fill(&store, Table::Alerts, 50);
    let backup = prefix.path("b.enc");
    picket(&prefix, &["data", "backup", "--output", &text(&backup)]).expect(0);
    let kept = fs::read_dir(store_dir(&prefix)).unwrap().flatten().map(|entry| entry.path());
    let files: Vec<PathBuf> = kept.chain([backup]).collect();
    assert!(files.iter().any(|file| file.ends_with("picket.db-wal")), "{files:?}");
    for file in files {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(PLANTED.len()).any(|window| window == PLANTED.as_bytes()), "{}", file.display());
    }
    let logs = picket(&prefix, &["data", "export-logs", "--table", "alerts", "--format", "csv"]).expect(0).stdout;
    assert!(logs.starts_with("id,at,number,text\n") && logs.contains(PLANTED), "{logs}");
    store.close().unwrap();
}

#[test]
fn one_flipped_bit_is_found_by_row_and_all_other_rows_are_saved() {
    let prefix = filled(300);
    flip_a_bit(&database(&prefix));
    let found = picket(&prefix, &["data", "verify", "--json"]).expect(8).json();
    let findings = found["findings"].as_array().unwrap();
    assert_eq!((findings.len(), &findings[0]["kind"], &found["whole"]), (1, &"row".into(), &false.into()), "{found}");
    assert_eq!(findings[0]["table"], "events");
    let id = findings[0]["id"].as_i64().unwrap();
    let told = picket(&prefix, &["data", "verify"]).expect(8);
    assert!(told.stdout.contains(&format!("row {id} of events is damaged")), "{}", told.stdout);
    assert!(told.stderr.contains("picket data recover"), "{}", told.stderr);
    let without = picket(&prefix, &["data", "verify", "--without-key", "--json"]).expect(8).json();
    assert_eq!((&without["findings"], &without["opened"]), (&found["findings"], &false.into()));

    let exported = prefix.path("rest.ndjson");
    let ran = picket(&prefix, &["data", "export-logs", "--output", &text(&exported)]).expect(8);
    assert!(ran.stderr.contains("1 rows are damaged"), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(&exported).unwrap().lines().count(), 299);

    let damaged = fs::read(database(&prefix)).unwrap();
    // Something is lost, so it is no success.
    let report = picket(&prefix, &["data", "recover", "--json"]).expect(8).json();
    assert_eq!((&report["rows"], &report["missing_rows"]), (&299.into(), &1.into()), "{report}");
    assert_eq!((&report["lost_rows"], &report["complete"]), (&1.into(), &false.into()), "{report}");
    assert_eq!(report["missing"][0], serde_json::json!({ "table": "events", "first": id, "last": id, "known": true }));
    let kept = Path::new(report["kept"][0].as_str().unwrap());
    assert_eq!(fs::read(kept).unwrap(), damaged, "the damaged file is kept as it was");
    picket(&prefix, &["data", "verify"]).expect(0);
    assert_eq!(rows(&stats(&prefix), Table::Events), 299);
    let again = picket(&prefix, &["data", "recover", "--json"]).expect(0).json();
    assert_eq!((&again["rows"], &again["complete"]), (&299.into(), &true.into()), "{again}");
}

#[test]
fn without_the_right_key_each_command_says_so_and_changes_nothing() {
    let prefix = filled(20);
    let other = filled(1);
    let before = (fs::read(database(&prefix)).unwrap(), fs::read(key_file(&prefix)).unwrap());
    let backup = prefix.path("b.enc");
    picket(&prefix, &["data", "backup", "--output", &text(&backup)]).expect(0);
    let commands: [&[&str]; 8] = [
        &["data", "stats"],
        &["data", "export-json"],
        &["data", "verify"],
        &["data", "recover"],
        &["data", "rekey"],
        &["data", "cleanup", "--days", "0"],
        &["data", "restore", "--yes", &text(&backup)],
        &["data", "backup", "--output", &text(&prefix.path("new.enc"))],
    ];
    let mut wrong = String::from_utf8(before.1.clone()).unwrap();
    let start = wrong.find("\"key\": \"").unwrap() + 8;
    let flipped = if &wrong[start..=start] == "A" { "B" } else { "A" };
    wrong.replace_range(start..=start, flipped);
    let cases: [(&str, Option<Vec<u8>>); 3] = [
        ("the key file", None),
        ("device", Some(fs::read(key_file(&other)).unwrap())),
        ("key", Some(wrong.into_bytes())),
    ];
    for (words, key) in cases {
        match &key {
            None => fs::remove_file(key_file(&prefix)).unwrap(),
            Some(bytes) => fs::write(key_file(&prefix), bytes).unwrap(),
        }
        fs::set_permissions(key_file(&prefix), fs::Permissions::from_mode(0o600)).unwrap_or_default();
        for command in commands {
            let ran = picket(&prefix, command);
            // A sealed file that does not open under a key of the right name may as well be damaged.
            let restore_with_a_wrong_key = words == "key" && command[1] == "restore";
            assert_eq!(ran.code, if restore_with_a_wrong_key { 8 } else { 9 }, "{words} {command:?}: {}", ran.stderr);
            // Salvage does not believe what the file says of its device, and tries the rows.
            let words = if command[1] == "recover" { "key file" } else { words };
            assert!(ran.stderr.contains(words) || restore_with_a_wrong_key, "{command:?}: {}", ran.stderr);
        }
        picket(&prefix, &["data", "verify", "--without-key"]).expect(0);
        assert_eq!(fs::read(key_file(&prefix)).ok(), key, "no key file is made or changed");
        assert_eq!(fs::read(database(&prefix)).unwrap(), before.0, "{words}");
        assert!(!prefix.path("new.enc").exists() && !prefix.path(".new.enc.picket-new").exists());
    }
    fs::write(key_file(&prefix), before.1).unwrap();
    picket(&prefix, &["data", "verify"]).expect(0);
}

#[test]
fn where_there_is_no_store_it_is_told_and_none_is_made() {
    let prefix = prefix();
    let before = prefix.listing();
    for command in ["stats", "export-metrics", "export-logs", "export-json", "verify", "recover", "rekey", "cleanup"] {
        let ran = picket(&prefix, &["data", command]).expect(1);
        assert!(ran.stderr.contains("there is no store at"), "{command}: {}", ran.stderr);
    }
    for command in [&["cache", "status"][..], &["cache", "clean", "--yes"]] {
        let ran = picket(&prefix, command).expect(0);
        assert!(ran.stderr.contains("there is no queue yet"), "{}", ran.stderr);
    }
    assert_eq!(prefix.listing(), before);
}

#[test]
fn a_backup_is_restored_whole_or_not_at_all() {
    let prefix = filled(300);
    let backup = prefix.path("b.enc");
    let report = picket(&prefix, &["data", "backup", "--output", &text(&backup), "--json"]).expect(0).json();
    assert_eq!(report["rows"], 300);
    assert_eq!(report["bytes"], backup.metadata().unwrap().len());
    let store = open(&prefix);
    fill(&store, Table::Events, 7);
    store.close().unwrap();
    let bytes = fs::read(&backup).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    let cases = [
        ("cut short", bytes[..bytes.len() - 1].to_vec()),
        ("cut at a chunk", bytes[..52 + 65_552].to_vec()),
        ("flipped", flipped),
        ("added to", [&bytes[..], b"x"].concat()),
        ("no backup", b"hello".to_vec()),
    ];
    let bad = prefix.path("bad.enc");
    for (what, bytes) in cases {
        fs::write(&bad, bytes).unwrap();
        let ran = picket(&prefix, &["data", "restore", "--yes", &text(&bad)]).expect(8);
        assert!(ran.stderr.contains("bad.enc"), "{what}: {}", ran.stderr);
        assert_eq!(rows(&stats(&prefix), Table::Events), 307, "{what}");
        assert!(!store_dir(&prefix).join("picket.db.unproven").exists(), "{what}");
    }
    let asked = picket(&prefix, &["data", "restore", &text(&backup)]).expect(2);
    assert!(asked.stderr.contains("--yes"), "{}", asked.stderr);
    assert_eq!(rows(&stats(&prefix), Table::Events), 307);
    let report = picket(&prefix, &["data", "restore", "--yes", &text(&backup), "--json"]).expect(0).json();
    assert_eq!((&report["rows"], &report["resealed"]), (&300.into(), &false.into()));
    assert!(report["kept"][0].as_str().unwrap().ends_with("picket.db.before-restore"), "{report}");
    assert_eq!(rows(&stats(&prefix), Table::Events), 300);
    picket(&prefix, &["data", "verify"]).expect(0);
}

#[test]
fn another_devices_backup_needs_its_key_file_and_is_sealed_anew() {
    let (theirs, ours) = (filled(40), filled(3));
    let backup = theirs.path("b.enc");
    picket(&theirs, &["data", "backup", "--output", &text(&backup)]).expect(0);
    let refused = picket(&ours, &["data", "restore", "--yes", &text(&backup)]).expect(9);
    assert!(refused.stderr.contains("another device") && refused.stderr.contains("--key FILE"), "{}", refused.stderr);
    assert_eq!(rows(&stats(&ours), Table::Events), 3);
    let key = text(&key_file(&theirs));
    let report = picket(&ours, &["data", "restore", "--yes", &text(&backup), "--key", &key, "--json"]).expect(0).json();
    assert_eq!((&report["rows"], &report["resealed"]), (&40.into(), &true.into()));
    picket(&ours, &["data", "verify"]).expect(0);
    // One of our own from before the keys were changed.
    let (old, old_key) = (ours.path("old.enc"), ours.path("old.key"));
    picket(&ours, &["data", "backup", "--output", &text(&old)]).expect(0);
    fs::copy(key_file(&ours), &old_key).unwrap();
    picket(&ours, &["data", "rekey"]).expect(0);
    let refused = picket(&ours, &["data", "restore", "--yes", &text(&old)]).expect(9);
    assert!(refused.stderr.contains("sealed under key 1"), "{}", refused.stderr);
    picket(&ours, &["data", "restore", "--yes", &text(&old), "--key", &text(&old_key)]).expect(0);
    assert_eq!((rows(&stats(&ours), Table::Events), &stats(&ours)["key"]), (40, &2.into()));
    // A machine that has nothing yet.
    let fresh = prefix();
    picket(&fresh, &["data", "restore", "--yes", &text(&backup)]).expect(9);
    picket(&fresh, &["data", "restore", "--yes", &text(&backup), "--key", &key]).expect(0);
    assert_eq!(rows(&stats(&fresh), Table::Events), 40);
}

#[test]
fn an_export_of_many_rows_takes_no_more_memory_than_one_of_few_and_a_reader_may_leave() {
    let prefix = filled(MANY);
    for arguments in [&["data", "export-json"][..], &["data", "export-logs", "--table", "events", "--format", "csv"]] {
        let mut child = Command::new(exe())
            .args(arguments)
            .env("PICKET_PREFIX", prefix.path(""))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Nine tenths are read; with the rest before it the command is at work still, and waits for us.
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let most = MANY.unsigned_abs() * (REPEATED * PLANTED.len()) as u64 / 10 * 9;
        let read = std::io::copy(&mut Read::by_ref(&mut out).take(most), &mut std::io::sink());
        assert_eq!(read.unwrap(), most, "{arguments:?}");
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak < 32 << 10, "{arguments:?} took {peak} KiB");
        drop(out);
        let ended: Ran = child.wait_with_output().unwrap().into();
        assert!(ended.code == 0 && ended.stderr.is_empty(), "{arguments:?}: {} {}", ended.code, ended.stderr);
    }
}

/// So many rows that what is exported is larger than the memory that is allowed: 35 MB.
const MANY: i64 = 50_000;

#[test]
fn an_export_replaces_only_files_and_only_when_told_to() {
    let prefix = filled(3);
    let out = prefix.path("out");
    fs::create_dir(&out).unwrap();
    let (file, link, folder) = (out.join("a.json"), out.join("b.json"), out.join("c.json"));
    fs::write(&file, "mine").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    fs::create_dir(&folder).unwrap();
    for (path, force, code) in [(&file, false, 1), (&link, true, 2), (&folder, true, 2)] {
        let mut arguments = vec!["data", "export-json", "--output", path.to_str().unwrap()];
        arguments.extend(force.then_some("--force"));
        picket(&prefix, &arguments).expect(code);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    picket(&prefix, &["data", "export-json", "--output", "/dev/null", "--force"]).expect(2);
    picket(&prefix, &["data", "export-json", "--format", "csv"]).expect(2);
    picket(&prefix, &["data", "export-json", "--since", "yesterday"]).expect(2);
    picket(&prefix, &["data", "export-json", "--output", &text(&out.join("none/a.json"))]).expect(1);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 3, "nothing half-written is left");
}

#[test]
fn a_clean_up_removes_what_is_old_and_spares_what_is_kept_for_ever_unless_it_is_named() {
    let prefix = prefix();
    let store = open(&prefix);
    let day = 86_400_000;
    let now = jiff::Timestamp::now().as_millisecond();
    for table in [Table::Events, Table::Alerts, Table::ConfigBackups] {
        for age in [1, 10, 20] {
            let at = jiff::Timestamp::from_millisecond(now - age * day).unwrap();
            store.append(table, at, payload(age)).unwrap().wait().unwrap();
        }
    }
    let dry = picket(&prefix, &["data", "cleanup", "--days", "15", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(dry["removed"], serde_json::json!({ "events": 1, "alerts": 1 }));
    assert_eq!(rows(&stats(&prefix), Table::Events), 3);
    // Beside the one who writes.
    let done = picket(&prefix, &["data", "cleanup", "--days", "15"]).expect(0);
    assert_eq!(done.stdout, "removed 1 rows of events\nremoved 1 rows of alerts\n");
    let named = ["data", "cleanup", "--days", "5", "--table", "config_backups", "--json"];
    let done = picket(&prefix, &named).expect(0).json();
    assert_eq!(done["removed"], serde_json::json!({ "config_backups": 2 }));
    let left = stats(&prefix);
    assert_eq!((rows(&left, Table::Events), rows(&left, Table::ConfigBackups)), (2, 1));
    store.close().unwrap();
}

#[test]
fn an_interrupted_rekeying_goes_on_where_it_stopped() {
    let prefix = filled(6000);
    let child = Command::new(exe())
        .args(["data", "rekey"])
        .env("PICKET_PREFIX", prefix.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let keys = || Keyring::open(&key_file(&prefix)).unwrap().list().len();
    wait_until("the new key", || keys() == 2);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let stopped: Ran = child.wait_with_output().unwrap().into();
    assert!(stopped.code == 1 && stopped.stderr.contains("goes on where this stopped"), "{stopped:?}");
    picket(&prefix, &["data", "verify"]).expect(0);
    let report = picket(&prefix, &["data", "rekey", "--json"]).expect(0).json();
    assert_eq!(
        (&report["key"], &report["resumed"], &report["retired"]),
        (&2.into(), &true.into(), &serde_json::json!([1]))
    );
    assert!(report["rows"].as_u64().unwrap() < 6000, "{report}");
    picket(&prefix, &["data", "verify"]).expect(0);
    assert_eq!(keys(), 1);
    let again = picket(&prefix, &["data", "rekey", "--new-key"]).expect(0);
    assert!(again.stdout.contains("6000 rows sealed anew under key 3\nkey 2 is forgotten"), "{}", again.stdout);
}

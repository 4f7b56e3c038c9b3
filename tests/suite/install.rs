//! On and off a machine, without root: the plan, the deed, interruptions, permissions, leftovers.

use crate::data::exe;
use crate::update::Fleet;
use picket_testkit::{Fault, Prefix, Vendor, build, wait_until};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

fn vendor() -> Vendor {
    let vendor = Vendor::new();
    vendor.release(&build("1.0.0", Fault::None));
    vendor
}

#[test]
fn a_dry_run_tells_everything_and_changes_nothing() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let before = prefix.listing();
    let plan = prefix.run_with(&build("1.0.0", Fault::None).exe, &["install", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(prefix.listing(), before);
    let steps = plan["steps"].to_string();
    for step in ["create the folder", "install version 1.0.0", "link ", "start the agent"] {
        assert!(steps.contains(step), "{step:?} is not told: {steps}");
    }
}

#[test]
fn every_folder_and_file_has_the_mode_of_the_table() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    prefix.install(&build("1.0.0", Fault::None), &vendor().root_file());
    for (path, mode) in [
        ("opt/picket", 0o755),
        ("opt/picket/versions", 0o755),
        ("opt/picket/versions/1.0.0", 0o755),
        ("opt/picket/versions/1.0.0/picket", 0o755),
        ("opt/picket/versions/1.0.0/version.json", 0o644),
        ("opt/picket/receipt.json", 0o644),
        ("etc/picket", 0o750),
        ("etc/picket/release-root.json", 0o640),
        ("etc/picket/health.d/required", 0o750),
        ("var/lib/picket", 0o700),
        ("var/lib/picket/store.key", 0o600),
        ("var/lib/picket-update", 0o700),
        ("var/log/picket", 0o750),
        ("run/picket", 0o750),
        ("run/picket/supervisor.sock", 0o600),
    ] {
        let meta = fs::symlink_metadata(prefix.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(meta.mode() & 0o7777, mode, "{path}");
    }
    assert_eq!(fs::read_link(prefix.path("opt/picket/current")).unwrap(), Path::new("versions/1.0.0"));
    let bin = fs::canonicalize(prefix.path("usr/local/bin/picket")).unwrap();
    assert_eq!(bin, fs::canonicalize(prefix.path("opt/picket/versions/1.0.0/picket")).unwrap());
}

#[test]
fn installing_again_changes_nothing_and_does_not_start_what_was_stopped() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let (first, vendor) = (build("1.0.0", Fault::None), vendor());
    prefix.install(&first, &vendor.root_file());
    prefix.picket(&["service", "stop"]).expect(0);
    let before = prefix.listing();
    let root = vendor.root_file();
    let again =
        prefix.run_with(&first.exe, &["install", "--root-keys", root.to_str().unwrap(), "--json"]).expect(0).json();
    assert_eq!((&again["result"], &again["steps"]), (&"unchanged".into(), &serde_json::json!([])));
    assert_eq!(prefix.listing(), before);
    assert!(prefix.running_version().is_none());
}

#[test]
fn a_version_whose_executable_is_gone_or_damaged_is_whole_after_installing_again() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let first = build("1.0.0", Fault::None);
    let vendor = vendor();
    prefix.install(&first, &vendor.root_file());
    let exe = prefix.path("opt/picket/versions/1.0.0/picket");
    prefix.cut_power();
    fs::remove_file(&exe).unwrap();
    prefix.install(&first, &vendor.root_file());
    prefix.boot();
    assert_eq!(prefix.running_version().as_deref(), Some("1.0.0"));
    prefix.cut_power();
    fs::write(&exe, b"#!/bin/false").unwrap();
    prefix.install(&first, &vendor.root_file());
    prefix.boot();
    prefix.picket(&["doctor"]).expect(0);
}

#[test]
fn what_was_bent_is_put_right_by_installing_again() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let first = build("1.0.0", Fault::None);
    prefix.install(&first, &vendor().root_file());
    let updater = prefix.path("var/lib/picket-update");
    fs::set_permissions(&updater, fs::Permissions::from_mode(0o777)).unwrap();
    let doctor = prefix.picket(&["doctor"]).expect(6);
    assert!(doctor.stdout.contains("mode 0777 instead of 0700"), "{}", doctor.stdout);
    prefix.run_with(&first.exe, &["install"]).expect(0);
    assert_eq!(fs::metadata(&updater).unwrap().mode() & 0o777, 0o700);
    prefix.picket(&["doctor"]).expect(0);
}

#[test]
fn an_installation_cut_short_after_any_step_is_completed_by_the_next_one() {
    let first = build("1.0.0", Fault::None);
    let vendor = vendor();
    let root = vendor.root_file();
    let root = root.to_str().unwrap();
    // What is there after a cut is a beginning of what a whole installation makes: take the rest away again.
    for cut in [
        "opt/picket/current",
        "opt/picket/versions/1.0.0",
        "etc/picket/release-root.json",
        "var/lib/picket",
        "usr/local/bin/picket",
    ] {
        let prefix = Prefix::new("http://127.0.0.1:9");
        prefix.run_with(&first.exe, &["install", "--root-keys", root, "--no-start"]).expect(0);
        let path = prefix.path(cut);
        if path.symlink_metadata().unwrap().is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
            .unwrap();
        let receipt = prefix.path("opt/picket/receipt.json");
        let text = fs::read_to_string(&receipt).unwrap().replace("\"complete\": true", "\"complete\": false");
        fs::write(&receipt, text).unwrap();
        prefix.run_with(&first.exe, &["install", "--root-keys", root]).expect(0);
        wait_until("the agent to answer", || prefix.running_version().as_deref() == Some("1.0.0"));
        prefix.picket(&["doctor"]).expect(0);
    }
}

#[test]
fn another_version_is_tried_beside_the_one_that_runs() {
    let fleet = Fleet::new();
    fleet.prefix.run_with(&build("2.0.0", Fault::None).exe, &["install"]).expect(0);
    assert_eq!((fleet.prefix.current(), fleet.prefix.previous()), ("2.0.0".into(), "1.0.0".into()));
    let bad = fleet.prefix.run_with(&build("3.0.0", Fault::Crash).exe, &["install"]).expect(20);
    assert!(bad.stdout.contains("rolled back: it ended by itself"), "{}", bad.stdout);
    assert_eq!(fleet.prefix.running_version().as_deref(), Some("2.0.0"));
}

#[test]
fn no_version_takes_the_place_of_one_that_cannot_be_looked_at() {
    let fleet = Fleet::new();
    let second = build("2.0.0", Fault::None).exe;
    let record = fleet.prefix.path("opt/picket/versions/1.0.0/version.json");
    let aside = fleet.prefix.path("aside.json");
    fs::rename(&record, &aside).unwrap();
    // There is something, and nobody can say what: as with a disk that is busy, or rights that are missing.
    symlink(&record, &record).unwrap();
    let refused = fleet.prefix.run_with(&second, &["install"]).expect(1);
    assert!(refused.stderr.contains("version.json"), "{}", refused.stderr);
    fleet.assert_on("1.0.0");
    fs::remove_file(&record).unwrap();
    fs::rename(&aside, &record).unwrap();
    fleet.prefix.run_with(&second, &["install"]).expect(0);
    let history = fleet.prefix.picket(&["update", "history", "--json"]).expect(0).json();
    assert_eq!(history[0]["outcome"], "committed", "it went without a trial: {history}");
}

#[test]
fn somebody_elses_file_in_our_place_is_an_obstacle_and_stays() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    fs::create_dir_all(prefix.path("usr/local/bin")).unwrap();
    fs::write(prefix.path("usr/local/bin/picket"), "theirs").unwrap();
    let refused = prefix.run_with(&build("1.0.0", Fault::None).exe, &["install"]).expect(1);
    assert!(refused.stderr.contains("a file is in its place"), "{}", refused.stderr);
    assert!(!prefix.path("opt").exists(), "something was made in spite of the obstacle");
    fs::remove_file(prefix.path("usr/local/bin/picket")).unwrap();
    symlink("/opt/other/picket", prefix.path("usr/local/bin/picket")).unwrap();
    let refused = prefix.run_with(&build("1.0.0", Fault::None).exe, &["install"]).expect(1);
    assert!(refused.stderr.contains("another copy of Picket"), "{}", refused.stderr);
}

#[test]
fn uninstalling_leaves_data_and_nothing_else_and_purging_leaves_nothing() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let first = build("1.0.0", Fault::None);
    let outside = prefix.listing();
    prefix.install(&first, &vendor().root_file());
    prefix.picket(&["uninstall", "--yes"]).expect(0);
    assert!(prefix.processes().is_empty());
    let data = ["etc", "var"];
    let left = prefix.listing();
    let strangers: Vec<&String> = left.iter().filter(|name| !data.iter().any(|root| name.starts_with(root))).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    assert!(left.contains(&"etc/picket/release-root.json".to_owned()));
    // Any copy of picket can take the rest, long after.
    prefix.run_with(&first.exe, &["uninstall", "--purge", "--yes"]).expect(0);
    let left: Vec<String> = prefix.listing().into_iter().filter(|name| !outside.contains(name)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!prefix.path("etc/picket").exists());
    prefix.run_with(&first.exe, &["uninstall", "--yes"]).expect(3);
}

#[test]
fn uninstalling_works_with_everything_down_and_the_receipt_lost() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let first = build("1.0.0", Fault::None);
    prefix.install(&first, &vendor().root_file());
    prefix.cut_power();
    fs::remove_file(prefix.path("opt/picket/receipt.json")).unwrap();
    fs::remove_file(prefix.path("opt/picket/current")).unwrap();
    let ran = prefix.run_with(&first.exe, &["uninstall", "--purge", "--yes"]).expect(0);
    assert!(ran.stderr.contains("there is no receipt; going by the layout"), "{}", ran.stderr);
    let files = prefix.listing().into_iter().filter(|name| prefix.path(name).is_file());
    assert_eq!(files.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn what_is_left_over_is_listed() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let first = build("1.0.0", Fault::None);
    prefix.install(&first, &vendor().root_file());
    // The service folder is recorded as ours, a foreign unit of our name is not.
    let dry = prefix.picket(&["uninstall", "--dry-run"]).expect(0);
    assert!(dry.stdout.contains("keep ") && dry.stdout.contains("var/lib/picket-update"), "{}", dry.stdout);
    assert!(prefix.path("opt/picket/current").symlink_metadata().is_ok());
}

#[test]
fn a_receipt_does_not_choose_what_is_removed_elsewhere() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let first = build("1.0.0", Fault::None);
    prefix.install(&first, &vendor().root_file());
    let receipt = prefix.path("opt/picket/receipt.json");
    let honest = fs::read_to_string(&receipt).unwrap();

    // Written by whoever owns the folder, for root to follow.
    let mut forged: serde_json::Value = serde_json::from_str(&honest).unwrap();
    let items = forged["items"].as_array_mut().unwrap();
    for path in ["/etc/ssh", "/usr/local/lib"] {
        items.push(serde_json::json!({ "path": path, "kind": "dir", "class": "program" }));
    }
    fs::write(&receipt, forged.to_string()).unwrap();
    let plan = prefix.run_with(&first.exe, &["uninstall", "--purge", "--dry-run", "--json"]).expect(0).stdout;
    assert!(!plan.contains("/etc/ssh") && !plan.contains("\"/usr/local/lib"), "{plan}");

    // Copied along with the folder: the receipt is of where it came from.
    let other = Prefix::new("http://127.0.0.1:9");
    fs::create_dir_all(other.path("opt/picket")).unwrap();
    fs::write(other.path("opt/picket/receipt.json"), honest).unwrap();
    let plan = other.run_with(&first.exe, &["uninstall", "--purge", "--dry-run", "--json"]).expect(0).stdout;
    let origin = prefix.path("").display().to_string();
    assert!(!plan.contains(origin.trim_end_matches('/')), "{plan}");
}

#[test]
fn the_key_is_made_by_the_installation_kept_by_a_removal_and_never_made_anew_for_a_store_that_is_there() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let install = || prefix.run_with(exe(), &["install", "--no-start", "--json"]).expect(0).json();
    let key = prefix.path("var/lib/picket/store.key");
    let told = install()["steps"].to_string();
    assert!(told.contains("make the key file"), "{told}");
    // Nothing was started: the key is the installation's work.
    assert!(!prefix.path("var/lib/picket/store").exists());
    let meta = fs::metadata(&key).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o600);
    assert_eq!(meta.uid(), fs::metadata(prefix.path("var/lib/picket")).unwrap().uid());
    let made = fs::read(&key).unwrap();
    assert_eq!(install()["result"], "unchanged");
    prefix.run_with(exe(), &["uninstall", "--yes"]).expect(0);
    assert_eq!(fs::read(&key).unwrap(), made);
    let again = install();
    assert!(!again["steps"].to_string().contains("key file"), "{again}");
    assert_eq!(fs::read(&key).unwrap(), made, "an existing key was replaced");

    // A key that is lost beside a store is told of, and no other one is made.
    let keyring = picket_store::keyring(&key, &prefix.path("var/lib/picket/store")).unwrap();
    picket_store::Store::open(picket_store::StoreOptions::new(prefix.path("var/lib/picket/store"), keyring)).unwrap();
    fs::rename(&key, prefix.path("var/lib/away")).unwrap();
    assert_eq!(install()["result"], "unchanged");
    assert!(!key.exists());
    let told = prefix.run_with(exe(), &["data", "stats"]).expect(9).stderr;
    assert!(told.contains("key file") && told.contains("is missing"), "{told}");
    fs::rename(prefix.path("var/lib/away"), &key).unwrap();

    prefix.run_with(exe(), &["uninstall", "--purge", "--yes"]).expect(0);
    assert!(!key.exists());
}

//! What must hold after any fault, once the machine was started again.

use crate::site::{Site, World, sha256_of};
use picket_testkit::wait_until;
use serde_json::Value;
use std::fs;

/// Starts the machine and looks at everything that an operator would: a proven version is live, it is complete, the status
/// is true, doctor finds nothing, and the next release is taken with no hand lent.
///
/// # Panics
/// When anything of it does not hold.
pub fn assert_survived(site: &Site, world: &World, proven: &[&str]) {
    site.prefix.boot();
    assert_well(site, world, proven, &[]);
    assert_updates(site, world);
}

/// A proven version is live and complete, and what is told is true. Doctor finds nothing wrong but what is `known`.
pub fn assert_well(site: &Site, world: &World, proven: &[&str], known: &[&str]) {
    let prefix = &site.prefix;
    let live = prefix.running_version().expect("no version is live");
    assert!(proven.contains(&live.as_str()), "version {live} is live; proven are {proven:?}");
    assert_eq!(prefix.current(), live, "what boots is not what is live");
    assert_complete(site, world, &live);
    assert_status(site, world, &live);
    let doctor = prefix.picket(&["doctor", "--json"]).json();
    let findings = doctor["findings"].as_array().expect("doctor finds nothing at all");
    let wrong = findings.iter().filter(|finding| finding["severity"] == "error");
    let wrong: Vec<&Value> = wrong.filter(|finding| !known.iter().any(|known| finding["code"] == *known)).collect();
    assert!(wrong.is_empty(), "doctor: {wrong:?}");
}

/// The version's folder holds exactly what its record says, and what the vendor built.
fn assert_complete(site: &Site, world: &World, version: &str) {
    let folder = site.prefix.path("opt/picket/versions").join(version);
    let record = fs::read(folder.join("version.json")).expect("the version that is live has no record");
    let record: Value = serde_json::from_slice(&record).expect("the record is no JSON");
    assert_eq!(record["version"], version, "the record is another version's");
    let files = record["files"].as_array().expect("the record lists no files");
    let names: Vec<&str> = files.iter().filter_map(|file| file["path"].as_str()).collect();
    assert_eq!(names, ["picket"], "the record lists something else");
    assert_eq!(files[0]["sha256"], world.sha256(version), "the record is not of the vendor's build");
    let same = sha256_of(&folder.join("picket")) == world.sha256(version);
    assert!(same, "the executable of {version} is not the vendor's, though its record is");
}

/// The status says what is so: nothing under way, the version that is live, and an end that fits it.
fn assert_status(site: &Site, world: &World, live: &str) {
    let status = site.prefix.status();
    assert_eq!(status["running"], Value::Null, "something is told to be under way");
    assert_eq!(status["current"], live, "the status names another version");
    if let Some(last) = status["last"].as_object() {
        let committed = last["outcome"] == "committed";
        assert_eq!(committed, last["to"] == live, "the last update is not told truly: {last:?}, and {live} is live");
        assert!(committed || last["from"] == live, "the last update did not begin here: {last:?}");
    } else {
        assert_eq!(live, "1.0.0", "no update is told of that brought this version");
    }
    if let Some(previous) = status["previous"].as_str() {
        assert_complete(site, world, previous);
        assert_ne!(previous, live, "there is nothing to go back to but what is live");
    }
}

/// The head of the channel is taken, and nothing of what was interrupted lies around after it.
pub fn assert_updates(site: &Site, world: &World) {
    let prefix = &site.prefix;
    let applied = prefix.picket(&["update", "apply", "--yes"]);
    assert_eq!(applied.code, 0, "the next update fails: {}{}", applied.stdout, applied.stderr);
    wait_until("3.0.0 to answer", || prefix.running_version().as_deref() == Some("3.0.0"));
    assert_eq!(prefix.current(), "3.0.0", "the next update is not what boots");
    assert_complete(site, world, "3.0.0");
    assert_status(site, world, "3.0.0");
    let left: Vec<String> = prefix
        .listing()
        .into_iter()
        .filter(|path| path.contains("picket-fetch/downloads/") || path.contains("versions/.staging"))
        .collect();
    assert!(left.is_empty(), "the next update leaves behind: {left:?}");
}

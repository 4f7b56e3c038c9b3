//! Releases that must not be taken, and networks that do not behave: nothing runs that was not signed, nothing hangs,
//! and a person reads what it may mean.

use crate::update::Fleet;
use picket_testkit::{Behaviour, FakeGitHub, Fault, Prefix, ReleaseServer, Vendor, build};
use std::fs;
use std::path::PathBuf;

pub(crate) fn artifact(vendor: &Vendor, version: &str) -> PathBuf {
    let name = format!("picket-{version}");
    let dir = vendor.tree().join("targets").join(version);
    let all: Vec<PathBuf> = fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.path()).collect();
    all.into_iter()
        .find(|path| path.to_string_lossy().contains(&name) && !path.to_string_lossy().ends_with(".minisig"))
        .unwrap()
}

/// `update apply` fails with this exit code and these words, and the machine goes on as it was.
fn assert_refused(fleet: &Fleet, code: i32, words: &[&str]) {
    let ran = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(code);
    let said = format!("{}{}", ran.stdout, ran.stderr);
    for word in words {
        assert!(said.contains(word), "{word:?} is not said:\n{said}");
    }
    assert_eq!(fleet.prefix.running_version().as_deref(), Some("1.0.0"));
    assert_eq!(fleet.prefix.current(), "1.0.0");
    assert!(!fleet.prefix.path("opt/picket/versions/2.0.0").exists());
    let left = fleet.prefix.listing();
    assert!(!left.iter().any(|name| name.ends_with(".verified")), "something unproven got a proven name: {left:?}");
}

fn fleet_with_second_release() -> Fleet {
    let fleet = Fleet::new();
    fleet.vendor.release(&build("2.0.0", Fault::None));
    fleet
}

#[test]
fn an_artifact_that_a_mirror_replaced_is_thrown_away() {
    let fleet = fleet_with_second_release();
    let path = artifact(&fleet.vendor, "2.0.0");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_refused(&fleet, 30, &["not the ones that the vendor signed", "compromised"]);
}

#[test]
fn an_artifact_without_or_with_a_foreign_minisign_signature_is_refused() {
    let fleet = fleet_with_second_release();
    let signature = PathBuf::from(format!("{}.minisig", artifact(&fleet.vendor, "2.0.0").display()));
    let real = fs::read(&signature).unwrap();
    fs::remove_file(&signature).unwrap();
    assert_refused(&fleet, 31, &["has no minisign signature"]);

    // Somebody else's key over the right bytes.
    let stranger = picket_release::minisign::SecretKey::generate().unwrap();
    let comment = String::from_utf8_lossy(&real).lines().nth(2).unwrap().replace("trusted comment: ", "");
    let forged = stranger.sign(&artifact(&fleet.vendor, "2.0.0"), &comment).unwrap();
    fs::write(&signature, forged).unwrap();
    assert_refused(&fleet, 30, &["made by a key that the release root does not name"]);

    // The right key, for another artifact: its comment says so.
    let other = fleet.vendor.minisign().sign(&artifact(&fleet.vendor, "2.0.0"), "picket 9.9.9 elsewhere 00").unwrap();
    fs::write(&signature, other).unwrap();
    assert_refused(&fleet, 30, &["it is for", "picket 9.9.9 elsewhere 00"]);
}

#[test]
fn metadata_signed_by_a_stranger_is_refused() {
    let fleet = fleet_with_second_release();
    let stranger = Vendor::new();
    stranger.release(&build("2.0.0", Fault::None));
    // A stranger's timestamp with a higher version than ours.
    stranger.publish();
    stranger.publish();
    fs::copy(stranger.tree().join("metadata/timestamp.json"), fleet.vendor.tree().join("metadata/timestamp.json"))
        .unwrap();
    let ran = fleet.prefix.picket(&["update", "check"]).expect(30);
    assert!(ran.stderr.contains("timestamp metadata is refused"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: the signatures are not the vendor's"), "{}", ran.stderr);
}

#[test]
fn metadata_that_went_backwards_is_refused() {
    let fleet = Fleet::new();
    let timestamp = fleet.vendor.tree().join("metadata/timestamp.json");
    let old = fs::read(&timestamp).unwrap();
    fleet.vendor.release(&build("2.0.0", Fault::None));
    fleet.prefix.picket(&["update", "check"]).expect(0);
    fs::write(&timestamp, old).unwrap();
    let ran = fleet.prefix.picket(&["update", "check"]).expect(30);
    assert!(ran.stderr.contains("rollback detected"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: a mirror is out of date"), "{}", ran.stderr);
}

#[test]
fn expired_metadata_stops_updates_and_never_the_agent() {
    let fleet = fleet_with_second_release();
    let long_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * 20);
    fleet.vendor.publish_at(long_ago);
    assert_refused(&fleet, 30, &["timestamp metadata is refused", "expired"]);
    fleet.prefix.picket(&["update", "check"]).expect(30);
    // The agent starts and runs as before.
    fleet.prefix.cut_power();
    fleet.prefix.boot();
    assert_eq!(fleet.prefix.health("/health").unwrap().0, 200);
}

#[test]
fn a_check_when_nothing_changed_is_one_request_without_a_body() {
    let fleet = Fleet::new();
    let requests_of_a_check = || {
        fleet.server.forget();
        fleet.prefix.picket(&["update", "check"]).expect(0);
        fleet.server.requests()
    };
    requests_of_a_check();
    assert_eq!(requests_of_a_check(), ["GET /metadata/timestamp.json"]);
    assert_eq!(fleet.server.body_bytes(), 0);
    // News is seen at once, and costs no second question for the timestamp.
    fleet.vendor.release(&build("2.0.0", Fault::None));
    let news = requests_of_a_check();
    assert_eq!(news.iter().filter(|request| request.contains("timestamp.json")).count(), 1, "{news:?}");
    assert_eq!(fleet.prefix.status()["available"]["version"], "2.0.0");
    // So is a new server, whose validators mean nothing here.
    assert_eq!(requests_of_a_check().len(), 1);
    let other = ReleaseServer::start(&fleet.vendor.tree());
    let config = fleet.prefix.path("etc/picket/config.yaml");
    let text = fs::read_to_string(&config).unwrap().replace(&fleet.server.url(), &other.url());
    fs::write(&config, text).unwrap();
    fleet.prefix.picket(&["update", "check"]).expect(0);
    assert!(other.requests().len() > 1, "{:?}", other.requests());
}

#[test]
fn a_download_that_broke_off_goes_on_where_it_stopped() {
    let fleet = fleet_with_second_release();
    let size = fs::metadata(artifact(&fleet.vendor, "2.0.0")).unwrap().len();
    fleet.server.misbehave(".tar.xz", Behaviour::CutAfter(1_000_000));
    // The signature's name contains the artifact's, and it is shorter than the cut.
    assert_refused(&fleet, 31, &["the download broke off; what has arrived is kept"]);
    fleet.server.behave();
    fleet.server.forget();
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    assert_eq!(fleet.prefix.current(), "2.0.0");
    assert!(
        fleet.server.requests().iter().any(|request| request.ends_with("range 1000000")),
        "{:?}",
        fleet.server.requests()
    );
    assert!(fleet.server.body_bytes() < size - 900_000, "{} bytes for the rest", fleet.server.body_bytes());
}

#[test]
fn a_server_that_ignores_ranges_sends_all_of_it_again() {
    let fleet = fleet_with_second_release();
    fleet.server.misbehave(".tar.xz", Behaviour::CutAfter(500_000));
    assert_refused(&fleet, 31, &["broke off"]);
    fleet.server.behave();
    fleet.server.misbehave(".tar.xz", Behaviour::NoRanges);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    assert_eq!(fleet.prefix.current(), "2.0.0");
}

#[test]
fn a_server_that_falls_silent_or_never_ends_is_left_within_its_limits() {
    let fleet = fleet_with_second_release();
    fleet.server.misbehave(".tar.xz", Behaviour::StallAfter(10_000));
    assert_refused(&fleet, 31, &["timed out"]);
    fleet.server.behave();
    // What did not change would be answered without a body.
    fleet.vendor.publish();
    fleet.server.misbehave("timestamp.json", Behaviour::Trailing(1 << 20));
    let ran = fleet.prefix.picket(&["update", "check"]).expect(31);
    assert!(ran.stderr.contains("more than the 16384 bytes allowed"), "{}", ran.stderr);
    fleet.server.behave();
    fleet
        .server
        .misbehave("timestamp.json", Behaviour::Redirect(format!("{}/metadata/timestamp.json", fleet.server.url())));
    let ran = fleet.prefix.picket(&["update", "check"]).expect(31);
    assert!(ran.stderr.contains("redirected more than 5 times"), "{}", ran.stderr);
    fleet.server.behave();
    fleet.server.misbehave("timestamp.json", Behaviour::Redirect("http://releases.example.com/x".to_owned()));
    let ran = fleet.prefix.picket(&["update", "check"]).expect(31);
    assert!(ran.stderr.contains("only https"), "{}", ran.stderr);
}

#[test]
fn an_artifact_longer_than_signed_is_broken_off() {
    let fleet = fleet_with_second_release();
    fleet.server.misbehave(".tar.xz", Behaviour::Trailing(1 << 20));
    // The signature grows, too, past its own limit.
    assert_refused(&fleet, 31, &["bytes allowed"]);
}

#[test]
fn a_full_disk_is_noticed_before_anything_is_changed() {
    let fleet = fleet_with_second_release();
    let config = fleet.prefix.path("etc/picket/config.yaml");
    let text = fs::read_to_string(&config).unwrap().replace("disk_reserve: 1MiB", "disk_reserve: 900TiB");
    fs::write(&config, text).unwrap();
    assert_refused(&fleet, 21, &["not enough space in", "update.disk_reserve"]);
    // A machine's trouble is not held against the release.
    assert_eq!(fleet.prefix.status()["held"].as_array().unwrap().len(), 0);
}

#[test]
fn releases_over_tls_are_followed_when_the_certificate_is_trusted_and_refused_when_not() {
    let vendor = Vendor::new();
    let first = build("1.0.0", Fault::None);
    vendor.release(&first);
    let server = ReleaseServer::start_tls(&vendor.tree());
    let mut prefix = Prefix::new(&server.url());
    prefix.install(&first, &vendor.root_file());
    let ran = prefix.picket(&["update", "check"]).expect(31);
    assert!(ran.stderr.contains("no trusted TLS connection"), "{}", ran.stderr);
    let authority = prefix.path("authority.pem");
    fs::write(&authority, server.authority.as_ref().unwrap()).unwrap();
    prefix.set("SSL_CERT_FILE", authority.to_str().unwrap());
    prefix.picket(&["update", "check"]).expect(0);
}

#[test]
fn github_releases_are_followed_without_its_api() {
    let vendor = Vendor::new();
    let (first, second) = (build("1.0.0", Fault::None), build("2.0.0", Fault::None));
    vendor.release(&first);
    vendor.release(&second);
    let github = FakeGitHub::start();
    github.publish(&vendor);
    // What is not a release for everybody is not the latest.
    github.release("v3.0.0-rc.1", "soon", true, &[]);
    let prefix = Prefix::new(&github.releases());
    prefix.install(&first, &vendor.root_file());
    prefix.picket(&["update", "apply", "--yes"]).expect(0);
    assert_eq!(prefix.current(), "2.0.0");
    let requests = github.requests();
    assert!(!requests.iter().any(|request| request.starts_with("api ")), "{requests:?}");
    assert!(requests.iter().any(|request| request.starts_with("store ")), "{requests:?}");
}

#[test]
fn a_hub_or_mirror_that_swaps_two_signed_artifacts_gets_nothing_run() {
    let fleet = fleet_with_second_release();
    let (old, new) = (artifact(&fleet.vendor, "1.0.0"), artifact(&fleet.vendor, "2.0.0"));
    fs::copy(&old, &new).unwrap();
    let ran = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]);
    // A shorter file cannot be told from a line that broke; a longer one, or one of the same length, can.
    assert!([30, 31].contains(&ran.code), "{ran:?}");
    assert!(
        ran.stdout.contains("not the ones that the vendor signed") || ran.stdout.contains("bytes"),
        "{}",
        ran.stdout
    );
    assert_eq!(fleet.prefix.current(), "1.0.0");
}

//! Updates without a network: a release carried in one file, under the same trust and the same gate.

use crate::update::Fleet;
use picket_testkit::{Behaviour, Fault, Prefix, Ran, ReleaseServer, Vendor, build, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes a bundle with the executable of the first build; `more` are further arguments.
fn bundle(vendor: &Vendor, tree: &str, out: &Path, more: &[&str]) -> Ran {
    let exe = build("1.0.0", Fault::None).exe;
    let mut command = Command::new(exe);
    command.args(["release", "bundle", tree, "--json", "--out"]).arg(out).arg("--root").arg(vendor.root_file());
    command.args(more).output().unwrap().into()
}

/// A fleet with a second release whose server has gone, and a bundle of that release.
fn cut_off() -> (Fleet, PathBuf) {
    let fleet = Fleet::new();
    fleet.release("2.0.0", Fault::None);
    let out = fleet.prefix.path("carried.tar");
    bundle(&fleet.vendor, fleet.vendor.tree().to_str().unwrap(), &out, &[]).expect(0);
    fleet.server.misbehave("/", Behaviour::Status(500));
    fleet.server.forget();
    (fleet, out)
}

fn apply(prefix: &Prefix, bundle: &Path, more: &[&str]) -> Ran {
    let words = ["update", "apply", "--yes", "--json", "--bundle", bundle.to_str().unwrap()];
    prefix.picket(&[&words, more].concat())
}

#[test]
fn a_machine_without_a_network_takes_a_release_from_a_file_under_trial_and_gate() {
    let (fleet, out) = cut_off();
    let applied = apply(&fleet.prefix, &out, &[]).expect(0).json();
    assert_eq!((&applied["outcome"], &applied["version"]), (&"committed".into(), &"2.0.0".into()));
    fleet.assert_on("2.0.0");
    assert_eq!(fleet.prefix.previous(), "1.0.0");
    assert_eq!(fleet.server.requests(), Vec::<String>::new(), "the network was asked");
    let history = fleet.prefix.picket(&["update", "history", "--json"]).expect(0).json();
    let candidate = &history[0]["evidence"]["release_server"]["candidate"];
    assert_eq!(candidate["reached"], true, "the gate did not ask it to take another: {history}");
    assert!(!fleet.prefix.path("var/lib/picket-fetch/bundle.tar").exists(), "the bundle takes up space");

    // A second time there is nothing to do, and that is no failure.
    let again = apply(&fleet.prefix, &out, &[]).expect(0).json();
    assert_eq!(again["outcome"], serde_json::Value::Null);
}

#[test]
fn a_release_from_a_file_that_fails_its_trial_is_rolled_back() {
    let fleet = Fleet::new();
    fleet.release("2.0.0", Fault::Crash);
    let out = fleet.prefix.path("carried.tar");
    bundle(&fleet.vendor, &fleet.server.url(), &out, &[]).expect(0);
    fleet.server.misbehave("/", Behaviour::Status(500));
    let told = apply(&fleet.prefix, &out, &[]).expect(20).json();
    assert_eq!(told["outcome"], "rolled-back", "{told}");
    fleet.assert_on("1.0.0");
}

#[test]
fn a_changed_an_older_or_an_unfit_bundle_is_refused_and_it_is_said_what_to_do() {
    let (fleet, good) = cut_off();
    let (vendor, prefix) = (&fleet.vendor, &fleet.prefix);
    let changed = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = prefix.path(name);
        let mut bytes = fs::read(&good).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        path
    };
    let refused = |path: &Path, code: i32, words: &[&str]| {
        let ran = apply(prefix, path, &[]).expect(code);
        let said = if ran.stdout.is_empty() { ran.stderr } else { ran.stdout };
        words.iter().for_each(|word| assert!(said.contains(word), "{word:?} is not said: {said}"));
        assert_eq!(prefix.current(), "1.0.0");
    };
    // The first files are the artifact's: a bit in the middle of it.
    let bent = changed("bent.tar", &|bytes| bytes[100_000] ^= 1);
    refused(&bent, 30, &["not the ones that the vendor signed"]);
    let half = changed("half.tar", &|bytes| bytes.truncate(50_000));
    refused(&half, 30, &["the bundle cannot be used", "no release bundle that can be read", "copy it again"]);
    let other = changed("other.tar", &|bytes| *bytes = b"not a bundle at all".repeat(100));
    refused(&other, 30, &["no release bundle that can be read", "picket release bundle"]);
    refused(&prefix.path("missing.tar"), 1, &["cannot read", "missing.tar"]);

    // It holds the old release only, while the channel's head is the new one.
    let unfit = prefix.path("unfit.tar");
    let made = bundle(vendor, vendor.tree().to_str().unwrap(), &unfit, &["--release", "1.0.0"]).expect(0);
    assert!(made.stderr.contains("the head of stable, 2.0.0, is not in it"), "{}", made.stderr);
    refused(&unfit, 21, &["the bundle has no", "picket-2.0.0", "picket release bundle"]);

    // The machine takes a newer one; then the one before it would be a step back.
    fleet.release("3.0.0", Fault::None);
    let newer = prefix.path("newer.tar");
    bundle(vendor, vendor.tree().to_str().unwrap(), &newer, &[]).expect(0);
    apply(prefix, &newer, &[]).expect(0);
    fleet.assert_on("3.0.0");
    let ran = apply(prefix, &good, &[]).expect(30).json();
    assert!(ran["hint"].as_str().unwrap().contains("older release"), "{ran}");
    fleet.assert_on("3.0.0");
}

#[test]
fn a_bundle_that_expired_on_the_way_is_refused_and_an_expired_tree_is_not_bundled() {
    let (fleet, _) = cut_off();
    let life = jiff::SignedDuration::from_hours(24 * 14);
    let left = jiff::SignedDuration::from_secs(10);
    let expires = jiff::Timestamp::now() + left;
    fleet.vendor.publish_at(expires - life);
    let out = fleet.prefix.path("old.tar");
    let tree = fleet.vendor.tree();
    let made = bundle(&fleet.vendor, tree.to_str().unwrap(), &out, &[]).expect(0).json();
    assert_eq!(made["first_to_expire"], "timestamp", "{made}");
    // Expiry is reckoned in whole seconds.
    let over = expires + jiff::SignedDuration::from_secs(1);
    wait_until("the bundle to expire", || jiff::Timestamp::now() > over);
    let told = apply(&fleet.prefix, &out, &[]).expect(30).json();
    let said = told.to_string();
    for word in ["the bundle is too old", "expired", "make a new one where the release server can be reached"] {
        assert!(said.contains(word), "{word:?} is not said: {said}");
    }
    assert_eq!(fleet.prefix.current(), "1.0.0");

    let again = fleet.prefix.path("again.tar");
    let made = bundle(&fleet.vendor, tree.to_str().unwrap(), &again, &[]).expect(30);
    assert!(made.stderr.contains("expired"), "{}", made.stderr);
    assert!(!again.exists());
}

#[test]
fn a_bundle_is_the_same_whoever_makes_it_and_unpacked_it_is_a_release_tree() {
    let (fleet, out) = cut_off();
    fleet.server.behave();
    let from_server = fleet.prefix.path("from-server.tar");
    bundle(&fleet.vendor, &fleet.server.url(), &from_server, &[]).expect(0);
    assert!(fs::read(&out).unwrap() == fs::read(&from_server).unwrap(), "the two bundles differ");
    let exe = build("1.0.0", Fault::None).exe;
    let root = fleet.vendor.root_file();
    let verify = |tree: &str| {
        let mut command = Command::new(&exe);
        command.args(["release", "verify", tree, "--from", "1.0.0", "--root"]).arg(&root);
        let ran = Ran::from(command.output().unwrap()).expect(0);
        assert!(ran.stdout.contains("would: try release 2.0.0"), "{}", ran.stdout);
    };
    verify(out.to_str().unwrap());
    let tree = tempfile::tempdir().unwrap();
    let unpacked = Command::new("tar").arg("-xf").arg(&out).arg("-C").arg(tree.path()).status().unwrap();
    assert!(unpacked.success());
    verify(tree.path().to_str().unwrap());
    // A mirror for everybody behind the same air gap.
    let mirror = ReleaseServer::start(tree.path());
    verify(&mirror.url());
}

#[test]
fn a_fresh_machine_without_a_network_is_installed_from_a_bundle() {
    let vendor = Vendor::new();
    vendor.release(&build("1.0.0", Fault::None));
    vendor.release(&build("2.0.0", Fault::None));
    let prefix = Prefix::new("http://127.0.0.1:9");
    let out = prefix.path("carried.tar");
    bundle(&vendor, vendor.tree().to_str().unwrap(), &out, &[]).expect(0);
    let (root, out) = (vendor.root_file(), out.to_str().unwrap().to_owned());
    let first = build("1.0.0", Fault::None).exe;
    let install = |more: &[&str]| {
        let words = ["install", "--root-keys", root.to_str().unwrap(), "--bundle"];
        prefix.run_with(&first, &[&words, more].concat())
    };
    let planned = install(&[&out, "--dry-run"]).expect(0);
    assert!(planned.stdout.contains("take the release in"), "{}", planned.stdout);
    let typo = install(&["/nonexistent.tar"]).expect(1);
    assert!(typo.stderr.contains("/nonexistent.tar"), "{}", typo.stderr);
    assert!(!prefix.path("opt/picket").exists(), "something was installed before the bundle was looked for");
    let installed = install(&[&out, "--json"]).expect(0).json();
    assert_eq!((&installed["outcome"], &installed["version"]), (&"committed".into(), &"2.0.0".into()));
    assert_eq!((prefix.current().as_str(), prefix.previous().as_str()), ("2.0.0", "1.0.0"));
}

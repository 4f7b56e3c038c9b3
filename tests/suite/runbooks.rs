//! The runbooks for lost and stolen keys, walked: their commands are run as they stand, between a machine that follows the
//! vendor before and one that does after.

use picket_protocol::TargetTriple;
use picket_testkit::{Build, Prefix, ReleaseServer};
use picket_transport::{Client, Network, Timeouts};
use picket_update::engine::fetch_channel;
use picket_update::fetch::{Location, Server};
use picket_update::trust::minisign::trusted_comment;
use picket_update::trust::{TrustClient, TrustError, TrustStore};
use picket_update::{Clock, EngineError};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const TARGET: &str = "x86_64-unknown-linux-musl";
const PICKET: &str = env!("CARGO_BIN_EXE_picket");

/// The layout that the runbooks speak of, with 1.0.0 published, and a server of `www`.
struct Vendor {
    dir: TempDir,
    server: ReleaseServer,
}

/// A machine that was installed with the first root.
struct Machine {
    dir: TempDir,
    root: Vec<u8>,
}

impl Vendor {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for number in 1..=4 {
            fs::write(dir.path().join(format!("build-{number}")), format!("#!/bin/sh\necho build {number}\n")).unwrap();
        }
        let server = ReleaseServer::start(&dir.path().join("www"));
        let vendor = Self { dir, server };
        vendor.sh(
            "for name in ann bob cem; do picket release keygen root --out root-$name.key; done
             for kind in targets online minisign; do picket release keygen $kind --out $kind.key; done
             picket release init --repo releases --root-threshold 2 \
                 --root-key root-ann.key.pub --root-key root-bob.key.pub --root-key root-cem.key.pub \
                 --targets-key targets.key.pub --online-key online.key.pub --minisign-key minisign.key.pub
             picket release sign --repo releases --key root-ann.key --yes
             picket release sign --repo releases --key root-cem.key --yes
             picket release add 1.0.0 build-1 --target x86_64-unknown-linux-musl --repo releases --minisign-key minisign.key
             picket release publish --repo releases --key targets.key --key online.key --out www",
        );
        vendor
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs commands as a person would, and stops at the first that fails.
    fn sh(&self, commands: &str) {
        let ran = Command::new("bash")
            .args(["-eu", "-c", &format!("picket() {{ {PICKET:?} \"$@\"; }}\n{commands}")])
            .current_dir(self.dir.path())
            .env("PICKET_RELEASE_PASSPHRASE", "correct horse")
            .env("PICKET_PREFIX", self.path("nowhere"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{commands}\n{said}");
    }

    /// Walks the code blocks of a runbook, one after the other; `between` is called before each, with its number.
    fn walk(&self, runbook: &str, mut between: impl FnMut(usize)) {
        let blocks = blocks(runbook, "sh");
        assert!(!blocks.is_empty(), "{runbook} says nothing to do");
        for (number, block) in blocks.iter().enumerate() {
            between(number);
            self.sh(block);
        }
    }

    fn machine(&self) -> Machine {
        let root = fs::read(self.path("releases/metadata/1.root.json")).unwrap();
        Machine { dir: tempfile::tempdir().unwrap(), root }
    }
}

impl Machine {
    /// Goes to the head, if both locks open.
    fn look(&self, vendor: &Vendor) -> Result<String, String> {
        self.look_for(vendor, None)
    }

    /// Goes to a version by name.
    fn look_for(&self, vendor: &Vendor, version: Option<&str>) -> Result<String, String> {
        self.try_for(vendor, version).map_err(|error| EngineError::from(error).chain())
    }

    fn try_for(&self, vendor: &Vendor, version: Option<&str>) -> Result<String, TrustError> {
        let (store, clock) = (TrustStore::new(self.dir.path()), Clock::system());
        let client = TrustClient::new(&store, &clock);
        let location = Location::parse(&vendor.server.url()).unwrap();
        let server = Server { client: Client::new("picket-test", Timeouts::default(), &Network::default()), location };
        let triple: TargetTriple = TARGET.parse().unwrap();
        let mut trusted = client.refresh(Some(&self.root), &server)?;
        let channel = fetch_channel(&client, &server, &mut trusted, "stable", &triple)?;
        let version = version.map_or(channel.head.clone(), |version| version.parse().unwrap());
        let target = client.find(&mut trusted, &server, &channel.releases[&version].artifacts[&triple].path)?;
        let get = |url| Ok::<_, TrustError>(server.optional(&url, 1 << 20)?.unwrap());
        let bytes = get(server.location.target(&target).unwrap())?;
        target.check(&bytes)?;
        let signature = String::from_utf8(get(server.location.signature(&target).unwrap())?).unwrap();
        let comment = trusted_comment(&version, &triple, &target.sha256()?);
        trusted.minisign_keys().verify(&target.path, &bytes[..], &signature, &comment)?;
        Ok(version.to_string())
    }
}

/// The code blocks of a runbook in a language.
fn blocks(runbook: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(folder().join(runbook)).unwrap();
    let begins = format!("```{language}\n");
    let blocks = text.split(&begins).skip(1).map(|rest| rest.split("```").next().unwrap_or_default().to_owned());
    blocks.collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/runbooks")
}

/// The key ids that the newest root names for a role.
fn named(vendor: &Vendor, root: &str, role: &str) -> Vec<String> {
    let text = fs::read(vendor.path("www/metadata").join(root)).unwrap();
    let root: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let ids = root["signed"]["roles"][role]["keyids"].as_array().unwrap();
    ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

fn id_of(vendor: &Vendor, key: &str) -> String {
    picket_release::PublicKey::load(&vendor.path(key)).unwrap().id()
}

#[test]
fn the_runbook_for_a_lost_root_key_replaces_it() {
    let vendor = Vendor::new();
    let machine = vendor.machine();
    assert_eq!(machine.look(&vendor).unwrap(), "1.0.0");
    fs::remove_file(vendor.path("root-cem.key")).unwrap();
    vendor.walk("root-key-lost.md", |_| assert_eq!(machine.look(&vendor).unwrap(), "1.0.0"));
    assert_eq!(machine.look(&vendor).unwrap(), "1.0.0");
    assert_eq!(vendor.machine().look(&vendor).unwrap(), "1.0.0", "one that is installed from now on");
    let roots = named(&vendor, "2.root.json", "root");
    assert!(
        roots.contains(&id_of(&vendor, "root-dan.key.pub")) && !roots.contains(&id_of(&vendor, "root-cem.key.pub"))
    );
}

#[test]
fn the_runbook_for_a_stolen_targets_key_ends_what_its_thief_does() {
    let vendor = Vendor::new();
    let machine = vendor.machine();
    assert_eq!(machine.look(&vendor).unwrap(), "1.0.0");
    // The thief has the targets and the online key, but signs archives with a minisign key of its own.
    vendor.sh("cp -r releases stolen && picket release keygen minisign --out thief.key
         sed -i \"s|$(sed -n 2p minisign.key.pub)|$(sed -n 2p thief.key.pub)|\" stolen/metadata/1.root.json
         picket release add 6.6.6 build-4 --target x86_64-unknown-linux-musl --repo stolen --minisign-key thief.key
         for time in 1 2 3; do picket release publish --repo stolen --key targets.key --key online.key --out false; done
         cp -r www honest && rm false/metadata/1.root.json && cp -r false/. www");
    let said = machine.look(&vendor).unwrap_err();
    assert!(said.contains("the minisign signature is refused"), "{said}");
    vendor.walk("targets-key-stolen.md", |_| ());
    assert_eq!(machine.look(&vendor).unwrap(), "1.0.0");
    vendor.sh("cp -r false/. www");
    let said = machine.look(&vendor).unwrap_err();
    assert!(said.contains("threshold not met"), "the thief's keys still count: {said}");
}

#[test]
fn the_runbook_for_a_stolen_online_key_sets_the_versions_right() {
    let vendor = Vendor::new();
    let machine = vendor.machine();
    assert_eq!(machine.look(&vendor).unwrap(), "1.0.0");
    // The thief runs the versions up.
    vendor.sh("cp -r releases stolen && cp -r www honest
         for time in 1 2 3 4 5 6 7 8 9; do picket release refresh --repo stolen --key online.key --out www; done");
    assert_eq!(machine.look(&vendor).unwrap(), "1.0.0");
    vendor.sh("rm -r www && cp -r honest www");
    let said = machine.look(&vendor).unwrap_err();
    assert!(said.contains("rollback detected"), "{said}");
    vendor.walk("online-key-stolen.md", |_| ());
    assert_eq!(machine.look(&vendor).unwrap(), "1.0.0");
    assert_eq!(named(&vendor, "2.root.json", "timestamp"), [id_of(&vendor, "online-2.key.pub")]);
}

#[test]
fn the_runbook_for_a_lost_and_for_a_stolen_minisign_key_replaces_it() {
    let vendor = Vendor::new();
    let machine = vendor.machine();
    assert_eq!(machine.look(&vendor).unwrap(), "1.0.0");
    fs::remove_file(vendor.path("minisign.key")).unwrap();
    vendor.walk("minisign-key-lost.md", |number| match number {
        // Lost: the new root is in force, then a release of the new key is out beside that of the old one.
        0 | 1 => assert_eq!(machine.look(&vendor).unwrap(), "1.0.0"),
        _ => {
            assert_eq!(machine.look(&vendor).unwrap(), "1.1.0");
            assert_eq!(machine.look_for(&vendor, Some("1.0.0")).unwrap(), "1.0.0");
        }
    });
    // Stolen: nothing of the old keys passes any more.
    assert_eq!(machine.look(&vendor).unwrap(), "1.2.0");
    let said = machine.look_for(&vendor, Some("1.0.0")).unwrap_err();
    assert!(said.contains("made by a key that the release root does not name"), "{said}");
}

#[test]
fn the_runbook_for_a_lost_root_gives_machines_a_new_one_by_hand() {
    let vendor = Vendor::new();
    let exe = PathBuf::from(PICKET);
    let first = Build {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        archive: exe.clone(),
        exe,
        target: TARGET.parse().unwrap(),
    };
    let prefix = Prefix::new(&vendor.server.url());
    prefix.install(&first, &vendor.path("releases/metadata/1.root.json"));
    prefix.picket(&["update", "check"]).expect(0);
    vendor.sh("rm root-*.key targets.key online.key minisign.key");
    vendor.walk("everything-lost.md", |_| ());
    // Under the old root, nothing of the new tree counts.
    vendor.sh("mv www old-www && cp -r new-www www");
    prefix.picket(&["update", "check"]).expect(30);
    let commands = blocks("everything-lost.md", "console").concat();
    let mut commands = commands.lines().map(|line| line.split(' ').skip(1).collect::<Vec<_>>());
    let mut install = commands.next().unwrap();
    let (root, url) = (vendor.path("new-releases/metadata/1.root.json"), vendor.server.url());
    for (told, real) in
        [("1.root.json", root.to_str().unwrap()), ("https://releases.example.com/new-www", url.as_str())]
    {
        let word = install.iter_mut().find(|word| **word == told).unwrap();
        *word = real;
    }
    prefix.picket(&install).expect(0);
    prefix.picket(&commands.next().unwrap()).expect(0);
    assert!(commands.next().is_none());
    // The new vendor's release is seen; it has no build for what the test runs on, perhaps.
    let offer = prefix.picket(&["update", "check", "--json"]).expect(0);
    assert!(offer.stdout.contains("1.1.0"), "{}", offer.stdout);
}

#[test]
fn every_runbook_is_walked_and_in_the_list() {
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite");
    let walked = ["runbooks.rs", "bad_release.rs"].map(|file| fs::read_to_string(suite.join(file)).unwrap()).concat();
    let list = fs::read_to_string(folder().join("README.md")).unwrap();
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != "README.md" {
            let is_walked =
                walked.contains(&format!("walk(\"{name}\"")) || walked.contains(&format!("docs/runbooks/{name}"));
            assert!(is_walked, "{name} is not walked");
            assert!(list.contains(&format!("]({name})")), "{name} is not in the list");
        }
    }
}

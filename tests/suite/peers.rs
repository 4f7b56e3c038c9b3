//! python-tuf as the peer, both ways: what it writes we follow as its own client does, what we publish its client follows.

use crate::release::Desk;
use picket_protocol::Sha256Digest;
use picket_testkit::ReleaseServer;
use picket_transport::{Client, Network, Timeouts};
use picket_update::Clock;
use picket_update::fetch::{Download, Location, Server};
use picket_update::trust::{TrustClient, TrustError, TrustStore};
use serde_json::{Value, json};
use sha2::Digest;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// A script for the Python that has python-tuf, told `typed`.
fn python(script: &str, argument: &Path, typed: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let mut command = Command::new("judges-python");
    // Nothing is to be left beside the scripts.
    command.arg("-B").arg(&script).arg(argument).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn();
    let mut child = child.unwrap_or_else(|error| panic!("judges-python, which `scripts/setup test` installs: {error}"));
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let ran = child.wait_with_output().unwrap();
    assert!(ran.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

/// What python-tuf's client answers.
fn python_tuf(questions: &[Value]) -> Vec<Value> {
    let nowhere = Path::new("");
    serde_json::from_str(&python("tests/peers/follow.py", nowhere, &json!(questions).to_string())).unwrap()
}

/// What a client made of a path: its bytes by their SHA-256, nothing, or a refusal.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Bytes(Sha256Digest),
    Nothing,
    Refused,
}

/// What one made of a repository: of each path, or nothing for a repository that is refused as a whole.
type Verdict = Option<BTreeMap<String, Found>>;

fn theirs(answer: &Value) -> Verdict {
    if answer["error"].is_string() {
        return None;
    }
    let found = answer["found"].as_object().unwrap().iter().map(|(path, hash)| {
        let found = hash.as_str().map_or(Found::Nothing, |hash| Found::Bytes(hash.parse().unwrap()));
        (path.clone(), found)
    });
    let refused = answer["refused"].as_object().unwrap().keys().map(|path| (path.clone(), Found::Refused));
    Some(found.chain(refused).collect())
}

/// What the updater's client makes of the repository at `url`.
fn ours(url: &str, root: &Path, ask: &[String]) -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = (TrustStore::new(dir.path().join("trust")), Clock::system());
    let client = TrustClient::new(&store, &clock);
    let address = |folder: &str| format!("{url}/{folder}").parse().unwrap();
    let location = Location::Apart { metadata: address("metadata"), targets: address("targets") };
    let server = Server { client: Client::new("picket-test", Timeouts::default(), &Network::default()), location };
    let mut trusted = client.refresh(Some(&fs::read(root).unwrap()), &server).ok()?;
    let mut verdict = BTreeMap::new();
    for path in ask {
        let found = match client.find(&mut trusted, &server, path) {
            Err(TrustError::UnknownTarget(_)) => Found::Nothing,
            Err(_) => Found::Refused,
            Ok(target) => {
                let url = server.location.target(&target).unwrap();
                let dir = dir.path().join("downloads");
                let download =
                    Download { client: &server.client, url, target: &target, dir: &dir, progress: &|_, _| () };
                match download.run() {
                    Ok(file) => Found::Bytes(Sha256Digest::new(sha2::Sha256::digest(fs::read(file).unwrap()).into())),
                    Err(_) => Found::Refused,
                }
            }
        };
        verdict.insert(path.clone(), found);
    }
    Some(verdict)
}

#[test]
fn repositories_that_python_tuf_writes_are_followed_as_its_own_client_follows_them() {
    let dir = tempfile::tempdir().unwrap();
    python("tests/peers/write_repositories.py", dir.path(), "");
    let server = ReleaseServer::start(dir.path());
    let mut names: Vec<String> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names.len(), 17, "{names:?}");
    let ask = |name: &String| -> Vec<String> {
        serde_json::from_slice(&fs::read(dir.path().join(name).join("ask.json")).unwrap()).unwrap()
    };
    let keep = tempfile::tempdir().unwrap();
    let questions: Vec<Value> = names
        .iter()
        .map(|name| {
            let url = |folder: &str| format!("{}/{name}/{folder}", server.url());
            let (metadata, targets) = (url("metadata"), url("targets"));
            let root = dir.path().join(name).join("root.json");
            json!({"root": root, "metadata": metadata, "targets": targets, "keep": keep.path().join(name), "ask": ask(name)})
        })
        .collect();
    let answers = python_tuf(&questions);
    let (mut files, mut refusals) = (0, 0);
    for (name, answer) in names.iter().zip(&answers) {
        let root = dir.path().join(name).join("root.json");
        let ours = ours(&format!("{}/{name}", server.url()), &root, &ask(name));
        let mut theirs = theirs(answer);
        if name == "succinct-bins" {
            // TAP 15 is no part of the specification, and sigstore-tuf does not know it: what is only in such a bin is to us
            // as if nobody had signed it.
            let listed = theirs.as_mut().unwrap().insert("packages/package".to_owned(), Found::Nothing);
            assert!(matches!(listed, Some(Found::Bytes(_))), "python-tuf has none either: {answer}");
        }
        assert_eq!(ours, theirs, "{name}");
        let verdicts = || ours.iter().flat_map(BTreeMap::values);
        files += verdicts().filter(|found| matches!(found, Found::Bytes(_))).count();
        refusals += verdicts().filter(|found| **found == Found::Refused).count() + usize::from(ours.is_none());
    }
    // Both clients saw what was meant to be seen: neither is right by refusing or by finding everything.
    assert_eq!((files, refusals), (105, 15));
}

#[test]
fn what_we_publish_is_followed_by_python_tuf_after_every_key_was_replaced_too() {
    let desk = Desk::new();
    desk.init();
    desk.sign_root();
    let add = |version: &str| {
        fs::write(desk.path("build"), format!("#!/bin/sh\necho {version}\n")).unwrap();
        let words = ["release", "add", "--repo", "@repo", version, "@build", "--minisign-key", "@minisign"];
        desk.run(&[&words[..], &["--target", "x86_64-unknown-linux-musl"]].concat()).expect(0);
    };
    add("1.0.0");
    desk.publish().expect(0);
    let server = ReleaseServer::start(&desk.path("tree"));
    let artifact = |version: &str| format!("{version}/picket-{version}-x86_64-unknown-linux-musl.tar.xz");
    let follow = |ask: &[&str]| {
        let question = json!({
            "root": desk.path("repo/metadata/1.root.json"), "keep": desk.path("keep"), "ask": ask,
            "metadata": format!("{}/metadata", server.url()), "targets": format!("{}/targets", server.url()),
        });
        python_tuf(&[question]).remove(0)
    };
    let hash = |path: &str| {
        let bytes = fs::read(desk.path("tree").join(path)).unwrap();
        Value::String(Sha256Digest::new(sha2::Sha256::digest(bytes).into()).to_string())
    };
    let first = artifact("1.0.0");
    let answer = follow(&[&first, "channel/stable.json", "channel/beta.json"]);
    assert_eq!(answer["versions"], json!({"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}), "{answer}");
    assert_eq!(answer["found"][&first], hash(&format!("download/{first}")), "{answer}");
    assert!(answer["found"]["channel/stable.json"].is_string(), "{answer}");
    assert_eq!(answer["found"]["channel/beta.json"], Value::Null, "{answer}");

    desk.keys(&[("root", "root4"), ("root", "root5"), ("targets", "targets2"), ("online", "online2")]);
    let next = ["release", "init", "--repo", "@repo", "--next-root", "--root-threshold", "2"];
    let keys = ["--root-key", "@root4.pub", "--root-key", "@root5.pub", "--targets-key", "@targets2.pub"];
    let rest = ["--online-key", "@online2.pub", "--minisign-key", "@minisign.pub"];
    desk.run(&[&next[..], &keys, &rest].concat()).expect(0);
    for key in ["@root1", "@root3", "@root4", "@root5"] {
        desk.run(&["release", "sign", "--repo", "@repo", "--key", key, "--yes"]).expect(0);
    }
    add("1.1.0");
    let publish =
        ["release", "publish", "--repo", "@repo", "--key", "@targets2", "--key", "@online2", "--out", "@tree"];
    desk.run(&publish).expect(0);
    let second = artifact("1.1.0");
    let answer = follow(&[&first, &second, "channel/stable.json"]);
    assert_eq!(answer["versions"], json!({"root": 2, "timestamp": 2, "snapshot": 2, "targets": 2}), "{answer}");
    assert_eq!(answer["found"][&first], hash(&format!("download/{first}")), "{answer}");
    assert_eq!(answer["found"][&second], hash(&format!("download/{second}")), "{answer}");
    // And what was tampered with it refuses: the peer looks at what it follows.
    let timestamp = desk.path("tree/metadata/timestamp.json");
    let text = fs::read_to_string(&timestamp).unwrap().replace("\"version\": 2", "\"version\": 9");
    fs::write(&timestamp, text).unwrap();
    assert!(follow(&[])["error"].as_str().unwrap().contains("UnsignedMetadataError"));
}

#[test]
fn the_fixtures_of_the_attacks_are_what_their_script_makes() {
    let made = tempfile::tempdir().unwrap();
    python("update/tests/attacks/make.py", made.path(), "");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("update/tests/attacks");
    let mut diff = Command::new("diff");
    let diff =
        diff.arg("-r").args(["--exclude=*.py", "--exclude=__pycache__"]).arg(&kept).arg(made.path()).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
}

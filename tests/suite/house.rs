//! The rules of the house that a machine can check: which room may know which, and how a file looks.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// The packages of ours that `package` depends on, tests left out.
fn own_dependencies(package: &Value) -> Vec<String> {
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    let normal = dependencies.filter(|dependency| dependency["kind"] != "dev");
    normal.filter_map(|d| d["name"].as_str()?.strip_prefix("picket-").map(str::to_owned)).collect()
}

const ROOMS: [&str; 7] = ["agent", "hub", "installer", "release", "sensor", "service", "update"];
/// The packages that the hub is made of: the room knows them, they know the workshop.
const HUB: [&str; 2] = ["hub-db", "hub-rules"];
const WORKSHOP: [&str; 17] = [
    "bus",
    "config",
    "durable",
    "filewatch",
    "layout",
    "localapi",
    "monitor",
    "netwatch",
    "outbox",
    "pki",
    "seal",
    "sensorlink",
    "store",
    "telemetry",
    "testkit",
    "transport",
    "versions",
];

#[test]
fn rooms_know_the_workshop_and_the_protocol_and_never_each_other() {
    let packages = packages();
    // The program, the protocol, the load of `benches/fleet`, the faults of `benches/faults`, and the stand-in for
    // async-nats' `nkeys`, which knows nobody.
    assert_eq!(
        packages.len(),
        ROOMS.len() + HUB.len() + WORKSHOP.len() + 5,
        "a package has no place in the layer test"
    );
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        let Some(short) = name.strip_prefix("picket-") else { continue };
        for known in own_dependencies(package) {
            let allowed = match short {
                "protocol" => false,
                // Tools for tests and measurements: nobody knows them, but in tests.
                "testkit" | "load" | "faults" => true,
                _ if ROOMS.contains(&short) => {
                    known == "protocol"
                        || (WORKSHOP.contains(&known.as_str()) && known != "testkit")
                        || (short == "installer" && known == "service")
                        || (short == "hub" && HUB.contains(&known.as_str()))
                }
                _ => known == "protocol" || (WORKSHOP.contains(&known.as_str()) && known != "testkit"),
            };
            assert!(allowed, "{name} must not know picket-{known}");
        }
    }
}

/// Every Rust file of the repository.
fn sources() -> Vec<PathBuf> {
    let mut files = vec![root().join("build.rs")];
    let mut folders: Vec<PathBuf> = ["src", "tests"]
        .iter()
        .chain(&ROOMS)
        .chain(&["benches", "crates", "protocol"])
        .map(|name| root().join(name))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

#[test]
fn every_file_opens_with_a_sentence_and_is_one_thing() {
    let files = sources();
    assert!(files.len() > 100);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! ") && first.len() > 10, "{} does not open with a sentence", file.display());
        // What a file is, without the tests at its end.
        let body = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let body = body.split("#[cfg(test)]\npub(crate) mod tests").next().unwrap_or_default();
        let lines = body.lines().count();
        assert!(lines <= 500, "{} has {lines} lines: it is two things", file.display());
    }
}

#[test]
fn nothing_is_left_unfinished_and_no_test_sleeps_for_a_length_of_time() {
    // Spelled in two halves, or this file would find itself.
    let unfinished =
        [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("FIX", "ME"), concat!("#[ign", "ore")];
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        for word in unfinished {
            assert!(!text.contains(word), "{} has {word}", file.display());
        }
        let is_test = file.starts_with(root().join("tests"));
        assert!(!is_test || !text.contains(concat!("thread::", "sleep")), "{} sleeps", file.display());
    }
}

#[test]
fn one_tls_stack_and_one_crypto_provider() {
    let tree = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["tree", "--locked", "--edges=normal", "--prefix=none", "--target=all", "--workspace"])
        .output()
        .unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    assert!(tree.contains("rustls v"));
    for banned in ["openssl v", "openssl-sys", "native-tls", "aws-lc", "boring", "mbedtls", "libsodium", "rust-crypto"]
    {
        assert!(!tree.lines().any(|line| line.starts_with(banned)), "{banned} is in the tree");
    }
}

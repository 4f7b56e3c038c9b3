//! The generated reference is as fresh as the code: `UPDATE_DOCS=1 cargo test --test suite docs` writes it anew.

use std::fs;
use std::path::Path;
use std::process::Command;

fn assert_fresh(arguments: [&str; 2], file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let output = Command::new(env!("CARGO_BIN_EXE_picket")).args(arguments).output().unwrap();
    let generated = String::from_utf8(output.stdout).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == generated, "{file} is stale: UPDATE_DOCS=1 cargo test --test suite docs");
}

#[test]
fn the_reference_of_commands_is_fresh() {
    assert_fresh(["reference", "cli"], "docs/reference/cli.md");
}

#[test]
fn the_reference_of_configuration_keys_is_fresh() {
    assert_fresh(["reference", "config"], "docs/reference/config.md");
}

#[test]
fn the_reference_of_the_hubs_configuration_keys_is_fresh() {
    assert_fresh(["reference", "hub"], "docs/reference/hub.md");
}

#[test]
fn the_schema_of_events_is_fresh() {
    assert_fresh(["events", "schema"], "docs/reference/event.schema.json");
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                files.push(path);
            }
        }
    }
    assert!(files.len() >= 6, "only {} documents were found", files.len());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for piece in text.split("](").skip(1) {
            let link = piece.split([')', '#', ' ']).next().unwrap();
            if link.is_empty() || link.contains("://") {
                continue;
            }
            let target = file.parent().unwrap().join(link);
            assert!(target.exists(), "{} links to {link}, which is not there", file.display());
        }
    }
}

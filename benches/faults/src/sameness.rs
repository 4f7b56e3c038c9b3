//! Whether two disks are the same for the next start: what differs by nature (ids, times, words for people) is set aside.
//!
//! Most faults end in one of few states: nothing was changed, the update was given up, it was gone back from, it is done. The
//! same disk has the same future, so what was started and was well need not be started again.

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// What people read and nothing decides by.
const WORDS: [&str; 8] = ["reason", "evidence", "error", "trigger", "by", "baseline", "id", "took_ms"];

/// A number for what of the installation at `root` is on the disk. Left out: `run`, which a start begins anew; logs; the
/// agent's own store, which every run of the agent changes and no command here writes to once it is made.
pub fn fingerprint(root: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    add(root, root, &mut hasher);
    hasher.finish()
}

fn add(folder: &Path, root: &Path, hasher: &mut DefaultHasher) {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let inside = path.strip_prefix(root).unwrap();
        if inside == Path::new("run") || inside == Path::new("var/log") {
            continue;
        }
        let meta = fs::symlink_metadata(&path).unwrap();
        // What is called by its id lies in these two.
        let by_id = |above: &Path| above.ends_with("history") || above.ends_with("snapshots");
        for part in inside.ancestors().filter(|part| !part.parent().is_some_and(by_id)) {
            part.file_name().hash(hasher);
        }
        if inside.starts_with("var/lib/picket") {
            if inside == Path::new("var/lib/picket") || inside.parent() == Some(Path::new("var/lib/picket")) {
                (meta.mode(), meta.is_dir()).hash(hasher);
            }
            if inside == Path::new("var/lib/picket") {
                add_names(&path, hasher);
            }
            continue;
        }
        meta.permissions().mode().hash(hasher);
        if meta.is_symlink() {
            fs::read_link(&path).unwrap().hash(hasher);
        } else if meta.is_dir() {
            add(&path, root, hasher);
        } else if !inside.ends_with("lock") {
            // A lock's file names the process that held it.
            add_file(&path, root, hasher);
        }
    }
}

/// Which names there are, but not what the agent keeps under them.
fn add_names(folder: &Path, hasher: &mut DefaultHasher) {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.file_name()).collect();
    names.retain(|name| !name.to_string_lossy().contains("-wal") && !name.to_string_lossy().contains("-shm"));
    names.sort();
    names.hash(hasher);
}

fn add_file(path: &Path, root: &Path, hasher: &mut DefaultHasher) {
    let bytes = fs::read(path).unwrap();
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(mut value) => {
            plain(&mut value, root.display().to_string().trim_end_matches('/'));
            value.to_string().hash(hasher);
        }
        // Each installation has ports of its own.
        Err(_) if path.ends_with("config.yaml") => {
            String::from_utf8_lossy(&bytes).replace(|c: char| c.is_ascii_digit(), "").hash(hasher);
        }
        // Each start writes them anew.
        Err(_) if is_time(&bytes) => "time".hash(hasher),
        // Executables: this hash is one that processors compute.
        Err(_) => Sha256::digest(&bytes).hash(hasher),
    }
}

/// Whether it looks like `2026-11-22T04:00:00.123Z`, with a newline or without.
fn is_time(text: &[u8]) -> bool {
    let text = text.trim_ascii_end();
    (20..=30).contains(&text.len()) && text[4] == b'-' && text[10] == b'T' && text.ends_with(b"Z")
}

/// Sets aside ids, times, and words.
fn plain(value: &mut Value, root: &str) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                if WORDS.contains(&name.as_str()) {
                    *field = Value::Null;
                } else {
                    plain(field, root);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| plain(item, root)),
        Value::String(text) => {
            if is_time(text.as_bytes()) {
                "time".clone_into(text);
            } else if text.contains(root) {
                *text = text.replace(root, "");
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(journal: &str) -> u64 {
        let dir = tempfile::tempdir().unwrap();
        let update = dir.path().join("var/lib/picket-update");
        fs::create_dir_all(&update).unwrap();
        fs::write(update.join("journal.json"), journal).unwrap();
        fingerprint(dir.path())
    }

    #[test]
    fn where_an_installation_lies_its_ports_ids_and_the_time_do_not_make_its_disk_another() {
        let disk = |port: u16| {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("");
            let scope = dir.path().display();
            fs::create_dir_all(root.join("etc")).unwrap();
            fs::write(root.join("receipt.json"), format!(r#"{{"scope": {{"prefix": "{scope}"}}}}"#)).unwrap();
            fs::write(root.join("etc/config.yaml"), format!("health: 127.0.0.1:{port}")).unwrap();
            let snapshot = root.join("snapshots").join(port.to_string());
            fs::create_dir_all(&snapshot).unwrap();
            fs::write(snapshot.join("config.yaml"), "same").unwrap();
            fs::write(root.join("last-look"), format!("2026-11-22T04:00:0{}Z\n", port % 7)).unwrap();
            fingerprint(&root)
        };
        assert_eq!(disk(1234), disk(56_789));
    }

    #[test]
    fn what_decides_makes_a_disk_another_and_what_is_told_does_not() {
        let first = disk(r#"{"id": "1", "step": "gate", "at": "2026-11-22T04:00:00.123Z", "reason": "x"}"#);
        assert_eq!(first, disk(r#"{"id": "2", "step": "gate", "at": "2027-01-01T00:00:00Z", "reason": "y"}"#));
        assert_ne!(first, disk(r#"{"id": "1", "step": "commit", "at": "2026-11-22T04:00:00.123Z", "reason": "x"}"#));
        assert_ne!(first, disk(r#"{"id": "1", "step": "#), "a damaged journal is not a whole one");
    }
}

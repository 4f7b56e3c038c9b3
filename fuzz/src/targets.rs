//! The bodies of the fuzz targets. Each takes any bytes, panics where something is trusted, written or understood that must
//! not be, and says whether it understood them: so a test knows that its honest seeds get to the end.
//!
//! This file is compiled twice: for libFuzzer, and into the suite, which runs it over `fuzz/regressions` and `fuzz/seeds`.

use picket_config::Layers;
use picket_installer::Receipt;
use picket_protocol::wish::Wish;
use picket_protocol::{Channel, Sha256Digest};
use picket_transport::TransportError;
use picket_update::archive::{Format, list, unpack};
use picket_update::fetch::Bundle;
use picket_update::journal::{Journal, Mark, Step, recovery};
use picket_update::trust::minisign::trusted_comment;
use picket_update::trust::{MetadataSource, MinisignKeys, TrustClient, TrustStore};
use picket_update::{Clock, UpdateSettings};
use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// What a target does with its bytes: see above.
type Run = fn(&[u8]) -> bool;

/// Every target by its name: that of its file in `fuzz/fuzz_targets`, and of its folders of seeds and regressions.
pub const ALL: [(&str, Run); 9] = [
    ("archive", archive),
    ("bundle", bundle),
    ("channel", channel),
    ("config", config),
    ("journal", journal),
    ("metadata", metadata),
    ("minisign", minisign),
    ("receipt", receipt),
    ("wish", wish),
];

/// What separates the files in one input of the target `metadata`: no JSON has this byte.
const BETWEEN: u8 = 0xff;
/// A published tree, made once (`fuzz/seeds/README.md`): the pinned root, the artifact and its signature.
const ROOT: &[u8] = include_bytes!("../seeds/published/1.root.json");
const ARTIFACT: &[u8] = include_bytes!("../seeds/published/artifact");
const ARTIFACT_PATH: &str = "1.0.0/picket-1.0.0-x86_64-unknown-linux-musl.tar.xz";
const TARGET: &str = "x86_64-unknown-linux-musl";
/// A day on which none of it has expired.
const DAY: &str = include_str!("../seeds/published/day");
const ARTIFACT_SHA256: &str = include_str!("../seeds/published/sha256");

/// Metadata from a server that signs nothing: `2.root.json`, `timestamp.json`, snapshot and targets, one after the other.
/// A machine that pins the true root believes the true tree or nothing.
pub fn metadata(bytes: &[u8]) -> bool {
    let mut parts = bytes.split(|byte| *byte == BETWEEN);
    let mut files = BTreeMap::new();
    for name in ["root", "timestamp", "snapshot", "targets"] {
        if let Some(part) = parts.next().filter(|part| !part.is_empty()) {
            files.insert(name, part.to_vec());
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = (TrustStore::new(dir.path()), Clock::fixed(DAY.trim().parse().unwrap()));
    let client = TrustClient::new(&store, &clock);
    for file in files.values() {
        // As `picket install --root-keys` reads a file.
        let _ = client.check_root(file);
    }
    let Ok(trusted) = client.refresh(Some(ROOT), &Files(files)) else { return false };
    let found = trusted.target(ARTIFACT_PATH).unwrap().sha256().unwrap();
    assert_eq!(found.to_string(), ARTIFACT_SHA256.trim(), "something that nobody signed is trusted");
    true
}

/// A server that gives these whatever their version, by role.
struct Files(BTreeMap<&'static str, Vec<u8>>);

impl MetadataSource for Files {
    fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        let found = self.0.iter().find(|(role, _)| name.ends_with(&format!("{role}.json")));
        Ok(found.map(|(_, bytes)| bytes.clone()).filter(|bytes| bytes.len() as u64 <= max_bytes))
    }
}

/// A channel document: what is understood is the same after it was written and read again.
pub fn channel(bytes: &[u8]) -> bool {
    let Ok(channel) = Channel::parse(bytes, "stable") else { return false };
    let written = serde_json::to_vec(&channel).unwrap();
    assert_eq!(Channel::parse(&written, "stable").unwrap(), channel);
    assert!(channel.releases.contains_key(&channel.head) && !channel.yanked.contains_key(&channel.head));
    true
}

/// A minisign signature of the artifact: nothing but what the vendor signed passes, and for nothing else.
pub fn minisign(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let root: serde_json::Value = serde_json::from_slice(ROOT).unwrap();
    let keys = MinisignKeys::from_root_field(root["signed"].get("x-picket-minisign"));
    let sha256: Sha256Digest = ARTIFACT_SHA256.trim().parse().unwrap();
    let comment = trusted_comment(&"1.0.0".parse().unwrap(), &TARGET.parse().unwrap(), &sha256);
    assert!(keys.verify("other", &b"other"[..], &text, &comment).is_err(), "it vouches for other bytes");
    let passes = keys.verify("artifact", ARTIFACT, &text, &comment).is_ok();
    // The first line is a comment that nobody signs.
    assert!(!passes || text.contains(&format!("trusted comment: {comment}")), "{text}");
    passes
}

/// An archive: the first byte picks the format, or what is packed here so that the inner format is reached as well. What is
/// listed can be unpacked and is what was listed; nothing is written beside the folder or beyond the limit.
pub fn archive(bytes: &[u8]) -> bool {
    const LIMIT: u64 = 100_000;
    let Some((choice, rest)) = bytes.split_first() else { return false };
    let (format, archive) = match choice % 4 {
        0 => (Format::TarXz, rest.to_vec()),
        1 => (Format::TarZst, rest.to_vec()),
        2 => (Format::Zip, rest.to_vec()),
        _ => (Format::TarZst, zstd::encode_all(rest, 1).unwrap()),
    };
    let Ok(listed) = list(Cursor::new(&archive), format, LIMIT) else { return false };
    assert!(listed.iter().map(|(_, length)| length).sum::<u64>() <= LIMIT);
    let dir = tempfile::tempdir().unwrap();
    let (path, into) = (dir.path().join("archive"), dir.path().join("into"));
    fs::write(&path, &archive).unwrap();
    fs::create_dir(&into).unwrap();
    let result = unpack(&path, format, &into, LIMIT);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something was written beside the folder");
    let mut found = Vec::new();
    walk(&into, &into, &mut found);
    if result.is_ok() {
        let mut listed = listed;
        listed.sort();
        found.sort();
        assert_eq!(found, listed);
    }
    assert!(found.iter().map(|(_, length)| length).sum::<u64>() <= LIMIT);
    result.is_ok()
}

/// A bundle: every file that is listed can be read and has the length that was listed, and lies in a folder of a release
/// tree.
pub fn bundle(bytes: &[u8]) -> bool {
    const LIMIT: u64 = 100_000;
    let Ok(bundle) = Bundle::read(Path::new("bundle.tar"), Cursor::new(bytes)) else { return false };
    for (name, length) in bundle.files() {
        assert!(name.starts_with("metadata/") || name.starts_with("targets/"), "{name:?}");
        match bundle.small(name, LIMIT) {
            Ok(read) => assert_eq!(read.unwrap().len() as u64, length, "{name:?}"),
            Err(_) => assert!(length > LIMIT, "{name:?}"),
        }
    }
    true
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, u64)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            walk(root, &path, found);
        } else {
            assert!(meta.is_file(), "{} is no file", path.display());
            found.push((path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), meta.len()));
        }
    }
}

/// A journal found after a crash: there is a decision, and it is the same after it was written and read again.
pub fn journal(bytes: &[u8]) -> bool {
    let Ok(journal) = Journal::parse(bytes) else { return false };
    let again = Journal::parse(&serde_json::to_vec(&journal).unwrap()).unwrap();
    assert_eq!(recovery::decide(&journal), recovery::decide(&again));
    // What did not pass is never switched to, but where the switch was begun.
    let begun = journal.entries.iter().any(|entry| entry.step == Step::Commit);
    assert!(journal.has_passed() || begun || recovery::decide(&journal) != recovery::Recovery::Commit);
    for step in Step::ALL {
        for mark in [Mark::Began, Mark::Done] {
            let _ = journal.allows(step, mark);
        }
    }
    true
}

/// A receipt: what is understood is the same after it was written and read again.
pub fn receipt(bytes: &[u8]) -> bool {
    let Ok(receipt) = Receipt::parse(bytes) else { return false };
    assert_eq!(Receipt::parse(&serde_json::to_vec(&receipt).unwrap()).unwrap(), receipt);
    true
}

/// A configuration file: the first byte picks the format. Whatever is wrong with it, there are values in force.
pub fn config(bytes: &[u8]) -> bool {
    let Some((choice, rest)) = bytes.split_first() else { return false };
    let Ok(text) = std::str::from_utf8(rest) else { return false };
    let path = PathBuf::from(["config.yaml", "config.json", "config.toml"][usize::from(choice % 3)]);
    let resolved = Layers::new::<UpdateSettings>().text(&path, text).resolve::<UpdateSettings>();
    for problem in &resolved.problems.0 {
        assert!(!problem.to_string().is_empty());
    }
    resolved.problems.0.is_empty()
}

/// The agent's wish: a version or `latest`, and nothing that a shell or a terminal would take for more.
pub fn wish(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match text.parse::<Wish>() {
        Ok(Wish::Version(version)) => {
            let shown = version.to_string();
            assert!(shown.bytes().all(|b| b.is_ascii_alphanumeric() || b".-+".contains(&b)), "{shown:?}");
            assert_eq!(text.strip_suffix('\n').unwrap_or(text), shown);
            true
        }
        Ok(Wish::Latest) => true,
        Err(_) => false,
    }
}

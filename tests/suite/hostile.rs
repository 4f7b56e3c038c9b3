//! Bytes from outside, damaged at random: nothing is trusted that was not signed, nothing panics, nothing is written
//! where it does not belong.

use picket_protocol::{Sha256Digest, TargetTriple};
use picket_testkit::{Build, Vendor};
use picket_transport::TransportError;
use picket_update::Clock;
use picket_update::archive::{Format, unpack};
use picket_update::trust::MetadataSource;
use picket_update::trust::minisign::trusted_comment;
use picket_update::trust::{MinisignKeys, TrustClient, TrustStore};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use tempfile::TempDir;

const TARGET: &str = "x86_64-unknown-linux-musl";
const ARTIFACT: &str = "1.0.0/picket-1.0.0-x86_64-unknown-linux-musl.tar.xz";

/// A published tree, in memory.
struct Published {
    metadata: BTreeMap<String, Vec<u8>>,
    archive: Vec<u8>,
    signature: String,
    minisign_keys: serde_json::Value,
}

/// Made once: keys cost time.
static PUBLISHED: LazyLock<Published> = LazyLock::new(publish);

fn publish() -> Published {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    fs::write(&program, (0..60_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    let vendor = Vendor::new();
    vendor.release(&Build::of("1.0.0", &program, TARGET));
    let tree = vendor.tree();
    let metadata: BTreeMap<String, Vec<u8>> = fs::read_dir(tree.join("metadata"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    let file = tree.join("download").join(ARTIFACT);
    Published {
        metadata,
        signature: fs::read_to_string(file.with_extension("xz.minisig")).unwrap(),
        archive: fs::read(&file).unwrap(),
        minisign_keys: serde_json::json!([vendor.minisign().public_line()]),
    }
}

/// A server of these files.
struct Files(BTreeMap<String, Vec<u8>>);

impl MetadataSource for Files {
    fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        // The transport cuts what is longer than it may be.
        Ok(self.0.get(name).filter(|bytes| bytes.len() as u64 <= max_bytes).cloned())
    }
}

/// What a machine that pins the true root makes of `metadata`: the hash of the artifact, if it trusts any of it.
fn trusted(metadata: &BTreeMap<String, Vec<u8>>) -> Option<Sha256Digest> {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = (TrustStore::new(dir.path()), Clock::system());
    let client = TrustClient::new(&store, &clock);
    let trusted = client.refresh(Some(&PUBLISHED.metadata["1.root.json"]), &Files(metadata.clone())).ok()?;
    trusted.target(ARTIFACT).ok()?.sha256().ok()
}

/// One way to damage a file.
#[derive(Debug, Clone)]
enum Damage {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Swap(prop::sample::Index, prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        any::<prop::sample::Index>().prop_map(Damage::Cut),
        (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(a, b)| Damage::Swap(a, b)),
    ]
}

fn damaged(bytes: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for damage in damages {
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        match damage {
            Damage::Set(at, byte) => bytes[at.index(length)] = *byte,
            Damage::Cut(at) => bytes.truncate(at.index(length)),
            Damage::Insert(at, more) => {
                let at = at.index(length);
                bytes.splice(at..at, more.iter().copied());
            }
            Damage::Swap(a, b) => bytes.swap(a.index(length), b.index(length)),
        }
    }
    bytes
}

/// Everything below `dir`, with its length.
fn listing(dir: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let meta = entry.path().symlink_metadata().unwrap();
            assert!(!meta.is_symlink(), "{} is a link", entry.path().display());
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                found.push((entry.path().display().to_string(), meta.len()));
            }
        }
    }
    found
}

/// Unpacks hostile bytes and looks at what was written: only inside the folder, and never more than allowed.
fn assert_contained(bytes: &[u8], format: Format) {
    const LIMIT: u64 = 100_000;
    let dir = TempDir::new().unwrap();
    let (archive, into) = (dir.path().join("archive"), dir.path().join("into"));
    fs::write(&archive, bytes).unwrap();
    fs::create_dir(&into).unwrap();
    let _ = unpack(&archive, format, &into, LIMIT);
    let written: u64 = listing(&into).iter().map(|(_, length)| length).sum();
    assert!(written <= LIMIT, "{written} bytes");
    assert_eq!(listing(dir.path()).len(), listing(&into).len() + 1, "something was written beside the folder");
}

/// The same files as in the published archive.
static TAR_ZST: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let xz = lzma_rust2::XzReader::new(PUBLISHED.archive.as_slice(), false);
    zstd::encode_all(xz, 1).unwrap()
});

fn format() -> impl Strategy<Value = Format> {
    prop::sample::select(vec![Format::TarXz, Format::TarZst, Format::Zip])
}

fn zip() -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for name in ["picket-x/picket", "picket-x/README.md"] {
        writer.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut writer, &[7; 5000]).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn the_undamaged_tree_is_trusted() {
    let sha256 = trusted(&PUBLISHED.metadata).unwrap();
    assert!(verify_minisign(&PUBLISHED.archive, &PUBLISHED.signature, &sha256));
}

fn verify_minisign(archive: &[u8], signature: &str, sha256: &Sha256Digest) -> bool {
    let keys = MinisignKeys::from_root_field(Some(&PUBLISHED.minisign_keys));
    let target: TargetTriple = TARGET.parse().unwrap();
    let comment = trusted_comment(&"1.0.0".parse().unwrap(), &target, sha256);
    keys.verify("a", archive, signature, &comment).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn damaged_metadata_is_refused_or_says_what_was_signed(
        file in any::<prop::sample::Index>(),
        damages in prop::collection::vec(damage(), 1..4),
    ) {
        let mut metadata = PUBLISHED.metadata.clone();
        let name = file.get(&metadata.keys().cloned().collect::<Vec<_>>()).clone();
        metadata.insert(name.clone(), damaged(&metadata[&name], &damages));
        let honest = trusted(&PUBLISHED.metadata);
        let sha256 = trusted(&metadata);
        prop_assert!(sha256.is_none() || sha256 == honest, "{name} with {damages:?} is believed");
    }

    #[test]
    fn a_damaged_signature_or_archive_does_not_pass_minisign(
        of_archive in any::<bool>(),
        damages in prop::collection::vec(damage(), 1..4),
    ) {
        let sha256 = trusted(&PUBLISHED.metadata).unwrap();
        let (archive, signature) = if of_archive {
            (damaged(&PUBLISHED.archive, &damages), PUBLISHED.signature.clone())
        } else {
            let bytes = damaged(PUBLISHED.signature.as_bytes(), &damages);
            (PUBLISHED.archive.clone(), String::from_utf8_lossy(&bytes).into_owned())
        };
        // The first line is a comment that nobody signs and nobody reads; line ends are no content either.
        let meaning = |text: &str| text.lines().skip(1).map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        let same = archive == PUBLISHED.archive && meaning(&signature) == meaning(&PUBLISHED.signature);
        prop_assert!(same || !verify_minisign(&archive, &signature, &sha256), "{damages:?} passes");
    }

    #[test]
    fn a_damaged_archive_writes_only_where_it_may(
        format in format(),
        damages in prop::collection::vec(damage(), 1..6),
    ) {
        let bytes = match format {
            Format::Zip => zip(),
            Format::TarXz => PUBLISHED.archive.clone(),
            Format::TarZst => TAR_ZST.clone(),
        };
        assert_contained(&damaged(&bytes, &damages), format);
    }

    #[test]
    fn any_bytes_at_all_write_only_where_they_may(
        bytes in prop::collection::vec(any::<u8>(), 0..4000),
        format in format(),
    ) {
        assert_contained(&bytes, format);
    }
}

//! Which configuration is in force, what a new one changes, and what of that takes effect without a restart.

use picket_durable::read_text;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The longest configuration file that is kept word for word, in bytes; the parser refuses longer ones.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// The value of one key, and where it came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The value in force.
    pub value: serde_json::Value,
    /// Where it came from: `default`, `/etc/picket/config.yaml:3`, `environment PICKET_LOG_LEVEL`, `--set`.
    pub origin: String,
}

/// A configuration file as it stood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// Its owner's user id.
    pub uid: u32,
    /// When it was changed last.
    pub modified: jiff::Timestamp,
}

/// What made a configuration take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The agent started.
    Start,
    /// A file changed.
    File,
    /// SIGHUP.
    Signal,
    /// `picket config restore`.
    Restore,
    /// The hub gave one.
    Hub,
}

impl Cause {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::File => "file",
            Self::Signal => "signal",
            Self::Restore => "restore",
            Self::Hub => "hub",
        }
    }
}

/// One key whose value changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The dotted key.
    pub key: String,
    /// What it was; nothing for a key that the version before did not know.
    pub from: Option<serde_json::Value>,
    /// What it is; nothing for a key that this version does not know.
    pub to: Option<serde_json::Value>,
    /// Whether it takes effect at the next start only.
    pub needs_restart: bool,
}

/// A configuration that was in force: what the store keeps in `config_backups`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InForce {
    /// From when on (RFC 3339, UTC).
    pub at: jiff::Timestamp,
    /// What made it take effect.
    pub cause: Cause,
    /// Who restored it. Of a file that changed only its owner is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Which version read it.
    pub version: String,
    /// SHA-256 over every key and value, in hexadecimal digits: the same for the same configuration.
    pub sha256: String,
    /// Every key with its value.
    pub values: BTreeMap<String, KeyValue>,
    /// The files, word for word, with what secrets they may hold: an entry is to be kept sealed, and shown redacted.
    pub files: Vec<ConfigFile>,
    /// What changed against the one before.
    pub changed: Vec<Change>,
}

/// Keys that take effect at once; one that ends with a dot is a group. What is not here needs a restart: ports that are
/// bound, names that are registered, files that are open.
const LIVE: [&str; 18] = [
    "alerting.",
    "collect.",
    "collection_interval",
    "data.",
    "data_retention_days",
    "events.",
    "file_monitor.",
    "limits.",
    "log_level",
    "logging.components",
    "logging.level",
    "network.",
    "network_monitor.",
    "smtp.",
    "thresholds",
    "update.",
    "uplink.",
    "performance_monitoring.",
];

/// What differs between two sets of values.
pub fn changes(before: &BTreeMap<String, KeyValue>, after: &BTreeMap<String, KeyValue>) -> Vec<Change> {
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let value = |values: &BTreeMap<String, KeyValue>, key: &str| values.get(key).map(|entry| entry.value.clone());
    keys.into_iter()
        .filter_map(|key| {
            let (from, to) = (value(before, key), value(after, key));
            let needs_restart =
                !LIVE.iter().any(|live| if live.ends_with('.') { key.starts_with(live) } else { key == live });
            (from != to).then(|| Change { key: key.clone(), from, to, needs_restart })
        })
        .collect()
}

/// The digest of every key and value.
pub fn digest(values: &BTreeMap<String, KeyValue>) -> String {
    digest_of(values.iter().map(|(key, entry)| (key.as_bytes(), entry.value.to_string())))
}

/// The digest of names and texts.
fn digest_of<'a>(pairs: impl Iterator<Item = (&'a [u8], String)>) -> String {
    let mut hasher = Sha256::new();
    for (name, text) in pairs {
        hasher.update(name);
        hasher.update([0]);
        hasher.update(text.as_bytes());
        hasher.update([0]);
    }
    hasher.finalize().iter().fold(String::new(), |mut text, byte| {
        use std::fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What `picket config restore` leaves for the agent: who restored which files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreMark {
    by: String,
    files: String,
}

impl RestoreMark {
    /// The longest mark, in bytes.
    const MAX_BYTES: u64 = 4 << 10;

    /// `by` restores these files, given as paths and texts.
    pub fn new<'a>(by: &str, files: impl Iterator<Item = (&'a Path, &'a str)>) -> Self {
        let pairs = files.map(|(path, text)| (path.as_os_str().as_encoded_bytes(), text.to_owned()));
        Self { by: by.to_owned(), files: digest_of(pairs) }
    }

    /// Takes the mark at `path` away; says who restored `files`, if these are what was restored.
    pub(crate) fn take(path: &Path, files: &[ConfigFile]) -> Option<String> {
        let bytes = picket_durable::read_untrusted(path, Self::MAX_BYTES).ok()??;
        if let Err(error) = picket_durable::remove_if_present(path) {
            tracing::warn!(%error, "who restored the configuration may be told twice");
        }
        let mark: Self = serde_json::from_slice(&bytes).ok()?;
        let same = Self::new(&mark.by, files.iter().map(|file| (file.path.as_path(), file.text.as_str())));
        (same == mark).then_some(mark.by)
    }
}

/// Reads the files as they stand, for the record.
pub fn files(paths: &[PathBuf]) -> Vec<ConfigFile> {
    paths.iter().filter_map(|path| file(path)).collect()
}

fn file(path: &Path) -> Option<ConfigFile> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = path.metadata().ok()?;
    let text = read_text(path, FILE_MAX_BYTES).ok()?;
    let modified = jiff::Timestamp::from_second(meta.mtime()).unwrap_or_default();
    Some(ConfigFile { path: path.to_owned(), text, uid: meta.uid(), modified })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, i64)]) -> BTreeMap<String, KeyValue> {
        let entry = |value: i64| KeyValue { value: value.into(), origin: "default".into() };
        pairs.iter().map(|(key, value)| ((*key).to_owned(), entry(*value))).collect()
    }

    #[test]
    fn a_change_says_what_it_was_what_it_is_and_whether_it_waits_for_a_restart() {
        let before = values(&[("events.fold", 5), ("health.listen", 1), ("log_level", 1), ("log_levels", 1)]);
        let after =
            values(&[("events.fold", 6), ("health.listen", 2), ("log_level", 2), ("log_levels", 2), ("new", 1)]);
        let changes = changes(&before, &after);
        let told: Vec<(&str, bool)> = changes.iter().map(|c| (c.key.as_str(), c.needs_restart)).collect();
        let waits = [("health.listen", true), ("log_level", false), ("log_levels", true), ("new", true)];
        assert_eq!(told, [&[("events.fold", false)], &waits[..]].concat());
        assert_eq!((changes[0].from.clone(), changes[0].to.clone()), (Some(5.into()), Some(6.into())));
        assert_eq!(changes[4].from, None);
    }

    #[test]
    fn a_mark_counts_once_and_only_for_the_files_that_were_restored() {
        let dir = tempfile::tempdir().unwrap();
        let (mark, config) = (dir.path().join("mark"), Path::new("/etc/picket/config.yaml"));
        let file = |text: &str| ConfigFile {
            path: config.to_owned(),
            text: text.to_owned(),
            uid: 0,
            modified: jiff::Timestamp::UNIX_EPOCH,
        };
        let put = || {
            let restored = RestoreMark::new("ada", std::iter::once((config, "log_level: info\n")));
            picket_durable::write_json(&mark, &restored, 0o600).unwrap();
        };
        put();
        assert_eq!(RestoreMark::take(&mark, &[file("log_level: info\n")]).as_deref(), Some("ada"));
        assert_eq!(RestoreMark::take(&mark, &[file("log_level: info\n")]), None);
        put();
        assert_eq!(RestoreMark::take(&mark, &[file("log_level: debug\n")]), None);
        assert!(!mark.exists());
    }

    #[test]
    fn the_digest_is_of_the_values_and_not_of_where_they_came_from() {
        let one = values(&[("a", 1)]);
        let mut same = one.clone();
        same.get_mut("a").unwrap().origin = "--set".into();
        assert_eq!(digest(&one), digest(&same));
        assert_ne!(digest(&one), digest(&values(&[("a", 2)])));
    }
}

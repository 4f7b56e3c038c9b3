//! The channel document: which version a channel's machines should run, and what the vendor says about each release.
//!
//! It is a TUF target named `channel/<name>.json`, so nobody can change a byte of it without the vendor's targets keys.
//! TUF protects the *metadata* from going backwards; the head named here may go backwards when newer signed metadata
//! says so, and that is how a vendor takes a release back.

use crate::rollout::{Rollout, RolloutError, Stop};
use crate::{PRODUCT, Sha256Digest, TargetTriple};
use semver::Version;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The only schema number this version writes, and the highest it reads.
pub const CHANNEL_SCHEMA: u32 = 1;
/// The largest channel document that is read, in bytes: about 2,000 releases.
pub const CHANNEL_MAX_BYTES: u64 = 1 << 20;
/// The most versions that may be told to go back without having been yanked.
pub const MAX_DOWNGRADES: usize = 1000;

/// One channel's signed statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// The document's schema number; a reader refuses one above [`CHANNEL_SCHEMA`].
    pub schema: u32,
    /// Always [`PRODUCT`]: a document of another product signed by the same keys is refused.
    pub product: String,
    /// The channel's own name, for example `stable`: a document served under another name is refused.
    pub channel: String,
    /// The version machines of this channel should run; it is a key of `releases`.
    pub head: Version,
    /// The lowest version that may update directly; `None` when any may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<Version>,
    /// Every release of the channel that is still offered.
    pub releases: BTreeMap<Version, Release>,
    /// Releases taken back, with the vendor's reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub yanked: BTreeMap<Version, Yank>,
    /// Versions that go back to the head although they are newer and were not yanked. Without it, no machine does.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub allow_downgrade_from: BTreeSet<Version>,
    /// In an emergency: no machine takes any release by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
}

/// One release of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// What changed, for people; shown by `update check`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub notes: String,
    /// Whether the vendor asks every machine to apply it at its next check.
    #[serde(default)]
    pub critical: bool,
    /// When it was published (RFC 3339, UTC).
    pub published: jiff::Timestamp,
    /// The state format it writes; see [`crate::StateFormat`].
    pub state_format: u32,
    /// The artifact for each target triple.
    pub artifacts: BTreeMap<TargetTriple, Artifact>,
    /// How it reaches the machines in time; all of them at once where it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// In an emergency: no machine takes this release by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
}

/// Where one artifact is. Its length and hash are in the TUF targets metadata under the same path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// The TUF target path, for example `0.2.0/picket-0.2.0-x86_64-unknown-linux-musl.tar.xz`.
    pub path: String,
    /// The bytes it takes up unpacked, for the disk check before the download.
    pub unpacked: u64,
    /// Every file in it, by its path: what the privileged half of an updater compares with what another half unpacked.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, ReleaseFile>,
}

/// One file of an unpacked artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseFile {
    /// Its length in bytes.
    pub length: u64,
    /// Its hash.
    pub sha256: Sha256Digest,
}

/// A release taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Yank {
    /// Why, in the vendor's words.
    pub reason: String,
    /// When (RFC 3339, UTC).
    pub at: jiff::Timestamp,
}

/// Why a channel document is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// It is larger than [`CHANNEL_MAX_BYTES`].
    #[error("the channel document has {0} bytes, more than the {CHANNEL_MAX_BYTES} allowed")]
    TooLarge(usize),
    /// It is not the JSON this version understands.
    #[error("the channel document cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// Its schema is newer than this version.
    #[error("the channel document has schema {0}; this version reads up to {CHANNEL_SCHEMA}")]
    NewerSchema(u32),
    /// It is about another product.
    #[error("the channel document is about {0:?}, not {PRODUCT:?}")]
    WrongProduct(String),
    /// It is another channel's document.
    #[error("asked for channel {asked:?}, the document is of channel {found:?}")]
    WrongChannel {
        /// The channel that was asked for.
        asked: String,
        /// The name inside the document.
        found: String,
    },
    /// Its head is not among its releases.
    #[error("the head {0} is not among the channel's releases")]
    HeadNotReleased(Version),
    /// Its head is yanked.
    #[error("the head {0} is yanked")]
    HeadYanked(Version),
    /// An artifact path could leave its folder or is too long.
    #[error("release {version} names an unsafe artifact path {path:?}")]
    UnsafePath {
        /// The release.
        version: Version,
        /// The path as written.
        path: String,
    },
    /// A release's rollout or stop is not usable.
    #[error("the rollout of release {version} is not usable: {error}")]
    Rollout {
        /// The release.
        version: Version,
        /// Why not.
        error: RolloutError,
    },
    /// The stop of everything is not usable.
    #[error("the stop of the channel is not usable: {0}")]
    Stop(RolloutError),
    /// More versions than any fleet runs are told to go back.
    #[error("it tells {0} versions to go back, more than the {MAX_DOWNGRADES} allowed")]
    TooManyDowngrades(usize),
}

impl Channel {
    /// Parses and checks a verified target's bytes as the document of the channel called `asked`.
    ///
    /// # Errors
    /// Every way in which the document could mislead a machine, see [`ChannelError`].
    pub fn parse(bytes: &[u8], asked: &str) -> Result<Self, ChannelError> {
        if bytes.len() as u64 > CHANNEL_MAX_BYTES {
            return Err(ChannelError::TooLarge(bytes.len()));
        }
        // The schema number is read first: a newer document may not even parse as this version's type.
        let probe: SchemaProbe = serde_json::from_slice(bytes).map_err(ChannelError::Malformed)?;
        if probe.schema > CHANNEL_SCHEMA {
            return Err(ChannelError::NewerSchema(probe.schema));
        }
        let channel: Self = serde_json::from_slice(bytes).map_err(ChannelError::Malformed)?;
        channel.check(asked)?;
        Ok(channel)
    }

    /// The checks of [`Channel::parse`] on a document already in memory (the vendor's side uses them before signing).
    pub fn check(&self, asked: &str) -> Result<(), ChannelError> {
        if self.product != PRODUCT {
            return Err(ChannelError::WrongProduct(self.product.clone()));
        }
        if self.channel != asked {
            return Err(ChannelError::WrongChannel { asked: asked.to_owned(), found: self.channel.clone() });
        }
        if !self.releases.contains_key(&self.head) {
            return Err(ChannelError::HeadNotReleased(self.head.clone()));
        }
        if self.yanked.contains_key(&self.head) {
            return Err(ChannelError::HeadYanked(self.head.clone()));
        }
        for (version, release) in &self.releases {
            let paths = |artifact: &Artifact| {
                let files = artifact.files.keys().cloned();
                files.chain([artifact.path.clone()]).collect::<Vec<_>>()
            };
            if let Some(path) = release.artifacts.values().flat_map(paths).find(|path| !is_safe_path(path)) {
                return Err(ChannelError::UnsafePath { version: version.clone(), path });
            }
            let rollout = release.rollout.as_ref().map_or(Ok(()), Rollout::check);
            rollout
                .and_then(|()| release.stop.as_ref().map_or(Ok(()), Stop::check))
                .map_err(|error| ChannelError::Rollout { version: version.clone(), error })?;
        }
        if self.allow_downgrade_from.len() > MAX_DOWNGRADES {
            return Err(ChannelError::TooManyDowngrades(self.allow_downgrade_from.len()));
        }
        self.stop.as_ref().map_or(Ok(()), Stop::check).map_err(ChannelError::Stop)
    }

    /// The stop that holds a release back, if one does: of everything, or its own.
    pub fn stop_of(&self, version: &Version) -> Option<&Stop> {
        self.stop.as_ref().or_else(|| self.releases.get(version)?.stop.as_ref())
    }

    /// Whether the vendor sends machines that run `version` back to the head, though it is older.
    pub fn sends_back(&self, version: &Version) -> bool {
        self.yanked.contains_key(version) || self.allow_downgrade_from.contains(version)
    }

    /// The TUF target path of the channel called `name`.
    pub fn target_path(name: &str) -> String {
        format!("channel/{name}.json")
    }
}

/// Whether `name` can name a channel: 1 to 32 characters of `a-z 0-9 -`, as it becomes part of a path.
pub fn is_channel_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
}

/// A relative path of plain segments: what may become part of a URL or of a path below a folder of ours.
pub fn is_safe_path(path: &str) -> bool {
    (1..=512).contains(&path.len())
        && path.split('/').all(|segment| {
            !segment.is_empty()
                && !segment.starts_with('.')
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b))
        })
}

#[derive(Deserialize)]
struct SchemaProbe {
    schema: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn document() -> Value {
        json!({
            "schema": 1, "product": "picket", "channel": "stable", "head": "1.1.0",
            "releases": {"1.1.0": {"published": "2026-11-21T00:00:00Z", "state_format": 1, "artifacts": {
                "x86_64-unknown-linux-musl": {"path": "1.1.0/picket.tar.xz", "unpacked": 10}}}},
            "yanked": {"1.0.0": {"reason": "lost events", "at": "2026-11-21T00:00:00Z"}},
        })
    }

    fn parse(value: &Value) -> Result<Channel, ChannelError> {
        Channel::parse(&serde_json::to_vec(value).unwrap(), "stable")
    }

    #[test]
    fn a_document_with_fields_of_the_future_is_still_read() {
        let mut value = document();
        value["waves"] = json!([{"after": "1d", "percent": 10}]);
        value["releases"]["1.1.0"]["size_of_moon"] = json!(3);
        assert_eq!(parse(&value).unwrap().head, Version::new(1, 1, 0));
    }

    #[test]
    fn a_document_that_could_mislead_is_refused_with_the_reason() {
        let cases: [(&str, Value, &str); 6] = [
            ("/schema", json!(2), "schema 2"),
            ("/product", json!("other"), "about \"other\""),
            ("/channel", json!("beta"), "of channel \"beta\""),
            ("/head", json!("9.9.9"), "9.9.9 is not among"),
            ("/yanked", json!({"1.1.0": {"reason": "x", "at": "2026-11-21T00:00:00Z"}}), "1.1.0 is yanked"),
            (
                "/releases/1.1.0/artifacts/x86_64-unknown-linux-musl/path",
                json!("../../etc/passwd"),
                "unsafe artifact path",
            ),
        ];
        for (pointer, new, expected) in cases {
            let mut value = document();
            *value.pointer_mut(pointer).unwrap() = new;
            let error = parse(&value).unwrap_err().to_string();
            assert!(error.contains(expected), "{pointer}: {error}");
        }
    }

    #[test]
    fn a_rollout_that_is_not_possible_is_refused_with_the_release_it_is_of() {
        let cases = [
            (
                "rollout",
                json!({"waves": [{"after_seconds": 0, "percent": 50}]}),
                "of release 1.1.0 is not usable: the last",
            ),
            ("rollout", json!({"waves": [{"after_seconds": 0, "percent": 300}]}), "cannot be read"),
            ("rollout", json!({"waves": [{"after_seconds": -1, "percent": 100}]}), "cannot be read"),
            ("rollout", json!({"windows": ["at night"]}), "cannot be read"),
            ("stop", json!({"reason": "", "at": "2026-11-21T00:00:00Z"}), "a stop needs a reason"),
        ];
        for (field, new, expected) in cases {
            let mut value = document();
            value["releases"]["1.1.0"][field] = new;
            let error = parse(&value).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let mut value = document();
        value["stop"] = json!({"reason": "x".repeat(2000), "at": "2026-11-21T00:00:00Z"});
        assert!(parse(&value).unwrap_err().to_string().contains("stop of the channel"));
        let mut value = document();
        value["allow_downgrade_from"] = (0..=MAX_DOWNGRADES).map(|minor| json!(format!("1.{minor}.0"))).collect();
        assert!(parse(&value).unwrap_err().to_string().contains("1001 versions"));
    }

    #[test]
    fn a_stop_of_everything_holds_every_release_and_one_of_a_release_only_that() {
        let mut value = document();
        value["releases"]["1.0.5"] = value["releases"]["1.1.0"].clone();
        value["releases"]["1.1.0"]["stop"] = json!({"reason": "its own", "at": "2026-11-21T00:00:00Z"});
        let own = parse(&value).unwrap();
        assert_eq!(own.stop_of(&Version::new(1, 1, 0)).unwrap().reason, "its own");
        assert_eq!(own.stop_of(&Version::new(1, 0, 5)), None);
        value["stop"] = json!({"reason": "all", "at": "2026-11-21T00:00:00Z"});
        let all = parse(&value).unwrap();
        assert_eq!(all.stop_of(&Version::new(1, 0, 5)).unwrap().reason, "all");
    }

    #[test]
    fn an_endless_document_is_refused_before_it_is_parsed() {
        let bytes = vec![b' '; usize::try_from(CHANNEL_MAX_BYTES).unwrap() + 1];
        assert!(matches!(Channel::parse(&bytes, "stable"), Err(ChannelError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = Channel::parse(&bytes, "stable");
        }

        #[test]
        fn a_safe_path_never_climbs_and_never_hides(path in "[a-zA-Z0-9./_+-]{0,40}") {
            if is_safe_path(&path) {
                prop_assert!(!path.starts_with('/') && !path.split('/').any(|s| s.is_empty() || s.starts_with('.')));
            }
        }
    }
}

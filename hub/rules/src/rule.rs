//! A rule as the hub keeps it: its source text, who it is, where it came from.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest source of one rule in bytes. The longest of the public corpus, a list of hashes, has 288 KiB.
pub const MAX_SOURCE_BYTES: usize = 512 << 10;
/// The most documents in one source (a base rule and the correlations over it).
pub const MAX_DOCUMENTS: usize = 32;
/// The deepest nesting of a rule's YAML.
pub const MAX_DEPTH: usize = 24;
/// The most YAML nodes of one source.
pub const MAX_NODES: usize = 50_000;
/// The most selections of one document.
pub const MAX_SELECTIONS: usize = 200;
/// The longest regular expression in bytes.
pub const MAX_REGEX_BYTES: usize = 2048;
/// The most regular expressions of one document.
pub const MAX_REGEXES: usize = 100;
/// The most bytes that one compiled regular expression may take, its lazily built tables aside.
pub const MAX_REGEX_COMPILED: usize = 4 << 20;
/// The most bytes that all compiled regular expressions of one source may take together. Each counts for the first of
/// 64 KiB, 256 KiB, 1 MiB and 4 MiB that it fits.
pub const MAX_SOURCE_COMPILED: usize = 32 << 20;
/// The longest window of a correlation.
pub const MAX_WINDOW: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);
/// The highest threshold of a correlation, and the most events one of its groups remembers.
pub const MAX_GROUP_ENTRIES: usize = 10_000;
/// The most sources in one set.
pub const MAX_RULES: usize = 20_000;

/// Which rule, in which of its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleKey {
    /// The rule's id in the hub: the Sigma `id` of the first document of its source.
    pub id: Uuid,
    /// Counts from 1 with every change of the source.
    pub version: u32,
}

/// Where a rule came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "name")]
pub enum Origin {
    /// The starter pack of this build: the file's name.
    Pack(String),
    /// A file of `rules.d`: its name.
    File(String),
    /// The API: the principal who wrote it.
    Api(String),
}

/// One rule: one YAML text of one or more Sigma documents that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSource {
    /// Which rule, in which version.
    pub key: RuleKey,
    /// The Sigma source: YAML, up to [`MAX_SOURCE_BYTES`].
    pub yaml: String,
    /// Where it came from.
    pub origin: Origin,
}

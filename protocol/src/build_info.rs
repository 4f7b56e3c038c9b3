//! What a binary knows about its own build.

use crate::{StateFormat, TargetTriple};
use semver::Version;
use serde::{Deserialize, Serialize};

/// The identity of one build: what `picket --version` prints and every report carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildInfo {
    /// The product version, the one number of the release.
    pub version: Version,
    /// The commit it was built from, shortened to 12 hex digits, or `unknown` outside a checkout.
    pub commit: String,
    /// The Rust target triple it was built for.
    pub target: TargetTriple,
    /// The day of the build (`YYYY-MM-DD`, UTC): `SOURCE_DATE_EPOCH` where set, so that a build is reproducible.
    pub built: String,
    /// The formats of the agent's stored state that this build reads and writes.
    pub state_format: StateFormat,
}

impl BuildInfo {
    /// `0.1.0 (0123456789ab 2026-11-21 x86_64-unknown-linux-musl)`: the text after the product's name.
    pub fn long_version(&self) -> String {
        format!("{} ({} {} {})", self.version, self.commit, self.built, self.target)
    }
}

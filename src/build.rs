//! What this build knows of itself.

use picket_protocol::{BuildInfo, StateFormat};
use semver::Version;

/// The formats of stored state that this version reads and writes. Raise `writes` whenever an older version would
/// misread what this one writes.
const STATE_FORMAT: StateFormat = StateFormat { reads_from: 1, writes: 1 };

static RELEASE_ROOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/release-root.json"));

/// This build.
pub(crate) fn info() -> BuildInfo {
    // build.rs writes both; what it writes is checked by every run of the test suite.
    let version = Version::parse(env!("BUILD_VERSION")).unwrap_or_else(|_| Version::new(0, 0, 0));
    #[expect(clippy::expect_used, reason = "a constant of the build, not input")]
    let target = env!("BUILD_TARGET").parse().expect("cargo's TARGET is a target triple");
    BuildInfo {
        version,
        commit: env!("BUILD_COMMIT").to_owned(),
        target,
        built: env!("BUILD_DAY").to_owned(),
        state_format: STATE_FORMAT,
    }
}

/// The release root that this build pins, if it pins one.
pub(crate) fn release_root() -> Option<&'static [u8]> {
    Some(RELEASE_ROOT).filter(|root| !root.is_empty())
}

/// How this product introduces itself to servers.
pub(crate) fn user_agent() -> String {
    format!("picket/{}", env!("BUILD_VERSION"))
}

//! What this build knows of itself.

use picket_protocol::{BuildInfo, StateFormat};
use semver::Version;

/// The forms of what the agent keeps, one for each state format since the first: of the store and of the queue.
///
/// The updater knows one number, the state format. Whoever changes a form adds a line here, which raises that number; a
/// line is never changed or taken away.
const STATE_FORMS: [(u32, i64); 1] = [(1, 1)];

/// The formats of stored state that this version reads and writes.
const STATE_FORMAT: StateFormat = StateFormat { reads_from: 1, writes: 1 };

const _: () = {
    assert!(STATE_FORMS.len() == STATE_FORMAT.writes as usize, "a line of STATE_FORMS is a state format");
    let (store, queue) = STATE_FORMS[STATE_FORMS.len() - 1];
    assert!(store == picket_store::SCHEMA_WRITES, "the store has another schema: add a line to STATE_FORMS");
    assert!(queue == picket_outbox::STATE_FORM, "the queue has another form: add a line to STATE_FORMS");
    let (store, queue) = STATE_FORMS[STATE_FORMAT.reads_from as usize - 1];
    assert!(
        store >= picket_store::SCHEMA_READS_FROM && queue >= picket_outbox::STATE_READS_FROM,
        "this version no longer reads the state format that STATE_FORMAT.reads_from names"
    );
};

static RELEASE_ROOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/release-root.json"));

/// The version of this build.
pub(crate) fn version() -> &'static str {
    #[cfg(feature = "faults")]
    if let Some(version) = picket_agent::stamp::version() {
        return version;
    }
    env!("BUILD_VERSION")
}

/// This build.
pub(crate) fn info() -> BuildInfo {
    // build.rs writes both; what it writes is checked by every run of the test suite.
    let version = Version::parse(version()).unwrap_or_else(|_| Version::new(0, 0, 0));
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
    format!("picket/{}", version())
}

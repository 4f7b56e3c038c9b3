//! The report of `picket self-test --json`: what a new version tells the proven one before it may run.

use crate::BuildInfo;
use serde::{Deserialize, Serialize};

/// The largest report that is read, in bytes.
pub const SELF_TEST_MAX_BYTES: u64 = 1 << 20;

/// The formats of stored state a version can live with.
///
/// The number is raised when stored state changes its form. Between neighbours the change only adds: a version reads,
/// and keeps intact, the format one above its own, so that the proven version can take back what the new one wrote. A
/// change that needs more is made in two releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateFormat {
    /// The oldest format it reads (and migrates from).
    pub reads_from: u32,
    /// The format it writes.
    pub writes: u32,
}

impl StateFormat {
    /// The newest format it can live with: the one above its own.
    pub fn reads_to(self) -> u32 {
        self.writes.saturating_add(1)
    }

    /// Whether a version with this range can start on state last written in `format`.
    pub fn can_read(self, format: u32) -> bool {
        (self.reads_from..=self.reads_to()).contains(&format)
    }
}

/// A version's report on itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTestReport {
    /// Which build answers.
    pub build: BuildInfo,
    /// Every check that ran.
    pub checks: Vec<SelfTestCheck>,
    /// The unit texts it wants to be registered with, written for the `current` link.
    #[serde(default)]
    pub units: Vec<UnitText>,
}

/// One check of a self-test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTestCheck {
    /// What was tried, for example `ed25519`.
    pub name: String,
    /// Whether it worked.
    pub ok: bool,
    /// What was found, or what went wrong.
    pub detail: String,
}

/// The text of one unit of the service manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitText {
    /// The file's name, for example `picket-agent.service`.
    pub name: String,
    /// Its whole text.
    pub text: String,
}

impl SelfTestReport {
    /// The checks that did not work.
    pub fn failures(&self) -> impl Iterator<Item = &SelfTestCheck> {
        self.checks.iter().filter(|check| !check.ok)
    }
}

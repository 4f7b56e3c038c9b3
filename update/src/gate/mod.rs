//! The gate: the proven version watches the new one and decides whether it is kept.
//!
//! [`judge`] decides, from observations, without touching anything; [`watch`] makes the observations. What the decision
//! rests on is kept as [`Evidence`] in the journal.

mod evidence;
pub(crate) mod judge;
mod probe;
mod watch;

pub(crate) use evidence::seen_checks;
pub use evidence::{Evidence, SeenCheck};
pub use probe::{HttpProbe, Probe};
pub use watch::{Gate, GateSettings, ReleaseFetch};

use picket_protocol::{CheckScope, CheckStatus, HealthReport};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the gate decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// The new version is kept.
    Pass,
    /// It is not.
    Fail {
        /// Why, in words.
        reason: String,
        /// Whose fault it is.
        fault: Fault,
    },
}

/// Whose fault a failed trial is: it decides whether and when the version is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The new version's.
    Version,
    /// The machine's or the network's: the proven version fares no better.
    Environment,
    /// Nobody's: a person or a crash ended the trial.
    Interrupted,
}

/// The proven version's health just before the trial.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// Whether it answered at all.
    pub answered: bool,
    /// Its local checks.
    pub checks: BTreeMap<String, CheckStatus>,
}

/// The local checks of a report: the only ones that can convict a version.
pub(crate) fn local_checks(report: &HealthReport) -> BTreeMap<String, CheckStatus> {
    let local = report.checks.iter().filter(|(_, check)| check.scope == CheckScope::Local);
    local.map(|(code, check)| (code.clone(), check.status)).collect()
}

impl Baseline {
    /// The baseline that a report gives; none when the proven version did not answer.
    pub fn of(report: Option<&HealthReport>) -> Self {
        report.map_or_else(Self::default, |report| Self { answered: true, checks: local_checks(report) })
    }

    /// The local checks of `now` that are worse than here. A check that this baseline does not know may warn but not
    /// fail: the new version brought it.
    pub fn worse<'c>(&self, now: &'c BTreeMap<String, CheckStatus>) -> Vec<&'c str> {
        let worse = now.iter().filter(|(code, status)| {
            let before = self.checks.get(*code).copied().unwrap_or(CheckStatus::Warn);
            **status > before
        });
        worse.map(|(code, _)| code.as_str()).collect()
    }
}

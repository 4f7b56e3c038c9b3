//! The sign of life of an agent, with what the hub must know to judge it.

use crate::event::{GapReason, Priority};
use crate::health::OverallStatus;
use jiff::Timestamp;
use semver::Version;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use uuid::Uuid;

/// A sign of life. Sent once a connection is made and then at the interval that the hub asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts from 1 in each life of the process.
    pub seq: u64,
    /// The agent's time when it was written.
    pub sent_at: Timestamp,
    /// The agent's version.
    pub version: Version,
    /// Which boot of the machine (`/proc/sys/kernel/random/boot_id`), or nothing where it cannot be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<Uuid>,
    /// When the process started.
    pub started_at: Timestamp,
    /// How it is.
    pub health: AgentHealth,
    /// The books of its last streams of events, the present one last. At most eight.
    #[serde(default)]
    pub ledgers: Vec<StreamLedger>,
    /// Its certificate.
    pub certificate: CertificateState,
    /// What its updater says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdateState>,
    /// The configuration of the hub's that it has, and what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<super::ConfigStatus>,
    /// How far its clock is ahead of the hub's, as it reckons, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
}

/// The most checks that a heartbeat tells of, and the most characters of the words of one.
pub const HEARTBEAT_MAX_CHECKS: (usize, usize) = (32, 256);
/// The most streams whose books a heartbeat tells.
pub const HEARTBEAT_MAX_LEDGERS: usize = 8;
/// The most characters of any other text of a heartbeat, such as why a renewal failed.
pub const HEARTBEAT_MAX_TEXT: usize = 1024;
/// The longest name of anything in a heartbeat, in bytes: a version, a check, a step.
const MAX_WORD: usize = 128;

impl Heartbeat {
    /// Whether it keeps to its bounds: what the hub stores of it has none of its own.
    ///
    /// # Errors
    /// The first that it does not keep to.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("a heartbeat's {what}"));
        let is_word = |text: &str| text.len() <= MAX_WORD && !text.chars().any(char::is_control);
        let is_version = |version: &Version| version.to_string().len() <= MAX_WORD;
        if !is_version(&self.version) {
            return wrong("version is too long");
        }
        let (checks, chars) = HEARTBEAT_MAX_CHECKS;
        let not_passing = &self.health.not_passing;
        if not_passing.len() > checks {
            return wrong("health tells of more than 32 checks");
        }
        if !not_passing.iter().all(|(code, words)| is_word(code) && words.chars().count() <= chars) {
            return wrong("health has a check whose name or words are too long");
        }
        if self.ledgers.len() > HEARTBEAT_MAX_LEDGERS {
            return wrong("ledgers are more than eight");
        }
        let certificate = &self.certificate;
        if !is_hex(&certificate.serial) || certificate.last_error.as_ref().is_some_and(|text| is_long(text)) {
            return wrong("certificate has a serial number that is none, or too long an error");
        }
        if let Some(update) = &self.update {
            let steps = update.running.iter().chain(&update.last);
            if !update.current.iter().all(is_version)
                || !steps.into_iter().all(|(version, word)| is_version(version) && is_word(word))
            {
                return wrong("state of the updater has too long a word");
            }
        }
        self.config.as_ref().map_or(Ok(()), super::ConfigStatus::check)
    }
}

/// Whether this is as many hexadecimal digits as a SHA-256 has, or fewer.
pub(super) fn is_hex(text: &str) -> bool {
    text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether this is longer than any text of a heartbeat may be.
pub(super) fn is_long(text: &str) -> bool {
    text.chars().count() > HEARTBEAT_MAX_TEXT
}

/// How an agent is: its health report in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHealth {
    /// Healthy or not.
    pub status: OverallStatus,
    /// The checks that do not pass, by their code, with their words. At most 32, each at most 256 characters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_passing: BTreeMap<String, String>,
}

/// The books of one stream of events, in events: `emitted = acknowledged + queued + gaps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamLedger {
    /// Which stream.
    pub boot_id: Uuid,
    /// By class.
    pub classes: BTreeMap<Priority, ClassAccount>,
    /// Missing events of which the hub has not been told yet by a gap event.
    #[serde(default)]
    pub untold: u64,
}

/// The books of one class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassAccount {
    /// What happened.
    pub emitted: u64,
    /// What the hub said it has stored.
    pub acknowledged: u64,
    /// What waits.
    pub queued: u64,
    /// What is missing, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "by_reason")]
    pub gaps: BTreeMap<GapReason, u64>,
}

/// Reads counts by reason. All reasons of later versions count together: none of them may hide another.
fn by_reason<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<GapReason, u64>, D::Error> {
    struct Counts;

    impl<'de> Visitor<'de> for Counts {
        type Value = BTreeMap<GapReason, u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("counts by reason")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut counts = BTreeMap::new();
            while let Some((reason, count)) = map.next_entry::<GapReason, u64>()? {
                let sum: &mut u64 = counts.entry(reason).or_default();
                *sum = sum.saturating_add(count);
            }
            Ok(counts)
        }
    }

    input.deserialize_map(Counts)
}

impl StreamLedger {
    /// All classes together: emitted, acknowledged, queued, missing.
    pub fn total(&self) -> (u64, u64, u64, u64) {
        self.classes.values().fold((0, 0, 0, 0), |(emitted, acknowledged, queued, gaps), class| {
            (
                emitted.saturating_add(class.emitted),
                acknowledged.saturating_add(class.acknowledged),
                queued.saturating_add(class.queued),
                class.gaps.values().fold(gaps, |sum, count| sum.saturating_add(*count)),
            )
        })
    }
}

/// The certificate with which an agent is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateState {
    /// Its serial number in hexadecimal digits.
    pub serial: String,
    /// Until when it holds.
    pub not_after: Timestamp,
    /// How often it was renewed on this machine, and how often that failed.
    #[serde(default)]
    pub renewed: u64,
    /// Why the last renewal failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// What an agent's updater says, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateState {
    /// The proven version.
    pub current: Option<Version>,
    /// The update under way: to which version, and at which step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<(Version, String)>,
    /// How the last one ended: to which version, and in which word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<(Version, String)>,
    /// When the release metadata that it trusts expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_expires: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::super::{ConfigState, ConfigStatus, Frame};
    use super::*;

    fn heartbeat() -> Heartbeat {
        Heartbeat {
            seq: 1,
            sent_at: Timestamp::UNIX_EPOCH,
            version: Version::new(1, 0, 0),
            boot_id: None,
            started_at: Timestamp::UNIX_EPOCH,
            health: AgentHealth { status: OverallStatus::Healthy, not_passing: BTreeMap::new() },
            ledgers: Vec::new(),
            certificate: CertificateState {
                serial: "0a".repeat(16),
                not_after: Timestamp::UNIX_EPOCH,
                renewed: 0,
                last_error: None,
            },
            update: None,
            config: Some(ConfigStatus {
                version: 1,
                sequence: 1,
                state: ConfigState::Applied,
                effective_sha256: "ab".repeat(32),
                errors: Vec::new(),
                needs_restart: Vec::new(),
                at: Timestamp::UNIX_EPOCH,
            }),
            clock_ahead_ms: None,
        }
    }

    fn read(change: impl FnOnce(&mut Heartbeat)) -> Result<Frame, String> {
        let mut heartbeat = heartbeat();
        change(&mut heartbeat);
        Frame::read(&Frame::Heartbeat(Box::new(heartbeat)).write())
    }

    #[test]
    fn a_heartbeat_within_its_bounds_is_read_and_one_beyond_any_of_them_is_not() {
        let check = |number: usize, words: usize| (format!("check-{number}"), "ä".repeat(words));
        read(|_| {}).unwrap();
        read(|one| one.health.not_passing = (0..32).map(|number| check(number, 256)).collect()).unwrap();
        read(|one| one.health.not_passing = (0..33).map(|number| check(number, 1)).collect()).unwrap_err();
        read(|one| one.health.not_passing = [check(1, 257)].into()).unwrap_err();
        let ledger = || StreamLedger { boot_id: Uuid::nil(), classes: BTreeMap::new(), untold: 0 };
        read(|one| one.ledgers = (0..8).map(|_| ledger()).collect()).unwrap();
        read(|one| one.ledgers = (0..9).map(|_| ledger()).collect()).unwrap_err();
        read(|one| one.certificate.serial = "\0".into()).unwrap_err();
        read(|one| one.certificate.last_error = Some("x".repeat(1025))).unwrap_err();
        read(|one| one.version.pre = semver::Prerelease::new(&"x".repeat(200)).unwrap()).unwrap_err();
        for digest in ["\0", "z", &"a".repeat(65)] {
            read(|one| one.config.as_mut().unwrap().effective_sha256 = digest.into()).unwrap_err();
        }
        read(|one| one.config.as_mut().unwrap().errors = vec![String::new(); 33]).unwrap_err();
    }

    #[test]
    fn the_reasons_of_a_later_agent_are_read_and_none_of_their_events_is_lost() {
        let account =
            r#"{"emitted": 9, "acknowledged": 1, "queued": 0, "gaps": {"bored": 3, "queue_full": 1, "tired": 4}}"#;
        let account: ClassAccount = serde_json::from_str(account).unwrap();
        assert_eq!(account.gaps, BTreeMap::from([(GapReason::QueueFull, 1), (GapReason::Unknown, 7)]));
        let text = serde_json::to_string(&account).unwrap();
        assert_eq!(serde_json::from_str::<ClassAccount>(&text).unwrap(), account);
        let ledger = StreamLedger { boot_id: Uuid::nil(), classes: [(Priority::Low, account)].into(), untold: 0 };
        read(|one| one.ledgers = vec![ledger]).unwrap();
        let mut later = serde_json::to_value(Frame::Heartbeat(Box::new(heartbeat()))).unwrap();
        later["ledgers"] = serde_json::json!([{"boot_id": Uuid::nil(), "classes": {"low": {"emitted": 1, "acknowledged": 0, "queued": 0, "gaps": {"bored": 1}}}}]);
        assert!(matches!(Frame::read(&later.to_string()), Ok(Frame::Heartbeat(_))));
    }
}

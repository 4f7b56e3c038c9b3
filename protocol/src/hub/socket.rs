//! The frames on the WebSocket between an agent and its hub: one JSON object in each text message.

use super::{ConfigStatus, Heartbeat, Signed};
use crate::versions::VersionRange;
use jiff::Timestamp;
use semver::Version;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest frame, in bytes.
pub const FRAME_MAX_BYTES: usize = 256 << 10;

/// The agent's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The versions of the wire that it understands.
    pub wire: VersionRange,
    /// Its version.
    pub version: Version,
    /// A new id for each life of the process. Two lives at once under one identity are two machines.
    pub incarnation: Uuid,
    /// Which boot of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<Uuid>,
    /// The machine's id, hashed for this product.
    #[serde(default)]
    pub machine_hint: String,
    /// Its clock.
    pub now: Timestamp,
}

/// The hub's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version of the wire that is spoken from now on.
    pub wire: u32,
    /// The hub's version.
    pub version: Version,
    /// The hub's time.
    pub hub_time: Timestamp,
    /// How often to send a heartbeat, in milliseconds.
    pub heartbeat_ms: u64,
    /// After which of these intervals to send the first one, in milliseconds: what spreads a fleet that came back at once.
    pub first_heartbeat_ms: u64,
}

/// The last frame of either side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// Why.
    pub reason: ByeReason,
    /// The whole in words, and what to do.
    pub detail: String,
    /// Not to come back before so many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByeReason {
    /// The process stops; come back.
    Draining,
    /// Too much to do; come back later.
    Overloaded,
    /// The same agent has connected anew.
    Replaced,
    /// The identity is revoked: it is lost.
    Revoked,
    /// The hub does not know the agent: the identity is lost.
    UnknownAgent,
    /// The certificate has expired: renew it.
    CertificateExpired,
    /// The certificate was renewed: come back with the new one.
    CertificateRenewed,
    /// No common version of the wire.
    WireUnsupported,
    /// The other side does not keep to the protocol.
    Protocol,
    /// Nothing was heard for too long.
    Silent,
    /// A reason of a later version.
    #[serde(other)]
    Unknown,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Frame {
    /// Agent: the first.
    Hello(Hello),
    /// Hub: the answer to it.
    Welcome(Welcome),
    /// Agent: a sign of life. Boxed: by far the largest.
    Heartbeat(Box<Heartbeat>),
    /// Hub: the heartbeat with this number is stored.
    Heard {
        /// Its number.
        seq: u64,
        /// The hub's time.
        hub_time: Timestamp,
    },
    /// Hub: a configuration to be used.
    Config(Signed),
    /// Agent: what became of it.
    ConfigStatus(ConfigStatus),
    /// Hub: renew the certificate now.
    RenewCertificate {
        /// Why, in words.
        reason: String,
    },
    /// The last.
    Bye(Bye),
    /// A kind of a later version: to be skipped.
    #[serde(other)]
    Unknown,
}

impl Frame {
    /// Reads a frame. One of an unknown kind is [`Frame::Unknown`].
    ///
    /// # Errors
    /// What is wrong with it, or which of its bounds it does not keep to; over [`FRAME_MAX_BYTES`] it is not looked at.
    pub fn read(text: &str) -> Result<Self, String> {
        if text.len() > FRAME_MAX_BYTES {
            return Err(format!("a frame of {} bytes is longer than the {FRAME_MAX_BYTES} allowed", text.len()));
        }
        match serde_json::from_str(text) {
            Ok(Self::Heartbeat(heartbeat)) => heartbeat.check().map(|()| Self::Heartbeat(heartbeat)),
            Ok(Self::ConfigStatus(status)) => status.check().map(|()| Self::ConfigStatus(status)),
            Ok(frame) => Ok(frame),
            Err(error) => match serde_json::from_str::<Kind>(text) {
                // `other` takes no members; a later version's frame has some.
                Ok(Kind { kind }) if !KNOWN.contains(&kind.as_str()) => Ok(Self::Unknown),
                _ => Err(format!("a frame cannot be read: {error}")),
            },
        }
    }

    /// The frame as text.
    pub fn write(&self) -> String {
        // Structs with string keys: nothing of it can fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Kind {
    kind: String,
}

const KNOWN: [&str; 8] =
    ["hello", "welcome", "heartbeat", "heard", "config", "config_status", "renew_certificate", "bye"];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            wire: crate::hub::WIRE,
            version: Version::new(1, 0, 0),
            incarnation: Uuid::nil(),
            boot_id: None,
            machine_hint: String::new(),
            now: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_frame_reads_back_what_it_writes() {
        for frame in [
            Frame::Hello(hello()),
            Frame::Heard { seq: 3, hub_time: Timestamp::UNIX_EPOCH },
            Frame::RenewCertificate { reason: "an authority was replaced".into() },
            Frame::Bye(Bye { reason: ByeReason::Draining, detail: "stopping".into(), retry_after_ms: Some(5) }),
        ] {
            assert_eq!(Frame::read(&frame.write()), Ok(frame));
        }
    }

    #[test]
    fn what_a_later_version_adds_is_skipped_and_what_is_broken_is_not() {
        assert_eq!(Frame::read(r#"{"kind": "dance", "steps": 3}"#), Ok(Frame::Unknown));
        assert_eq!(Frame::read(r#"{"kind": "dance"}"#), Ok(Frame::Unknown));
        let mut later = serde_json::to_value(Frame::Hello(hello())).unwrap();
        later["colour"] = "blue".into();
        assert_eq!(Frame::read(&later.to_string()), Ok(Frame::Hello(hello())));
        let bye = Frame::read(r#"{"kind": "bye", "reason": "bored", "detail": ""}"#);
        assert!(matches!(bye, Ok(Frame::Bye(Bye { reason: ByeReason::Unknown, .. }))), "{bye:?}");
        assert!(Frame::read(r#"{"kind": "hello"}"#).is_err());
        assert!(Frame::read("[]").is_err());
        assert!(Frame::read(&format!("\"{}\"", "x".repeat(FRAME_MAX_BYTES))).is_err());
    }

    #[test]
    fn every_kind_is_known_by_its_name() {
        for kind in KNOWN {
            let text = format!(r#"{{"kind": "{kind}", "impossible": true}}"#);
            // All have members, so this is an error, and not a kind of a later version.
            assert!(Frame::read(&text).is_err(), "{kind}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,300}") {
            let _ = Frame::read(&text);
        }
    }
}

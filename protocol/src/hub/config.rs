//! Configuration that a hub gives, and what became of it; and the signature under everything that a hub tells an agent to do.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A document that the hub's command key signed. What is signed is the payload's very bytes, so nobody has to write the same
/// JSON twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// What it is, for example `config`. Signed, too: a document cannot be passed off as one of another kind.
    pub purpose: String,
    /// The document, in JSON.
    pub payload: String,
    /// The signature (Ed25519, RFC 8032) over [`Signed::message`], in base64.
    pub signature: String,
}

/// Why a signed document is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// The signature is not the hub's.
    #[error("the hub's signature under it does not hold")]
    Signature,
    /// It is another kind of document.
    #[error("it is a {found}, not a {expected}")]
    Purpose {
        /// What was expected.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// It is for another agent.
    #[error("it is for another agent")]
    Audience,
    /// A newer one is in force.
    #[error("it is older than the one in force ({in_force})")]
    Older {
        /// The sequence number in force.
        in_force: u64,
    },
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Malformed(String),
}

impl Signed {
    /// The bytes that are signed: a word of this protocol's, the purpose and the payload, each ended by a zero byte or by the
    /// end.
    pub fn message(purpose: &str, payload: &str) -> Vec<u8> {
        [b"picket-hub-1", purpose.as_bytes(), payload.as_bytes()].join(&0)
    }
}

/// A configuration for one agent: the payload of a [`Signed`] of purpose `config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigDocument {
    /// For whom.
    pub agent_id: Uuid,
    /// Grows with each document for this agent: an older one is never taken after a newer one.
    pub sequence: u64,
    /// Which version of the hub's configuration it is.
    pub version: u64,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// Keys (dotted) and values. Only keys that a hub may set are taken; others are refused and told.
    pub settings: BTreeMap<String, serde_json::Value>,
}

impl ConfigDocument {
    /// The purpose under which it is signed.
    pub const PURPOSE: &'static str = "config";
}

/// What became of a configuration of the hub's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Which version.
    pub version: u64,
    /// Its sequence number.
    pub sequence: u64,
    /// Whether it is in force.
    pub state: ConfigState,
    /// The SHA-256 of the whole configuration in force, from all sources, in hexadecimal digits.
    pub effective_sha256: String,
    /// What was wrong with it, at most 32 lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// Keys that take effect at the next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs_restart: Vec<String>,
    /// When that was.
    pub at: Timestamp,
}

impl ConfigStatus {
    /// Whether it keeps to its bounds.
    ///
    /// # Errors
    /// The first that it does not keep to.
    pub fn check(&self) -> Result<(), String> {
        use super::heartbeat::{is_hex, is_long};
        let wrong = |what: &str| Err(format!("the state of a configuration: {what}"));
        if !is_hex(&self.effective_sha256) {
            return wrong("its digest is no SHA-256 in hexadecimal digits");
        }
        if self.errors.len() > 32 || self.needs_restart.len() > 32 {
            return wrong("it has more than 32 lines");
        }
        if self.errors.iter().chain(&self.needs_restart).any(|line| is_long(line)) {
            return wrong("it has a line that is too long");
        }
        Ok(())
    }
}

/// Whether a configuration of the hub's is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigState {
    /// It is in force, but for keys that need a restart.
    Applied,
    /// It was refused as a whole; the one before is in force.
    Refused,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

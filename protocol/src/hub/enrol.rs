//! Becoming an agent of a hub, and staying one: enrolment and certificates.

use crate::event::EventId;
use jiff::Timestamp;
use semver::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// What a machine says of itself. Hints for people, and for telling copies of a machine apart; nothing is decided by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its host name.
    pub hostname: String,
    /// `linux`, `macos`, `windows`.
    pub os: String,
    /// `x86_64`, `aarch64`, ….
    pub arch: String,
    /// The machine's id, hashed for this product. Copies of an image may have the same.
    pub machine_hint: String,
    /// Anything else worth showing, for example the distribution.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
}

/// A clock, as a side of the wire sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// The sender's time when it wrote this.
    pub now: Timestamp,
}

/// `POST /agent/v1/enroll`, without a client certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// Which token.
    pub token_id: Uuid,
    /// Its secret, in base64url.
    pub secret: String,
    /// The request for a certificate (RFC 2986) in DER and base64: the machine's own key, and nothing else is taken from it.
    pub csr: String,
    /// The name that the machine would like to be shown by.
    pub name: String,
    /// What the machine is for: the agent's type, for example `server`.
    #[serde(default)]
    pub agent_type: String,
    /// Its version.
    pub version: Version,
    /// What it says of itself.
    pub machine: Machine,
    /// Which stream of events it begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<EventId>,
    /// Its clock.
    pub clock: Clock,
}

impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolRequest")
            .field("token_id", &self.token_id)
            .field("name", &self.name)
            .field("version", &self.version)
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}

/// The answer to [`EnrolRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum EnrolAnswer {
    /// It is an agent now.
    Enrolled(Enrolled),
    /// A person has to say yes first.
    Pending(Pending),
}

/// A machine that became an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Who it is.
    pub agent_id: Uuid,
    /// To which tenant it belongs: its number.
    pub tenant_id: i32,
    /// The name under which it is shown.
    pub name: String,
    /// Its certificate with those behind it.
    #[serde(flatten)]
    pub certificate: CertificateAnswer,
}

/// A machine that waits for approval. It asks again with the same key and token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// After how many seconds to ask again.
    pub retry_after: u64,
    /// Until when the request waits.
    pub expires_at: Timestamp,
    /// The key's fingerprint, which the person who approves can compare.
    pub fingerprint: String,
}

/// `POST /agent/v1/certificate`, with the present certificate, or with one that expired within the grace period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// The request (RFC 2986) in DER and base64, for a new key or for the present one.
    pub csr: String,
    /// Why: `due`, `forced`, `expired`, `asked` (by the hub). For the log.
    #[serde(default)]
    pub reason: String,
    /// The agent's clock.
    pub clock: Clock,
}

/// A certificate, and what it is checked with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateAnswer {
    /// The certificate and the intermediates behind it, in PEM.
    pub certificate: String,
    /// The roots in force, in PEM: two while one replaces the other.
    pub authorities: String,
    /// The public key with which the hub signs configurations and commands: Ed25519, 32 bytes in base64.
    pub command_key: String,
    /// The hub's time.
    pub hub_time: Timestamp,
    /// Where the hub hears agents, if that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
}

/// `GET /agent/v1/whoami`: whom the hub takes one for. Answered with and without a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoAmI {
    /// The agent, if the certificate is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<Uuid>,
    /// Whether this agent may deliver and connect; if not, `refusal` says why.
    pub authorized: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<super::Problem>,
    /// Until when the certificate holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires: Option<Timestamp>,
    /// The hub's version.
    pub hub_version: Version,
    /// The hub's time.
    pub hub_time: Timestamp,
    /// The versions of the wire that the hub understands.
    pub wire: crate::versions::VersionRange,
    /// From which address the hub sees one.
    pub address: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_of_a_token_is_not_shown() {
        let request = EnrolRequest {
            token_id: Uuid::nil(),
            secret: "hidden-secret".into(),
            csr: String::new(),
            name: "web-1".into(),
            agent_type: String::new(),
            version: Version::new(1, 0, 0),
            machine: Machine {
                hostname: "web-1".into(),
                os: "linux".into(),
                arch: "x86_64".into(),
                machine_hint: String::new(),
                facts: BTreeMap::new(),
            },
            stream: None,
            clock: Clock { now: Timestamp::UNIX_EPOCH },
        };
        assert!(!format!("{request:?}").contains("hidden-secret"));
    }
}

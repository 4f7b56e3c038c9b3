//! The hub's own keys: made once, kept in one folder, never overwritten.
//!
//! ```text
//! root.crt  root.key            the root; its key may be taken away to a safe once there is an intermediate
//! intermediate.crt  .key        signs leaves
//! hub.crt  hub.key              shown to whoever connects; renewed by the hub itself
//! command.key                   signs configurations and commands (Ed25519)
//! seal.key                      seals what the database keeps secret: the keys that sign people's tokens
//! previous-root.crt, …         while one root replaces another: the authorities before, next-… those that take their place
//! new-….crt, new-….key          a pair that was made and not put in place yet
//! revoked.jsonl                 what was taken back, for a database that is restored
//! machines-enrolled             that machines know these keys: no other may be made in their place
//! accept-database               that keys and database are meant as they are; gone once it was read
//! ```
//!
//! Every key is a file of mode 0600 in a folder of mode 0700. Replicas of one hub have the same folder.

mod folder;
mod init;
mod pair;
mod revocations;
mod roll;
mod tls;

pub use folder::{KeysError, KeysFolder};
pub use init::{InitReport, Made};
pub use revocations::{REVOKED, Recorded, RevocationLog};
pub use roll::Rolled;
pub use tls::{AgentVerifier, HotCertificate, agent_server, people_server};

use ed25519_dalek::{Signer as _, SigningKey};
use picket_pki::{Authority, Certificate, PrivateKey, SpkiPin};
use picket_protocol::hub::Signed;

/// The keys, loaded.
pub struct Keys {
    /// The roots in force: the present one first, then the one that it replaces.
    pub roots: Vec<Certificate>,
    /// What signs leaves.
    pub intermediate: Authority,
    /// While one root replaces another: what signed leaves before, and still signs the hub's own.
    pub previous: Option<Authority>,
    /// The hub's certificate and key.
    pub hub: (Certificate, PrivateKey),
    /// Where is written down what was taken back.
    pub revocations: RevocationLog,
    command: SigningKey,
}

impl Keys {
    /// By which keys machines know this hub.
    pub fn pins(&self) -> Vec<SpkiPin> {
        self.roots.iter().map(|root| root.pin).collect()
    }

    /// What the hub shows in a handshake: its certificate, the intermediates and the roots, so that a machine that knows
    /// only a pin can check the rest. While one root replaces another, the old one vouches: every agent knows that.
    pub fn hub_chain(&self) -> Vec<Certificate> {
        let mut chain = self.agent_chain(self.hub.0.clone());
        chain.extend(self.roots.iter().cloned());
        chain
    }

    /// What signs the hub's own certificate.
    pub fn hub_issuer(&self) -> &Authority {
        self.previous.as_ref().unwrap_or(&self.intermediate)
    }

    /// The chain of an agent whose certificate is `leaf`.
    pub fn agent_chain(&self, leaf: Certificate) -> Vec<Certificate> {
        let mut chain = vec![leaf, self.intermediate.certificate().clone()];
        chain.extend(self.previous.as_ref().map(|previous| previous.certificate().clone()));
        chain
    }

    /// The public key under which [`Keys::sign`] signs, in base64.
    pub fn command_key(&self) -> String {
        crate::encode(self.command.verifying_key().as_bytes())
    }

    /// Signs a document for an agent.
    pub fn sign(&self, purpose: &str, payload: String) -> Signed {
        let signature = self.command.sign(&Signed::message(purpose, &payload));
        Signed { purpose: purpose.to_owned(), payload, signature: crate::encode(&signature.to_bytes()) }
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("pins", &self.pins()).finish_non_exhaustive()
    }
}

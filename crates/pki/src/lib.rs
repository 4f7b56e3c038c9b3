//! Keys, certificates and enrolment tokens: who a machine is, and who its hub is.
//!
//! - The hub has two authorities: a **root**, which signs nothing but authorities and can lie in a safe, and an
//!   **intermediate**, which signs leaves and is replaced without the machines noticing.
//! - A machine knows its hub by **pins**: the SHA-256 of the root's public key (SPKI, RFC 7469 §2.4). Hub certificates come and
//!   go; while the root is replaced, two pins hold.
//! - A machine makes its own key and asks for a certificate (CSR, RFC 2986). Whose certificate it becomes is said by the
//!   enrolment token, never by the request: [`Authority::agent`] takes nothing from it but the public key.
//! - Everything here is a function of its arguments: nothing reads a clock or a file.
//!
//! Keys are ECDSA P-256 (FIPS 186-5), the one kind that every TLS library in use accepts.

mod authority;
mod certificate;
mod check;
mod identity;
mod key;
mod pin;
mod token;

pub use authority::{Authority, HubNames, LEAF_DAYS, SKEW};
pub use certificate::{
    Certificate, MAX_CHAIN, MAX_PEM_BYTES, certificate_to_pem, certificates_from_pem, certificates_to_pem,
};
pub use check::{ChainError, ChainPolicy, Renewal, check_agent_chain, check_hub_chain, renewal};
pub use identity::AgentIdentity;
pub use key::{CsrKey, PrivateKey};
pub use pin::SpkiPin;
pub use token::{EnrolmentToken, TOKEN_PREFIX, TokenError, secret_hash};

/// What is wrong with a key, a certificate or a request.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The bytes are not what they should be.
    #[error("{what} cannot be read: {detail}")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// Why, in the parser's words.
        detail: String,
    },
    /// It is longer than anything of this kind.
    #[error("{what} is longer than {limit} bytes")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The key is of a kind that is not used here.
    #[error("the key is not ECDSA P-256; make a new one with picket enroll")]
    WrongKey,
    /// The certificate is for another key.
    #[error("the certificate and the key do not belong together")]
    KeyMismatch,
    /// It could not be made.
    #[error("{what} could not be made: {detail}")]
    Unmakable {
        /// What.
        what: &'static str,
        /// Why.
        detail: String,
    },
}

impl PkiError {
    pub(crate) fn malformed(what: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::Malformed { what, detail: detail.to_string() }
    }

    pub(crate) fn unmakable(what: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::Unmakable { what, detail: detail.to_string() }
    }
}

//! Enrolment: tokens that let a machine in, who used them, and who waits for approval.

use crate::basics::words;
use crate::certificates::NewCertificate;
use crate::{Page, PageRequest, Result, Sha256, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use uuid::Uuid;

/// How long the answer to an enrolment may be fetched again by the same key.
pub const REPLAY_WINDOW: Duration = Duration::from_secs(600);

/// A token. The secret itself is never here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolToken {
    /// Its id, which is part of the token.
    pub id: Uuid,
    /// The SHA-256 of its secret.
    pub secret_hash: Hidden32,
    /// What it is for, in the operator's words.
    pub label: String,
    /// The tags that whoever enrols with it gets.
    pub tags: BTreeSet<String>,
    /// How often it may be used.
    pub max_uses: u32,
    /// How often it was used.
    pub uses: u32,
    /// Who uses it waits for approval.
    pub needs_approval: bool,
    /// From which addresses it may be used; empty means from all.
    pub allowed: Vec<Network>,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// Until when it may be used.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A digest of a secret, which is not shown either.
pub type Hidden32 = crate::Hidden<Sha256>;

/// A new token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEnrolToken {
    /// As in [`EnrolToken`].
    pub id: Uuid,
    /// The SHA-256 of its secret.
    pub secret_hash: Hidden32,
    /// What it is for.
    pub label: String,
    /// The tags that whoever enrols with it gets.
    pub tags: BTreeSet<String>,
    /// How often it may be used, at least once.
    pub max_uses: u32,
    /// Who uses it waits for approval.
    pub needs_approval: bool,
    /// From which addresses it may be used; empty means from all.
    pub allowed: Vec<Network>,
    /// By whom it is made.
    pub created_by: String,
    /// Until when it may be used.
    pub expires_at: Timestamp,
}

/// Addresses with the same first bits (CIDR, RFC 4632 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The address; bits after the prefix do not count.
    pub address: IpAddr,
    /// How many bits must agree.
    pub prefix: u8,
}

impl Network {
    /// Whether `address` is one of them. An IPv4 address within IPv6 (RFC 4291 §2.5.5.2) counts as the IPv4 one.
    pub fn holds(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address.to_canonical() {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        let ((own, width), (other, other_width)) = (bits(self.address), bits(address));
        let kept = u32::from(self.prefix).min(width);
        width == other_width && (kept == 0 || (own ^ other) >> (128 - kept) == 0)
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl std::str::FromStr for Network {
    type Err = crate::DbError;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || crate::DbError::invalid("read a network", "it is not of the form 192.0.2.0/24 or 2001:db8::/32");
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(width), |p| p.parse().ok()).filter(|p| *p <= width).ok_or_else(wrong)?;
        Ok(Self { address, prefix })
    }
}

/// A machine asks to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolRequest {
    /// The id in its token.
    pub token: Uuid,
    /// The SHA-256 of the secret in its token.
    pub secret_hash: Hidden32,
    /// When it asks, by the hub's clock.
    pub now: Timestamp,
    /// From where.
    pub address: IpAddr,
    /// What the machine calls itself: the agent's first name.
    pub name: String,
    /// What kind of machine or duty.
    pub kind: String,
    /// What it wants signed, PEM: kept while it waits for approval.
    pub csr: String,
    /// The certificate it gets if it is let in now. It names the id that the agent gets and the key that asks.
    pub certificate: NewCertificate,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnrolOutcome {
    /// It is let in: the agent is made, the certificate stored, the use counted, all in one transaction.
    New {
        /// The agent: the one that the request's certificate names.
        agent: Uuid,
    },
    /// The same key was let in less than [`REPLAY_WINDOW`] ago, or its approval was not fetched yet: here is what was
    /// stored then. Nothing was counted.
    Replay {
        /// The agent.
        agent: Uuid,
        /// Its certificate's serial number.
        serial: String,
        /// Its certificate, PEM.
        pem: String,
    },
    /// It waits for approval; asked again with the same key it waits on. The use is counted.
    PendingApproval {
        /// Under which id it waits.
        enrolment: Uuid,
    },
    /// It waited, and was refused.
    Denied,
    /// The token's time is over.
    Expired {
        /// Since when.
        at: Timestamp,
    },
    /// The token was used as often as it may be.
    UsedUp,
    /// The token was revoked.
    Revoked,
    /// There is no such token, or its secret is another one.
    Unknown,
    /// The token may not be used from there.
    AddressRefused,
}

words! {
    /// Where an enrolment stands.
    EnrolmentState {
        /// It waits for approval.
        Pending = "pending",
        /// It was let in: at once, or by an operator.
        Accepted = "accepted",
        /// An operator refused it.
        Denied = "denied",
        /// Nobody decided in time.
        Expired = "expired",
    }
}

/// One use of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// Its id.
    pub id: Uuid,
    /// Which token.
    pub token: Uuid,
    /// Where it stands.
    pub state: EnrolmentState,
    /// The agent it became.
    pub agent: Option<Uuid>,
    /// The SHA-256 of its key.
    pub key_hash: Sha256,
    /// What the machine calls itself.
    pub name: String,
    /// What kind of machine or duty.
    pub kind: String,
    /// From where it asked.
    pub address: String,
    /// What it wants signed, PEM; empty once it is decided.
    pub csr: String,
    /// The serial number of the certificate it got.
    pub serial: Option<String>,
    /// When it asked first.
    pub asked_at: Timestamp,
    /// When it was decided.
    pub decided_at: Option<Timestamp>,
    /// By whom, if by an operator.
    pub decided_by: Option<String>,
}

/// What is kept of enrolment.
#[async_trait]
pub trait Enrolment {
    /// Makes a token.
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when the id is taken.
    async fn create_enrol_token(&self, tenant: TenantId, token: &NewEnrolToken, now: Timestamp) -> Result<EnrolToken>;

    /// The token with this id.
    async fn enrol_token(&self, tenant: TenantId, id: Uuid) -> Result<Option<EnrolToken>>;

    /// Tokens, the newest first: all, or those `within` these tags, which have one of them.
    async fn enrol_tokens(
        &self,
        tenant: TenantId,
        within: Option<&BTreeSet<String>>,
        page: &PageRequest,
    ) -> Result<Page<EnrolToken>>;

    /// Revokes a token; says whether it was not yet. Who was let in with it stays.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`].
    async fn revoke_enrol_token(&self, tenant: TenantId, id: Uuid, now: Timestamp) -> Result<bool>;

    /// Lets a machine in, or says why not: in one transaction with the token's row locked, so that a token is never used
    /// more often than it may be. A replay is looked for before anything about the token but its secret and its
    /// revocation: a token that was used up by this very key is no refusal.
    async fn consume_token(&self, tenant: TenantId, request: &EnrolRequest) -> Result<EnrolOutcome>;

    /// Uses of tokens in this state, or all, the newest first.
    async fn enrolments(
        &self,
        tenant: TenantId,
        state: Option<EnrolmentState>,
        page: &PageRequest,
    ) -> Result<Page<Enrolled>>;

    /// One use of a token.
    async fn enrolment(&self, tenant: TenantId, id: Uuid) -> Result<Option<Enrolled>>;

    /// Lets in one that waits: makes the agent that the certificate names and stores the certificate, which the machine
    /// gets when it asks again.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`]; [`crate::DbError::Conflict`] when it does not wait (any more);
    /// [`crate::DbError::Invalid`] when the certificate is for another key.
    async fn approve_enrolment(
        &self,
        tenant: TenantId,
        id: Uuid,
        certificate: &NewCertificate,
        by: &str,
        now: Timestamp,
    ) -> Result<()>;

    /// Refuses one that waits.
    ///
    /// # Errors
    /// As [`Enrolment::approve_enrolment`].
    async fn deny_enrolment(&self, tenant: TenantId, id: Uuid, by: &str, now: Timestamp) -> Result<()>;

    /// Marks as expired what waits since before `before`; says how many.
    async fn expire_enrolments(&self, tenant: TenantId, before: Timestamp, now: Timestamp) -> Result<u64>;
}

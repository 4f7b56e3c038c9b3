//! Certificates: which were issued to whom, and which are void.

use crate::{Page, PageRequest, Result, Sha256, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

/// A certificate that was issued. Its serial number is unique in the tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// What was issued.
    pub issued: NewCertificate,
    /// When a newer one took its place. It still works until it ends.
    pub superseded_at: Option<Timestamp>,
    /// When and why it was made void.
    pub revoked: Option<Revocation>,
}

/// A certificate as it is issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCertificate {
    /// The serial number in lower-case hexadecimal digits.
    pub serial: String,
    /// Whose identity it is.
    pub agent: Uuid,
    /// The SHA-256 of its public key (SPKI, RFC 5280 §4.1.2.7).
    pub key_hash: Sha256,
    /// Which authority issued it: the key identifier of the intermediate.
    pub issuer: String,
    /// The certificate, PEM (RFC 7468).
    pub pem: String,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// When it was issued.
    pub issued_at: Timestamp,
}

/// When and why a certificate was made void.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// When.
    pub at: Timestamp,
    /// Why: a word of RFC 5280 §5.3.1 or the operator's.
    pub reason: String,
    /// By whom.
    pub by: String,
}

/// A certificate that is void, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number.
    pub serial: String,
    /// Whose it was.
    pub agent: Uuid,
    /// When it would have ended by itself.
    pub not_after: Timestamp,
    /// When and why.
    pub revocation: Revocation,
}

/// What is kept of certificates.
#[async_trait]
pub trait Certificates {
    /// Notes one that was issued.
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when the serial number is taken.
    async fn insert_certificate(&self, tenant: TenantId, certificate: &NewCertificate) -> Result<()>;

    /// Notes one that takes the place of `previous`, in one transaction.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`] when `previous` is not one of the same agent; [`crate::DbError::Conflict`] when it is
    /// revoked, when the agent is retired, or when the serial number is taken.
    async fn renew_certificate(&self, tenant: TenantId, certificate: &NewCertificate, previous: &str) -> Result<()>;

    /// The one with this serial number.
    async fn certificate(&self, tenant: TenantId, serial: &str) -> Result<Option<Certificate>>;

    /// Those of an agent, the newest first.
    async fn certificates_of(&self, tenant: TenantId, agent: Uuid, page: &PageRequest) -> Result<Page<Certificate>>;

    /// Those that were issued for this key, to whomever, the newest first; at most 100.
    async fn certificates_by_key(&self, tenant: TenantId, key_hash: &Sha256) -> Result<Vec<Certificate>>;

    /// Those in force (neither superseded nor revoked) that end before `before`, the first to end first.
    async fn certificates_ending(&self, tenant: TenantId, before: Timestamp, limit: u32) -> Result<Vec<Certificate>>;

    /// Those in force of agents that are not retired, which another authority than `issuer` signed and which end at `since` or
    /// later; the first to end first.
    async fn certificates_of_others(
        &self,
        tenant: TenantId,
        issuer: &str,
        since: Timestamp,
        page: &PageRequest,
    ) -> Result<Page<Certificate>>;

    /// Makes one void; says whether it was not yet. The first reason stays.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`].
    async fn revoke_certificate(&self, tenant: TenantId, serial: &str, revocation: &Revocation) -> Result<bool>;

    /// Makes all certificates of an agent void; gives the serial numbers of those that were not yet.
    async fn revoke_certificates_of(
        &self,
        tenant: TenantId,
        agent: Uuid,
        revocation: &Revocation,
    ) -> Result<Vec<String>>;

    /// What was made void at `since` or later, the earliest first. Whoever polls this lets `since` overlap by as much as
    /// the clocks of replicas may differ.
    async fn revocations(&self, tenant: TenantId, since: Timestamp, page: &PageRequest) -> Result<Page<Revoked>>;
}

//! The hub's own audit log: a chain of hashes, appended by comparing.

use crate::{Page, PageRequest, Result, Sha256, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

/// The last link of the chain. Before the first entry: sequence 0 and a hash of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AuditHead {
    /// Its number, from 1 without holes.
    pub seq: i64,
    /// Its hash.
    pub hash: Sha256,
}

/// An entry to append. Its hash is the caller's business: over the previous one and `record`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAuditEntry {
    /// When.
    pub at: Timestamp,
    /// Who, for searching.
    pub actor: String,
    /// What they did, for searching.
    pub action: String,
    /// To what, for searching.
    pub object: String,
    /// The entry itself: text, kept to the byte.
    pub record: String,
    /// Its hash.
    pub hash: Sha256,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its number.
    pub seq: i64,
    /// The hash of the entry before it.
    pub previous: Sha256,
    /// The entry.
    pub entry: NewAuditEntry,
}

/// Which entries; none of a field means any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditFilter {
    /// Of this actor.
    pub actor: Option<String>,
    /// This action.
    pub action: Option<String>,
    /// Of this object.
    pub object: Option<String>,
    /// Then or later.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
}

/// What is kept of the audit log. Nothing of it is ever changed or removed here.
#[async_trait]
pub trait Audit {
    /// The last link.
    async fn audit_head(&self, tenant: TenantId) -> Result<AuditHead>;

    /// Appends entries, each linked to the one before, if `expected` is still the last link; gives the new one.
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when somebody else appended: take the new head, hash anew, try again.
    async fn audit_append(
        &self,
        tenant: TenantId,
        expected: &AuditHead,
        entries: &[NewAuditEntry],
    ) -> Result<AuditHead>;

    /// Those that match, the latest first.
    async fn audit_entries(
        &self,
        tenant: TenantId,
        filter: &AuditFilter,
        page: &PageRequest,
    ) -> Result<Page<AuditEntry>>;

    /// Those after number `after`, in order, to verify the chain: at most `limit`.
    async fn audit_scan(&self, tenant: TenantId, after: i64, limit: u32) -> Result<Vec<AuditEntry>>;
}

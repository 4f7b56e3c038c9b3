//! Permissions: who may do what, everywhere or on agents with a tag.

use crate::{Page, PageRequest, Result, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

/// One permission.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    /// Who: `user:<id>`, `token:<id>`, `role:<name>`; opaque here.
    pub principal: String,
    /// What: an action's name, or `*`; opaque here.
    pub action: String,
    /// On agents with this tag only; none for everywhere.
    pub tag: Option<String>,
}

/// A permission, and who gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The permission.
    pub permission: Permission,
    /// When it was given.
    pub granted_at: Timestamp,
    /// By whom.
    pub granted_by: String,
}

/// What is kept of permissions.
#[async_trait]
pub trait Permissions {
    /// Gives a permission; says whether it was not there yet.
    async fn grant(&self, tenant: TenantId, permission: &Permission, by: &str, now: Timestamp) -> Result<bool>;

    /// Takes a permission back; says whether it was there.
    async fn revoke(&self, tenant: TenantId, permission: &Permission) -> Result<bool>;

    /// All that a principal may; at most [`crate::PAGE_MAX`].
    async fn permissions_of(&self, tenant: TenantId, principal: &str) -> Result<Vec<Permission>>;

    /// All there are, by principal, action and tag.
    async fn grants(&self, tenant: TenantId, page: &PageRequest) -> Result<Page<Grant>>;
}

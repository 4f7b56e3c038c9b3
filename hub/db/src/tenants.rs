//! Tenants: whose data it is. A hub has one, and keys that are ready for more.

use crate::{Result, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its number.
    pub id: TenantId,
    /// What people call it.
    pub name: String,
    /// Since when.
    pub created_at: Timestamp,
}

/// What is kept of tenants.
#[async_trait]
pub trait Tenants {
    /// Makes [`TenantId::DEFAULT`] unless it is there. Everything else needs it to be there.
    async fn ensure_default_tenant(&self, now: Timestamp) -> Result<Tenant>;

    /// Makes one more.
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when one has that name.
    async fn create_tenant(&self, name: &str, now: Timestamp) -> Result<Tenant>;

    /// All of them, by number.
    async fn tenants(&self) -> Result<Vec<Tenant>>;
}

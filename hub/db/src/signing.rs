//! Signing keys: what the hub signs tokens with. The private half is sealed before it comes here.

use crate::{Hidden, Result, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

/// A key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// Its id (`kid`); unique in the tenant.
    pub kid: String,
    /// What it signs: `jwt`, `command`; opaque here.
    pub purpose: String,
    /// The public half.
    pub public: Vec<u8>,
    /// The private half, sealed.
    pub sealed: Hidden<Vec<u8>>,
    /// Since when it signs.
    pub created_at: Timestamp,
    /// When it stops to be believed; none while it is the one that signs.
    pub retires_at: Option<Timestamp>,
}

/// What is kept of signing keys.
#[async_trait]
pub trait SigningKeys {
    /// Adds a key. With `retire_others`, every other key of its purpose that has no end yet ends then, in the same
    /// transaction: one key signs at a time.
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when the kid is taken.
    async fn add_signing_key(&self, tenant: TenantId, key: &SigningKey, retire_others: Option<Timestamp>)
    -> Result<()>;

    /// All keys of a purpose, the newest first; at most 100.
    async fn signing_keys(&self, tenant: TenantId, purpose: &str) -> Result<Vec<SigningKey>>;

    /// Removes keys that ended before `before`; says how many.
    async fn delete_signing_keys(&self, tenant: TenantId, before: Timestamp) -> Result<u64>;
}

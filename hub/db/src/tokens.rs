//! API tokens: what programs sign in with. Kept by hash.

use crate::{Hidden, Page, PageRequest, Result, Sha256, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiToken {
    /// Its id.
    pub id: Uuid,
    /// The SHA-256 of the token; unique in the tenant.
    pub hash: Hidden<Sha256>,
    /// What it is for.
    pub name: String,
    /// For whom it acts: a principal as in permissions, `user:<id>` or `token:<id>` for one of its own.
    pub principal: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When it ends; none for never.
    pub expires_at: Option<Timestamp>,
    /// When it was used last, roughly.
    pub last_used: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// What is kept of API tokens.
#[async_trait]
pub trait ApiTokens {
    /// Makes one. `last_used` and `revoked_at` are not read.
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when the id or the hash is taken.
    async fn create_api_token(&self, tenant: TenantId, token: &ApiToken) -> Result<()>;

    /// The one with this hash, whether in force or not.
    async fn api_token_by_hash(&self, tenant: TenantId, hash: &Sha256) -> Result<Option<ApiToken>>;

    /// The one with this id, whether in force or not.
    async fn api_token(&self, tenant: TenantId, id: Uuid) -> Result<Option<ApiToken>>;

    /// Those of a principal, or all, the newest first.
    async fn api_tokens(&self, tenant: TenantId, principal: Option<&str>, page: &PageRequest)
    -> Result<Page<ApiToken>>;

    /// Notes when each was used last; unknown ones are passed over.
    async fn api_tokens_used(&self, tenant: TenantId, used: &[(Uuid, Timestamp)]) -> Result<()>;

    /// Revokes one; says whether it was not yet.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`].
    async fn revoke_api_token(&self, tenant: TenantId, id: Uuid, now: Timestamp) -> Result<bool>;
}

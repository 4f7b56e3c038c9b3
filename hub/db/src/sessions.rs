//! Sessions: who is signed in with a browser. Kept by hash, so that a copy of the database signs nobody in.

use crate::{Hidden, Result, Sha256, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

/// Somebody who is signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The SHA-256 of the cookie's value.
    pub id_hash: Hidden<Sha256>,
    /// Who.
    pub user: Uuid,
    /// The SHA-256 of the token against forged requests (CSRF).
    pub csrf_hash: Hidden<Sha256>,
    /// From where they signed in.
    pub address: String,
    /// With what: the browser's own words, cut by whoever writes this.
    pub user_agent: String,
    /// Since when.
    pub created_at: Timestamp,
    /// When it was used last.
    pub last_used: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// What is kept of sessions.
#[async_trait]
pub trait Sessions {
    /// Begins one.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`] when there is no such person; [`crate::DbError::Conflict`] when the hash is taken.
    async fn create_session(&self, tenant: TenantId, session: &Session) -> Result<()>;

    /// The one with this hash, unless it ended before `now`.
    async fn session(&self, tenant: TenantId, id_hash: &Sha256, now: Timestamp) -> Result<Option<Session>>;

    /// Notes that it was used, and when it ends now; says whether it is there.
    async fn touch_session(
        &self,
        tenant: TenantId,
        id_hash: &Sha256,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool>;

    /// Those of a person that did not end before `now`, the newest first; at most [`crate::PAGE_MAX`].
    async fn sessions_of(&self, tenant: TenantId, user: Uuid, now: Timestamp) -> Result<Vec<Session>>;

    /// Ends one; says whether it was there.
    async fn delete_session(&self, tenant: TenantId, id_hash: &Sha256) -> Result<bool>;

    /// Ends all of a person, but for `except`; says how many.
    async fn delete_sessions_of(&self, tenant: TenantId, user: Uuid, except: Option<&Sha256>) -> Result<u64>;
}

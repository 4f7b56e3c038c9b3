//! Settings: small values that belong to the hub as a whole, each under a key.

use crate::{Result, Revision, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

/// The longest value in bytes.
pub const SETTING_MAX_BYTES: usize = 1 << 20;

/// A value under its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// The value: bytes, whatever they mean to the one who wrote them.
    pub value: Vec<u8>,
    /// Which state of it this is; 1 for the first.
    pub revision: Revision,
    /// When it was written last.
    pub updated_at: Timestamp,
}

/// What is kept of settings.
#[async_trait]
pub trait Settings {
    /// The value under `key`.
    async fn setting(&self, tenant: TenantId, key: &str) -> Result<Option<Setting>>;

    /// All whose keys begin with `prefix`, by key; at most [`crate::PAGE_MAX`].
    async fn settings(&self, tenant: TenantId, prefix: &str) -> Result<Vec<Setting>>;

    /// Writes the value and gives its new revision. With `expected`, only if the one that is there has that revision; 0
    /// stands for "there is none yet".
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when it is another one.
    async fn put_setting(
        &self,
        tenant: TenantId,
        key: &str,
        value: &[u8],
        expected: Option<Revision>,
        now: Timestamp,
    ) -> Result<Revision>;

    /// Removes it; says whether it was there.
    async fn delete_setting(&self, tenant: TenantId, key: &str) -> Result<bool>;
}

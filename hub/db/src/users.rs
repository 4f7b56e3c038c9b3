//! People: who may sign in.

use crate::basics::words;
use crate::{Hidden, Page, PageRequest, Result, Revision, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

words! {
    /// Whether a person may sign in.
    UserStatus {
        /// They may.
        Active = "active",
        /// They may not.
        Disabled = "disabled",
    }
}

/// A person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Their id.
    pub id: Uuid,
    /// What they sign in with; unique in the tenant.
    pub name: String,
    /// What they are called.
    pub display_name: String,
    /// Their password's hash (a PHC string), opaque here; none until they set one.
    pub password: Option<Hidden<String>>,
    /// They must set a new one.
    pub must_change: bool,
    /// Whether they may sign in.
    pub status: UserStatus,
    /// Which state of all this it is. Signing in does not change it.
    pub revision: Revision,
    /// When they were added.
    pub created_at: Timestamp,
    /// When they were changed last.
    pub updated_at: Timestamp,
    /// When they signed in last.
    pub last_login: Option<Timestamp>,
}

/// A new person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUser {
    /// As in [`User`].
    pub id: Uuid,
    /// What they sign in with.
    pub name: String,
    /// What they are called.
    pub display_name: String,
    /// Their password's hash.
    pub password: Option<Hidden<String>>,
    /// They must set a new one.
    pub must_change: bool,
}

/// What is changed of a person; what is none stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserUpdate {
    /// What they are called.
    pub display_name: Option<String>,
    /// Their password's hash.
    pub password: Option<Hidden<String>>,
    /// They must set a new one.
    pub must_change: Option<bool>,
    /// Whether they may sign in.
    pub status: Option<UserStatus>,
}

/// What is kept of people.
#[async_trait]
pub trait Users {
    /// Adds a person.
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when the id or the name is taken.
    async fn create_user(&self, tenant: TenantId, user: &NewUser, now: Timestamp) -> Result<User>;

    /// Who has this id.
    async fn user(&self, tenant: TenantId, id: Uuid) -> Result<Option<User>>;

    /// Who signs in with this name.
    async fn user_by_name(&self, tenant: TenantId, name: &str) -> Result<Option<User>>;

    /// Everybody, by name.
    async fn users(&self, tenant: TenantId, page: &PageRequest) -> Result<Page<User>>;

    /// Changes a person. With a new password or when disabled, all their sessions end in the same transaction.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`]; [`crate::DbError::Conflict`] when they are no longer at `revision`.
    async fn update_user(
        &self,
        tenant: TenantId,
        id: Uuid,
        revision: Revision,
        update: &UserUpdate,
        now: Timestamp,
    ) -> Result<User>;

    /// Notes that they signed in.
    async fn user_signed_in(&self, tenant: TenantId, id: Uuid, now: Timestamp) -> Result<()>;

    /// Removes a person, their sessions, and what was granted to `user:<id>`; says whether they were there.
    async fn delete_user(&self, tenant: TenantId, id: Uuid) -> Result<bool>;
}

//! Looking after people: users, their first password, permissions, API tokens.

use super::principal::{is_everything, is_grantable};
use super::sign_in::{API_TOKEN_PREFIX, user_key};
use super::{hash, secret};
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{ApiToken, Hidden, NewUser, PageRequest, Permission, User, UserStatus, UserUpdate};
use picket_protocol::hub::ProblemCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;
use zeroize::Zeroizing;

/// For how long a link for a first password holds.
const SETUP_LIFE: SignedDuration = SignedDuration::from_hours(24);
/// Under which keys such links are kept.
const SETUP: &str = "setup/";
/// What the secret in such a link begins with.
pub const SETUP_PREFIX: &str = "picket-setup-1.";

/// A link for a first password, as it is kept.
#[derive(Serialize, Deserialize)]
struct Setup {
    user: Uuid,
    expires_at: Timestamp,
}

impl Hub {
    /// Whether there is anybody who may do everything.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn has_admin(&self) -> Outcome<bool> {
        let grants = self.db.grants(self.tenant, &PageRequest::first(1000)).await?;
        Ok(grants.items.iter().any(|grant| grant.permission.action == "*" && grant.permission.tag.is_none()))
    }

    /// Refuses to lose `user` while nobody else may do everything.
    ///
    /// # Errors
    /// `conflict` when there would be nobody.
    pub async fn not_the_last_admin(&self, user: &User) -> Outcome<()> {
        if user.status != UserStatus::Active
            || !is_everything(&self.db.permissions_of(self.tenant, &user_key(user.id)).await?)
        {
            return Ok(());
        }
        let mut request = PageRequest::first(500);
        loop {
            let page = self.db.users(self.tenant, &request).await?;
            for other in page.items.iter().filter(|other| other.id != user.id && other.status == UserStatus::Active) {
                if is_everything(&self.db.permissions_of(self.tenant, &user_key(other.id)).await?) {
                    return Ok(());
                }
            }
            let Some(next) = page.next else { break };
            request = PageRequest::after(next, 500);
        }
        let detail = format!(
            "{} is the last administrator who is not disabled: give somebody else the permission * before",
            user.name
        );
        Err(Refusal::new(ProblemCode::Conflict, detail))
    }

    /// Adds a user, without a password.
    ///
    /// # Errors
    /// `conflict` when the name is taken; `invalid` when it is no name.
    pub async fn create_user(&self, name: &str, display_name: &str, by: &str) -> Outcome<User> {
        let is_name =
            (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b));
        if !is_name {
            let detail = "a user's name has 1 to 64 ASCII letters, digits and -_.@";
            return Err(Refusal::new(ProblemCode::Invalid, detail));
        }
        let id = Uuid::now_v7();
        self.audit(by, "users.create", &user_key(id), json!({ "name": name })).await?;
        let new = NewUser {
            id,
            name: name.to_owned(),
            display_name: display_name.chars().filter(|c| !c.is_control()).take(255).collect(),
            password: None,
            must_change: false,
        };
        let made = self.db.create_user(self.tenant, &new, self.clock.now()).await;
        made.map_err(|error| {
            if error.is_conflict() {
                return Refusal::new(ProblemCode::Conflict, format!("there is a user called {name} already"));
            }
            error.into()
        })
    }

    /// Sets a user's password. Their sessions end.
    ///
    /// # Errors
    /// `invalid` when the password is not taken.
    pub async fn set_password(&self, user: &User, password: &str, by: &str) -> Outcome<User> {
        let hashed = self.passwords.hash(&user.name, password).await;
        let hashed = hashed.map_err(|error| Refusal::new(ProblemCode::Invalid, error.to_string()))?;
        self.audit(by, "users.password", &user_key(user.id), json!({ "name": user.name })).await?;
        let update = UserUpdate { password: Some(Hidden(hashed)), must_change: Some(false), ..UserUpdate::default() };
        Ok(self.db.update_user(self.tenant, user.id, user.revision, &update, self.clock.now()).await?)
    }

    /// A secret with which the user sets their first password, once and within a day.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn setup_secret(&self, user: &User, by: &str) -> Outcome<Zeroizing<String>> {
        let secret = secret(SETUP_PREFIX).map_err(|_| Refusal::new(ProblemCode::Internal, "no random numbers"))?;
        self.audit(by, "users.setup", &user_key(user.id), json!({ "name": user.name })).await?;
        let now = self.clock.now();
        let kept = Setup { user: user.id, expires_at: now.checked_add(SETUP_LIFE).unwrap_or(now) };
        let kept = serde_json::to_vec(&kept).unwrap_or_default();
        self.db.put_setting(self.tenant, &setup_key(&secret), &kept, Some(0), now).await?;
        Ok(secret)
    }

    /// Sets a first password with the secret of a link, which is worth nothing after that, nor after a password was set
    /// in another way: whoever made the link would become somebody who was trusted with more since.
    ///
    /// # Errors
    /// `unauthenticated` when the link is not valid or over; `invalid` when the password is not taken: then it stays.
    pub async fn set_up(&self, secret: &str, password: &str) -> Outcome<User> {
        let over = || Refusal::new(ProblemCode::Unauthenticated, "the link is not valid any more; ask for a new one");
        let key = setup_key(secret);
        let kept = self.db.setting(self.tenant, &key).await?.ok_or_else(over)?;
        let kept: Setup = serde_json::from_slice(&kept.value).map_err(|_| over())?;
        if kept.expires_at <= self.clock.now() {
            self.db.delete_setting(self.tenant, &key).await?;
            return Err(over());
        }
        let user = self.db.user(self.tenant, kept.user).await?.ok_or_else(over)?;
        if user.password.is_some() {
            self.db.delete_setting(self.tenant, &key).await?;
            return Err(over());
        }
        let hashed = self.passwords.hash(&user.name, password).await;
        hashed.map_err(|error| Refusal::new(ProblemCode::Invalid, error.to_string()))?;
        // Once: whoever takes it away is the one who may.
        if !self.db.delete_setting(self.tenant, &key).await? {
            return Err(over());
        }
        self.set_password(&user, password, &user_key(user.id)).await
    }

    /// Gives a permission. Says whether it was not there yet.
    ///
    /// # Errors
    /// `invalid` for what is no action.
    pub async fn grant(&self, permission: &Permission, by: &str) -> Outcome<bool> {
        check(permission)?;
        self.audit(by, "permissions.grant", &permission.principal, told(permission)).await?;
        Ok(self.db.grant(self.tenant, permission, by, self.clock.now()).await?)
    }

    /// Takes a permission back. Says whether it was there.
    ///
    /// # Errors
    /// As [`Hub::grant`].
    pub async fn revoke_grant(&self, permission: &Permission, by: &str) -> Outcome<bool> {
        check(permission)?;
        self.audit(by, "permissions.revoke", &permission.principal, told(permission)).await?;
        Ok(self.db.revoke(self.tenant, permission).await?)
    }

    /// Makes an API token that acts for `principal`, and gives its text: it is nowhere else, and cannot be shown again.
    ///
    /// # Errors
    /// `invalid` for an end in the past.
    pub async fn create_api_token(
        &self,
        name: &str,
        principal: &str,
        expires_at: Option<Timestamp>,
        by: &str,
    ) -> Outcome<(ApiToken, Zeroizing<String>)> {
        let now = self.clock.now();
        if expires_at.is_some_and(|end| end <= now) {
            return Err(Refusal::new(ProblemCode::Invalid, "expires_at is in the past"));
        }
        let id = Uuid::now_v7();
        let token = secret(API_TOKEN_PREFIX).map_err(|_| Refusal::new(ProblemCode::Internal, "no random numbers"))?;
        let details = json!({ "name": name, "principal": principal, "expires_at": expires_at });
        self.audit(by, "api_tokens.create", &id.to_string(), details).await?;
        // A token of its own has the permissions that are granted to it, and nobody else's.
        let principal = if principal.is_empty() { format!("token:{id}") } else { principal.to_owned() };
        let kept = ApiToken {
            id,
            hash: Hidden(hash(&token)),
            name: name.to_owned(),
            principal,
            created_at: now,
            created_by: by.to_owned(),
            expires_at,
            last_used: None,
            revoked_at: None,
        };
        self.db.create_api_token(self.tenant, &kept).await?;
        Ok((kept, token))
    }
}

fn check(permission: &Permission) -> Outcome<()> {
    if !is_grantable(&permission.action) {
        let detail = format!(
            "{:?} is no permission; one is a noun and a verb such as agents.read, or has * for either",
            permission.action
        );
        return Err(Refusal::new(ProblemCode::Invalid, detail));
    }
    Ok(())
}

fn told(permission: &Permission) -> serde_json::Value {
    json!({ "action": permission.action, "tag": permission.tag })
}

/// Under which key the secret of a link is kept: by its hash.
fn setup_key(secret: &str) -> String {
    format!("{SETUP}{}", picket_pki::SpkiPin::from_bytes(hash(secret)).to_hex())
}

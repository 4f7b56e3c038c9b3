//! Saying who one is: with a password, a session, a token of the hub's or an API token.

use super::abuse::counted_as;
use super::jwt::Told;
use super::principal::{Action, Principal, Proof, Scope};
use super::{csrf, hash, secret};
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{ApiToken, BlockSubject, Hidden, Session, User, UserStatus};
use picket_protocol::hub::ProblemCode;
use std::net::IpAddr;
use uuid::Uuid;
use zeroize::Zeroizing;

/// What every API token begins with. Secret scanners find it by this.
pub const API_TOKEN_PREFIX: &str = "picket-api-1.";
/// How long a session lasts without being used.
const IDLE: SignedDuration = SignedDuration::from_hours(2);
/// How long a session lasts at most.
const SESSION_LIFE: SignedDuration = SignedDuration::from_hours(12);
/// How precisely it is noted when something was used last: not each request is a write.
const TOUCH_AFTER: SignedDuration = SignedDuration::from_mins(1);

/// Somebody who has signed in.
#[derive(Debug)]
pub struct SignedIn {
    /// Who.
    pub user: User,
    /// The value of the cookie. A secret.
    pub cookie: Zeroizing<String>,
    /// The token against forged requests.
    pub csrf: String,
    /// When the session ends at the latest.
    pub ends_at: Timestamp,
}

impl Hub {
    /// Begins a session.
    ///
    /// # Errors
    /// `unauthenticated`, the same for a wrong name and a wrong password; `blocked`.
    pub async fn sign_in(&self, name: &str, password: &str, from: IpAddr, agent: &str) -> Outcome<SignedIn> {
        let user = self.user_by_password(name, password, from).await?;
        let now = self.clock.now();
        let cookie = secret("").map_err(|_| Refusal::new(ProblemCode::Internal, "no random numbers"))?;
        let ends_at = now.checked_add(SESSION_LIFE).unwrap_or(now);
        let session = Session {
            id_hash: Hidden(hash(&cookie)),
            user: user.id,
            csrf_hash: Hidden(hash(&format!("csrf {}", cookie.as_str()))),
            address: from.to_string(),
            user_agent: agent.chars().filter(|c| !c.is_control()).take(200).collect(),
            created_at: now,
            last_used: now,
            expires_at: now.checked_add(IDLE).unwrap_or(now).min(ends_at),
        };
        self.db.create_session(self.tenant, &session).await?;
        self.db.user_signed_in(self.tenant, user.id, now).await?;
        let csrf = csrf::token(&cookie, now);
        Ok(SignedIn { user, cookie, csrf, ends_at })
    }

    /// The user with this name and password.
    ///
    /// # Errors
    /// As [`Hub::sign_in`].
    pub async fn user_by_password(&self, name: &str, password: &str, from: IpAddr) -> Outcome<User> {
        let address = counted_as(from);
        self.not_blocked(&BlockSubject::Address(address.clone())).await?;
        let found = self.db.user_by_name(self.tenant, name).await?;
        let key = found.as_ref().map(|user| user_key(user.id));
        // Who is blocked hears and waits for the same as who is not there: else a name could be tried for whether somebody
        // has it, and a password during the block. An operator sees the block in the list of blocks. From where they signed
        // in before, and from an address that is never blocked, people get in all the same: strangers made the block.
        let now = self.clock.now();
        let subject = BlockSubject::Principal(key.clone().unwrap_or_else(|| user_key(Uuid::nil())));
        let is_blocked = self.db.blocked(self.tenant, &subject, now).await?.is_some()
            && !self.failures.is_known(&address, subject.parts().1)
            && !self.never_blocked(from);
        let active = found.filter(|user| user.status == UserStatus::Active && !is_blocked);
        let kept = active.as_ref().and_then(|user| user.password.as_ref()).map(|hash| hash.0.as_str());
        let matches = self.passwords.matches(kept, password).await;
        if let Some(user) = active.filter(|_| matches) {
            self.failures.signed_in(&address, &user_key(user.id), now);
            return Ok(user);
        }
        self.note_failure(from, key).await;
        Err(Refusal::new(ProblemCode::Unauthenticated, "the name or the password is wrong"))
    }

    /// Who has this session's cookie; notes that it was used.
    ///
    /// A cookie that is none any more is no failure that is counted: a page that is left open asks on when its session has
    /// ended, and 256 random bits are not guessed.
    ///
    /// # Errors
    /// `unauthenticated` when it has ended.
    pub async fn by_session(&self, cookie: &str) -> Outcome<Principal> {
        let now = self.clock.now();
        let id_hash = hash(cookie);
        let ended = || Refusal::new(ProblemCode::Unauthenticated, "the session has ended; sign in again");
        let session = self.db.session(self.tenant, &id_hash, now).await?.ok_or_else(ended)?;
        if now.duration_since(session.last_used) >= TOUCH_AFTER {
            let at_most = session.created_at.checked_add(SESSION_LIFE).unwrap_or(now);
            let until = now.checked_add(IDLE).unwrap_or(now).min(at_most);
            self.db.touch_session(self.tenant, &id_hash, now, until).await?;
        }
        self.principal(&user_key(session.user), Proof::Session { id_hash }).await?.ok_or_else(ended)
    }

    /// Who a bearer token is of: one that the hub signed, or an API token.
    ///
    /// # Errors
    /// `unauthenticated` when it is none, or is over.
    pub async fn by_bearer(&self, token: &str, from: IpAddr) -> Outcome<Principal> {
        let now = self.clock.now();
        let wrong = || {
            Refusal::new(
                ProblemCode::Unauthenticated,
                "the token is not valid, has expired or was revoked; get a new one",
            )
        };
        let known = if token.starts_with(API_TOKEN_PREFIX) {
            match self.db.api_token_by_hash(self.tenant, &hash(token)).await? {
                Some(kept) => Some(self.by_api_token(kept, now).await?),
                None => None,
            }
        } else {
            match self.tokens.read_current(token, &self.db, self.tenant, &self.sealer, now).await? {
                Told::Signed(claims) if claims.holds(now) => {
                    let ends_at = Timestamp::from_second(claims.exp).unwrap_or(now);
                    Some(self.principal(&claims.sub, Proof::Jwt { ends_at }).await?)
                }
                Told::Signed(_) | Told::UnknownKey => Some(None),
                Told::Forged => None,
            }
        };
        // A token that is over, or whose key is, is a program that was forgotten; one that is forged is somebody who tries.
        if known.is_none() {
            self.note_failure(from, None).await;
        }
        known.flatten().ok_or_else(wrong)
    }

    async fn by_api_token(&self, kept: ApiToken, now: Timestamp) -> Outcome<Option<Principal>> {
        if kept.revoked_at.is_some() || kept.expires_at.is_some_and(|end| end <= now) {
            return Ok(None);
        }
        if kept.last_used.is_none_or(|last| now.duration_since(last) >= TOUCH_AFTER) {
            self.db.api_tokens_used(self.tenant, &[(kept.id, now)]).await?;
        }
        self.principal(&kept.principal, Proof::ApiToken { id: kept.id }).await
    }

    /// The principal called `key`, if it still is one: a user who was disabled is nobody, whatever token they hold.
    ///
    /// That others tried their password is no matter here: who has a session or a token has said who they are.
    async fn principal(&self, key: &str, proof: Proof) -> Outcome<Option<Principal>> {
        let name = match key.split_once(':') {
            Some(("user", id)) => {
                let Ok(id) = id.parse::<Uuid>() else { return Ok(None) };
                match self.db.user(self.tenant, id).await? {
                    Some(user) if user.status == UserStatus::Active => user.name,
                    _ => return Ok(None),
                }
            }
            Some(("token", id)) => format!("token {id}"),
            _ => return Ok(None),
        };
        let grants = self.db.permissions_of(self.tenant, key).await?;
        Ok(Some(Principal { key: key.to_owned(), name, proof, grants }))
    }

    /// Where a principal may do `action` by now: nowhere once its proof is over.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn scope_now(&self, principal: &Principal, action: Action) -> Outcome<Option<Scope>> {
        let now = self.clock.now();
        let holds = match &principal.proof {
            Proof::Session { id_hash } => self.db.session(self.tenant, id_hash, now).await?.is_some(),
            Proof::Jwt { ends_at } => now < *ends_at,
            Proof::ApiToken { id } => {
                let kept = self.db.api_token(self.tenant, *id).await?;
                kept.is_some_and(|kept| kept.revoked_at.is_none() && kept.expires_at.is_none_or(|end| end > now))
            }
        };
        if !holds {
            return Ok(None);
        }
        let found = self.principal(&principal.key, principal.proof.clone()).await?;
        Ok(found.and_then(|found| found.scope(action)))
    }
}

/// How permissions and the audit log name a user.
pub fn user_key(id: Uuid) -> String {
    format!("user:{id}")
}

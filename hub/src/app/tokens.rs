//! Enrolment tokens as operators make them.

use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use jiff::SignedDuration;
use picket_hub_db::{EnrolToken, EnrolmentState, Hidden, Network, NewEnrolToken};
use picket_pki::{AgentIdentity, CsrKey, EnrolmentToken, secret_hash};
use picket_protocol::hub::ProblemCode;
use serde_json::json;
use std::collections::BTreeSet;
use uuid::Uuid;
use zeroize::Zeroizing;

/// For how long a token may be used unless it is said.
pub const USUAL_TTL: SignedDuration = SignedDuration::from_mins(30);
/// For how long a token may be used at most.
pub const MAX_TTL: SignedDuration = SignedDuration::from_hours(24);
/// How often a token may be used at most.
pub const MAX_USES: u32 = 10_000;

/// What a token is to be like.
#[derive(Debug, Clone)]
pub struct TokenWish {
    /// For how long it may be used.
    pub ttl: SignedDuration,
    /// How often.
    pub max_uses: u32,
    /// The tags of who enrols with it.
    pub tags: BTreeSet<String>,
    /// What it is for.
    pub label: String,
    /// Who uses it waits for approval.
    pub approval: bool,
    /// From where it may be used; empty means from where enrolment is allowed at all.
    pub networks: Vec<Network>,
}

impl Default for TokenWish {
    fn default() -> Self {
        Self {
            ttl: USUAL_TTL,
            max_uses: 1,
            tags: BTreeSet::new(),
            label: String::new(),
            approval: false,
            networks: Vec::new(),
        }
    }
}

impl Hub {
    /// Makes a token, and gives the text that is handed to the machine: it is nowhere else, and cannot be shown again.
    ///
    /// # Errors
    /// `invalid` for a wish out of bounds.
    pub async fn create_token(&self, wish: TokenWish, by: &str) -> Outcome<(EnrolToken, Zeroizing<String>)> {
        let invalid = |detail: String| Refusal::new(ProblemCode::Invalid, detail);
        if wish.ttl <= SignedDuration::ZERO || wish.ttl > MAX_TTL {
            return Err(invalid(format!("a token may be used for {} hours at most", MAX_TTL.as_hours())));
        }
        if !(1..=MAX_USES).contains(&wish.max_uses) {
            return Err(invalid(format!("a token may be used 1 to {MAX_USES} times")));
        }
        let now = self.clock.now();
        let token = EnrolmentToken::generate(&self.public_url, Uuid::now_v7(), &self.keys().pins())?;
        let allowed = if wish.networks.is_empty() { self.enrolment_networks.clone() } else { wish.networks };
        let new = NewEnrolToken {
            id: token.id,
            secret_hash: Hidden(secret_hash(&token.secret())),
            label: wish.label,
            tags: wish.tags,
            max_uses: wish.max_uses,
            needs_approval: wish.approval || self.settings.enrolment.approval,
            allowed,
            created_by: by.to_owned(),
            expires_at: now.checked_add(wish.ttl).unwrap_or(now),
        };
        let details =
            json!({ "label": new.label, "tags": new.tags, "max_uses": new.max_uses, "expires_at": new.expires_at });
        self.audit(by, "enrolment.token_create", &new.id.to_string(), details).await?;
        let kept = self.db.create_enrol_token(self.tenant, &new, now).await?;
        Ok((kept, token.reveal()))
    }

    /// Revokes a token. Says whether it was not yet.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn revoke_token(&self, id: Uuid, by: &str) -> Outcome<bool> {
        self.audit(by, "enrolment.token_revoke", &id.to_string(), json!({})).await?;
        Ok(self.db.revoke_enrol_token(self.tenant, id, self.clock.now()).await?)
    }

    /// Lets a machine in that waits for approval. It gets its certificate when it asks again.
    ///
    /// # Errors
    /// `not_found`; `conflict` when it does not wait any more.
    pub async fn approve(&self, id: Uuid, by: &str) -> Outcome<()> {
        let absent = || Refusal::new(ProblemCode::NotFound, "there is no such request");
        let request = self.db.enrolment(self.tenant, id).await?.ok_or_else(absent)?;
        if request.state != EnrolmentState::Pending {
            let detail = format!("the request is {} already", request.state.as_str());
            return Err(Refusal::new(ProblemCode::Conflict, detail));
        }
        let der = crate::decode(&request.csr).unwrap_or_default();
        let key = CsrKey::from_request(&der)?;
        let details = json!({ "name": request.name, "address": request.address, "key": key.pin() });
        self.audit(by, "enrolment.approve", &id.to_string(), details).await?;
        let now = self.clock.now();
        let identity = AgentIdentity { tenant: self.tenant.0, agent: Uuid::now_v7() };
        let leaf = self.keys().intermediate.agent(identity, &key, now)?;
        let row = self.row(&leaf, identity.agent, now);
        Ok(self.db.approve_enrolment(self.tenant, id, &row, by, now).await?)
    }

    /// Refuses a machine that waits for approval.
    ///
    /// # Errors
    /// `not_found`; `conflict` when it does not wait any more.
    pub async fn deny(&self, id: Uuid, by: &str) -> Outcome<()> {
        self.audit(by, "enrolment.deny", &id.to_string(), json!({})).await?;
        Ok(self.db.deny_enrolment(self.tenant, id, by, self.clock.now()).await?)
    }
}

//! Who is turned away for a while, and how they are let in again.
//!
//! A block of an address turns away whatever comes from it. A block of a principal turns away new sign-ins with the password,
//! and no session, API token or signed token: who wants to end those disables the user.

use super::abuse::counted_as;
use super::sign_in::user_key;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use picket_hub_db::{Block, BlockSubject};
use picket_protocol::hub::ProblemCode;
use std::net::IpAddr;
use std::time::Duration;

impl Hub {
    /// Refuses who is blocked.
    ///
    /// # Errors
    /// `blocked`, with the time until when.
    pub async fn not_blocked(&self, subject: &BlockSubject) -> Outcome<()> {
        let now = self.clock.now();
        let Some(block) = self.db.blocked(self.tenant, subject, now).await? else { return Ok(()) };
        let (kind, value) = subject.parts();
        let until = block.until.map_or_else(|| "for good".to_owned(), |until| format!("until {until}"));
        let detail = format!("the {kind} {value} is blocked {until}: {}; an operator can lift it", block.reason);
        let mut refusal = Refusal::new(ProblemCode::Blocked, detail);
        if let Some(wait) = block.until.and_then(|until| Duration::try_from(until.duration_since(now)).ok()) {
            refusal = refusal.after(wait);
        }
        Err(refusal)
    }

    /// Notes that somebody failed to say who they are, and blocks who has failed too often. `principal` is whose password was
    /// tried, if it was one and somebody has that name.
    pub async fn note_failure(&self, from: IpAddr, principal: Option<String>) {
        let now = self.clock.now();
        let address = counted_as(from);
        let too_many = self.failures.note(&address, principal.as_deref(), now);
        if self.never_blocked(from) || !self.security.auto_block {
            return;
        }
        let address = too_many.address.then_some(BlockSubject::Address(address));
        let name = principal.filter(|_| too_many.name).map(BlockSubject::Principal);
        for subject in address.into_iter().chain(name) {
            let reason = "failed to authenticate too often".to_owned();
            let until = now.checked_add(self.security.block_for).ok();
            let (kind, value) = subject.parts();
            tracing::warn!(kind, value, ?until, "blocked after failed authentication");
            let details = serde_json::json!({"subject_kind": kind, "subject": value, "address": from.to_string()});
            let block =
                Block { subject: subject.clone(), until, reason, created_at: now, created_by: "hub".to_owned() };
            if let Err(error) = self.db.block(self.tenant, &block).await {
                tracing::error!(%error, "a block is not kept");
            }
            self.report("authentication_abuse", details).await;
        }
    }

    /// Whether this address is on the list of those that are never blocked.
    pub fn never_blocked(&self, address: IpAddr) -> bool {
        self.security.never_blocked.iter().any(|network| network.holds(address))
    }

    /// Lets somebody in again. Says whether they were turned away.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lift_block(&self, subject: &BlockSubject, by: &str) -> Outcome<bool> {
        let (kind, value) = subject.parts();
        self.audit(by, "blocks.lift", value, serde_json::json!({ "kind": kind })).await?;
        Ok(self.db.unblock(self.tenant, subject).await?)
    }

    /// Whom a person means by an address, a name or a principal.
    ///
    /// # Errors
    /// `not_found` when it is neither an address nor anybody's name.
    pub async fn block_subject(&self, who: &str) -> Outcome<BlockSubject> {
        // The list of blocks has addresses of IPv6 with their prefix.
        let address = who.strip_suffix("/64").unwrap_or(who);
        if let Ok(address) = address.parse::<IpAddr>() {
            return Ok(BlockSubject::Address(counted_as(address)));
        }
        if let Some(user) = self.db.user_by_name(self.tenant, who).await? {
            return Ok(BlockSubject::Principal(user_key(user.id)));
        }
        if who.starts_with("user:") || who.starts_with("token:") {
            return Ok(BlockSubject::Principal(who.to_owned()));
        }
        Err(Refusal::new(ProblemCode::NotFound, format!("{who} is no address, and nobody is called so")))
    }
}

//! The judge's part: leases that fence, cursors, and findings committed together with the cursor.

use crate::deliveries::NewDelivery;
use crate::findings::{Entity, Severity};
use crate::{Position, Result, Revision, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

/// How many events a finding keeps as evidence; beyond it they are only counted.
pub const EVIDENCE_MAX: u32 = 200;

/// The right of one replica to do something alone for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What for: `judge/file`, `sweeper`.
    pub name: String,
    /// Who has it.
    pub holder: String,
    /// Grows each time it is acquired: a holder with an older epoch has lost it, whatever its clock says.
    pub epoch: i64,
    /// Until when nobody else can acquire it.
    pub expires_at: Timestamp,
}

/// How far a judge is, and what it must remember.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Behind the last event that was judged.
    pub position: Position,
    /// The engine's own state (windows of correlations), opaque here.
    pub state: Option<Vec<u8>>,
}

/// Where and with what a judge goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgeCommit {
    /// The position that the judged events begin behind: what [`Judge::progress`] gave.
    pub from: Position,
    /// The position behind the last event that was judged.
    pub to: Position,
    /// The engine's state then; none leaves the one that is there.
    pub state: Option<Vec<u8>>,
    /// When, by the hub's clock.
    pub now: Timestamp,
    /// What was found.
    pub changes: Vec<FindingChange>,
}

/// An event that speaks for a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// Its id.
    pub event: Uuid,
    /// Its position.
    pub position: Position,
    /// When it happened or came: what first and last seen of the finding are made of.
    pub at: Timestamp,
}

/// A rule matched.
#[derive(Debug, Clone, PartialEq)]
pub struct FindingChange {
    /// Which rule.
    pub rule: String,
    /// Which version of it.
    pub rule_version: i64,
    /// What makes matches of this rule one finding: with the rule it finds the finding that is extended.
    pub dedupe_key: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it is, in a line.
    pub title: String,
    /// The whole in words.
    pub description: String,
    /// Whom or what it is about.
    pub entity: Option<Entity>,
    /// On which agent.
    pub agent: Option<Uuid>,
    /// The events that matched, at least one.
    pub evidence: Vec<Evidence>,
    /// What else is to be known: a JSON object. Of a finding that is extended the first stays.
    pub details: Value,
    /// What is sent out if this makes a finding or opens one again; nothing is when it extends one.
    pub deliveries: Vec<NewDelivery>,
}

/// What a match did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It made a finding.
    New,
    /// It extended an open or acknowledged one.
    Extended,
    /// It extended one whose suppression was over, which is open again.
    Reopened,
    /// It was counted for one that is suppressed.
    Silent,
    /// All its events were counted before.
    Unchanged,
}

/// What a match did to which finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FindingOutcome {
    /// The finding.
    pub finding: Uuid,
    /// What was done.
    pub effect: Effect,
    /// How many events were counted that had not been.
    pub added: u64,
    /// Its revision then.
    pub revision: Revision,
}

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judged {
    /// For each change, in their order; empty if `repeated`.
    pub outcomes: Vec<FindingOutcome>,
    /// Exactly this was committed before: nothing was done now.
    pub repeated: bool,
}

impl Judged {
    /// How many matches had this effect.
    pub fn count(&self, effect: Effect) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.effect == effect).count()
    }
}

/// What is kept for the judge, and for whatever else one replica does alone.
#[async_trait]
pub trait Judge {
    /// Takes a lease that is free, over, or the holder's own already; none while somebody else has it. The epoch grows
    /// in any case.
    async fn acquire_lease(
        &self,
        tenant: TenantId,
        name: &str,
        holder: &str,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<Option<Lease>>;

    /// Keeps a lease for longer: also one that is over, if nobody took it.
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when somebody else has it, or had it.
    async fn renew_lease(&self, tenant: TenantId, lease: &Lease, expires_at: Timestamp) -> Result<Lease>;

    /// Gives a lease back; says whether it was still held.
    async fn release_lease(&self, tenant: TenantId, lease: &Lease) -> Result<bool>;

    /// All leases that were ever taken, by name; at most [`crate::PAGE_MAX`].
    async fn leases(&self, tenant: TenantId) -> Result<Vec<Lease>>;

    /// How far the judge of that name (the lease's) is; [`Position::START`] at the very first.
    async fn progress(&self, tenant: TenantId, name: &str) -> Result<Progress>;

    /// Commits findings, cursor and state in one transaction: exactly once, however often it is tried.
    ///
    /// A match whose rule and dedupe key have a finding that is not resolved extends it; an event that was counted for it
    /// is never counted again. If there is none or only resolved ones, it makes a finding ([`finding_id`]). Beyond
    /// [`EVIDENCE_MAX`] events are told apart by position: the count is exact as long as the matches of a finding come in
    /// the order of commits, as those of one shard do.
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when the lease's epoch moved, or when the cursor is neither at `from` nor at `to`;
    /// [`crate::DbError::Invalid`] for a change without evidence, or `to` before `from`.
    async fn commit_findings(&self, tenant: TenantId, lease: &Lease, commit: &JudgeCommit) -> Result<Judged>;
}

/// The id of the finding that an event begins: version 8 (RFC 9562 §5.8), of the SHA-256 over tenant, rule, dedupe key and
/// event. The same match makes the same finding, on whichever replica.
pub fn finding_id(tenant: TenantId, rule: &str, dedupe_key: &str, first_event: Uuid) -> Uuid {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    hash.update(b"picket finding\0");
    hash.update(tenant.0.to_be_bytes());
    for text in [rule, dedupe_key] {
        hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(first_event.as_bytes());
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

//! Findings: what the judge found, and what people did about it.

use crate::basics::words;
use crate::deliveries::NewDelivery;
use crate::{Page, PageRequest, Position, Result, Revision, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeSet;
use uuid::Uuid;

words! {
    /// How bad something is: Sigma's levels.
    Severity {
        /// To be known.
        Informational = "informational",
        /// Of interest.
        Low = "low",
        /// Somebody should look.
        Medium = "medium",
        /// Somebody should look now.
        High = "high",
        /// Somebody should have looked.
        Critical = "critical",
    }
}

words! {
    /// Where a finding stands.
    FindingState {
        /// Nobody looked yet.
        Open = "open",
        /// Somebody looks.
        Acknowledged = "acknowledged",
        /// It is over: the next match makes a new finding.
        Resolved = "resolved",
        /// Matches are counted and nobody is told, for a while or for good.
        Suppressed = "suppressed",
    }
}

/// Whom or what a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entity {
    /// What kind: `host`, `user`, `ip`, `file`.
    pub kind: String,
    /// Which.
    pub value: String,
}

/// A finding.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Its id: [`crate::finding_id`].
    pub id: Uuid,
    /// Which rule.
    pub rule: String,
    /// Which version of it matched first.
    pub rule_version: i64,
    /// What makes matches of the rule this finding.
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
    /// Where it stands.
    pub state: FindingState,
    /// Until when it is suppressed; none for good, and for any other state.
    pub suppressed_until: Option<Timestamp>,
    /// Who takes care of it.
    pub assignee: Option<String>,
    /// When the first event was.
    pub first_seen: Timestamp,
    /// When the last event was.
    pub last_seen: Timestamp,
    /// How many events there were; as evidence [`crate::EVIDENCE_MAX`] of them are kept.
    pub event_count: u64,
    /// The event that began it (the seed's `event_id`).
    pub first_event: Uuid,
    /// What else is to be known: a JSON object.
    pub details: Value,
    /// Which state of all this it is: a match changes it, too.
    pub revision: Revision,
    /// When it was made, by the hub's clock.
    pub created_at: Timestamp,
    /// When anything of it changed last.
    pub updated_at: Timestamp,
    /// Where its last change is in the order of commits.
    pub changed: Position,
}

/// Which findings; none of a field means any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FindingFilter {
    /// Where they stand.
    pub state: Option<FindingState>,
    /// As bad as this.
    pub severity: Option<Severity>,
    /// Of this rule.
    pub rule: Option<String>,
    /// On this agent.
    pub agent: Option<Uuid>,
    /// About this.
    pub entity: Option<Entity>,
    /// With this event among their evidence.
    pub event: Option<Uuid>,
    /// Of this assignee.
    pub assignee: Option<String>,
    /// Made then or later.
    pub since: Option<Timestamp>,
    /// Made before.
    pub until: Option<Timestamp>,
    /// Only those on agents that have one of these tags, for who may see no others.
    pub within: Option<BTreeSet<String>>,
}

/// What somebody does about a finding; what is none stays.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FindingUpdate {
    /// Where it stands from now on.
    pub state: Option<NewState>,
    /// Who takes care of it; an inner none for nobody.
    pub assignee: Option<Option<String>>,
    /// What they have to say.
    pub note: Option<String>,
    /// What is sent out about it, in the same transaction.
    pub deliveries: Vec<NewDelivery>,
}

/// Where a finding stands from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewState {
    /// As in [`FindingState`].
    Open,
    /// Somebody looks.
    Acknowledged,
    /// It is over.
    Resolved,
    /// Nobody is told until then; none for good.
    Suppressed(Option<Timestamp>),
}

/// Something that happened to a finding or to a case.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    /// Its number within the finding or the case, from 1.
    pub number: i64,
    /// When.
    pub at: Timestamp,
    /// By whom; `judge` for what no person did.
    pub by: String,
    /// What: `created`, `state`, `assignee`, `note`, `reopened`, `finding_added` …
    pub action: String,
    /// What it was before, if that says something.
    pub old: Option<String>,
    /// What it is now, or what was said.
    pub new: Option<String>,
}

/// An event that speaks for a finding, as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptEvidence {
    /// The event's id. The event itself may be gone by retention.
    pub event: Uuid,
    /// Its position.
    pub position: Position,
}

/// How many findings stand where, and how bad they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FindingCount {
    /// Where.
    pub state: FindingState,
    /// How bad.
    pub severity: Severity,
    /// How many.
    pub findings: u64,
}

/// Findings in the order of their last changes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FindingTail {
    /// The findings as they are now.
    pub findings: Vec<Finding>,
    /// Where to go on.
    pub next: Position,
}

/// What is kept of findings. They are made by [`crate::Judge::commit_findings`].
#[async_trait]
pub trait Findings {
    /// The finding with this id.
    async fn finding(&self, tenant: TenantId, id: Uuid) -> Result<Option<Finding>>;

    /// Those that match, the newest first.
    async fn findings(&self, tenant: TenantId, filter: &FindingFilter, page: &PageRequest) -> Result<Page<Finding>>;

    /// Those that changed after `position`, in the order of commits; one that changed twice is there once, as it is now.
    async fn findings_after(&self, tenant: TenantId, position: Position, limit: u32) -> Result<FindingTail>;

    /// The position behind everything that [`Findings::findings_after`] could give now. Positions of findings and of events
    /// are not comparable.
    async fn findings_horizon(&self, tenant: TenantId) -> Result<Position>;

    /// The events that speak for a finding, the first to be committed first.
    async fn evidence(&self, tenant: TenantId, finding: Uuid, page: &PageRequest) -> Result<Page<KeptEvidence>>;

    /// Does something about a finding, and keeps it in its history.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`]; [`crate::DbError::Conflict`] when it is no longer at `revision` (none: whatever it
    /// is at), or when it would be the second one that is not resolved of its rule and dedupe key.
    async fn change_finding(
        &self,
        tenant: TenantId,
        id: Uuid,
        revision: Option<Revision>,
        update: &FindingUpdate,
        by: &str,
        now: Timestamp,
    ) -> Result<Finding>;

    /// What happened to a finding, the latest first.
    async fn finding_history(&self, tenant: TenantId, id: Uuid, page: &PageRequest) -> Result<Page<History>>;

    /// How many there are in each state of each severity; zeros are absent.
    async fn finding_counts(&self, tenant: TenantId) -> Result<Vec<FindingCount>>;
}

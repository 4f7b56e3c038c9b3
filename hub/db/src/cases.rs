//! Cases: findings that belong together, and the work on them.

use crate::basics::words;
use crate::deliveries::NewDelivery;
use crate::findings::{Finding, History, Severity};
use crate::{Page, PageRequest, Result, Revision, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

words! {
    /// Where a case stands.
    CaseState {
        /// Work is to be done.
        Open = "open",
        /// Work is done now.
        InProgress = "in_progress",
        /// It is done.
        Closed = "closed",
    }
}

/// A case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Its id.
    pub id: Uuid,
    /// Its number for people, from 1 in each tenant.
    pub number: i64,
    /// What it is, in a line.
    pub title: String,
    /// The whole in words.
    pub description: String,
    /// Where it stands.
    pub state: CaseState,
    /// How bad it is.
    pub severity: Severity,
    /// Who takes care of it.
    pub assignee: Option<String>,
    /// How many findings it has.
    pub findings: u64,
    /// Which state of all this it is.
    pub revision: Revision,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When it was changed last.
    pub updated_at: Timestamp,
    /// When it was closed.
    pub closed_at: Option<Timestamp>,
}

/// A new case.
#[derive(Debug, Clone, PartialEq)]
pub struct NewCase {
    /// As in [`Case`].
    pub id: Uuid,
    /// What it is, in a line.
    pub title: String,
    /// The whole in words.
    pub description: String,
    /// How bad it is.
    pub severity: Severity,
    /// Who takes care of it.
    pub assignee: Option<String>,
    /// Its first findings; at most [`crate::PAGE_MAX`].
    pub findings: Vec<Uuid>,
    /// What is sent out about it, in the same transaction.
    pub deliveries: Vec<NewDelivery>,
}

/// What is changed of a case; what is none stays.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CaseUpdate {
    /// What it is, in a line.
    pub title: Option<String>,
    /// The whole in words.
    pub description: Option<String>,
    /// Where it stands.
    pub state: Option<CaseState>,
    /// How bad it is.
    pub severity: Option<Severity>,
    /// Who takes care of it; an inner none for nobody.
    pub assignee: Option<Option<String>>,
    /// What they have to say.
    pub note: Option<String>,
    /// Findings that belong to it, too. One that does already changes nothing.
    pub add: Vec<Uuid>,
    /// Findings that do not belong to it after all.
    pub remove: Vec<Uuid>,
    /// What is sent out about it, in the same transaction.
    pub deliveries: Vec<NewDelivery>,
}

/// Which cases; none of a field means any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CaseFilter {
    /// Where they stand.
    pub state: Option<CaseState>,
    /// As bad as this.
    pub severity: Option<Severity>,
    /// Of this assignee.
    pub assignee: Option<String>,
    /// With this finding.
    pub finding: Option<Uuid>,
}

/// What is kept of cases.
#[async_trait]
pub trait Cases {
    /// Makes one.
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when the id is taken; [`crate::DbError::NotFound`] for a finding that is not there.
    async fn create_case(&self, tenant: TenantId, case: &NewCase, by: &str, now: Timestamp) -> Result<Case>;

    /// The case with this id.
    async fn case(&self, tenant: TenantId, id: Uuid) -> Result<Option<Case>>;

    /// Those that match, the highest number first.
    async fn cases(&self, tenant: TenantId, filter: &CaseFilter, page: &PageRequest) -> Result<Page<Case>>;

    /// Changes one, and keeps it in its history.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`], also for a finding; [`crate::DbError::Conflict`] when it is no longer at `revision`
    /// (none: whatever it is at).
    async fn update_case(
        &self,
        tenant: TenantId,
        id: Uuid,
        revision: Option<Revision>,
        update: &CaseUpdate,
        by: &str,
        now: Timestamp,
    ) -> Result<Case>;

    /// The findings of a case, the newest first.
    async fn case_findings(&self, tenant: TenantId, id: Uuid, page: &PageRequest) -> Result<Page<Finding>>;

    /// What happened to a case, the latest first.
    async fn case_history(&self, tenant: TenantId, id: Uuid, page: &PageRequest) -> Result<Page<History>>;
}

//! Configurations of agents: versions, and which agent should have which.

use crate::{Page, PageRequest, Result, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeSet;
use uuid::Uuid;

/// A version. It never changes.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigVersion {
    /// Its number, from 1 in each tenant.
    pub version: i64,
    /// The document.
    pub document: Value,
    /// The SHA-256 of it as agents get it, in hexadecimal digits; the caller's business.
    pub sha256: String,
    /// What it is for.
    pub comment: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
}

/// Who should have a version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConfigTarget {
    /// Every agent that nothing closer is for.
    All,
    /// Agents with this tag.
    Tag(String),
    /// This agent.
    Agent(Uuid),
}

/// That somebody should have a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Who.
    pub target: ConfigTarget,
    /// Which.
    pub version: i64,
    /// Among the tags of an agent the highest wins, and among equal ones the first by name.
    pub priority: i32,
    /// When it was decided.
    pub updated_at: Timestamp,
    /// By whom.
    pub updated_by: String,
}

/// Which version an agent with these tags should have: its own, else that of a tag, else that for all.
pub fn wanted_version(assignments: &[Assignment], agent: Uuid, tags: &BTreeSet<String>) -> Option<i64> {
    // The closest target last, so that the greatest key wins; a tag that is earlier by name is greater.
    let key = |one: &Assignment| match &one.target {
        ConfigTarget::All => Some((0, 0, None)),
        ConfigTarget::Tag(tag) if tags.contains(tag) => Some((1, one.priority, Some(std::cmp::Reverse(tag.clone())))),
        ConfigTarget::Agent(id) if *id == agent => Some((2, 0, None)),
        ConfigTarget::Tag(_) | ConfigTarget::Agent(_) => None,
    };
    let candidates = assignments.iter().filter_map(|one| Some((key(one)?, one.version)));
    candidates.max_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, version)| version)
}

/// What is kept of configurations.
#[async_trait]
pub trait Configs {
    /// Makes a version; gives it with its number. `document`, `sha256`, `comment` and `created_*` are read.
    async fn create_config(&self, tenant: TenantId, config: &ConfigVersion) -> Result<ConfigVersion>;

    /// The version with this number.
    async fn config(&self, tenant: TenantId, version: i64) -> Result<Option<ConfigVersion>>;

    /// All versions, the latest first.
    async fn configs(&self, tenant: TenantId, page: &PageRequest) -> Result<Page<ConfigVersion>>;

    /// Says who should have which version.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`] for a version that is not there.
    async fn assign_config(&self, tenant: TenantId, assignment: &Assignment) -> Result<()>;

    /// Takes it back; says whether it was said.
    async fn unassign_config(&self, tenant: TenantId, target: &ConfigTarget) -> Result<bool>;

    /// All that was said; at most 10,000.
    async fn assignments(&self, tenant: TenantId) -> Result<Vec<Assignment>>;

    /// The version that an agent should have ([`wanted_version`]), whole.
    async fn wanted_config(&self, tenant: TenantId, agent: Uuid) -> Result<Option<ConfigVersion>>;
}

//! Rules: what the judge looks for, each with all its versions.

use crate::basics::words;
use crate::{Page, PageRequest, Result, Revision, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

/// Under which keys of the settings it is kept that a rule is suspended, and why: the rule's id follows.
pub const SUSPENDED_RULES: &str = "rule-suspended/";

words! {
    /// Where a rule comes from.
    RuleOrigin {
        /// The pack that comes with the hub.
        Pack = "pack",
        /// A file in the folder of rules.
        File = "file",
        /// The API.
        Api = "api",
    }
}

/// A rule in its latest version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its id: Sigma's `id`, or a name.
    pub id: String,
    /// Its latest version, from 1; grows when the source changes.
    pub version: i64,
    /// What it is called.
    pub title: String,
    /// How bad a match is, in the rule's own word.
    pub level: String,
    /// Which shard judges it, in Sigma's word; opaque here.
    pub logsource: String,
    /// Its source: Sigma YAML, opaque here.
    pub source: String,
    /// Where it comes from.
    pub origin: RuleOrigin,
    /// Whether it is judged by.
    pub enabled: bool,
    /// Which state of all this it is.
    pub revision: Revision,
    /// When it was added.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
    /// By whom.
    pub updated_by: String,
}

/// A rule as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRule {
    /// As in [`Rule`].
    pub id: String,
    /// What it is called.
    pub title: String,
    /// How bad a match is.
    pub level: String,
    /// Which shard judges it.
    pub logsource: String,
    /// Its source.
    pub source: String,
    /// Where it comes from.
    pub origin: RuleOrigin,
    /// Whether it is judged by; none leaves what was, and enables a new one.
    pub enabled: Option<bool>,
}

/// A version of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleVersion {
    /// Which.
    pub version: i64,
    /// The source then.
    pub source: String,
    /// When it was written.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
}

/// Which rules; none of a field means any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleFilter {
    /// From there.
    pub origin: Option<RuleOrigin>,
    /// Judged by, or not.
    pub enabled: Option<bool>,
    /// Of this log source.
    pub logsource: Option<String>,
}

/// What is kept of rules.
#[async_trait]
pub trait Rules {
    /// Writes a rule; a new version if its source is another one, nothing at all if everything is the same. With
    /// `expected`, only if it has that revision; 0 stands for "there is none yet".
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when it is another one.
    async fn put_rule(
        &self,
        tenant: TenantId,
        rule: &NewRule,
        expected: Option<Revision>,
        by: &str,
        now: Timestamp,
    ) -> Result<Rule>;

    /// The rule with this id.
    async fn rule(&self, tenant: TenantId, id: &str) -> Result<Option<Rule>>;

    /// Those that match, by id.
    async fn rules(&self, tenant: TenantId, filter: &RuleFilter, page: &PageRequest) -> Result<Page<Rule>>;

    /// Enables or disables one.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`]; [`crate::DbError::Conflict`] when it is no longer at `expected`.
    async fn enable_rule(
        &self,
        tenant: TenantId,
        id: &str,
        enabled: bool,
        expected: Option<Revision>,
        by: &str,
        now: Timestamp,
    ) -> Result<Rule>;

    /// Removes one with its versions, and that it is suspended ([`SUSPENDED_RULES`]); says whether it was there. Its
    /// findings stay. A rule that comes back under the same id goes on counting versions.
    async fn delete_rule(&self, tenant: TenantId, id: &str) -> Result<bool>;

    /// The versions of a rule, the latest first.
    async fn rule_versions(&self, tenant: TenantId, id: &str, page: &PageRequest) -> Result<Page<RuleVersion>>;

    /// A number that grows with every change of any rule: replicas load the rules again when it moved.
    async fn rules_revision(&self, tenant: TenantId) -> Result<Revision>;
}

//! Agents: who is enrolled, what is known of each, and what each said of itself last.

use crate::basics::words;
use crate::{Page, PageRequest, Result, Revision, Sha256, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Under which keys of the settings it is kept which of its certificates an agent works with: its id follows. What is
/// kept under this and the next two goes with the agent.
pub const CERTIFICATES_IN_USE: &str = "certificate-in-use/";
/// Under which keys it is kept when an agent was last asked to renew its certificate.
pub const RENEWALS_ASKED: &str = "renewal-asked/";
/// Under which keys it is kept what an agent last said of its configuration.
pub const CONFIG_STATUSES: &str = "config-status/";

words! {
    /// Where an agent stands.
    AgentStatus {
        /// It has an identity and has not been heard yet.
        Enrolled = "enrolled",
        /// It was heard lately.
        Online = "online",
        /// It was heard once, and not lately.
        Offline = "offline",
        /// It was told to go: its certificates are void, what it reported stays.
        Retired = "retired",
    }
}

/// An agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// Its id, given by the hub.
    pub id: Uuid,
    /// What people call it: the machine's name, until somebody changes it.
    pub name: String,
    /// What kind of machine or duty, free text: `server`, `workstation`.
    pub kind: String,
    /// Where it stands.
    pub status: AgentStatus,
    /// What it is grouped by.
    pub tags: BTreeSet<String>,
    /// The operator's settings for this agent alone: a JSON object.
    pub config: Value,
    /// Which state of name, kind, tags and config this is. Heartbeats do not change it.
    pub revision: Revision,
    /// When it enrolled.
    pub created_at: Timestamp,
    /// When an operator changed it last.
    pub updated_at: Timestamp,
    /// When it was retired.
    pub retired_at: Option<Timestamp>,
    /// What it said of itself last.
    pub report: AgentReport,
}

/// What an agent said of itself last.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AgentReport {
    /// When it was heard last, by the hub's clock.
    pub last_seen: Option<Timestamp>,
    /// Its version.
    pub version: Option<String>,
    /// Its health, as it told it.
    pub health: Option<Value>,
    /// Its books, as it told them.
    pub ledger: Option<Value>,
    /// Where its updater stands.
    pub update: Option<Value>,
    /// The SHA-256 of the configuration in force, in hexadecimal digits.
    pub config_hash: Option<String>,
    /// Where it connects from.
    pub address: Option<String>,
    /// When its certificate ends.
    pub certificate_expires_at: Option<Timestamp>,
    /// The boot id that it gave first.
    pub first_boot_id: Option<Uuid>,
    /// The boot id that it gave last.
    pub boot_id: Option<Uuid>,
    /// The SHA-256 of the public key (SPKI) that it showed last.
    pub key_hash: Option<Sha256>,
}

/// A new agent. Enrolment makes its own ([`crate::Enrolment::consume_token`]); this is for those an operator makes.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAgent {
    /// Its id.
    pub id: Uuid,
    /// What people call it.
    pub name: String,
    /// What kind of machine or duty.
    pub kind: String,
    /// What it is grouped by.
    pub tags: BTreeSet<String>,
    /// The operator's settings for it: a JSON object.
    pub config: Value,
}

/// What an operator changes; what is none stays.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AgentUpdate {
    /// What people call it.
    pub name: Option<String>,
    /// What kind of machine or duty.
    pub kind: Option<String>,
    /// What it is grouped by.
    pub tags: Option<BTreeSet<String>>,
    /// The operator's settings for it.
    pub config: Option<Value>,
}

/// Which agents; none of a field means any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentFilter {
    /// Where they stand. Without it, retired ones are in the list, too.
    pub status: Option<AgentStatus>,
    /// A tag they have.
    pub tag: Option<String>,
    /// Their kind.
    pub kind: Option<String>,
    /// What their names begin with, upper and lower case told apart.
    pub name_prefix: Option<String>,
    /// Their version.
    pub version: Option<String>,
    /// Only those that have one of these tags, for who may see no others.
    pub within: Option<BTreeSet<String>>,
}

/// One heartbeat. What is none leaves what was said before.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentSeen {
    /// Who.
    pub agent: Uuid,
    /// When, by the hub's clock.
    pub at: Timestamp,
    /// The rest, as in [`AgentReport`].
    pub boot_id: Option<Uuid>,
    /// Its version.
    pub version: Option<String>,
    /// Its health.
    pub health: Option<Value>,
    /// Its books.
    pub ledger: Option<Value>,
    /// Where its updater stands.
    pub update: Option<Value>,
    /// The SHA-256 of its configuration.
    pub config_hash: Option<String>,
    /// Where it connects from.
    pub address: Option<String>,
    /// When its certificate ends.
    pub certificate_expires_at: Option<Timestamp>,
    /// The SHA-256 of its key.
    pub key_hash: Option<Sha256>,
}

impl AgentSeen {
    /// That it was heard, and nothing else.
    pub fn new(agent: Uuid, at: Timestamp) -> Self {
        Self {
            agent,
            at,
            boot_id: None,
            version: None,
            health: None,
            ledger: None,
            update: None,
            config_hash: None,
            address: None,
            certificate_expires_at: None,
            key_hash: None,
        }
    }
}

/// What became of a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenOutcome {
    /// It was noted.
    Noted {
        /// Where the agent stood before.
        was: AgentStatus,
        /// The boot id before this one, if it changed.
        previous_boot: Option<Uuid>,
        /// The boot id is an old one that another had followed: two machines take turns with one identity, or a machine
        /// was put back to an earlier state.
        boot_returned: bool,
        /// The key before this one, if it changed.
        previous_key: Option<Sha256>,
    },
    /// There is no such agent.
    Unknown,
    /// It is retired; nothing was noted.
    Retired,
}

/// A boot id that an agent gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentBoot {
    /// The boot id.
    pub boot_id: Uuid,
    /// When it was heard first.
    pub first_seen: Timestamp,
    /// When an agent last changed to it.
    pub last_began: Timestamp,
    /// How often the agent changed to it: more than once is not what a single machine does.
    pub times: u32,
    /// Where it connected from when it was first heard.
    pub address: Option<String>,
    /// The key it showed then.
    pub key_hash: Option<Sha256>,
}

/// What is kept of agents.
#[async_trait]
pub trait Agents {
    /// Makes one, as [`AgentStatus::Enrolled`].
    ///
    /// # Errors
    /// [`crate::DbError::Conflict`] when the id is taken.
    async fn create_agent(&self, tenant: TenantId, agent: &NewAgent, now: Timestamp) -> Result<Agent>;

    /// The one with this id.
    async fn agent(&self, tenant: TenantId, id: Uuid) -> Result<Option<Agent>>;

    /// Those that match, by name and id.
    async fn agents(&self, tenant: TenantId, filter: &AgentFilter, page: &PageRequest) -> Result<Page<Agent>>;

    /// Changes what an operator may change.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`]; [`crate::DbError::Conflict`] when it is no longer at `revision`.
    async fn update_agent(
        &self,
        tenant: TenantId,
        id: Uuid,
        revision: Revision,
        update: &AgentUpdate,
        now: Timestamp,
    ) -> Result<Agent>;

    /// Retires it and revokes all its certificates, in one transaction. Again changes nothing.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`].
    async fn retire_agent(&self, tenant: TenantId, id: Uuid, by: &str, now: Timestamp) -> Result<Agent>;

    /// Removes a retired agent, its boots and its streams, and what the settings keep of it ([`CERTIFICATES_IN_USE`]).
    /// Its events and findings stay until retention takes them, its certificates stay revoked.
    ///
    /// # Errors
    /// [`crate::DbError::NotFound`]; [`crate::DbError::Invalid`] when it is not retired.
    async fn delete_agent(&self, tenant: TenantId, id: Uuid) -> Result<()>;

    /// Notes many heartbeats in one transaction; an outcome for each, in their order. One that is not known keeps none of
    /// the others from being noted. An older heartbeat never overwrites a newer one.
    async fn agents_seen(&self, tenant: TenantId, seen: &[AgentSeen]) -> Result<Vec<SeenOutcome>>;

    /// Marks as offline who is online and was last seen before `before`; gives at most `limit` of them at a time.
    async fn agents_silent(&self, tenant: TenantId, before: Timestamp, limit: u32) -> Result<Vec<Uuid>>;

    /// How many there are in each status; statuses that nobody has are absent.
    async fn agent_counts(&self, tenant: TenantId) -> Result<BTreeMap<AgentStatus, u64>>;

    /// The boot ids that an agent gave, the one it changed to last first; at most 100.
    async fn agent_boots(&self, tenant: TenantId, id: Uuid) -> Result<Vec<AgentBoot>>;
}

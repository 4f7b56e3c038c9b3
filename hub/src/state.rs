//! What everything in the hub shares.

use crate::app::admission::Admission;
use crate::app::heartbeats::Heartbeats;
use crate::app::identity::Identities;
use crate::app::intake::Intake;
use crate::app::own_events::OwnStream;
use crate::app::people::abuse::Failures;
use crate::app::people::jwt::Tokens;
use crate::app::people::password::Passwords;
use crate::app::presence::{Machine, Presence};
use crate::authority::Keys;
use crate::clock::Clock;
use crate::config::HubSettings;
use crate::security::Security;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{Database, TenantId};
use picket_protocol::BuildInfo;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// The hub: one of it, behind an [`Arc`], in every handler and task.
pub struct Hub {
    /// Which build this is.
    pub build: BuildInfo,
    /// What was configured.
    pub settings: HubSettings,
    /// What time it is.
    pub clock: Clock,
    /// What is kept.
    pub db: Arc<dyn Database>,
    /// Whose data it is.
    pub tenant: TenantId,
    /// How long after its end a certificate may be renewed.
    pub grace: SignedDuration,
    /// What is remembered of certificates.
    pub identities: Identities,
    /// Who is connected here.
    pub presence: Presence,
    /// The way of events into the database.
    pub intake: Intake,
    /// The way of heartbeats there.
    pub heartbeats: Heartbeats,
    /// How many machines may enrol at a time.
    pub enrolments: Admission,
    /// How many agents may connect at a time.
    pub connects: Admission,
    /// Hashes and compares passwords.
    pub passwords: Passwords,
    /// Signs and believes tokens.
    pub tokens: Tokens,
    /// Who failed to say who they are.
    pub failures: Failures,
    /// How the hub defends itself.
    pub security: Security,
    /// The stream of the hub's own events.
    pub own_stream: OwnStream,
    /// One entry of the audit log at a time.
    pub audit_lock: tokio::sync::Mutex<()>,
    /// Tasks that connections became.
    pub tasks: TaskTracker,
    /// Turns true when the hub is to stop.
    pub stop: watch::Receiver<bool>,
    keys: RwLock<Arc<Keys>>,
    twins_told: Mutex<HashMap<Uuid, Timestamp>>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("build", &self.build).field("keys", &self.keys()).finish_non_exhaustive()
    }
}

impl Hub {
    /// The keys in force.
    pub fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes other keys into force.
    pub fn set_keys(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    /// Two machines were seen with one identity: told once a minute at most for each agent, for they take turns.
    pub async fn twins(&self, agent: Uuid, machines: &[Machine; 2]) {
        let now = self.clock.now();
        {
            let mut told = self.twins_told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.get(&agent).is_some_and(|last| now.duration_since(*last) < SignedDuration::from_mins(1)) {
                return;
            }
            told.retain(|_, last| now.duration_since(*last) < SignedDuration::from_mins(1));
            told.insert(agent, now);
        }
        let details = serde_json::json!({ "agent_id": agent, "machines": machines });
        self.report("cloned_identity", details).await;
    }
}

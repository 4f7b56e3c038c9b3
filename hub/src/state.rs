//! What everything in the hub shares.

use crate::api::people::RequestRates;
use crate::app::admission::Admission;
use crate::app::heartbeats::Heartbeats;
use crate::app::identity::Identities;
use crate::app::intake::Intake;
use crate::app::judge::JudgeCounters;
use crate::app::own_events::OwnStream;
use crate::app::people::abuse::Failures;
use crate::app::people::jwt::Tokens;
use crate::app::people::password::Passwords;
use crate::app::presence::{Machine, Presence};
use crate::app::rules::RuleSet;
use crate::authority::Keys;
use crate::clock::Clock;
use crate::config::HubSettings;
use crate::security::Security;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{Database, TenantId};
use picket_protocol::BuildInfo;
use picket_seal::Sealer;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// The parts of a hub, which do not change while it lives.
#[derive(Debug)]
pub struct Parts {
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
    /// How often somebody may ask.
    pub rates: RequestRates,
    /// How the hub defends itself.
    pub security: Security,
    /// The stream of the hub's own events.
    pub own_stream: OwnStream,
    /// Tasks that connections became.
    pub tasks: TaskTracker,
    /// Turns true when the hub is to stop.
    pub stop: watch::Receiver<bool>,
    /// Changes when events were stored: who waits for them looks.
    pub wake: Arc<watch::Sender<u64>>,
    /// Changes when the judge committed findings.
    pub found: watch::Sender<u64>,
    /// The rules in force.
    pub rules: RuleSet,
    /// What the judge counted.
    pub judged: JudgeCounters,
    /// This process among the replicas.
    pub replica: Uuid,
    /// Where machines reach this hub.
    pub public_url: String,
    /// Seals what the database is not to know.
    pub sealer: Sealer,
}

/// The hub: one of it, behind an [`Arc`], in every handler and task.
pub struct Hub {
    parts: Parts,
    keys: RwLock<Arc<Keys>>,
    twins_told: Mutex<HashMap<Uuid, Timestamp>>,
    /// One entry of the audit log at a time.
    pub(crate) audit_lock: tokio::sync::Mutex<()>,
}

impl Deref for Hub {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("build", &self.build).field("keys", &self.keys()).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub of these parts and keys.
    pub fn new(parts: Parts, keys: Keys) -> Self {
        Self {
            parts,
            keys: RwLock::new(Arc::new(keys)),
            twins_told: Mutex::default(),
            audit_lock: tokio::sync::Mutex::default(),
        }
    }

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
            told.retain(|_, last| now.duration_since(*last) < SignedDuration::from_mins(1));
            if told.insert(agent, now).is_some() {
                return;
            }
        }
        let details = serde_json::json!({ "agent_id": agent, "machines": machines });
        self.report("cloned_identity", details).await;
    }
}

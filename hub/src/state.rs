//! What everything in the hub shares.

use crate::api::people::{RequestRates, Suspicions, ViewerCounters};
use crate::app::admission::{Admission, Each, Turns};
use crate::app::books::Books;
use crate::app::heartbeats::Heartbeats;
use crate::app::identity::Identities;
use crate::app::intake::Intake;
use crate::app::judge::JudgeCounters;
use crate::app::lines::Lines;
use crate::app::own_events::{OwnEvents, OwnStream};
use crate::app::people::abuse::Failures;
use crate::app::people::jwt::Tokens;
use crate::app::people::password::Passwords;
use crate::app::presence::{Machine, Presence};
use crate::app::relayed::RelayCounters;
use crate::app::replicas::Replicas;
use crate::app::rules::RuleSet;
use crate::authority::Keys;
use crate::clock::Clock;
use crate::config::HubSettings;
use crate::security::Security;
use crate::server::ListenerCounters;
use crate::watch::Watched;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{Database, Network, TenantId};
use picket_protocol::BuildInfo;
use picket_seal::Sealer;
use picket_transport::Network as Reach;
use std::collections::HashMap;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::{broadcast, watch};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// The parts of a hub, which do not change while it lives.
#[derive(Debug)]
pub struct Parts {
    /// Which build this is.
    pub build: BuildInfo,
    /// What was configured.
    pub settings: HubSettings,
    /// How web hooks are reached.
    pub network: Reach,
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
    /// Which certificates are in use.
    pub lines: Lines,
    /// Who is connected here.
    pub presence: Presence,
    /// The way of events into the database.
    pub intake: Intake,
    /// The way of heartbeats there.
    pub heartbeats: Heartbeats,
    /// How many machines may enrol at a time.
    pub enrolments: Admission,
    /// How many machines of one address may enrol at a time.
    pub enrolments_each: Each<String>,
    /// How often one agent may renew its certificate.
    pub renewals_each: Each<Uuid>,
    /// How many batches of one agent may be on their way at once.
    pub batches_each: Turns<Uuid>,
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
    /// What looks like an attack.
    pub suspicions: Suspicions,
    /// How the hub defends itself.
    pub security: Security,
    /// The stream of the hub's own events.
    pub own_stream: OwnStream,
    /// The way of the hub's own events into the database.
    pub own_events: OwnEvents,
    /// Whether the books of agents agree with the hub's.
    pub books: Books,
    /// Tasks that connections became.
    pub tasks: TaskTracker,
    /// Turns true when the hub is to stop.
    pub stop: watch::Receiver<bool>,
    /// Changes when events were stored: who waits for them looks.
    pub wake: Arc<watch::Sender<u64>>,
    /// Changes when the judge committed findings.
    pub found: watch::Sender<u64>,
    /// Says which agent came, went or changed.
    pub agent_changes: broadcast::Sender<Uuid>,
    /// What viewers cost.
    pub viewers: Arc<ViewerCounters>,
    /// The rules in force.
    pub rules: RuleSet,
    /// What the judge counted.
    pub judged: JudgeCounters,
    /// This process among the replicas.
    pub replica: Uuid,
    /// The other replicas.
    pub replicas: Arc<Replicas>,
    /// What came of batches through NATS.
    pub relayed: RelayCounters,
    /// Health and metrics.
    pub watched: Watched,
    /// What the listeners count.
    pub listeners: Listeners,
    /// The folder with the database, where it is a file of this machine.
    pub database_folder: Option<PathBuf>,
    /// Where machines reach this hub.
    pub public_url: String,
    /// From where machines may enrol; empty means from everywhere.
    pub enrolment_networks: Vec<Network>,
    /// Seals what the database is not to know.
    pub sealer: Sealer,
}

/// What the listeners count.
#[derive(Debug, Default)]
pub struct Listeners {
    /// That of agents.
    pub agents: Arc<ListenerCounters>,
    /// That of people and programs.
    pub api: Arc<ListenerCounters>,
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

    /// What was sent away for want of room or over its rate, since the process started, by what it was.
    pub fn shed(&self) -> [(&'static str, u64); 8] {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        [
            ("batches", read(&self.intake.counters().shed)),
            ("heartbeats", read(&self.heartbeats.counters().shed)),
            ("enrolments", self.enrolments.shed() + self.enrolments_each.shed()),
            ("renewals", self.renewals_each.shed()),
            ("agent_connects", self.connects.shed()),
            ("agent_connections", read(&self.listeners.agents.refused)),
            ("api_connections", read(&self.listeners.api.refused)),
            ("api_requests", self.rates.refused()),
        ]
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

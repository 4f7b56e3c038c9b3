//! What replicas of one hub tell each other, so that nobody waits for what another one knows already.
//!
//! The database is the record, and each replica looks there now and then: what is lost on the bus costs seconds, never an
//! event, a finding or a revocation. A hub that is alone has nobody to tell and says nothing.
//!
//! Whoever may write to NATS can say any of these words. So each is a hint to look: what is done then, and what an agent
//! hears, follows from what the database says. A forged word costs a look.

use crate::refusal::{Outcome, storage};
use crate::server::told_to_stop;
use crate::state::Hub;
use bytes::Bytes;
use jiff::Timestamp;
use picket_bus::{Bus, Health, Heard, NatsBus, NatsSettings, Pattern, Subject, Subscription};
use picket_hub_db::{AgentStatus, RENEWALS_ASKED, TenantId};
use picket_protocol::hub::{Bye, ByeReason, Frame};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use uuid::Uuid;

/// Words that may wait to be said.
const MAX_UNSAID: usize = 4096;
/// Words of others that may wait to be heard.
const MAX_UNHEARD: usize = 4096;
/// How long until it is tried again to connect, where the start could not.
const CONNECT_AGAIN: Duration = Duration::from_secs(10);
/// How long until it is tried again to listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);

/// What one replica tells the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Telling {
    /// Events were stored.
    Stored,
    /// Findings were made or changed.
    Findings,
    /// The set of rules changed.
    Rules,
    /// An agent came, went or changed.
    Agent {
        /// Which.
        agent: Uuid,
    },
    /// Certificates were revoked or replaced: what is remembered of them is to be forgotten.
    Certificates,
    /// Configurations were assigned.
    Configs {
        /// To this agent only.
        agent: Option<Uuid>,
    },
    /// An agent has to go: whoever holds its connection looks whether that is so.
    Retired {
        /// Which.
        agent: Uuid,
    },
    /// An agent is asked to renew its certificate: whoever holds its connection looks whether that is so.
    Renewal {
        /// Which.
        agent: Uuid,
    },
    /// A word of a later version.
    #[serde(other)]
    Unknown,
}

/// A word, and whose.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Envelope {
    from: Uuid,
    #[serde(flatten)]
    telling: Telling,
}

/// This replica's mouth, and the bus.
#[derive(Debug)]
pub struct Replicas {
    /// How to reach NATS; nothing for a hub that is alone.
    nats: Option<NatsSettings>,
    /// The bus, once there is a connection.
    bus: watch::Sender<Option<Arc<dyn Bus>>>,
    unsaid: mpsc::Sender<Telling>,
    /// Whether it waits already to be said that events were stored: it is said once for many transactions.
    stored_waits: AtomicBool,
    untold: AtomicU64,
    /// One look over all agents' configurations at a time, however often others ask for it.
    offering: Arc<Semaphore>,
}

impl Replicas {
    /// Nobody else is there.
    pub fn alone() -> (Self, mpsc::Receiver<Telling>) {
        Self::new(None, None)
    }

    /// Others are there, on `bus` or on one that is connected later; and what [`speak`] is to say.
    pub fn shared(nats: NatsSettings, bus: Option<Arc<dyn Bus>>) -> (Self, mpsc::Receiver<Telling>) {
        Self::new(Some(nats), bus)
    }

    fn new(nats: Option<NatsSettings>, bus: Option<Arc<dyn Bus>>) -> (Self, mpsc::Receiver<Telling>) {
        let (unsaid, to_say) = mpsc::channel(MAX_UNSAID);
        let (stored_waits, untold) = (AtomicBool::new(false), AtomicU64::new(0));
        let offering = Arc::new(Semaphore::new(1));
        (Self { nats, bus: watch::Sender::new(bus), unsaid, stored_waits, untold, offering }, to_say)
    }

    /// Whether others can be there at all.
    pub fn is_shared(&self) -> bool {
        self.nats.is_some()
    }

    /// How the bus is doing.
    pub fn health(&self) -> Health {
        self.bus().map_or_else(Health::default, |bus| bus.health())
    }

    /// The bus, once there is a connection.
    pub fn bus(&self) -> Option<Arc<dyn Bus>> {
        self.bus.borrow().clone()
    }

    /// Words that did not fit the queue, or that the bus did not take.
    pub fn untold(&self) -> u64 {
        self.untold.load(Ordering::Relaxed)
    }

    /// Tells the others. It never waits, and may be lost.
    pub fn tell(&self, telling: Telling) {
        if !self.is_shared() || (telling == Telling::Stored && self.stored_waits.swap(true, Ordering::AcqRel)) {
            return;
        }
        if self.unsaid.try_send(telling).is_err() {
            self.untold.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends the bus, once everything that was to be said is.
    pub async fn close(&self) {
        if let Some(bus) = self.bus() {
            bus.close().await;
        }
    }
}

impl Hub {
    /// An agent came, went or changed here.
    pub fn tell_agent_changed(&self, agent: Uuid) {
        let _ = self.agent_changes.send(agent);
        self.replicas.tell(Telling::Agent { agent });
    }

    /// Findings were made or changed here.
    pub fn tell_findings_changed(&self) {
        self.found.send_modify(|count| *count = count.wrapping_add(1));
        self.replicas.tell(Telling::Findings);
    }

    /// Certificates were revoked or replaced here.
    pub fn tell_certificates_changed(&self) {
        self.identities.forget();
        self.replicas.tell(Telling::Certificates);
    }

    /// Tells an agent that was retired goodbye, wherever it is connected.
    pub fn tell_retired(&self, agent: Uuid) {
        if let Some(bye) = farewell(Some(AgentStatus::Retired)) {
            self.presence.send(agent, Frame::Bye(bye));
        }
        // Also where it is connected here: a connection that it gave up may still be held elsewhere.
        self.replicas.tell(Telling::Retired { agent });
    }

    /// Asks an agent to renew its certificate now, wherever it is connected. Says whether it was asked from here; where it
    /// was not, another replica may.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn ask_for_renewal(&self, agent: Uuid) -> Outcome<bool> {
        if self.presence.of(agent).is_some() {
            return Ok(self.presence.send(agent, renewal()));
        }
        if self.replicas.is_shared() {
            let now = self.clock.now();
            let value = serde_json::to_vec(&now).unwrap_or_default();
            self.db.put_setting(self.tenant, &asked_key(agent), &value, None, now).await.map_err(storage)?;
            self.replicas.tell(Telling::Renewal { agent });
        }
        Ok(false)
    }

    /// Tells an agent that is connected here goodbye, if it has to go.
    async fn see_off(&self, agent: Uuid) -> Outcome<()> {
        if self.presence.of(agent).is_some() {
            let found = self.db.agent(self.tenant, agent).await.map_err(storage)?;
            if let Some(bye) = farewell(found.map(|agent| agent.status)) {
                self.presence.send(agent, Frame::Bye(bye));
            }
        }
        Ok(())
    }

    /// Asks an agent that is connected here to renew its certificate, if somebody asked for that since it got the one that
    /// it shows.
    async fn pass_on_renewal(&self, agent: Uuid) -> Outcome<()> {
        let Some(connection) = self.presence.of(agent) else { return Ok(()) };
        let asked = self.db.setting(self.tenant, &asked_key(agent)).await.map_err(storage)?;
        let asked = asked.and_then(|asked| serde_json::from_slice::<Timestamp>(&asked.value).ok());
        let shown = self.db.certificate(self.tenant, &connection.serial).await.map_err(storage)?;
        if asked.zip(shown).is_some_and(|(asked, shown)| asked >= shown.issued.issued_at) {
            self.presence.send(agent, renewal());
        }
        Ok(())
    }
}

/// Under which key of the settings is kept when it was last asked that an agent renews its certificate.
fn asked_key(agent: Uuid) -> String {
    format!("{RENEWALS_ASKED}{agent}")
}

fn renewal() -> Frame {
    Frame::RenewCertificate { reason: "an operator asks for it".to_owned() }
}

/// What an agent is told that stands like this in the database, if it has to go.
fn farewell(status: Option<AgentStatus>) -> Option<Bye> {
    let (reason, detail) = match status {
        Some(AgentStatus::Retired) => {
            (ByeReason::Revoked, "the hub has retired this agent; if this machine is to come back, enrol it again")
        }
        None => (ByeReason::UnknownAgent, "the hub does not know the agent any more; enrol again with: picket enroll"),
        Some(_) => return None,
    };
    Some(Bye { reason, detail: detail.to_owned(), retry_after_ms: None })
}

fn subject(tenant: TenantId, telling: &Telling) -> Subject {
    let tenant = bus_tenant(tenant);
    match telling {
        Telling::Stored => Subject::stored(tenant),
        Telling::Findings => Subject::findings(tenant),
        Telling::Rules | Telling::Unknown => Subject::rules(tenant),
        Telling::Agent { .. } => Subject::agents(tenant),
        Telling::Certificates => Subject::revoked(tenant),
        Telling::Configs { agent } => Subject::control(tenant, agent.unwrap_or_default()),
        Telling::Retired { agent } | Telling::Renewal { agent } => Subject::control(tenant, *agent),
    }
}

/// How subjects name a tenant.
pub fn bus_tenant(tenant: TenantId) -> Uuid {
    picket_bus::tenant_name(tenant.0)
}

/// What a replica listens to: everything but what is work or an answer to somebody.
fn patterns(tenant: TenantId) -> Vec<Pattern> {
    let tenant = bus_tenant(tenant);
    vec![
        Subject::stored(tenant).into(),
        Subject::findings(tenant).into(),
        Subject::rules(tenant).into(),
        Subject::agents(tenant).into(),
        Subject::revoked(tenant).into(),
        Pattern::control(tenant),
    ]
}

/// Says what is to be said, until the hub stops and all is said.
pub async fn speak(hub: Arc<Hub>, mut to_say: mpsc::Receiver<Telling>) {
    let mut stop = hub.stop.clone();
    loop {
        let telling = tokio::select! {
            telling = to_say.recv() => telling,
            () = told_to_stop(&mut stop) => to_say.try_recv().ok(),
        };
        let Some(telling) = telling else { return };
        // What is stored from now on is said anew.
        if telling == Telling::Stored {
            hub.replicas.stored_waits.store(false, Ordering::Release);
        }
        let Some(bus) = hub.replicas.bus() else {
            hub.replicas.untold.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let subject = subject(hub.tenant, &telling);
        // Strings and numbers: nothing of it can fail.
        let body = serde_json::to_vec(&Envelope { from: hub.replica, telling }).unwrap_or_default();
        if let Err(error) = bus.publish(&subject, Bytes::from(body)).await {
            hub.replicas.untold.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%subject, %error, "replicas are not told");
        }
    }
}

/// Connects, where the start could not, and listens to the other replicas until the hub stops.
pub async fn listen(hub: Arc<Hub>) {
    let Some(nats) = hub.replicas.nats.clone() else { return };
    let mut stop = hub.stop.clone();
    tokio::select! {
        () = connect(&hub, &nats) => {}
        () = told_to_stop(&mut stop) => return,
    }
    let tasks = patterns(hub.tenant).into_iter().map(|pattern| tokio::spawn(listen_to(Arc::clone(&hub), pattern)));
    let tasks: Vec<_> = tasks.collect();
    told_to_stop(&mut stop).await;
    for task in tasks {
        task.abort();
    }
}

/// Connects until there is a connection, which from then on is made again by itself.
async fn connect(hub: &Hub, nats: &NatsSettings) {
    while hub.replicas.bus().is_none() {
        match NatsBus::connect(nats.clone()).await {
            Ok(bus) => {
                hub.replicas.bus.send_replace(Some(Arc::new(bus)));
            }
            Err(error) => {
                tracing::warn!(%error, "replicas are not heard");
                tokio::time::sleep(CONNECT_AGAIN).await;
            }
        }
    }
}

async fn listen_to(hub: Arc<Hub>, pattern: Pattern) {
    let Some(bus) = hub.replicas.bus() else { return };
    loop {
        match bus.subscribe(&pattern, MAX_UNHEARD).await {
            Ok(subscription) => {
                // Whatever was said before is in the database.
                catch_up(&hub).await;
                hear(&hub, subscription).await;
            }
            Err(error) => tracing::debug!(%pattern, %error, "replicas cannot be listened to"),
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

async fn hear(hub: &Arc<Hub>, mut subscription: Subscription) {
    while let Some(heard) = subscription.next().await {
        match heard {
            Heard::Message { body, .. } => match serde_json::from_slice::<Envelope>(&body) {
                Ok(envelope) if envelope.from == hub.replica => {}
                Ok(envelope) => take(hub, envelope.telling).await,
                Err(error) => tracing::debug!(%error, "a word of a replica cannot be read"),
            },
            Heard::Lost(_) | Heard::Interrupted => catch_up(hub).await,
        }
    }
}

async fn take(hub: &Arc<Hub>, telling: Telling) {
    match telling {
        Telling::Stored => hub.wake.send_modify(|count| *count = count.wrapping_add(1)),
        Telling::Findings => hub.found.send_modify(|count| *count = count.wrapping_add(1)),
        Telling::Rules => reload(hub).await,
        Telling::Agent { agent } => {
            let _ = hub.agent_changes.send(agent);
        }
        Telling::Certificates => hub.identities.forget(),
        Telling::Configs { agent: Some(agent) } => hub.offer_to(vec![agent]).await,
        Telling::Configs { agent: None } => {
            // One that is under way may have passed some by already: they get theirs with their next heartbeat.
            if let Ok(turn) = Arc::clone(&hub.replicas.offering).try_acquire_owned() {
                let all = Arc::clone(hub);
                hub.tasks.spawn(async move {
                    all.offer_to(all.presence.agents()).await;
                    drop(turn);
                });
            }
        }
        Telling::Retired { agent } => looked(agent, hub.see_off(agent).await),
        Telling::Renewal { agent } => looked(agent, hub.pass_on_renewal(agent).await),
        Telling::Unknown => {}
    }
}

fn looked(agent: Uuid, outcome: Outcome<()>) {
    if let Err(refusal) = outcome {
        tracing::debug!(%agent, %refusal, "what another replica says of an agent is not looked at");
    }
}

/// Does everything that a lost word might have asked for, but for what was for one agent: that one asks by itself.
async fn catch_up(hub: &Arc<Hub>) {
    hub.identities.forget();
    hub.wake.send_modify(|count| *count = count.wrapping_add(1));
    hub.found.send_modify(|count| *count = count.wrapping_add(1));
    reload(hub).await;
}

async fn reload(hub: &Hub) {
    if let Err(refusal) = hub.load_rules().await {
        tracing::warn!(%refusal, "rules are not loaded anew");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_said_where_it_is_listened_for() {
        let agent = Uuid::now_v7();
        for telling in [
            Telling::Stored,
            Telling::Findings,
            Telling::Rules,
            Telling::Agent { agent },
            Telling::Certificates,
            Telling::Configs { agent: None },
            Telling::Configs { agent: Some(agent) },
            Telling::Retired { agent },
            Telling::Renewal { agent },
        ] {
            let subject = subject(TenantId::DEFAULT, &telling);
            let listeners = patterns(TenantId::DEFAULT).iter().filter(|pattern| pattern.matches(&subject)).count();
            assert_eq!(listeners, 1, "{telling:?}");
            let envelope = Envelope { from: agent, telling };
            let text = serde_json::to_vec(&envelope).unwrap();
            assert_eq!(serde_json::from_slice::<Envelope>(&text).unwrap(), envelope);
        }
        let later = format!(r#"{{"from":"{agent}","what":"sing","song":1}}"#);
        assert_eq!(serde_json::from_str::<Envelope>(&later).unwrap().telling, Telling::Unknown);
    }

    #[test]
    fn only_who_has_to_go_is_told_so() {
        for status in [AgentStatus::Enrolled, AgentStatus::Online, AgentStatus::Offline] {
            assert_eq!(farewell(Some(status)), None);
        }
        assert_eq!(farewell(Some(AgentStatus::Retired)).unwrap().reason, ByeReason::Revoked);
        assert_eq!(farewell(None).unwrap().reason, ByeReason::UnknownAgent);
    }

    #[test]
    fn who_is_alone_says_nothing_and_a_burst_of_transactions_is_one_word() {
        let (alone, mut unsaid) = Replicas::alone();
        alone.tell(Telling::Stored);
        assert!(unsaid.try_recv().is_err());
        let (mouth, mut unsaid) = Replicas::shared(NatsSettings::default(), None);
        (0..3).for_each(|_| mouth.tell(Telling::Stored));
        assert_eq!(unsaid.try_recv(), Ok(Telling::Stored));
        assert!(unsaid.try_recv().is_err());
        (0..MAX_UNSAID + 2).for_each(|_| mouth.tell(Telling::Rules));
        assert_eq!(mouth.untold(), 2);
    }
}

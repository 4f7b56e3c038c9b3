//! Batches that agents send through NATS (`bus.events`): who sent each is seen by its signature, it goes into the database on
//! the same way as all others, and the agent is answered once it is on disk.
//!
//! Nobody believes NATS: not for whose a batch is, and not for having kept it. A batch stays in the queue until it is
//! answered, and in its agent's own queue until that has heard so.

use crate::app::batch;
use crate::app::identity::{KnownAgent, Purpose};
use crate::app::replicas::bus_tenant;
use crate::refusal::{Outcome, Refusal};
use crate::server::told_to_stop;
use crate::state::Hub;
use crate::wire::common_version;
use bytes::Bytes;
use jiff::Timestamp;
use picket_bus::{Bus, Delivery, Item, Queue, QueueSpec, Subject};
use picket_hub_db::TenantId;
use picket_pki::{AgentIdentity, Certificate, ChainPolicy, MAX_CHAIN, check_agent_chain};
use picket_protocol::hub::{
    EventsAnswer, ProblemCode, RELAY_CHAIN, RELAY_RAW_BYTES, RELAY_SIGNATURE, RELAY_WIRE, RelayAnswer, RelayOutcome,
    relay_message,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument as _;
use uuid::Uuid;

/// Batches in hand at a time: the room for events bounds them, too.
const AT_ONCE: usize = 64;
/// How long is waited for a batch before the queue is asked again.
const WAIT: Duration = Duration::from_secs(5);
/// How long until the queue is tried again: after a failure that passes by itself, and after one that somebody must mend.
const OPEN_AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// How often is looked how full the queue is.
const LOOK: Duration = Duration::from_secs(10);
/// The first wait of a batch that cannot be stored now, and the longest.
const COME_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The longest chain of certificates, in bytes of base64: ours have two or three of some 800 bytes.
const MAX_CHAIN_TEXT: usize = 16 << 10;

/// What came of batches through NATS.
#[derive(Debug, Default)]
pub struct RelayCounters {
    /// Those that are stored.
    pub stored: AtomicU64,
    /// Those that were refused with an answer.
    pub refused: AtomicU64,
    /// Those that were put back, to come again.
    pub put_back: AtomicU64,
    /// Those that nobody can be answered for.
    pub dropped: AtomicU64,
    /// Those that wait in the queue, when it was last looked.
    pub waiting: AtomicU64,
}

/// A batch, and for whom it is said to be. Nothing of it is believed yet.
struct Relayed<'a> {
    agent: Uuid,
    reply: Subject,
    item: &'a Item,
}

/// What is to be done with a batch.
enum Verdict {
    /// To say so, and to be done with it.
    Answer(RelayOutcome),
    /// To take it again after this time.
    Again(Duration),
}

/// Takes batches until the hub stops.
pub async fn run(hub: Arc<Hub>) {
    if !hub.settings.bus.events {
        return;
    }
    let mut stop = hub.stop.clone();
    tokio::select! {
        () = take(&hub) => {}
        () = told_to_stop(&mut stop) => {}
    }
}

/// Never returns.
async fn take(hub: &Arc<Hub>) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let opened = match hub.replicas.bus() {
            Some(bus) => bus.queue(&QueueSpec::events()).await.map(|queue| (bus, queue)),
            None => Err(picket_bus::BusError::Disconnected),
        };
        let ended = match opened {
            Ok((bus, queue)) => pull(hub, &bus, &queue, &turns).await,
            Err(error) => error,
        };
        // That the connection is gone was said by the bus.
        let wait = if ended.is_transient() {
            OPEN_AGAIN.0
        } else {
            tracing::warn!(error = %ended, "batches of agents are not taken from NATS");
            OPEN_AGAIN.1
        };
        tokio::time::sleep(wait).await;
    }
}

/// Takes batches until that fails.
async fn pull(
    hub: &Arc<Hub>,
    bus: &Arc<dyn Bus>,
    queue: &Arc<dyn Queue>,
    turns: &Arc<Semaphore>,
) -> picket_bus::BusError {
    let mut looked: Option<Instant> = None;
    loop {
        if looked.is_none_or(|at| at.elapsed() >= LOOK) {
            if let Ok(depth) = queue.depth().await {
                hub.relayed.waiting.store(depth.waiting, Ordering::Relaxed);
            }
            looked = Some(Instant::now());
        }
        // Closed by nobody.
        let Ok(turn) = Arc::clone(turns).acquire_owned().await else { return picket_bus::BusError::Closed };
        let mut free = vec![turn];
        while let Ok(turn) = Arc::clone(turns).try_acquire_owned() {
            free.push(turn);
        }
        let taken = match queue.pull(free.len(), WAIT).await {
            Ok(taken) => taken,
            Err(error) => return error,
        };
        for (delivery, turn) in taken.into_iter().zip(free) {
            let (hub, bus) = (Arc::clone(hub), Arc::clone(bus));
            let tasks = hub.tasks.clone();
            let header = |name: &str| header(&delivery.item, name).map(str::to_owned);
            let span = crate::api::cause::relayed(header);
            tasks.spawn(async move { handle(&hub, bus.as_ref(), delivery, turn).await }.instrument(span));
        }
    }
}

async fn handle(hub: &Hub, bus: &dyn Bus, delivery: Delivery, _turn: OwnedSemaphorePermit) {
    let counters = &hub.relayed;
    let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
    let settled = match opened(&delivery.item, hub.tenant) {
        Ok(relayed) => match hub.judge_relayed(&relayed, delivery.deliveries).await {
            Verdict::Answer(outcome) => {
                count(if matches!(outcome, RelayOutcome::Stored(_)) { &counters.stored } else { &counters.refused });
                // Unless it was said, it comes again, and is answered then.
                match bus.publish(&relayed.reply, hub.relay_answer(&relayed, outcome)).await {
                    Ok(()) => delivery.ack().await,
                    Err(error) => Err(error),
                }
            }
            Verdict::Again(wait) => {
                count(&counters.put_back);
                delivery.nak(wait).await
            }
        },
        Err(why) => {
            count(&counters.dropped);
            tracing::warn!(subject = %delivery.item.subject, why, "a batch on NATS is nobody's who could be answered");
            delivery.ack().await
        }
    };
    if let Err(error) = settled {
        tracing::debug!(%error, "a batch comes again");
    }
}

/// Reads for whom a batch is said to be.
fn opened(item: &Item, tenant: TenantId) -> Result<Relayed<'_>, &'static str> {
    let (theirs, agent) =
        Subject::parse_events(item.subject.as_str()).map_err(|_| "its subject is not one of events")?;
    let ours = bus_tenant(tenant);
    if theirs != ours {
        return Err("it is another tenant's");
    }
    let reply = item.reply.as_deref().ok_or("it does not say where to answer")?;
    let reply =
        Subject::parse_inbox(reply, ours, agent).map_err(|_| "it is to be answered elsewhere than at its agent")?;
    Ok(Relayed { agent, reply, item })
}

/// What became of a batch: a refusal that time may mend is none.
fn verdict(outcome: Outcome<EventsAnswer>, deliveries: u64) -> Verdict {
    match outcome {
        Ok(stored) => Verdict::Answer(RelayOutcome::Stored(stored)),
        Err(Refusal(problem)) if problem.retry_after.is_some() || problem.status >= 500 => {
            let doublings = u32::try_from(deliveries.saturating_sub(1).min(5)).unwrap_or(5);
            let asked = Duration::from_secs(problem.retry_after.unwrap_or_default());
            Verdict::Again((COME_AGAIN.0 * (1 << doublings)).max(asked).min(COME_AGAIN.1))
        }
        Err(Refusal(problem)) => Verdict::Answer(RelayOutcome::Refused(problem)),
    }
}

fn header<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

impl Relayed<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        header(self.item, name)
    }

    /// The certificate of whoever signed this batch, if an authority of `roots` vouches for it. Whether it holds still, and
    /// whether it was revoked, is not asked here.
    fn signer(
        &self,
        tenant: TenantId,
        roots: &[Certificate],
        now: Timestamp,
        raw_bytes: usize,
    ) -> Outcome<Certificate> {
        let refused = |why: &str| {
            let detail = format!("a batch through NATS is signed with the key of the agent's certificate: {why}");
            Refusal::new(ProblemCode::CertificateRequired, detail).at(now)
        };
        let chain =
            self.header(RELAY_CHAIN).and_then(read_chain).ok_or_else(|| refused("its certificate cannot be read"))?;
        let signature = self.header(RELAY_SIGNATURE).and_then(crate::decode);
        let signature = signature.ok_or_else(|| refused("there is no signature"))?;
        let leaf = &chain[0];
        let policy = ChainPolicy {
            roots,
            identity: Some(AgentIdentity { tenant: tenant.0, agent: self.agent }),
            pin: leaf.pin,
            // One that has ended is refused for that, in words that help.
            now: now.min(leaf.not_after),
        };
        check_agent_chain(&chain, &policy).map_err(|error| refused(&error.to_string()))?;
        let message = relay_message(self.item.subject.as_str(), self.reply.as_str(), raw_bytes, &self.item.body);
        if !leaf.verifies(&message, &signature) {
            return Err(refused("the signature does not hold"));
        }
        Ok(leaf.clone())
    }
}

/// A chain of certificates as an agent writes it; never empty.
fn read_chain(text: &str) -> Option<Vec<Certificate>> {
    if text.len() > MAX_CHAIN_TEXT || text.split(',').count() > MAX_CHAIN {
        return None;
    }
    text.split(',').map(|each| Certificate::from_der(&crate::decode(each)?).ok()).collect()
}

impl Hub {
    async fn judge_relayed(&self, relayed: &Relayed<'_>, deliveries: u64) -> Verdict {
        verdict(self.store_relayed(relayed).await, deliveries)
    }

    async fn store_relayed(&self, relayed: &Relayed<'_>) -> Outcome<EventsAnswer> {
        common_version(relayed.header(RELAY_WIRE))?;
        let raw_bytes = relayed.header(RELAY_RAW_BYTES).and_then(|text| text.parse::<usize>().ok());
        let raw_bytes = raw_bytes.ok_or_else(|| {
            Refusal::new(
                ProblemCode::Invalid,
                format!("the header {RELAY_RAW_BYTES} must say how many bytes there are"),
            )
        })?;
        let agent = self.signer_of(relayed, raw_bytes).await?;
        batch::check_size(raw_bytes)?;
        let _turn = self.batch_turn(agent.id)?;
        let room = self.intake.reserve(raw_bytes)?;
        self.take_batch(agent.id, &relayed.item.body, raw_bytes, room).await
    }

    async fn signer_of(&self, relayed: &Relayed<'_>, raw_bytes: usize) -> Outcome<KnownAgent> {
        let certificate = relayed.signer(self.tenant, &self.keys().roots, self.clock.now(), raw_bytes)?;
        self.agent_behind(Some(&Arc::new(certificate)), Purpose::Work).await
    }

    /// The signed word on a batch.
    fn relay_answer(&self, relayed: &Relayed<'_>, outcome: RelayOutcome) -> Bytes {
        let answer = RelayAnswer { agent_id: relayed.agent, reply: relayed.reply.to_string(), outcome };
        // Strings and numbers: nothing of it can fail.
        let payload = serde_json::to_string(&answer).unwrap_or_default();
        Bytes::from(serde_json::to_vec(&self.keys().sign(RelayAnswer::PURPOSE, payload)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_pki::{Authority, CsrKey, PrivateKey};
    use proptest::prelude::*;

    const AGENT: Uuid = Uuid::from_u128(0xa);

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    struct Signed {
        root: Authority,
        item: Item,
    }

    /// A batch that an agent signed, and the authority that vouches for it.
    fn signed() -> Signed {
        let root = Authority::root("test", now()).unwrap();
        let key = PrivateKey::generate().unwrap();
        let request = CsrKey::from_request(&key.request("x").unwrap()).unwrap();
        let identity = AgentIdentity { tenant: TenantId::DEFAULT.0, agent: AGENT };
        let leaf = root.agent(identity, &request, now()).unwrap();
        let tenant = bus_tenant(TenantId::DEFAULT);
        let (subject, reply) = (Subject::events(tenant, AGENT), Subject::inbox(tenant, AGENT, "b1").unwrap());
        let body = Bytes::from_static(b"a batch");
        let signature = key.sign(&relay_message(subject.as_str(), reply.as_str(), 9, &body)).unwrap();
        let headers = vec![
            (RELAY_CHAIN.to_owned(), crate::encode(leaf.der())),
            (RELAY_SIGNATURE.to_owned(), crate::encode(&signature)),
        ];
        let item = Item { id: "b1".into(), subject, reply: Some(reply.to_string()), headers, body };
        Signed { root, item }
    }

    impl Signed {
        fn signer(&self, raw_bytes: usize) -> Outcome<Certificate> {
            let roots = [self.root.certificate().clone()];
            let relayed = opened(&self.item, TenantId::DEFAULT).unwrap();
            relayed.signer(TenantId::DEFAULT, &roots, now(), raw_bytes)
        }
    }

    #[test]
    fn a_batch_is_its_agents_only_with_the_agents_signature_over_all_of_it() {
        let good = signed();
        assert_eq!(good.signer(9).unwrap().agent.unwrap().agent, AGENT);
        assert_eq!(good.signer(8).unwrap_err().code(), ProblemCode::CertificateRequired);

        let changed = |change: fn(&mut Signed)| {
            let mut signed = signed();
            change(&mut signed);
            signed.signer(9).unwrap_err()
        };
        let tenant = bus_tenant(TenantId::DEFAULT);
        assert!(changed(|signed| signed.item.body = Bytes::from_static(b"b batch")).to_string().contains("signature"));
        assert!(changed(|signed| signed.item.headers.truncate(1)).to_string().contains("no signature"));
        assert!(changed(|signed| signed.item.headers.clear()).to_string().contains("certificate"));
        // The word of one agent is not another's, and not that of somebody whom another authority knows.
        let mut other = signed();
        let agent = Uuid::from_u128(0xb);
        other.item.subject = Subject::events(tenant, agent);
        other.item.reply = Some(Subject::inbox(tenant, agent, "b1").unwrap().to_string());
        assert!(other.signer(9).is_err());
        assert!(changed(|signed| signed.root = Authority::root("other", now()).unwrap()).to_string().contains("NATS"));
    }

    #[test]
    fn nobody_is_answered_at_another_ones_inbox() {
        let tenant = bus_tenant(TenantId::DEFAULT);
        for reply in
            [None, Some(Subject::inbox(tenant, Uuid::from_u128(0xb), "b1").unwrap()), Some(Subject::stored(tenant))]
        {
            let item = Item { reply: reply.map(|reply| reply.to_string()), ..signed().item };
            assert!(opened(&item, TenantId::DEFAULT).is_err());
        }
        assert!(opened(&signed().item, TenantId(7)).is_err());
    }

    #[test]
    fn what_time_may_mend_is_put_back_for_longer_and_longer_and_never_answered() {
        let overloaded = || Err(Refusal::new(ProblemCode::Overloaded, "x").after(Duration::from_secs(3)));
        let waits: Vec<u64> = [1, 2, 3, 9]
            .into_iter()
            .map(|deliveries| match verdict(overloaded(), deliveries) {
                Verdict::Again(wait) => wait.as_secs(),
                Verdict::Answer(_) => panic!("it was answered"),
            })
            .collect();
        assert_eq!(waits, [3, 3, 4, 30]);
        let broken = Err(Refusal::new(ProblemCode::Internal, "x"));
        assert!(matches!(verdict(broken, 1), Verdict::Again(_)));
        let revoked = Err(Refusal::new(ProblemCode::Revoked, "x"));
        assert!(matches!(verdict(revoked, 1), Verdict::Answer(RelayOutcome::Refused(_))));
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_a_chain_panic(text in "[A-Za-z0-9+/=,]{0,60}", many in 0usize..20) {
            prop_assert!(read_chain(&text).is_none());
            prop_assert!(read_chain(&"MAA,".repeat(many)).is_none());
        }
    }
}

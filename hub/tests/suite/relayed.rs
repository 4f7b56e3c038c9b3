//! Batches of agents through a real NATS: whose they are is seen by their signature, and the answer comes with the commit.

use crate::fleet::{Fleet, Machine, base64, eventually};
use crate::judge::{changed, findings};
use bytes::Bytes;
use picket_bus::{BusError, NatsPoster, NatsSettings, Parcel, tenant_name};
use picket_hub_db::TenantId;
use picket_pki::PrivateKey;
use picket_protocol::hub::{
    EventsAnswer, ProblemCode, RELAY_CHAIN, RELAY_RAW_BYTES, RELAY_SIGNATURE, RelayAnswer, RelayOutcome, Signed,
    relay_message,
};
use picket_testkit::NatsServer;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(12);

/// A hub that takes batches from NATS, and its NATS.
async fn fleet() -> (Fleet, NatsServer) {
    let nats = NatsServer::start();
    let fleet = Fleet::start_with(|settings| {
        settings.bus.nats = vec![nats.url()];
        settings.bus.accept_unknown_sync = true;
        settings.bus.events = true;
    })
    .await;
    (fleet, nats)
}

async fn poster(nats: &NatsServer, machine: &Machine) -> NatsPoster {
    let settings = NatsSettings { servers: vec![nats.url()], ..NatsSettings::default() };
    eventually(async || NatsPoster::connect(&settings, tenant_name(TenantId::DEFAULT.0), machine.id).await.ok()).await
}

/// A batch of these lines, signed with `key`.
fn parcel(machine: &Machine, key: &PrivateKey, id: &str, lines: &str) -> Parcel {
    let body = zstd::bulk::compress(lines.as_bytes(), 3).unwrap();
    let (subject, reply) = NatsPoster::subjects(tenant_name(TenantId::DEFAULT.0), machine.id, id).unwrap();
    let message = relay_message(subject.as_str(), reply.as_str(), lines.len(), &body);
    let chain: Vec<String> = machine.chain.iter().map(|each| base64(each.der())).collect();
    let headers = [
        (RELAY_CHAIN, chain.join(",")),
        (RELAY_SIGNATURE, base64(&key.sign(&message).unwrap())),
        (RELAY_RAW_BYTES, lines.len().to_string()),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).into();
    Parcel { id: id.to_owned(), headers, body: Bytes::from(body) }
}

/// What the hub says to a batch.
async fn post(poster: &mut NatsPoster, parcel: &Parcel) -> Result<RelayOutcome, BusError> {
    let word = poster.post(parcel.clone(), PATIENCE).await?;
    let signed: Signed = serde_json::from_slice(&word).unwrap();
    assert_eq!(signed.purpose, RelayAnswer::PURPOSE);
    let answer: RelayAnswer = serde_json::from_str(&signed.payload).unwrap();
    assert!(answer.reply.ends_with(&parcel.id));
    Ok(answer.outcome)
}

fn stored(outcome: &RelayOutcome) -> (u64, u64) {
    match outcome {
        RelayOutcome::Stored(EventsAnswer { stored, duplicates, .. }) => (*stored, *duplicates),
        RelayOutcome::Refused(problem) => panic!("{problem}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_through_nats_is_answered_when_it_is_stored_and_is_in_the_same_books() {
    let (fleet, nats) = fleet().await;
    let machine = fleet.machine().await;
    let mut poster = poster(&nats, &machine).await;
    // The queue is there once the hub has opened it.
    let line = changed(&machine, 1, "/etc/cron.d/job-1");
    let first = parcel(&machine, &machine.key, "b1", &line);
    let outcome = eventually(async || post(&mut poster, &first).await.ok()).await;
    assert_eq!(stored(&outcome), (1, 0));
    // What came over the other way is known, whichever way it comes again.
    machine.send(&fleet, &changed(&machine, 2, "/etc/cron.d/job-2")).await.ok::<EventsAnswer>();
    let lines = [1, 2, 3].map(|seq| changed(&machine, seq, &format!("/etc/cron.d/job-{seq}"))).join("\n");
    let again = post(&mut poster, &parcel(&machine, &machine.key, "b2", &lines)).await.unwrap();
    assert_eq!(stored(&again), (1, 2));
    eventually(async || {
        (findings(&fleet).await.iter().map(|finding| finding.event_count).sum::<u64>() == 3).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_for_another_agent_and_no_revoked_one_for_itself() {
    let (fleet, nats) = fleet().await;
    let (machine, thief) = (fleet.machine().await, PrivateKey::generate().unwrap());
    let mut poster = poster(&nats, &machine).await;
    let line = changed(&machine, 1, "/etc/cron.d/job-1");
    let forged = parcel(&machine, &thief, "forged", &line);
    let RelayOutcome::Refused(problem) = eventually(async || post(&mut poster, &forged).await.ok()).await else {
        panic!("a stranger's word was taken for an agent's")
    };
    assert_eq!(problem.code, ProblemCode::CertificateRequired);
    fleet.running.hub().retire(machine.id, "test").await.unwrap();
    let RelayOutcome::Refused(problem) =
        post(&mut poster, &parcel(&machine, &machine.key, "late", &line)).await.unwrap()
    else {
        panic!("a revoked agent was heard")
    };
    assert!(matches!(problem.code, ProblemCode::Revoked | ProblemCode::UnknownAgent), "{problem}");
    assert!(findings(&fleet).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_answer_went_to_nobody_is_answered_when_it_is_sent_again() {
    let (fleet, nats) = fleet().await;
    let machine = fleet.machine().await;
    let first = parcel(&machine, &machine.key, "b1", &changed(&machine, 1, "/etc/cron.d/job-1"));
    let mut before = poster(&nats, &machine).await;
    eventually(async || post(&mut before, &first).await.ok()).await;
    // An agent that was killed has forgotten that it was answered, and makes the same batch of the same events.
    drop(before);
    let mut after = poster(&nats, &machine).await;
    assert_eq!(stored(&post(&mut after, &first).await.unwrap()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_while_every_hub_is_away_is_stored_when_one_is_back() {
    let (fleet, nats) = fleet().await;
    let machine = fleet.machine().await;
    let mut poster = poster(&nats, &machine).await;
    let first = parcel(&machine, &machine.key, "b1", &changed(&machine, 1, "/etc/cron.d/job-1"));
    eventually(async || post(&mut poster, &first).await.ok()).await;
    let stopped = fleet.stopped().await;
    let second = parcel(&machine, &machine.key, "b2", &changed(&machine, 2, "/etc/cron.d/job-2"));
    let unanswered = poster.post(second, Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(unanswered, BusError::Unanswered(_)), "{unanswered}");
    let fleet = stopped.start().await;
    eventually(async || {
        (findings(&fleet).await.iter().map(|finding| finding.event_count).sum::<u64>() == 2).then_some(())
    })
    .await;
}

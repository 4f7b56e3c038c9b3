//! What agents and the hub say to each other, over mutual TLS.

use crate::fleet::{Fleet, Machine, base64, try_ask};
use picket_hub::app::tokens::TokenWish;
use picket_hub_db::{EnrolmentState, PageRequest, Revocation, TenantId};
use picket_pki::{AgentIdentity, Authority, ChainPolicy, CsrKey, PrivateKey, certificates_from_pem, check_agent_chain};
use picket_protocol::hub::{self as wire, CertificateAnswer, EnrolAnswer, Enrolled, EventsAnswer, ProblemCode, WhoAmI};
use serde_json::json;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn enrolled(answer: &crate::fleet::Answer) -> Enrolled {
    match answer.ok() {
        EnrolAnswer::Enrolled(enrolled) => enrolled,
        EnrolAnswer::Pending(pending) => panic!("{pending:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_enrols_with_a_token_and_gets_the_identity_that_the_token_gives() {
    let fleet = Fleet::start().await;
    let (token, key) = (fleet.token(|_| {}).await, PrivateKey::generate().unwrap());
    let answer = enrolled(&fleet.post(wire::ENROL_PATH, &fleet.request(&token, &key)).await);
    let chain = certificates_from_pem(&answer.certificate.certificate).unwrap();
    let roots = certificates_from_pem(&answer.certificate.authorities).unwrap();
    let identity = AgentIdentity { tenant: 1, agent: answer.agent_id };
    let policy = ChainPolicy { roots: &roots, identity: Some(identity), pin: key.pin(), now: fleet.now() };
    assert_eq!(check_agent_chain(&chain, &policy), Ok(identity));
    assert_eq!(roots[0].pin, token.pins[0]);

    let machine = Machine::of(key, &answer);
    let known: WhoAmI = machine.get(&fleet, wire::WHOAMI_PATH).await.ok();
    assert_eq!((known.agent_id, known.authorized), (Some(machine.id), true));
    let agent = fleet.running.hub().db.agent(TenantId::DEFAULT, machine.id).await.unwrap().unwrap();
    assert_eq!((agent.name.as_str(), agent.tags.contains("test")), ("web-1", true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_in_as_many_as_it_was_made_for_and_a_lost_answer_is_given_again_to_the_same_key() {
    let fleet = Fleet::start().await;
    let (token, key) = (fleet.token(|_| {}).await, PrivateKey::generate().unwrap());
    let first = enrolled(&fleet.post(wire::ENROL_PATH, &fleet.request(&token, &key)).await);
    let again = enrolled(&fleet.post(wire::ENROL_PATH, &fleet.request(&token, &key)).await);
    assert_eq!(again.agent_id, first.agent_id);
    assert_eq!(again.certificate.certificate, first.certificate.certificate);
    let other = PrivateKey::generate().unwrap();
    let refused = fleet.post(wire::ENROL_PATH, &fleet.request(&token, &other)).await.problem();
    assert_eq!(refused.code, ProblemCode::TokenUsedUp);
    fleet.forward(Duration::from_secs(11 * 60));
    let late = fleet.post(wire::ENROL_PATH, &fleet.request(&token, &key)).await.problem();
    assert_eq!(late.code, ProblemCode::TokenUsedUp, "ten minutes are over");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_of_an_enrolment_has_a_code_and_a_way_out() {
    let fleet = Fleet::start().await;
    let key = PrivateKey::generate().unwrap();
    let refused = async |token: &picket_pki::EnrolmentToken, change: &dyn Fn(&mut serde_json::Value)| {
        let mut request = fleet.request(token, &key);
        change(&mut request);
        fleet.post(wire::ENROL_PATH, &request).await.problem()
    };
    let old = fleet.token(|_| {}).await;
    fleet.forward(Duration::from_secs(31 * 60));
    let good = fleet.token(|_| {}).await;
    let elsewhere = fleet.token(|new| new.allowed = vec!["192.0.2.0/24".parse().unwrap()]).await;
    let revoked = fleet.token(|_| {}).await;
    fleet.running.hub().db.revoke_enrol_token(TenantId::DEFAULT, revoked.id, fleet.now()).await.unwrap();

    let cases = [
        (refused(&old, &|_| {}).await, ProblemCode::TokenExpired, "token create"),
        (refused(&revoked, &|_| {}).await, ProblemCode::TokenRevoked, "token create"),
        (refused(&elsewhere, &|_| {}).await, ProblemCode::AddressRefused, "127.0.0.1"),
        (refused(&good, &|r| r["secret"] = "x".into()).await, ProblemCode::TokenUnknown, "token create"),
        (refused(&good, &|r| r["token_id"] = json!(uuid::Uuid::nil())).await, ProblemCode::TokenUnknown, "token"),
        (refused(&good, &|r| r["csr"] = base64(b"x").into()).await, ProblemCode::CsrInvalid, "request"),
        (refused(&good, &|r| r["clock"]["now"] = json!("2020-01-01T00:00:00Z")).await, ProblemCode::ClockSkew, "clock"),
        (refused(&good, &|r| r["version"] = "x".into()).await, ProblemCode::Invalid, "body"),
    ];
    for (problem, code, words) in cases {
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.detail.contains(words), "{problem}");
        assert!(!problem.detail.contains(good.secret().as_str()));
    }
    // None of these used it up.
    enrolled(&fleet.post(wire::ENROL_PATH, &fleet.request(&good, &key)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_acknowledged_once_they_are_stored_and_stored_once() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let first: EventsAnswer = machine.send(&fleet, &machine.lines(1..=50)).await.ok();
    assert_eq!((first.stored, first.duplicates), (50, 0));
    let again: EventsAnswer = machine.send(&fleet, &machine.lines(31..=60)).await.ok();
    assert_eq!((again.stored, again.duplicates), (10, 20));
    let id = machine.id;
    // What was answered is there after a restart, and the machine finds the hub again.
    let fleet = fleet.restart().await;
    let db = &fleet.running.hub().db;
    let book = db.agent_book(TenantId::DEFAULT, id).await.unwrap().unwrap();
    assert_eq!((book.totals.records, book.totals.stored, book.totals.duplicates), (60, 60, 20));
    let more: EventsAnswer = machine.send(&fleet, &machine.lines(60..=61)).await.ok();
    assert_eq!((more.stored, more.duplicates), (1, 1));
    let page = PageRequest::first(100);
    let streams = fleet.running.hub().db.stream_books(TenantId::DEFAULT, id, &page).await.unwrap();
    assert_eq!((streams.items.len(), streams.items[0].last_seq), (1, 61));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_cannot_be_taken_is_refused_whole_with_the_reason() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let lines = format!("{}\nnonsense", machine.lines(1..=3));
    let problem = machine.send(&fleet, &lines).await.problem();
    assert_eq!((problem.code, problem.status), (ProblemCode::Invalid, 400));
    assert!(problem.detail.contains("event 4"), "{problem}");
    let headers = [("content-type", wire::EVENTS_MEDIA_TYPE), (wire::RAW_BYTES_HEADER, "99999999")];
    let bomb = fleet.ask("POST", wire::EVENTS_PATH, Some(&machine), &headers, vec![0; 100]).await.problem();
    assert_eq!(bomb.code, ProblemCode::TooLarge);
    let clear =
        fleet.ask("POST", wire::EVENTS_PATH, Some(&machine), &[("content-type", "application/json")], vec![]).await;
    assert_eq!(clear.problem().code, ProblemCode::UnsupportedMediaType);
    assert_eq!(fleet.running.hub().db.agent_book(TenantId::DEFAULT, machine.id).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_of_this_hub_nobody_is_an_agent() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let nobody = fleet.ask("POST", wire::EVENTS_PATH, None, &[], Vec::new()).await.problem();
    assert_eq!(nobody.code, ProblemCode::CertificateRequired);
    // One that this hub's authority signed, but that the hub does not know.
    let key = PrivateKey::generate().unwrap();
    let request = CsrKey::from_request(&key.request("x").unwrap()).unwrap();
    let keys = fleet.running.hub().keys();
    let identity = AgentIdentity { tenant: 1, agent: machine.id };
    let leaf = keys.intermediate.agent(identity, &request, fleet.now()).unwrap();
    let stranger = Machine { id: machine.id, chain: keys.agent_chain(leaf), key, boot: machine.boot };
    let refused = stranger.send(&fleet, &machine.lines(1..=1)).await.problem();
    assert_eq!(refused.code, ProblemCode::CertificateSuperseded, "the agent is known, and keeps its identity");
    assert_eq!(
        stranger.renew(&fleet, &PrivateKey::generate().unwrap()).await.problem().code,
        ProblemCode::CertificateSuperseded
    );
    let nobody = AgentIdentity { tenant: 1, agent: uuid::Uuid::now_v7() };
    let key = PrivateKey::generate().unwrap();
    let request = CsrKey::from_request(&key.request("x").unwrap()).unwrap();
    let leaf = keys.intermediate.agent(nobody, &request, fleet.now()).unwrap();
    let gone = Machine { id: nobody.agent, chain: keys.agent_chain(leaf), key, boot: machine.boot };
    let refused = gone.send(&fleet, &machine.lines(1..=1)).await.problem();
    assert_eq!(refused.code, ProblemCode::UnknownAgent);
    // One of another authority does not get through the handshake at all.
    let other = Authority::root("other", fleet.now()).unwrap();
    let key = PrivateKey::generate().unwrap();
    let request = CsrKey::from_request(&key.request("x").unwrap()).unwrap();
    let leaf = other.agent(identity, &request, fleet.now()).unwrap();
    let forged = Machine { id: machine.id, chain: vec![leaf], key, boot: machine.boot };
    let url = format!("https://{}{}", fleet.running.agents_address(), wire::WHOAMI_PATH);
    let roots = &fleet.running.hub().keys().roots;
    let asked = try_ask("GET", &url, roots, Some(forged.client_certificate()), &[], Vec::new()).await;
    let Err(error) = asked else { panic!("a certificate of another authority gets through") };
    // The alert of the handshake, or the end of the connection that follows it.
    assert!(matches!(error, ureq::Error::Io(_) | ureq::Error::ConnectionFailed), "{error:?}");
    machine.get(&fleet, wire::WHOAMI_PATH).await.ok::<WhoAmI>();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_identity_is_told_so_and_only_that_costs_it() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let hub = fleet.running.hub();
    let revocation = Revocation { at: fleet.now(), reason: "stolen".into(), by: "test".into() };
    hub.db.revoke_certificate(TenantId::DEFAULT, &machine.chain[0].serial, &revocation).await.unwrap();
    hub.identities.forget();
    let refused = machine.send(&fleet, &machine.lines(1..=1)).await.problem();
    assert_eq!(refused.code, ProblemCode::Revoked);
    assert!(refused.detail.contains("stolen"), "{refused}");
    assert_eq!(machine.renew(&fleet, &PrivateKey::generate().unwrap()).await.problem().code, ProblemCode::Revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_before_and_for_some_time_after_its_end() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let key = PrivateKey::generate().unwrap();
    let answer: CertificateAnswer = machine.renew(&fleet, &key).await.ok();
    let chain = certificates_from_pem(&answer.certificate).unwrap();
    assert_eq!(chain[0].agent, machine.chain[0].agent);
    let renewed = Machine { id: machine.id, key, chain, boot: machine.boot };
    renewed.send(&fleet, &machine.lines(1..=1)).await.ok::<EventsAnswer>();

    fleet.forward(DAY * 95);
    let expired = renewed.send(&fleet, &machine.lines(2..=2)).await.problem();
    assert_eq!(expired.code, ProblemCode::CertificateExpired);
    let next = PrivateKey::generate().unwrap();
    let answer: CertificateAnswer = renewed.renew(&fleet, &next).await.ok();
    let chain = certificates_from_pem(&answer.certificate).unwrap();
    let back = Machine { id: machine.id, key: next, chain, boot: machine.boot };
    back.send(&fleet, &machine.lines(2..=2)).await.ok::<EventsAnswer>();

    fleet.forward(DAY * 30);
    let late = renewed.renew(&fleet, &PrivateKey::generate().unwrap()).await.problem();
    assert_eq!(late.code, ProblemCode::RenewalTooLate);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_where_the_hub_lets_nobody_enrol_no_token_helps() {
    let fleet = Fleet::start_with(|settings| settings.enrolment.networks = vec!["192.0.2.0/24".into()]).await;
    let key = PrivateKey::generate().unwrap();
    let token = fleet.token(|new| new.allowed = vec!["127.0.0.0/8".parse().unwrap()]).await;
    let refused = fleet.post(wire::ENROL_PATH, &fleet.request(&token, &key)).await.problem();
    assert_eq!(refused.code, ProblemCode::AddressRefused);
    assert!(refused.detail.contains("127.0.0.1") && refused.detail.contains("enrolment.networks"), "{refused:?}");

    let networks = vec!["192.0.2.0/24".into(), "127.0.0.0/8".into()];
    let fleet = Fleet::start_with(|settings| settings.enrolment.networks = networks).await;
    let token = fleet.token(|_| {}).await;
    enrolled(&fleet.post(wire::ENROL_PATH, &fleet.request(&token, &key)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_person_has_to_approve_each_machine_no_token_spares_it_that() {
    let fleet = Fleet::start_with(|settings| settings.enrolment.approval = true).await;
    let hub = fleet.running.hub();
    let (kept, text) = hub.create_token(TokenWish::default(), "test").await.unwrap();
    assert!(kept.needs_approval);
    let token = picket_pki::EnrolmentToken::parse(&text).unwrap();
    let key = PrivateKey::generate().unwrap();
    let request = fleet.request(&token, &key);
    let EnrolAnswer::Pending(_) = fleet.post(wire::ENROL_PATH, &request).await.ok() else { panic!("it is let in") };
    let filter = EnrolmentState::Pending;
    let waiting = hub.db.enrolments(TenantId::DEFAULT, Some(filter), &PageRequest::first(10)).await.unwrap();
    hub.approve(waiting.items[0].id, "test").await.unwrap();
    enrolled(&fleet.post(wire::ENROL_PATH, &request).await);
}

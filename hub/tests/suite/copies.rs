//! Two machines with one identity: told apart, told of, and neither sent away.

use crate::fleet::{Fleet, Machine, eventually};
use crate::people::{person, unlimited};
use crate::sockets::{connected, heartbeat, hello, next_frame};
use futures_util::{SinkExt as _, StreamExt as _};
use picket_hub_db::{EventFilter, Finding, FindingFilter, PageRequest, RENEWALS_ASKED, TenantId};
use picket_protocol::hub::{ByeReason, ConfigState, ConfigStatus, EventsAnswer, Frame};
use serde_json::Value;
use std::time::Duration;
use tungstenite::Message;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_with_one_identity_are_told_apart_and_reported() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let machine = fleet.machine().await;
    let (first_boot, second_boot) = (Uuid::now_v7(), Uuid::now_v7());
    let mut first = connected(&fleet, &machine, hello(first_boot, "m")).await;
    let answering = tokio::spawn(async move {
        // A machine that lives answers pings by reading.
        while let Some(Ok(message)) = first.next().await {
            if let Message::Text(text) = message
                && let Ok(Frame::Bye(bye)) = Frame::read(&text)
            {
                return bye.reason;
            }
        }
        panic!("no goodbye");
    });
    let _second = connected(&fleet, &machine, hello(second_boot, "m")).await;
    assert_eq!(answering.await.unwrap(), ByeReason::Replaced);
    let told = eventually(async || {
        let events: Value = ada.get(&fleet, "/api/v1/events?type=cloned_identity").await.ok();
        events["items"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(told["data"]["agent_id"], machine.id.to_string());
    let boots: Vec<&str> =
        told["data"]["machines"].as_array().unwrap().iter().map(|m| m["boot_id"].as_str().unwrap()).collect();
    assert_eq!(boots, [first_boot.to_string(), second_boot.to_string()]);
    let finding = clone_found(&fleet).await;
    assert_eq!(finding.entity.unwrap().value, machine.id.to_string());
}

/// The finding that an identity is used by two machines.
async fn clone_found(fleet: &Fleet) -> Finding {
    let db = &fleet.running.hub().db;
    eventually(async || {
        let page = db.findings(TenantId::DEFAULT, &FindingFilter::default(), &PageRequest::first(100)).await.unwrap();
        page.items.into_iter().find(|finding| finding.title == "One Identity Used By Two Machines")
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_certificate_that_is_used_beside_the_newer_one_becomes_a_finding() {
    let fleet = Fleet::start().await;
    let old = fleet.machine().await;
    let key = picket_pki::PrivateKey::generate().unwrap();
    let answer: picket_protocol::hub::CertificateAnswer = old.renew(&fleet, &key).await.ok();
    let chain = picket_pki::certificates_from_pem(&answer.certificate).unwrap();
    let new = Machine { id: old.id, key, chain, boot: old.boot };
    // The copy shares everything with its original but the renewed key.
    let boot = Uuid::now_v7();
    let beat = async |machine: &Machine| {
        let mut socket = connected(&fleet, machine, hello(boot, "m")).await;
        socket.send(Message::text(heartbeat(machine, 1, boot).write())).await.unwrap();
        assert!(matches!(next_frame(&mut socket).await, Frame::Heard { seq: 1, .. }));
    };
    beat(&old).await;
    beat(&new).await;
    assert_eq!(clones_told(&fleet).await, 0, "a renewal is none");
    beat(&old).await;
    assert_eq!(clones_told(&fleet).await, 1);
    assert_eq!(clone_found(&fleet).await.entity.unwrap().value, old.id.to_string());
}

/// How often it was told that an identity is used by two machines.
async fn clones_told(fleet: &Fleet) -> usize {
    let filter = EventFilter { kind: Some("cloned_identity".into()), ..EventFilter::default() };
    let page = fleet.running.hub().db.events(TenantId::DEFAULT, &filter, &PageRequest::first(10)).await.unwrap();
    page.items.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_key_whose_holder_never_sends_a_heartbeat_is_found_all_the_same() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let renewed = async |from: &Machine| {
        let key = picket_pki::PrivateKey::generate().unwrap();
        let answer: picket_protocol::hub::CertificateAnswer = from.renew(&fleet, &key).await.ok();
        let chain = picket_pki::certificates_from_pem(&answer.certificate).unwrap();
        Machine { id: from.id, key, chain, boot: Uuid::now_v7() }
    };
    let works = async |machine: &Machine, seq: u64| {
        machine.send(&fleet, &machine.lines(seq..=seq)).await.ok::<EventsAnswer>();
    };
    works(&machine, 1).await;
    let lost = renewed(&machine).await;
    fleet.forward(Duration::from_secs(3600));
    works(&machine, 2).await;
    let copy = renewed(&machine).await;
    works(&copy, 1).await;
    works(&machine, 3).await;
    assert_eq!(clones_told(&fleet).await, 0, "an answer was lost, then a request was on its way");
    fleet.forward(Duration::from_secs(301));
    works(&copy, 2).await;
    assert_eq!(clones_told(&fleet).await, 0, "it is the one in use");
    // Nobody is sent away: who is the machine and who the copy is not to be known.
    works(&machine, 4).await;
    assert_eq!(clones_told(&fleet).await, 1);
    let finding = clone_found(&fleet).await;
    assert_eq!(finding.entity.unwrap().value, machine.id.to_string());
    works(&machine, 5).await;
    assert_eq!(clones_told(&fleet).await, 1, "once a day");
    // A renewal that forks the line, and no work at all.
    fleet.forward(Duration::from_secs(61));
    renewed(&lost).await;
    assert_eq!(clones_told(&fleet).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_forgotten_leaves_nothing_in_the_settings() {
    let fleet = unlimited().await;
    let (hub, ada) = (fleet.running.hub(), person(&fleet, "ada", &[("agents.*", None)]).await);
    let (stays, old) = (fleet.machine().await, fleet.machine().await);
    for machine in [&stays, &old] {
        let status = ConfigStatus {
            version: 1,
            sequence: 1,
            state: ConfigState::Applied,
            effective_sha256: String::new(),
            errors: Vec::new(),
            needs_restart: Vec::new(),
            at: fleet.now(),
        };
        hub.note_config_status(machine.id, &status).await.unwrap();
        // Only where there are other replicas it is kept that somebody asks an agent to renew.
        let asked = serde_json::to_vec(&fleet.now()).unwrap();
        let key = format!("{RENEWALS_ASKED}{}", machine.id);
        hub.db.put_setting(TenantId::DEFAULT, &key, &asked, None, fleet.now()).await.unwrap();
    }
    let key = picket_pki::PrivateKey::generate().unwrap();
    let answer: picket_protocol::hub::CertificateAnswer = old.renew(&fleet, &key).await.ok();
    let chain = picket_pki::certificates_from_pem(&answer.certificate).unwrap();
    let new = Machine { id: old.id, key, chain, boot: old.boot };
    new.send(&fleet, &new.lines(1..=1)).await.ok::<EventsAnswer>();
    let kept = async |id: Uuid| {
        let all = hub.db.settings(TenantId::DEFAULT, "").await.unwrap();
        all.into_iter().filter(|kept| kept.key.contains(&id.to_string())).count()
    };
    assert_eq!((kept(old.id).await, kept(stays.id).await), (3, 2));
    let path = format!("/api/v1/agents/{}", old.id);
    for path in [path.clone(), format!("{path}?purge=true")] {
        assert_eq!(ada.ask(&fleet, "DELETE", &path, None).await.status, 204);
    }
    assert_eq!((kept(old.id).await, kept(stays.id).await), (0, 2));
}

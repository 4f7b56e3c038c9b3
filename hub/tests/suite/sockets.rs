//! The `WebSocket` of agents, and how a test opens any.

use crate::fleet::{Fleet, Machine, eventually};
use crate::people::person;
use futures_util::{SinkExt as _, StreamExt as _};
use picket_hub_db::{AgentStatus, Assignment, ConfigTarget, ConfigVersion, FindingFilter, PageRequest, TenantId};
use picket_hub_rules::{RuleKey, Suspension};
use picket_protocol::hub::{
    AgentHealth, ByeReason, CertificateState, ConfigDocument, ConfigState, ConfigStatus, Frame, Heartbeat, Hello,
    SOCKET_PATH, WIRE,
};
use picket_protocol::versions::VersionRange;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tungstenite::Message;
use tungstenite::client::IntoClientRequest as _;
use uuid::Uuid;

pub type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// A connection of which nothing is asked yet, as this machine or as nobody.
pub async fn tls(fleet: &Fleet, address: SocketAddr, machine: Option<&Machine>) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    for root in &fleet.running.hub().keys().roots {
        roots.add(root.der().clone()).unwrap();
    }
    let builder = rustls::ClientConfig::builder_with_provider(picket_transport::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match machine {
        Some(machine) => {
            let chain = machine.chain.iter().map(|certificate| certificate.der().clone()).collect();
            builder.with_client_auth_cert(chain, machine.key.to_der()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let socket = TcpSocket::new_v4().unwrap();
    // Little room on the way: a viewer that reads nothing is soon behind.
    socket.set_recv_buffer_size(8 << 10).unwrap();
    let tcp = socket.connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

pub async fn open(
    fleet: &Fleet,
    address: SocketAddr,
    path: &str,
    machine: Option<&Machine>,
    headers: &[(&'static str, String)],
) -> Result<Socket, tungstenite::Error> {
    let tls = tls(fleet, address, machine).await;
    let mut request = format!("wss://{address}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    tokio_tungstenite::client_async(request, tls).await.map(|(socket, _)| socket)
}

pub async fn next(socket: &mut Socket) -> Value {
    let message = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(_)) => {}
                other => panic!("the socket ended: {other:?}"),
            }
        }
    });
    message.await.expect("nothing came")
}

pub async fn next_frame(socket: &mut Socket) -> Frame {
    serde_json::from_value(next(socket).await).unwrap()
}

pub fn hello(boot: Uuid, hint: &str) -> Hello {
    Hello {
        wire: WIRE,
        version: "1.0.0".parse().unwrap(),
        incarnation: Uuid::now_v7(),
        boot_id: Some(boot),
        machine_hint: hint.into(),
        now: jiff::Timestamp::now(),
    }
}

pub async fn connected(fleet: &Fleet, machine: &Machine, hello: Hello) -> Socket {
    let address = fleet.running.agents_address();
    let mut socket = open(fleet, address, SOCKET_PATH, Some(machine), &[]).await.unwrap();
    socket.send(Message::text(Frame::Hello(hello).write())).await.unwrap();
    let Frame::Welcome(welcome) = next_frame(&mut socket).await else { panic!("not welcome") };
    assert_eq!(welcome.wire, WIRE.newest);
    assert!(welcome.first_heartbeat_ms <= welcome.heartbeat_ms);
    socket
}

pub fn heartbeat(machine: &Machine, seq: u64, boot: Uuid) -> Frame {
    Frame::Heartbeat(Box::new(Heartbeat {
        seq,
        sent_at: jiff::Timestamp::now(),
        version: "1.0.0".parse().unwrap(),
        boot_id: Some(boot),
        started_at: jiff::Timestamp::now(),
        health: serde_json::from_value::<AgentHealth>(json!({"status": "healthy"})).unwrap(),
        ledgers: Vec::new(),
        certificate: CertificateState {
            serial: machine.chain[0].serial.clone(),
            not_after: machine.chain[0].not_after,
            renewed: 0,
            last_error: None,
        },
        update: None,
        config: None,
        clock_ahead_ms: None,
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_is_answered_once_it_is_stored_and_the_agent_is_online() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let boot = Uuid::now_v7();
    let mut socket = connected(&fleet, &machine, hello(boot, "m")).await;
    socket.send(Message::text(heartbeat(&machine, 1, boot).write())).await.unwrap();
    assert!(matches!(next_frame(&mut socket).await, Frame::Heard { seq: 1, .. }));
    let agent = fleet.running.hub().db.agent(TenantId::DEFAULT, machine.id).await.unwrap().unwrap();
    assert_eq!((agent.status, agent.report.boot_id), (AgentStatus::Online, Some(boot)));
    assert!(agent.report.certificate_expires_at.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_retired_is_told_on_its_connection() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let mut socket = connected(&fleet, &machine, hello(Uuid::now_v7(), "m")).await;
    eventually(async || fleet.running.hub().presence.of(machine.id)).await;
    fleet.running.hub().retire(machine.id, "test").await.unwrap();
    let Frame::Bye(bye) = next_frame(&mut socket).await else { panic!("no goodbye") };
    assert_eq!(bye.reason, ByeReason::Revoked);
    let again = open(&fleet, fleet.running.agents_address(), SOCKET_PATH, Some(&machine), &[]).await;
    assert!(matches!(again, Err(tungstenite::Error::Http(response)) if response.status() == 403));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_connected_when_its_certificate_ends_is_told_to_renew_it() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let left = machine.chain[0].not_after.duration_since(fleet.now()).unsigned_abs();
    fleet.forward(left.checked_sub(Duration::from_secs(3)).unwrap());
    let mut socket = connected(&fleet, &machine, hello(Uuid::now_v7(), "m")).await;
    let Frame::Bye(bye) = next_frame(&mut socket).await else { panic!("no goodbye") };
    assert_eq!(bye.reason, ByeReason::CertificateExpired);
    assert!(bye.detail.contains("picket cert renew"), "{}", bye.detail);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_for_three_heartbeats_is_told_goodbye() {
    let fleet = Fleet::start_with(|settings| settings.heartbeat = picket_config::Interval::seconds(1)).await;
    let machine = fleet.machine().await;
    let mut socket = connected(&fleet, &machine, hello(Uuid::now_v7(), "m")).await;
    let Frame::Bye(bye) = next_frame(&mut socket).await else { panic!("no goodbye") };
    assert_eq!(bye.reason, ByeReason::Silent);
    drop(socket);
    eventually(async || (fleet.running.hub().presence.count() == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_see_how_far_the_clock_of_a_machine_is_off() {
    let fleet = Fleet::start().await;
    let (machine, ada) = (fleet.machine().await, person(&fleet, "ada", &[("*", None)]).await);
    let boot = Uuid::now_v7();
    let mut socket = connected(&fleet, &machine, hello(boot, "m")).await;
    let Frame::Heartbeat(mut heartbeat) = heartbeat(&machine, 1, boot) else { unreachable!() };
    heartbeat.clock_ahead_ms = Some(-61_000);
    socket.send(Message::text(Frame::Heartbeat(heartbeat).write())).await.unwrap();
    assert!(matches!(next_frame(&mut socket).await, Frame::Heard { .. }));
    let agent: Value = ada.get(&fleet, &format!("/api/v1/agents/{}", machine.id)).await.ok();
    assert_eq!(agent["health"], json!({"status": "healthy", "clock_ahead_ms": -61_000}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_is_suspended_becomes_a_finding() {
    let fleet = Fleet::start().await;
    let rule = RuleKey { id: Uuid::now_v7(), version: 1 };
    let why = Suspension::Exploding { matches: 1001, budget: 1000 };
    fleet.running.hub().note_suspension(rule, &why).await;
    let db = &fleet.running.hub().db;
    eventually(async || {
        let page = db.findings(TenantId::DEFAULT, &FindingFilter::default(), &PageRequest::first(100)).await.unwrap();
        page.items.into_iter().find(|finding| finding.title == "Detection Rule Suspended")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_keep_to_the_protocol_is_told_so() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let later = Hello { wire: VersionRange { oldest: 8, newest: 9 }, ..hello(Uuid::now_v7(), "m") };
    let first_frames = [
        (Frame::RenewCertificate { reason: "x".into() }.write(), ByeReason::Protocol),
        ("nonsense".to_owned(), ByeReason::Protocol),
        (Frame::Hello(later).write(), ByeReason::WireUnsupported),
    ];
    for (text, reason) in first_frames {
        let address = fleet.running.agents_address();
        let mut socket = open(&fleet, address, SOCKET_PATH, Some(&machine), &[]).await.unwrap();
        socket.send(Message::text(text.clone())).await.unwrap();
        let Frame::Bye(bye) = next_frame(&mut socket).await else { panic!("{text}") };
        assert_eq!(bye.reason, reason, "{text}");
    }
    let without = open(&fleet, fleet.running.agents_address(), SOCKET_PATH, None, &[]).await;
    assert!(matches!(without, Err(tungstenite::Error::Http(response)) if response.status() == 401));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_stops_says_goodbye_and_when_to_come_back() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let mut socket = connected(&fleet, &machine, hello(Uuid::now_v7(), "m")).await;
    let stopping = tokio::spawn(fleet.running.stop());
    let Frame::Bye(bye) = next_frame(&mut socket).await else { panic!("no goodbye") };
    assert_eq!(bye.reason, ByeReason::Draining);
    assert!(bye.retry_after_ms.is_some_and(|wait| wait <= 30_000));
    drop(socket);
    stopping.await.unwrap();
}

/// The next configuration that is sent.
async fn next_config(socket: &mut Socket) -> ConfigDocument {
    loop {
        if let Frame::Config(signed) = next_frame(socket).await {
            return serde_json::from_str(&signed.payload).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_comes_with_any_heartbeat_and_one_that_is_taken_back_is_dropped() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    let db = &fleet.running.hub().db;
    let boot = Uuid::now_v7();
    let mut socket = connected(&fleet, &machine, hello(boot, "m")).await;
    let mut seq = 0;
    let mut beat = async |socket: &mut Socket, has: Option<(u64, u64)>| {
        seq += 1;
        let Frame::Heartbeat(mut heartbeat) = heartbeat(&machine, seq, boot) else { unreachable!() };
        heartbeat.config = has.map(|(version, sequence)| ConfigStatus {
            version,
            sequence,
            state: ConfigState::Applied,
            effective_sha256: "ab".repeat(32),
            errors: Vec::new(),
            needs_restart: Vec::new(),
            at: jiff::Timestamp::now(),
        });
        socket.send(Message::text(Frame::Heartbeat(heartbeat).write())).await.unwrap();
        assert!(matches!(next_frame(socket).await, Frame::Heard { .. }));
    };
    beat(&mut socket, None).await;
    // As on another replica: nobody tells this one.
    let target = ConfigTarget::Agent(machine.id);
    let config = db.create_config(TenantId::DEFAULT, &new_config(json!({"log_level": "debug"}))).await.unwrap();
    let assignment = Assignment {
        target: target.clone(),
        version: config.version,
        priority: 0,
        updated_at: fleet.now(),
        updated_by: "test".into(),
    };
    db.assign_config(TenantId::DEFAULT, &assignment).await.unwrap();
    beat(&mut socket, None).await;
    let given = next_config(&mut socket).await;
    assert_eq!((i64::try_from(given.version).unwrap(), given.settings.len()), (config.version, 1));
    let status = |of: &ConfigDocument| ConfigStatus {
        version: of.version,
        sequence: of.sequence,
        state: ConfigState::Applied,
        effective_sha256: "ab".repeat(32),
        errors: Vec::new(),
        needs_restart: Vec::new(),
        at: jiff::Timestamp::now(),
    };
    socket.send(Message::text(Frame::ConfigStatus(status(&given)).write())).await.unwrap();
    db.unassign_config(TenantId::DEFAULT, &target).await.unwrap();
    beat(&mut socket, Some((given.version, given.sequence))).await;
    let dropped = next_config(&mut socket).await;
    assert_eq!((dropped.version, dropped.settings.len()), (0, 0));
    assert!(dropped.sequence > given.sequence);
    socket.send(Message::text(Frame::ConfigStatus(status(&dropped)).write())).await.unwrap();
    // Nothing more comes: each heartbeat is answered with nothing in between.
    beat(&mut socket, Some((0, dropped.sequence))).await;
    beat(&mut socket, Some((0, dropped.sequence))).await;
}

fn new_config(document: Value) -> ConfigVersion {
    ConfigVersion {
        version: 0,
        document,
        sha256: String::new(),
        comment: String::new(),
        created_at: jiff::Timestamp::now(),
        created_by: "test".into(),
    }
}

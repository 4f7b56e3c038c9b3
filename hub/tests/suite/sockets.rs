//! The hub's `WebSockets`: the one of agents, and those of viewers.

use crate::fleet::{Fleet, Machine, eventually};
use crate::people::{Person, person, unlimited};
use futures_util::{SinkExt as _, StreamExt as _};
use picket_hub_db::{AgentStatus, Assignment, ConfigTarget, ConfigVersion, FindingFilter, PageRequest, TenantId};
use picket_hub_rules::{RuleKey, Suspension};
use picket_protocol::hub::{
    AgentHealth, ByeReason, CertificateState, ConfigDocument, ConfigState, ConfigStatus, EventsAnswer, Frame,
    Heartbeat, Hello, SOCKET_PATH, WIRE,
};
use picket_protocol::versions::VersionRange;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
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

async fn open(
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

async fn next(socket: &mut Socket) -> Value {
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

fn bearer(person: &Person) -> (&'static str, String) {
    ("authorization", format!("Bearer {}", person.token))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_sees_events_as_they_come_and_goes_on_where_it_was() {
    let fleet = unlimited().await;
    let machine = fleet.machine().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let address = fleet.running.api_address();
    let mut socket = open(&fleet, address, "/api/v1/ws/events", None, &[bearer(&ada)]).await.unwrap();
    assert_eq!(next(&mut socket).await["kind"], "ready");
    machine.send(&fleet, &machine.lines(1..=2)).await.ok::<EventsAnswer>();
    let first = next(&mut socket).await;
    assert_eq!((first["kind"].as_str(), first["item"]["seq"].as_u64()), (Some("event"), Some(1)));
    drop(socket);
    machine.send(&fleet, &machine.lines(3..=3)).await.ok::<EventsAnswer>();
    let path = format!("/api/v1/ws/events?cursor={}", first["cursor"].as_str().unwrap());
    let mut again = open(&fleet, address, &path, None, &[bearer(&ada)]).await.unwrap();
    let told = [next(&mut again).await, next(&mut again).await, next(&mut again).await];
    let seqs: Vec<u64> = told.iter().filter_map(|told| told["item"]["seq"].as_u64()).collect();
    assert_eq!(seqs, [2, 3]);
    // PostgreSQL shows what is stored once everything that began before it is over: the last one may come a moment later.
    assert!(told[1..].iter().any(|told| told["kind"] == "ready"), "{told:?}");
}

/// Stores events of this machine with these numbers, each some kilobytes long.
async fn burst(fleet: &Fleet, machine: &Machine, numbers: std::ops::RangeInclusive<u64>) {
    let numbers: Vec<u64> = numbers.collect();
    for numbers in numbers.chunks(100) {
        let line = |seq: &u64| crate::judge::changed(machine, *seq, &format!("/srv/{}/{seq}", "x".repeat(3900)));
        let lines: Vec<String> = numbers.iter().map(line).collect();
        machine.send(fleet, &lines.join("\n")).await.ok::<EventsAnswer>();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_was_slow_hears_how_much_it_missed_though_nothing_more_happens() {
    let fleet = unlimited().await;
    let machine = fleet.machine().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let address = fleet.running.api_address();
    let mut socket = open(&fleet, address, "/api/v1/ws/events", None, &[bearer(&ada)]).await.unwrap();
    assert_eq!(next(&mut socket).await["kind"], "ready");
    let total = 3000;
    burst(&fleet, &machine, 1..=total).await;
    let hub = fleet.running.hub();
    eventually(async || (hub.viewers.dropped.load(Ordering::Relaxed) > 0).then_some(())).await;
    // Nothing happens any more, and what it saw and what it missed is everything.
    let (mut seen, mut missed) = (0, 0);
    while seen + missed < total {
        let told = next(&mut socket).await;
        match told["kind"].as_str() {
            Some("event") => seen += 1,
            Some("dropped") => missed += told["count"].as_u64().unwrap(),
            _ => panic!("{told}"),
        }
    }
    assert_eq!((seen + missed, missed), (total, hub.viewers.dropped.load(Ordering::Relaxed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_comes_back_gets_a_backlog_that_no_queue_holds_at_its_own_pace() {
    let fleet = unlimited().await;
    let machine = fleet.machine().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let address = fleet.running.api_address();
    let mut socket = open(&fleet, address, "/api/v1/ws/events", None, &[bearer(&ada)]).await.unwrap();
    let ready = next(&mut socket).await;
    drop(socket);
    burst(&fleet, &machine, 1..=3000).await;
    let path = format!("/api/v1/ws/events?cursor={}", ready["cursor"].as_str().unwrap());
    let mut again = open(&fleet, address, &path, None, &[bearer(&ada)]).await.unwrap();
    for seq in 1..=3000_u64 {
        let told = next(&mut again).await;
        assert_eq!((told["kind"].as_str(), told["item"]["seq"].as_u64()), (Some("event"), Some(seq)));
    }
    assert_eq!(next(&mut again).await["kind"], "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_is_told_of_what_it_asked_for_and_of_nothing_else() {
    let fleet = unlimited().await;
    let (ours, theirs) = (fleet.machine().await, fleet.machine().await);
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let address = fleet.running.api_address();
    let viewer = async |path: String| {
        let mut socket = open(&fleet, address, &path, None, &[bearer(&ada)]).await.unwrap();
        assert_eq!(next(&mut socket).await["kind"], "ready", "{path}");
        socket
    };
    let mut of_agent = viewer(format!("/api/v1/ws/events?agent_id={}", ours.id)).await;
    let mut of_type = viewer("/api/v1/ws/events?type=alert".to_owned()).await;
    let severities = ["critical", "high", "medium", "low", "informational"];
    let mut found = Vec::new();
    for severity in severities {
        found.push(viewer(format!("/api/v1/ws/findings?agent_id={}&severity={severity}", ours.id)).await);
    }
    let mut retired = viewer("/api/v1/ws/agents?state=retired".to_owned()).await;
    let keys = "/root/.ssh/authorized_keys";
    for machine in [&theirs, &ours] {
        machine.send(&fleet, &crate::judge::changed(machine, 1, keys)).await.ok::<EventsAnswer>();
        let body = json!({"agent_id": machine.id, "type": "alert", "data": {}});
        assert_eq!(ada.ask(&fleet, "POST", "/api/v1/events", Some(&body)).await.status, 201);
    }
    for kind in ["file", "alert"] {
        let told = next(&mut of_agent).await;
        let item = &told["item"];
        assert_eq!((item["agent_id"].as_str(), item["type"].as_str()), (Some(&*ours.id.to_string()), Some(kind)));
    }
    for machine in [&theirs, &ours] {
        let told = next(&mut of_type).await;
        let item = &told["item"];
        assert_eq!((item["agent_id"].as_str(), item["type"].as_str()), (Some(&*machine.id.to_string()), Some("alert")));
    }
    let finding = eventually(async || {
        crate::judge::findings(&fleet).await.into_iter().find(|finding| finding.agent == Some(ours.id))
    })
    .await;
    for (severity, mut socket) in severities.into_iter().zip(found) {
        if severity == finding.severity.as_str() {
            assert_eq!(next(&mut socket).await["item"]["id"], finding.id.to_string());
        } else {
            let more = tokio::time::timeout(Duration::from_millis(600), socket.next()).await;
            assert!(more.is_err(), "{severity}: {more:?}");
        }
    }
    let boot = Uuid::now_v7();
    let mut socket = connected(&fleet, &theirs, hello(boot, "m")).await;
    socket.send(Message::text(heartbeat(&theirs, 1, boot).write())).await.unwrap();
    next_frame(&mut socket).await;
    fleet.running.hub().retire(theirs.id, "test").await.unwrap();
    let told = next(&mut retired).await;
    assert_eq!((&told["item"]["id"], &told["item"]["status"]), (&json!(theirs.id), &json!("retired")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_of_agents_that_comes_back_hears_of_those_that_changed_meanwhile() {
    let fleet = unlimited().await;
    let (before, changed, foreign) =
        (fleet.machine().await, fleet.machine().await, fleet.machine_tagged("other").await);
    let hub = fleet.running.hub();
    hub.retire(before.id, "test").await.unwrap();
    fleet.forward(Duration::from_secs(120));
    let viewer = person(&fleet, "ada", &[("*.read", Some("test"))]).await;
    let address = fleet.running.api_address();
    let mut socket = open(&fleet, address, "/api/v1/ws/agents", None, &[bearer(&viewer)]).await.unwrap();
    let ready = next(&mut socket).await;
    drop(socket);
    for machine in [&foreign, &changed] {
        hub.retire(machine.id, "test").await.unwrap();
    }
    let path = format!("/api/v1/ws/agents?cursor={}", ready["cursor"].as_str().unwrap());
    let mut again = open(&fleet, address, &path, None, &[bearer(&viewer)]).await.unwrap();
    let told = next(&mut again).await;
    assert_eq!((&told["kind"], &told["item"]["id"]), (&json!("agent"), &json!(changed.id)));
    assert_eq!(next(&mut again).await["kind"], "ready");
    let wrong = open(&fleet, address, "/api/v1/ws/agents?cursor=x", None, &[bearer(&viewer)]).await;
    assert!(matches!(wrong, Err(tungstenite::Error::Http(response)) if response.status() == 400));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_changes_of_agents_than_are_kept_are_looked_up_and_none_is_made_up() {
    let fleet = unlimited().await;
    let (ours, theirs) = (fleet.machine().await, fleet.machine_tagged("other").await);
    let viewer = person(&fleet, "ada", &[("*.read", Some("test"))]).await;
    let address = fleet.running.api_address();
    let mut socket = open(&fleet, address, "/api/v1/ws/agents", None, &[bearer(&viewer)]).await.unwrap();
    assert_eq!(next(&mut socket).await["kind"], "ready");
    let hub = fleet.running.hub();
    // At once, and more than the viewer's task can take in between.
    for _ in 0..200_000 {
        let _ = hub.agent_changes.send(theirs.id);
    }
    hub.retire(ours.id, "test").await.unwrap();
    loop {
        let told = next(&mut socket).await;
        assert_eq!((&told["kind"], &told["item"]["id"]), (&json!("agent"), &json!(ours.id)), "{told}");
        if told["item"]["status"] == "retired" {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_view_ends_with_the_token_that_it_was_opened_with() {
    let fleet = unlimited().await;
    person(&fleet, "ada", &[("*", None)]).await;
    let token = crate::people::signed_token(&fleet, "ada").await;
    fleet.forward(Duration::from_secs(59 * 60));
    let bearer = ("authorization", format!("Bearer {token}"));
    let address = fleet.running.api_address();
    let mut socket = open(&fleet, address, "/api/v1/ws/events", None, &[bearer]).await.unwrap();
    assert_eq!(next(&mut socket).await["kind"], "ready");
    fleet.forward(Duration::from_secs(2 * 60));
    let ended = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the viewer is cut off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_sees_findings_and_agents_and_only_those_of_its_tags() {
    let fleet = unlimited().await;
    let (ours, theirs) = (fleet.machine().await, fleet.machine_tagged("other").await);
    let viewer = person(&fleet, "ada", &[("*.read", Some("test"))]).await;
    let address = fleet.running.api_address();
    let mut findings = open(&fleet, address, "/api/v1/ws/findings", None, &[bearer(&viewer)]).await.unwrap();
    assert_eq!(next(&mut findings).await["kind"], "ready");
    let mut agents = open(&fleet, address, "/api/v1/ws/agents", None, &[bearer(&viewer)]).await.unwrap();
    assert_eq!(next(&mut agents).await["kind"], "ready");
    for machine in [&theirs, &ours] {
        let line = crate::judge::changed(machine, 1, "/root/.ssh/authorized_keys");
        machine.send(&fleet, &line).await.ok::<EventsAnswer>();
    }
    assert_eq!(next(&mut findings).await["item"]["agent_id"], ours.id.to_string());
    let boot = Uuid::now_v7();
    for machine in [&theirs, &ours] {
        let mut socket = connected(&fleet, machine, hello(boot, "m")).await;
        socket.send(Message::text(heartbeat(machine, 1, boot).write())).await.unwrap();
        next_frame(&mut socket).await;
    }
    let told = next(&mut agents).await;
    assert_eq!(
        (told["item"]["id"].as_str(), told["item"]["status"].as_str()),
        (Some(&*ours.id.to_string()), Some("online"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_somebody_elses_cannot_open_a_viewer() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let address = fleet.running.api_address();
    let evil = [bearer(&ada), ("origin", "https://evil.example".to_owned())];
    let refused = open(&fleet, address, "/api/v1/ws/events", None, &evil).await;
    assert!(matches!(refused, Err(tungstenite::Error::Http(response)) if response.status() == 403));
    let own = [bearer(&ada), ("origin", format!("https://{address}"))];
    open(&fleet, address, "/api/v1/ws/events", None, &own).await.unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_whose_permission_is_taken_back_sees_no_more() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("events.read", None)]).await;
    let address = fleet.running.api_address();
    let mut socket = open(&fleet, address, "/api/v1/ws/events", None, &[bearer(&ada)]).await.unwrap();
    assert_eq!(next(&mut socket).await["kind"], "ready");
    let hub = fleet.running.hub();
    let grants = hub.db.grants(TenantId::DEFAULT, &picket_hub_db::PageRequest::first(10)).await.unwrap();
    hub.db.revoke(TenantId::DEFAULT, &grants.items[0].permission).await.unwrap();
    let ended = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the viewer is cut off");
}

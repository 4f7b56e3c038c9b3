//! How the hub is doing: probes, health and metrics, and strangers who hold connections.

use crate::fleet::{Fleet, Machine, eventually, try_ask};
use crate::judge::changed;
use crate::people::{nobody, person};
use crate::sockets::{connected, heartbeat, hello, next_frame, tls};
use futures_util::SinkExt as _;
use picket_hub::app::own_events::HUB_AGENT;
use picket_hub_db::{PageRequest, TenantId};
use picket_protocol::hub::{EventsAnswer, Frame, ProblemCode, WHOAMI_PATH, WhoAmI};
use picket_testkit::stores;
use serde_json::{Value, json};
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// Asks the local server.
pub async fn local(fleet: &Fleet, path: &str) -> (u16, String) {
    let url = format!("http://{}{path}", fleet.running.health_address().unwrap());
    let asking = move || {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
        let mut response = agent.get(url).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    };
    tokio::task::spawn_blocking(asking).await.unwrap()
}

/// The value of a sample, by all that stands before it.
pub fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_of_an_event_to_its_finding_is_in_the_metrics() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    machine.send(&fleet, &changed(&machine, 1, "/root/.ssh/authorized_keys")).await.ok::<EventsAnswer>();
    machine.send(&fleet, &changed(&machine, 1, "/root/.ssh/authorized_keys")).await.ok::<EventsAnswer>();
    machine.send(&fleet, "{").await.problem();
    let text = eventually(async || {
        let (_, text) = local(&fleet, "/metrics").await;
        (sample(&text, "picket_hub_findings_generated_total{severity=\"medium\"}") == Some(1.0)).then_some(text)
    })
    .await;
    for (name, value) in [
        ("picket_hub_up{version=\"1.0.0\"}", 1.0),
        ("picket_hub_events_received_total{outcome=\"stored\"}", 1.0),
        ("picket_hub_events_received_total{outcome=\"duplicate\"}", 1.0),
        ("picket_hub_events_processed_total{shard=\"file\"}", 1.0),
        ("picket_hub_events_unjudged_total{shard=\"file\"}", 0.0),
        ("picket_hub_finding_delay_seconds_count", 1.0),
        ("picket_hub_processing_time_seconds_count", 1.0),
        ("picket_hub_queue_length{queue=\"events\"}", 0.0),
        ("picket_hub_shed_total{what=\"batches\"}", 0.0),
        ("picket_hub_http_refusals_total{listener=\"agents\",code=\"invalid\"}", 1.0),
        (
            "picket_hub_http_request_duration_seconds_count{listener=\"agents\",route=\"/agent/v1/events\",method=\"POST\",status=\"2xx\"}",
            2.0,
        ),
    ] {
        assert_eq!(sample(&text, name), Some(value), "{name} in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_to_say_about_the_metrics() {
    let fleet = Fleet::start().await;
    let machine = fleet.machine().await;
    machine.send(&fleet, &changed(&machine, 1, "/root/.ssh/authorized_keys")).await.ok::<EventsAnswer>();
    let (_, text) = local(&fleet, "/metrics").await;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing: run scripts/setup test and put target/tools/bin on the path");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_answer_everybody_and_health_whom_it_concerns() {
    let fleet = Fleet::start().await;
    assert_eq!(local(&fleet, "/livez").await.0, 200);
    assert_eq!(local(&fleet, "/readyz").await.0, 200);
    let (status, report) = eventually(async || {
        let (status, text) = local(&fleet, "/health").await;
        let report: Value = serde_json::from_str(&text).unwrap();
        report["checks"]["database"].is_object().then_some((status, report))
    })
    .await;
    assert_eq!((status, &report["status"]), (200, &"healthy".into()), "{report}");
    // The disk is the hub's own with SQLite only.
    let stores = if stores::are_servers() { "bus" } else { "disk_space" };
    for check in ["event_loop", "database", stores, "judge", "rules", "certificates", "load", "books"] {
        assert!(report["checks"][check].is_object(), "{check} in {report}");
    }
    // The port of people: an orchestrator has no token, and a probe costs nobody their rate.
    for _ in 0..50 {
        assert_eq!(nobody().get(&fleet, "/readyz").await.status, 200);
    }
    for path in ["/health", "/metrics"] {
        assert_eq!(nobody().get(&fleet, path).await.problem().code, ProblemCode::Unauthenticated);
        let tagged = person(&fleet, &format!("tagged{}", path.len()), &[("hub.read", Some("web"))]).await;
        assert_eq!(tagged.get(&fleet, path).await.problem().code, ProblemCode::Forbidden);
        let reader = person(&fleet, &format!("reader{}", path.len()), &[("hub.read", None)]).await;
        let answer = reader.get(&fleet, path).await;
        assert_eq!(answer.status, 200);
        assert!(String::from_utf8_lossy(&answer.body).contains(if path == "/health" {
            "event_loop"
        } else {
            "# TYPE"
        }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_hold_connections_do_not_shut_agents_out_and_are_sent_away() {
    let fleet = Fleet::start_with(|settings| settings.limits.agents = 8).await;
    let machine = fleet.machine().await;
    // A quarter of eight are for strangers; these two say nothing, not even hello.
    let address = fleet.running.agents_address();
    let mut silent = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    let counters = &fleet.running.hub().listeners.agents;
    let open = || counters.open.load(std::sync::atomic::Ordering::Relaxed);
    eventually(async || (open() >= 2).then_some(())).await;
    // The third stranger is closed at once.
    let mut third = TcpStream::connect(address).await.unwrap();
    third.write_all(b"x").await.ok();
    let mut byte = [0; 1];
    let closed = tokio::time::timeout(Duration::from_secs(10), third.read(&mut byte)).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)));
    // In the end the silent ones are sent away, and a machine gets through.
    let closed = tokio::time::timeout(Duration::from_secs(20), silent[0].read(&mut byte)).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)));
    eventually(async || (open() < 2).then_some(())).await;
    machine.send(&fleet, &changed(&machine, 1, "/tmp/x")).await.ok::<EventsAnswer>();
}

/// A connection of another address than machines and people of these tests have.
async fn from_elsewhere(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(address).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_hold_all_connections_of_strangers_nor_of_people() {
    let fleet = Fleet::start_with(|settings| {
        (settings.limits.agents, settings.limits.api) = (16, 4);
        (settings.limits.strangers_each, settings.limits.api_each) = (2, 2);
    })
    .await;
    let mut held = Vec::new();
    for address in [fleet.running.agents_address(), fleet.running.api_address()] {
        for _ in 0..2 {
            held.push(from_elsewhere(address).await);
        }
        // They say nothing for as long as they may, and no more of them come in.
        let mut third = from_elsewhere(address).await;
        let closed = tokio::time::timeout(Duration::from_secs(5), third.read(&mut [0; 1])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    }
    let machine = fleet.machine().await;
    machine.send(&fleet, &changed(&machine, 1, "/tmp/x")).await.ok::<EventsAnswer>();
    assert_eq!(nobody().get(&fleet, "/readyz").await.status, 200);
}

/// Whether a machine gets through to the hub.
async fn gets_through(fleet: &Fleet, machine: &Machine) -> bool {
    let url = format!("https://{}{WHOAMI_PATH}", fleet.running.agents_address());
    let roots = fleet.running.hub().keys().roots.clone();
    let answer = try_ask("GET", &url, &roots, Some(machine.client_certificate()), &[], Vec::new()).await;
    answer.is_ok_and(|answer| answer.ok::<WhoAmI>().authorized)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_has_its_place_until_it_ends() {
    let fleet = Fleet::start_with(|settings| settings.limits.agents = 1).await;
    let open = || fleet.running.hub().listeners.agents.open.load(Ordering::Relaxed);
    let (machine, other) = (fleet.machine().await, fleet.machine().await);
    eventually(async || (open() == 0).then_some(())).await;
    let mut socket = connected(&fleet, &machine, hello(machine.boot, "m")).await;
    for seq in 1..=3 {
        let text = heartbeat(&machine, seq, machine.boot).write();
        socket.send(tungstenite::Message::text(text)).await.unwrap();
        assert!(matches!(next_frame(&mut socket).await, Frame::Heard { .. }));
    }
    assert_eq!(open(), 1);
    assert!(!gets_through(&fleet, &other).await, "there is one place");
    eventually(async || (open() == 1).then_some(())).await;
    drop(socket);
    eventually(async || gets_through(&fleet, &other).await.then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_taken_over_cannot_take_the_places_of_all() {
    let fleet = Fleet::start_with(|settings| settings.limits.agents = 40).await;
    let hub = fleet.running.hub();
    let open = || hub.listeners.agents.open.load(Ordering::Relaxed);
    let (machine, other) = (fleet.machine().await, fleet.machine().await);
    eventually(async || (open() == 0).then_some(())).await;
    let mut held = Vec::new();
    for count in 1..=8 {
        held.push(tls(&fleet, fleet.running.agents_address(), Some(&machine)).await);
        eventually(async || (open() == count).then_some(())).await;
    }
    let mut ninth = tls(&fleet, fleet.running.agents_address(), Some(&machine)).await;
    let closed = tokio::time::timeout(Duration::from_secs(5), ninth.read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    eventually(async || (open() == 8).then_some(())).await;
    assert!(gets_through(&fleet, &other).await);

    // A certificate that is not in force has a place among strangers.
    assert_eq!(hub.holder(&machine.chain[0]), Some(machine.id));
    hub.retire(machine.id, "test").await.unwrap();
    hub.look_for_revoked(jiff::Timestamp::UNIX_EPOCH).await.unwrap();
    assert_eq!(hub.holder(&machine.chain[0]), None);
    assert_eq!(hub.holder(&other.chain[0]), Some(other.id));
    fleet.forward(Duration::from_secs(400 * 24 * 3600));
    assert_eq!(hub.holder(&other.chain[0]), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_notices_while_nothing_can_be_stored_is_stored_later_or_told_as_a_gap() {
    let fleet = Fleet::start().await;
    let hub = fleet.running.hub();
    let books = async || {
        let page = hub.db.stream_books(TenantId::DEFAULT, HUB_AGENT, &PageRequest::first(1)).await.unwrap();
        page.items.first().map_or((0, 0), |book| (book.totals.stored, book.totals.gaps))
    };
    let everything = hub.intake.reserve(usize::MAX).unwrap();
    futures_util::future::join_all((0..1100).map(|number| hub.report("odd", json!({ "number": number })))).await;
    assert_eq!(books().await, (0, 0));
    let given_up = hub.own_events.given_up();
    assert!((70..=76).contains(&given_up), "{given_up} did not fit");
    drop(everything);
    let (stored, _) = eventually(async || Some(books().await).filter(|(_, gaps)| *gaps == given_up)).await;
    assert!(stored > 0);
    let (_, text) = local(&fleet, "/metrics").await;
    assert_eq!(sample(&text, "picket_hub_own_events_given_up_total"), Some(given_up as f64));
}

#[tokio::test(flavor = "multi_thread")]
async fn books_that_do_not_agree_show_also_where_nothing_came_at_all() {
    let fleet = Fleet::start_with(|settings| settings.heartbeat = picket_config::Interval::seconds(1)).await;
    let (machine, ada) = (fleet.machine().await, person(&fleet, "ada", &[("*", None)]).await);
    let mut socket = connected(&fleet, &machine, hello(machine.boot, "m")).await;
    let Frame::Heartbeat(mut beat) = heartbeat(&machine, 1, machine.boot) else { unreachable!() };
    let class = json!({"emitted": 7, "acknowledged": 5, "queued": 2});
    let ledger = json!([{"boot_id": machine.boot, "classes": {"normal": class}}]);
    beat.ledgers = serde_json::from_value(ledger).unwrap();
    socket.send(tungstenite::Message::text(Frame::Heartbeat(beat).write())).await.unwrap();
    assert!(matches!(next_frame(&mut socket).await, Frame::Heard { .. }));

    let metric = async || sample(&local(&fleet, "/metrics").await.1, "picket_hub_agents_unaccounted");
    eventually(async || (metric().await == Some(1.0)).then_some(())).await;
    let check = eventually(async || {
        let report: Value = serde_json::from_str(&local(&fleet, "/health").await.1).unwrap();
        Some(report["checks"]["books"].clone()).filter(|check| check["status"] == "warn")
    })
    .await;
    assert!(check["message"].as_str().unwrap().contains("of 1 agents 5 events are missing"), "{check}");
    let books: Value = ada.get(&fleet, &format!("/api/v1/agents/{}/books", machine.id)).await.ok();
    let stream = &books["items"][0];
    assert_eq!(
        (&stream["boot_id"], &stream["stored"], &stream["unaccounted"]),
        (&json!(machine.boot), &json!(0), &json!(5))
    );

    machine.send(&fleet, &machine.lines(1..=5)).await.ok::<EventsAnswer>();
    eventually(async || (metric().await == Some(0.0)).then_some(())).await;
    let books: Value = ada.get(&fleet, &format!("/api/v1/agents/{}/books", machine.id)).await.ok();
    assert_eq!((books["items"].as_array().unwrap().len(), &books["items"][0]["unaccounted"]), (1, &json!(0)));
}

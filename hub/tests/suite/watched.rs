//! How the hub is doing: probes, health and metrics, and strangers who hold connections.

use crate::fleet::{Fleet, eventually};
use crate::judge::changed;
use crate::people::{nobody, person};
use picket_protocol::hub::{EventsAnswer, ProblemCode};
use picket_testkit::stores;
use serde_json::Value;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Asks the local server.
async fn local(fleet: &Fleet, path: &str) -> (u16, String) {
    let url = format!("http://{}{path}", fleet.running.health_address().unwrap());
    let asking = move || {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
        let mut response = agent.get(url).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    };
    tokio::task::spawn_blocking(asking).await.unwrap()
}

/// The value of a sample, by all that stands before it.
fn sample(text: &str, name: &str) -> Option<f64> {
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
    for check in ["event_loop", "database", stores, "judge", "rules", "certificates", "load"] {
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

//! Live views: the `WebSockets` of people and programs.

use crate::fleet::{Fleet, Machine, eventually};
use crate::people::{Person, person, unlimited};
use crate::sockets::{Socket, connected, heartbeat, hello, next, next_frame, open};
use futures_util::{SinkExt as _, StreamExt as _};
use picket_hub_db::TenantId;
use picket_protocol::hub::EventsAnswer;
use serde_json::json;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tungstenite::Message;
use uuid::Uuid;

/// Looks at `path`, from where that begins.
async fn look(fleet: &Fleet, who: &Person, path: &str) -> Socket {
    open(fleet, fleet.running.api_address(), path, None, &[bearer(who)]).await.unwrap()
}

/// Looks at `path` from now on: what is returned is where that is.
async fn look_live(fleet: &Fleet, who: &Person, path: &str) -> (Socket, String) {
    let mut socket = look(fleet, who, path).await;
    let ready = next(&mut socket).await;
    assert_eq!(ready["kind"], "ready", "{path}");
    (socket, ready["cursor"].as_str().unwrap().to_owned())
}

fn bearer(person: &Person) -> (&'static str, String) {
    ("authorization", format!("Bearer {}", person.token))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_sees_events_as_they_come_and_goes_on_where_it_was() {
    let fleet = unlimited().await;
    let machine = fleet.machine().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let (mut socket, _) = look_live(&fleet, &ada, "/api/v1/ws/events").await;
    machine.send(&fleet, &machine.lines(1..=2)).await.ok::<EventsAnswer>();
    let first = next(&mut socket).await;
    assert_eq!((first["kind"].as_str(), first["item"]["seq"].as_u64()), (Some("event"), Some(1)));
    drop(socket);
    machine.send(&fleet, &machine.lines(3..=3)).await.ok::<EventsAnswer>();
    let path = format!("/api/v1/ws/events?cursor={}", first["cursor"].as_str().unwrap());
    let mut again = look(&fleet, &ada, &path).await;
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
    let (mut socket, _) = look_live(&fleet, &ada, "/api/v1/ws/events").await;
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
    let (socket, cursor) = look_live(&fleet, &ada, "/api/v1/ws/events").await;
    drop(socket);
    burst(&fleet, &machine, 1..=3000).await;
    let path = format!("/api/v1/ws/events?cursor={cursor}");
    let mut again = look(&fleet, &ada, &path).await;
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
    let viewer = async |path: String| look_live(&fleet, &ada, &path).await.0;
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
    let (socket, cursor) = look_live(&fleet, &viewer, "/api/v1/ws/agents").await;
    drop(socket);
    for machine in [&foreign, &changed] {
        hub.retire(machine.id, "test").await.unwrap();
    }
    let path = format!("/api/v1/ws/agents?cursor={cursor}");
    let mut again = look(&fleet, &viewer, &path).await;
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
    let (mut socket, _) = look_live(&fleet, &viewer, "/api/v1/ws/agents").await;
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
    let (mut findings, _) = look_live(&fleet, &viewer, "/api/v1/ws/findings").await;
    let (mut agents, _) = look_live(&fleet, &viewer, "/api/v1/ws/agents").await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_whose_permission_is_taken_back_sees_no_more() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("events.read", None)]).await;
    let (mut socket, _) = look_live(&fleet, &ada, "/api/v1/ws/events").await;
    let hub = fleet.running.hub();
    let grants = hub.db.grants(TenantId::DEFAULT, &picket_hub_db::PageRequest::first(10)).await.unwrap();
    hub.db.revoke(TenantId::DEFAULT, &grants.items[0].permission).await.unwrap();
    let ended = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the viewer is cut off");
}

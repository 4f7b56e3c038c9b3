//! Rules that people send to be looked at and tried, which costs a processor for as long as it takes.

use crate::judge::{ONE, changed};
use crate::people::{person, unlimited};
use picket_protocol::hub::EventsAnswer;
use serde_json::{Value, json};
use std::sync::{Arc, mpsc};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn few_are_compiled_and_tried_at_once_and_who_comes_then_is_told_to_come_back() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let hub = Arc::clone(fleet.running.hub());
    let body = json!({ "source": ONE });
    let ask = async |path: &str| ada.ask(&fleet, "POST", path, Some(&body)).await;
    let turn = hub.rules.turn_to_try().unwrap();
    let busy = ask("/api/v1/rules/dry-run").await;
    assert!(busy.status == 503 && busy.headers.contains_key("retry-after"), "{}", busy.status);
    drop(turn);
    ask("/api/v1/rules/dry-run").await.ok::<Value>();
    let compiling: Vec<_> = (0..2)
        .map(|_| {
            let (hub, (go, wait)) = (Arc::clone(&hub), mpsc::channel::<()>());
            let work = move || wait.recv_timeout(Duration::from_secs(60)).is_ok();
            (go, tokio::spawn(async move { hub.rules.compile(work).await.unwrap() }))
        })
        .collect();
    for path in ["/api/v1/rules/validate", "/api/v1/rules"] {
        let busy = ask(path).await;
        assert!(busy.status == 503 && busy.headers.contains_key("retry-after"), "{path}: {}", busy.status);
    }
    for (go, compiled) in compiling {
        go.send(()).unwrap();
        assert!(compiled.await.unwrap());
    }
    assert_eq!(ask("/api/v1/rules/validate").await.ok::<Value>()["usable"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_sees_every_event_of_its_time_page_after_page() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let machine = fleet.machine().await;
    let lines: Vec<String> = (1..=450).map(|seq| changed(&machine, seq, "/srv/test-file")).collect();
    machine.send(&fleet, &lines.join("\n")).await.ok::<EventsAnswer>();
    let body = json!({ "source": ONE });
    let ran: Value = ada.ask(&fleet, "POST", "/api/v1/rules/dry-run", Some(&body)).await.ok();
    assert_eq!((&ran["matches"], &ran["cut_short"]), (&json!(450), &json!(false)), "{ran}");
}

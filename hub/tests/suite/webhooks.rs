//! Others are told of findings and cases, once they can be reached, and can tell that it was this hub.

use crate::fleet::{Fleet, eventually};
use crate::people::{Person, person, unlimited};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use picket_protocol::hub::ProblemCode;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A post that came.
#[derive(Debug, Clone)]
struct Told {
    headers: HashMap<String, String>,
    body: String,
}

/// Somebody who is told. The thread ends with the process.
struct Listener {
    address: SocketAddr,
    /// What it answers with.
    status: Arc<AtomicU16>,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Listener {
    fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener =
            Self { address: socket.local_addr().unwrap(), status: Arc::new(AtomicU16::new(204)), told: Arc::default() };
        let (status, told) = (Arc::clone(&listener.status), Arc::clone(&listener.told));
        std::thread::spawn(move || {
            for stream in socket.incoming().flatten() {
                told.lock().unwrap().push(hear(stream, status.load(Ordering::SeqCst)));
            }
        });
        listener
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }
}

fn hear(stream: TcpStream, status: u16) -> Told {
    let mut reader = BufReader::new(stream);
    let mut headers = HashMap::new();
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    write!(reader.get_mut(), "HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    Told { headers, body: String::from_utf8(body).unwrap() }
}

/// A web hook for everything, and its secret.
async fn hook(fleet: &Fleet, ada: &Person, listener: &Listener) -> (String, String) {
    let url = format!("http://{}/deep/secret-path", listener.address);
    let body = json!({"name": "siem", "url": url, "subjects": ["findings", "cases"], "min_severity": "low"});
    let made: Value = ada.ask(fleet, "POST", "/api/v1/webhooks", Some(&body)).await.ok();
    (made["details"]["id"].as_str().unwrap().to_owned(), made["secret"].as_str().unwrap().to_owned())
}

/// Makes a finding of high severity; returns its id.
async fn find(fleet: &Fleet, ada: &Person) -> String {
    let machine = fleet.machine().await;
    let body = json!({
        "agent_id": machine.id, "type": "file",
        "data": {"action": "modified", "path": "/root/.ssh/authorized_keys", "kind": "file", "method": "fanotify", "confidence": "observed"},
    });
    let event: Value = ada.ask(fleet, "POST", "/api/v1/events", Some(&body)).await.ok();
    let path = format!("/api/v1/findings?event_id={}", event["id"].as_str().unwrap());
    let found = eventually(async || {
        let found: Value = ada.get(fleet, &path).await.ok();
        found["items"].as_array().unwrap().first().cloned()
    });
    found.await["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finding_and_a_case_are_told_signed_and_no_secret_is_shown_again() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let listener = Listener::start();
    let (id, secret) = hook(&fleet, &ada, &listener).await;
    let finding = find(&fleet, &ada).await;
    let told = eventually(async || listener.told().first().cloned()).await;
    let body: Value = serde_json::from_str(&told.body).unwrap();
    assert_eq!((&body["type"], &body["data"]["finding_id"]), (&json!("finding.opened"), &json!(finding)), "{body}");
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
    mac.update(
        format!("{}.{}.{}", told.headers["webhook-id"], told.headers["webhook-timestamp"], told.body).as_bytes(),
    );
    let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    assert_eq!(told.headers["webhook-signature"], signature);

    let body = json!({"title": "Keys changed", "severity": "high", "findings": [finding]});
    ada.ask(&fleet, "POST", "/api/v1/cases", Some(&body)).await.ok::<Value>();
    let told = eventually(async || listener.told().get(1).cloned()).await;
    assert_eq!(serde_json::from_str::<Value>(&told.body).unwrap()["type"], "case.created");
    // What is not bad enough is not told, nor is what is only extended.
    let body = json!({"title": "Nothing", "severity": "informational"});
    ada.ask(&fleet, "POST", "/api/v1/cases", Some(&body)).await.ok::<Value>();
    let done = eventually(async || {
        let list: Value = ada.get(&fleet, "/api/v1/deliveries?state=done").await.ok();
        (list["items"].as_array().unwrap().len() == 2).then_some(list)
    })
    .await;
    assert_eq!(done["items"][0]["webhook_id"], id);

    for path in ["/api/v1/webhooks".to_owned(), format!("/api/v1/webhooks/{id}"), "/api/v1/deliveries".to_owned()] {
        let shown = ada.get(&fleet, &path).await.ok::<Value>().to_string();
        assert!(!shown.contains("secret-path") && !shown.contains(&secret), "{path}: {shown}");
    }
    let db = fleet.running.hub();
    let kept = db.db.settings(db.tenant, "webhook/").await.unwrap();
    let kept = String::from_utf8_lossy(&kept[0].value).into_owned();
    assert!(!kept.contains("secret-path") && !kept.contains(&secret[6..]), "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_told_is_tried_again_given_up_and_told_when_somebody_asks_for_it() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let listener = Listener::start();
    listener.status.store(503, Ordering::SeqCst);
    hook(&fleet, &ada, &listener).await;
    find(&fleet, &ada).await;
    eventually(async || listener.told().first().cloned()).await;
    let states = async |state: &str| {
        let list: Value = ada.get(&fleet, &format!("/api/v1/deliveries?state={state}")).await.ok();
        list["items"].as_array().unwrap().clone()
    };
    let waiting =
        eventually(async || states("waiting").await.into_iter().find(|delivery| delivery["last_error"].is_string()))
            .await;
    assert!(waiting["last_error"].as_str().unwrap().contains("503"), "{waiting}");
    // Its time comes, and the other side says that it is wrong to ask: that is the end of it.
    listener.status.store(410, Ordering::SeqCst);
    fleet.forward(Duration::from_secs(10));
    let failed = eventually(async || states("failed").await.first().cloned()).await;
    assert_eq!((&failed["id"], &failed["attempts"]), (&waiting["id"], &json!(2)));
    listener.status.store(200, Ordering::SeqCst);
    let path = format!("/api/v1/deliveries/{}/redeliver", failed["id"].as_str().unwrap());
    assert_eq!(ada.ask(&fleet, "POST", &path, None).await.status, 202);
    eventually(async || states("done").await.first().cloned()).await;
    let ids: Vec<String> = listener.told().iter().map(|told| told.headers["webhook-id"].clone()).collect();
    assert!(ids.len() == 3 && ids.iter().all(|id| *id == ids[0]), "the same id each time: {ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_hook_that_never_answers_keeps_no_other_one_waiting() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    // It takes connections, and says nothing.
    let dead = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", dead.local_addr().unwrap());
    let body = json!({"name": "dead", "url": url, "subjects": ["findings"], "min_severity": "low"});
    let made: Value = ada.ask(&fleet, "POST", "/api/v1/webhooks", Some(&body)).await.ok();
    let hub = fleet.running.hub();
    let due = fleet.now();
    let many = (0..40).map(|_| picket_hub_db::NewDelivery {
        id: uuid::Uuid::now_v7(),
        target: made["details"]["id"].as_str().unwrap().to_owned(),
        payload: json!({"type": "test", "data": {}}),
        due,
    });
    hub.db.enqueue_deliveries(hub.tenant, &many.collect::<Vec<_>>(), due).await.unwrap();
    let listener = Listener::start();
    hook(&fleet, &ada, &listener).await;
    let began = std::time::Instant::now();
    find(&fleet, &ada).await;
    eventually(async || listener.told().first().cloned()).await;
    // One post to the dead one takes twenty seconds, and there are forty before this one.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    drop(dead);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_hook_is_looked_at_before_it_is_taken_and_changed_in_the_version_that_was_read() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let tagged = person(&fleet, "bob", &[("*", Some("test"))]).await;
    for url in ["http://siem.example/x", "ftp://siem.example/", "https://user:pass@siem.example/", "siem"] {
        let body = json!({"name": "siem", "url": url, "subjects": ["findings"]});
        let refused = ada.ask(&fleet, "POST", "/api/v1/webhooks", Some(&body)).await.problem();
        assert_eq!(refused.code, ProblemCode::Invalid, "{url}");
    }
    let listener = Listener::start();
    let (id, _) = hook(&fleet, &ada, &listener).await;
    let path = format!("/api/v1/webhooks/{id}");
    assert_eq!(tagged.get(&fleet, &path).await.problem().code, ProblemCode::Forbidden, "it concerns the whole fleet");
    let body = json!({"name": "off", "subjects": ["findings"], "enabled": false});
    let unnamed = ada.ask(&fleet, "PUT", &path, Some(&body)).await.problem();
    assert_eq!(unnamed.code, ProblemCode::PreconditionRequired);
    let changed: Value = ada.with("if-match", "\"1\"").ask(&fleet, "PUT", &path, Some(&body)).await.ok();
    assert_eq!((&changed["enabled"], &changed["revision"]), (&json!(false), &json!(2)));
    let stale = ada.with("if-match", "\"1\"").ask(&fleet, "PUT", &path, Some(&body)).await.problem();
    assert_eq!(stale.code, ProblemCode::PreconditionFailed);
    find(&fleet, &ada).await;
    let none: Value = ada.get(&fleet, "/api/v1/deliveries").await.ok();
    assert_eq!(none["items"], json!([]), "a disabled one tells nothing");
    assert_eq!(ada.ask(&fleet, "DELETE", &path, None).await.status, 204);
    assert_eq!(ada.get(&fleet, &path).await.problem().code, ProblemCode::NotFound);
}

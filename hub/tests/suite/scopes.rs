//! Who may do something on agents with certain tags only: what they see of the rest, in lists, cursors and counts, is nothing.

use crate::fleet::{Answer, Fleet, eventually};
use crate::people::{Person, person, unlimited};
use picket_hub_db::{PageRequest, TenantId};
use picket_protocol::hub::{EventsAnswer, ProblemCode};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// All pages of a list; every one but the last is full.
async fn pages(fleet: &Fleet, who: &Person, path: &str, limit: usize) -> (Vec<Value>, Vec<String>) {
    let (mut items, mut cursors) = (Vec::new(), Vec::<String>::new());
    loop {
        let separator = if path.contains('?') { '&' } else { '?' };
        let cursor = cursors.last().map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let page: Value = who.get(fleet, &format!("{path}{separator}limit={limit}{cursor}")).await.ok();
        let part = page["items"].as_array().unwrap();
        items.extend(part.iter().cloned());
        let Some(next) = page.get("next_cursor") else { return (items, cursors) };
        assert_eq!(part.len(), limit, "{path}: a page with more behind it is full");
        cursors.push(next.as_str().unwrap().to_owned());
    }
}

fn ids(items: &[Value]) -> Vec<&str> {
    items.iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_as_if_there_was_nothing_but_what_one_may_see() {
    let fleet = unlimited().await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        theirs.push(fleet.machine_tagged("other").await);
        ours.push(fleet.machine().await);
        theirs.push(fleet.machine_tagged("other").await);
    }
    for machine in theirs.iter().chain(&ours) {
        for seq in 1..=2 {
            let line = crate::judge::changed(machine, seq, &format!("/etc/cron.d/job-{seq}"));
            machine.send(&fleet, &line).await.ok::<EventsAnswer>();
        }
    }
    let root = person(&fleet, "root", &[("*", None)]).await;
    let viewer = person(&fleet, "ada", &[("*.read", Some("test"))]).await;
    eventually(async || (crate::judge::findings(&fleet).await.len() == 18).then_some(())).await;
    let foreign: BTreeSet<String> = theirs.iter().map(|machine| machine.id.to_string()).collect();
    let own: BTreeSet<String> = ours.iter().map(|machine| machine.id.to_string()).collect();
    for (path, agent, count) in
        [("/api/v1/agents", "id", 3), ("/api/v1/events?type=file", "agent_id", 6), ("/api/v1/findings", "agent_id", 6)]
    {
        for limit in [1, 2, 3, 100] {
            let (all, _) = pages(&fleet, &root, path, limit).await;
            assert_eq!(ids(&all).into_iter().collect::<BTreeSet<_>>().len(), all.len(), "{path}: each once");
            assert_eq!(all.iter().filter(|item| foreign.contains(item[agent].as_str().unwrap())).count(), 2 * count);
            let wanted: Vec<&Value> = all.iter().filter(|item| own.contains(item[agent].as_str().unwrap())).collect();
            let (seen, cursors) = pages(&fleet, &viewer, path, limit).await;
            assert_eq!(
                ids(&seen),
                wanted.iter().map(|item| item["id"].as_str().unwrap()).collect::<Vec<_>>(),
                "{path}"
            );
            assert_eq!(seen.len(), count);
            // A cursor is where the last row that was shown is.
            for (number, cursor) in cursors.iter().enumerate() {
                let last = seen[(number + 1) * limit - 1]["id"].as_str().unwrap().replace('-', "");
                assert!(cursor.ends_with(&last), "{path}: {cursor} after {last}");
            }
        }
    }
    let (tokens, cursors) = pages(&fleet, &viewer, "/api/v1/enrolment/tokens", 1).await;
    assert_eq!((tokens.len(), cursors.len()), (3, 2));
    assert!(tokens.iter().all(|token| token["tags"] == json!(["test"])));
    let agent = format!("/api/v1/events?agent_id={}", theirs[0].id);
    assert_eq!(pages(&fleet, &viewer, &agent, 1).await.0, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_of_other_agents_is_counted_and_not_shown() {
    let fleet = unlimited().await;
    let dir = fleet.dir.path().join("rules.d");
    picket_durable::create_dir(&dir, 0o755).unwrap();
    picket_durable::write_atomic(&dir.join("one.yml"), crate::judge::ONE.as_bytes(), 0o644).unwrap();
    picket_durable::write_atomic(&dir.join("three.yml"), crate::judge::THREE.as_bytes(), 0o644).unwrap();
    crate::judge::look(fleet.running.hub()).await;
    let (ours, theirs) = (fleet.machine().await, fleet.machine_tagged("other").await);
    for (machine, seq) in [(&theirs, 1), (&theirs, 2), (&ours, 1)] {
        machine.send(&fleet, &crate::judge::changed(machine, seq, "/srv/test-file")).await.ok::<EventsAnswer>();
    }
    let finding = eventually(async || {
        let found = crate::judge::findings(&fleet).await;
        found.into_iter().find(|finding| finding.title.ends_with("again and again"))
    })
    .await;
    assert_eq!((finding.agent, finding.event_count), (Some(ours.id), 3));
    let path = format!("/api/v1/findings/{}/events", finding.id);
    let all: Value = person(&fleet, "root", &[("*", None)]).await.get(&fleet, &path).await.ok();
    assert_eq!((all["items"].as_array().unwrap().len(), &all["hidden"]), (3, &json!(0)));
    for (name, grants, shown) in [
        ("ada", vec![("*.read", Some("test"))], vec![ours.id.to_string()]),
        ("bob", vec![("findings.read", None), ("events.read", Some("other"))], vec![theirs.id.to_string(); 2]),
        ("eve", vec![("findings.read", None)], vec![]),
    ] {
        let viewer = person(&fleet, name, &grants).await;
        let (mut agents, mut hidden, mut cursor) = (Vec::new(), 0, String::new());
        loop {
            let page: Value = viewer.get(&fleet, &format!("{path}?limit=1{cursor}")).await.ok();
            agents.extend(page["items"].as_array().unwrap().iter().map(|event| event["agent_id"].clone()));
            hidden += page["hidden"].as_u64().unwrap();
            let Some(next) = page.get("next_cursor").and_then(Value::as_str) else { break };
            assert!(!next.contains('.'), "a cursor may stand on a foreign event: {next}");
            cursor = format!("&cursor={next}");
        }
        assert_eq!((agents, hidden), (shown.iter().map(|id| json!(id)).collect(), 3 - shown.len() as u64), "{name}");
        // What somebody was given is of no use to somebody else.
        let other = person(&fleet, &format!("{name}-2"), &[("*", None)]).await;
        let refused = other.get(&fleet, &format!("{path}?limit=1{cursor}")).await.problem();
        assert_eq!(refused.code, ProblemCode::Invalid);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_or_takes_a_tag_that_is_not_theirs() {
    let fleet = unlimited().await;
    let web = person(&fleet, "ada", &[("agents.*", Some("web")), ("enrolment.write", Some("web"))]).await;
    let post = async |path: &str, body: Value| web.ask(&fleet, "POST", path, Some(&body)).await;
    for (tags, status) in [(json!(["web"]), 201), (json!(["web", "db"]), 403), (json!(["db"]), 403), (json!([]), 403)] {
        assert_eq!(post("/api/v1/enrolment/tokens", json!({"tags": tags})).await.status, status, "a token: {tags}");
        let agent = json!({"name": "one", "type": "server", "tags": tags});
        assert_eq!(post("/api/v1/agents", agent).await.status, status, "an agent: {tags}");
    }
    let token = fleet.token(|new| new.tags = ["web".to_owned(), "db".to_owned()].into()).await;
    let key = picket_pki::PrivateKey::generate().unwrap();
    let enrolled = fleet.post(picket_protocol::hub::ENROL_PATH, &fleet.request(&token, &key)).await;
    let picket_protocol::hub::EnrolAnswer::Enrolled(shared) = enrolled.ok() else { panic!("waits") };
    let path = format!("/api/v1/agents/{}", shared.agent_id);
    let put = async |who: &Person, tags: Value| -> Answer {
        let body = json!({"name": "shared", "type": "server", "tags": tags, "config": {}});
        who.with("if-match", "*").ask(&fleet, "PUT", &path, Some(&body)).await
    };
    for (tags, status) in [
        (json!(["web"]), 403),
        (json!(["web", "db", "mail"]), 403),
        (json!(["db"]), 403),
        (json!([]), 403),
        (json!(["web", "db"]), 200),
    ] {
        let answer = put(&web, tags.clone()).await;
        assert_eq!(answer.status, status, "{tags}: {}", String::from_utf8_lossy(&answer.body));
    }
    let both = person(&fleet, "bob", &[("agents.*", Some("web")), ("agents.*", Some("db"))]).await;
    assert_eq!(put(&both, json!(["web"])).await.status, 200);
    let stale = web.with("if-match", "\"1\"");
    let body = json!({"name": "shared", "type": "server", "tags": ["web"], "config": {}});
    assert_eq!(stale.ask(&fleet, "PUT", &path, Some(&body)).await.status, 412);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_post_that_makes_something_makes_it_once_for_each_key() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let rule = crate::judge::ONE;
    for (path, body, lists) in [
        ("/api/v1/cases", json!({"title": "one"}), true),
        ("/api/v1/rules", json!({"source": rule}), true),
        ("/api/v1/enrolment/tokens", json!({"label": "one"}), true),
        ("/api/v1/tokens", json!({"name": "one"}), true),
        ("/api/v1/users", json!({"name": "one"}), true),
        ("/api/v1/webhooks", json!({"name": "one", "url": "https://hooks.example/one", "subjects": ["cases"]}), true),
        ("/api/v1/configs", json!({"settings": {}}), true),
        ("/api/v1/permissions", json!({"principal": format!("user:{}", uuid::Uuid::nil()), "action": "*"}), false),
    ] {
        let count = async || {
            let all: Value = ada.get(&fleet, &format!("{path}?limit=1000")).await.ok();
            all["items"].as_array().unwrap().len()
        };
        let before = if lists { count().await } else { 0 };
        let keyed = ada.with("idempotency-key", &format!("key-of-{}", path.replace('/', "-")));
        let first = keyed.ask(&fleet, "POST", path, Some(&body)).await;
        assert!(first.status < 300, "{path}: {}", String::from_utf8_lossy(&first.body));
        let again = keyed.ask(&fleet, "POST", path, Some(&body)).await;
        assert_eq!(again.headers["idempotent-replayed"], "true", "{path}");
        assert_eq!((again.status, &again.body), (first.status, &first.body), "{path}");
        assert!(!lists || count().await == before + 1, "{path}");
        let other = keyed.ask(&fleet, "POST", &format!("{path}?x=1"), Some(&body)).await.problem();
        assert_eq!(other.code, ProblemCode::IdempotencyMismatch, "{path}");
    }
    // What the database keeps of an answer tells no secret.
    let keyed = ada.with("idempotency-key", "secret");
    let made: Value = keyed.ask(&fleet, "POST", "/api/v1/tokens", Some(&json!({"name": "two"}))).await.ok();
    let secret = made["token"].as_str().unwrap().as_bytes().to_vec();
    for file in ["hub.db", "hub.db-wal"] {
        let kept = picket_durable::read_bounded(&fleet.dir.path().join(file), 64 << 20).unwrap_or_default();
        assert!(!kept.windows(secret.len()).any(|window| window == secret), "{file}");
    }
    // What came to nothing may be sent again, and so may what needs no key.
    let keyed = ada.with("idempotency-key", "wrong");
    for _ in 0..2 {
        let refused = keyed.ask(&fleet, "POST", "/api/v1/cases", Some(&json!({"title": ""}))).await;
        assert_eq!((refused.problem().code, refused.headers.get("idempotent-replayed")), (ProblemCode::Invalid, None));
    }
    let tokens = fleet.running.hub().db.enrol_tokens(TenantId::DEFAULT, None, &PageRequest::first(10)).await.unwrap();
    assert_eq!(tokens.items.len(), 1);
}

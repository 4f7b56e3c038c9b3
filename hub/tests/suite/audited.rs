//! Nothing that somebody does goes unwritten: every route that changes something, and its entry in the audit log.

use crate::fleet::{Answer, Fleet, eventually};
use crate::judge::ONE;
use crate::people::{PASSWORD, Person, nobody, person, unlimited};
use picket_hub::api::people::routes;
use picket_hub_db::TenantId;
use picket_pki::{EnrolmentToken, PrivateKey};
use picket_protocol::hub::ENROL_PATH;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Routes that look at what they are sent and change nothing.
const NO_CHANGE: [&str; 2] = ["POST /api/v1/rules/dry-run", "POST /api/v1/rules/validate"];

/// Asks for one change after the other, and looks what the audit log has of it.
struct Walk<'a> {
    fleet: &'a Fleet,
    walked: BTreeSet<String>,
}

impl Walk<'_> {
    /// `route` is a method and a path whose parts in braces are `ids`.
    async fn ask(&mut self, who: &Person, by: &str, route: &str, ids: &[&str], body: Option<Value>) -> Answer {
        let hub = self.fleet.running.hub();
        let (method, template) = route.split_once(' ').unwrap();
        let mut ids = ids.iter();
        let parts = template.split('/').map(|part| if part.starts_with('{') { ids.next().unwrap() } else { part });
        let path = parts.collect::<Vec<_>>().join("/");
        let before = hub.db.audit_head(TenantId::DEFAULT).await.unwrap();
        let answer = who.with("if-match", "*").ask(self.fleet, method, &path, body.as_ref()).await;
        let entries = hub.db.audit_scan(TenantId::DEFAULT, before.seq, 100).await.unwrap();
        let theirs = entries.iter().find(|kept| kept.entry.actor == by && kept.entry.action.contains('.'));
        assert!(theirs.is_some(), "{route} ({}) is not in the audit log: {entries:?}", answer.status);
        self.walked.insert(route.to_owned());
        answer
    }

    async fn does(&mut self, who: &Person, by: &str, route: &str, ids: &[&str], body: Option<Value>) -> Value {
        let answer = self.ask(who, by, route, ids, body).await;
        if answer.body.is_empty() {
            assert!(answer.status < 300, "{route}: {}", answer.status);
            return Value::Null;
        }
        answer.ok()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_changes_something_is_in_the_audit_log() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let whoami: Value = ada.get(&fleet, "/api/v1/auth/whoami").await.ok();
    let by = whoami["principal"].as_str().unwrap().to_owned();
    let mut walk = Walk { fleet: &fleet, walked: BTreeSet::new() };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);

    people(&mut walk, &ada, &by).await;
    machines(&mut walk, &ada, &by).await;

    let machine = fleet.machine().await;
    let event = json!({
        "agent_id": machine.id, "type": "file",
        "data": {"action": "modified", "path": "/root/.ssh/authorized_keys", "kind": "file", "method": "fanotify", "confidence": "observed"},
    });
    let event = walk.does(&ada, &by, "POST /api/v1/events", &[], Some(event)).await;
    let finding = eventually(async || {
        let path = format!("/api/v1/findings?event_id={}", event["id"].as_str().unwrap());
        ada.get(&fleet, &path).await.ok::<Value>()["items"].as_array().unwrap().first().cloned()
    })
    .await;
    let body = json!({"state": "acknowledged"});
    walk.does(&ada, &by, "PATCH /api/v1/findings/{finding_id}", &[&text(&finding["id"])], Some(body)).await;
    let case = walk.does(&ada, &by, "POST /api/v1/cases", &[], Some(json!({"title": "Keys"}))).await;
    let body = json!({"note": "Looked at."});
    walk.does(&ada, &by, "PATCH /api/v1/cases/{case_id}", &[&text(&case["id"])], Some(body)).await;

    let body = json!({"source": ONE});
    let rule = text(&walk.does(&ada, &by, "POST /api/v1/rules", &[], Some(body.clone())).await["id"]);
    walk.does(&ada, &by, "PUT /api/v1/rules/{rule_id}", &[&rule], Some(body)).await;
    walk.does(&ada, &by, "POST /api/v1/rules/{rule_id}/resume", &[&rule], None).await;
    walk.does(&ada, &by, "DELETE /api/v1/rules/{rule_id}", &[&rule], None).await;

    let config = walk.does(&ada, &by, "POST /api/v1/configs", &[], Some(json!({"settings": {}}))).await;
    let body = json!({"target": "all", "version": config["version"]});
    walk.does(&ada, &by, "PUT /api/v1/config-assignments", &[], Some(body)).await;
    walk.does(&ada, &by, "POST /api/v1/config-assignments/remove", &[], Some(json!({"target": "all"}))).await;

    let body = json!({"name": "siem", "url": "http://127.0.0.1:9/", "subjects": ["cases"]});
    let hook = walk.does(&ada, &by, "POST /api/v1/webhooks", &[], Some(body)).await;
    let (hook, body) = (text(&hook["details"]["id"]), json!({"name": "siem-2", "subjects": ["cases"]}));
    walk.does(&ada, &by, "PUT /api/v1/webhooks/{webhook_id}", &[&hook], Some(body)).await;
    walk.does(&ada, &by, "DELETE /api/v1/webhooks/{webhook_id}", &[&hook], None).await;
    walk.does(&ada, &by, "DELETE /api/v1/blocks/{kind}/{value}", &["address", "192.0.2.1"], None).await;
    // Nobody was told, and nobody is connected: the entry comes before the deed, and so before it is refused.
    let nothing = Uuid::now_v7().to_string();
    walk.ask(&ada, &by, "POST /api/v1/deliveries/{delivery_id}/redeliver", &[&nothing], None).await.problem();
    let id = machine.id.to_string();
    walk.ask(&ada, &by, "POST /api/v1/agents/{agent_id}/renew-certificate", &[&id], None).await.problem();

    let guards = routes(fleet.running.hub()).guards().to_vec();
    let changing = guards.iter().filter(|guard| guard.method != "GET");
    let mut changing: BTreeSet<String> = changing.map(|guard| format!("{} {}", guard.method, guard.path)).collect();
    for route in NO_CHANGE {
        assert!(changing.remove(route), "{route}");
    }
    assert_eq!(walk.walked, changing, "every route that changes something is walked here");
    let report = fleet.running.hub().verify_audit().await.unwrap();
    assert!(report.problems.is_empty(), "{report:?}");
}

/// Users, permissions, tokens, and how somebody signs in and out.
async fn people(walk: &mut Walk<'_>, ada: &Person, by: &str) {
    let made = walk.does(ada, by, "POST /api/v1/users", &[], Some(json!({"name": "bob"}))).await;
    let (id, bob) = (made["user"]["id"].as_str().unwrap(), made["user"]["principal"].as_str().unwrap());
    let body = json!({"secret": made["setup_secret"], "password": PASSWORD});
    walk.does(&nobody(), bob, "POST /api/v1/auth/setup", &[], Some(body)).await;
    let body = json!({"name": "bob", "password": PASSWORD});
    walk.does(&nobody(), bob, "POST /api/v1/auth/token", &[], Some(body.clone())).await;
    let answer = walk.ask(&nobody(), bob, "POST /api/v1/auth/login", &[], Some(body)).await;
    let cookie = answer.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let csrf = answer.ok::<Value>()["csrf_token"].as_str().unwrap().to_owned();
    let session = nobody().with("cookie", &cookie).with("x-csrf-token", &csrf);
    walk.does(&session, bob, "POST /api/v1/auth/logout", &[], None).await;
    let permission = json!({"principal": bob, "action": "agents.read"});
    walk.does(ada, by, "POST /api/v1/permissions", &[], Some(permission.clone())).await;
    walk.does(ada, by, "POST /api/v1/permissions/revoke", &[], Some(permission)).await;
    let body = json!({"status": "disabled"});
    walk.does(ada, by, "PUT /api/v1/users/{user_id}/status", &[id], Some(body)).await;
    walk.does(ada, by, "DELETE /api/v1/users/{user_id}", &[id], None).await;
    let token = walk.does(ada, by, "POST /api/v1/tokens", &[], Some(json!({"name": "x"}))).await;
    let token = token["details"]["id"].as_str().unwrap();
    walk.does(ada, by, "DELETE /api/v1/tokens/{token_id}", &[token], None).await;
}

/// Agents, and how machines become some.
async fn machines(walk: &mut Walk<'_>, ada: &Person, by: &str) {
    let fleet = walk.fleet;
    let body = json!({"name": "web", "type": "server", "tags": [], "config": {}});
    let agent = walk.does(ada, by, "POST /api/v1/agents", &[], Some(body.clone())).await;
    let agent = agent["agent"]["id"].as_str().unwrap();
    walk.does(ada, by, "PUT /api/v1/agents/{agent_id}", &[agent], Some(body)).await;
    walk.does(ada, by, "DELETE /api/v1/agents/{agent_id}", &[agent], None).await;
    let body = json!({"approval": true, "max_uses": 2});
    let made = walk.does(ada, by, "POST /api/v1/enrolment/tokens", &[], Some(body)).await;
    let token = EnrolmentToken::parse(made["token"].as_str().unwrap()).unwrap();
    for _ in 0..2 {
        let request = fleet.request(&token, &PrivateKey::generate().unwrap());
        fleet.post(ENROL_PATH, &request).await.ok::<Value>();
    }
    let waiting: Value = ada.get(fleet, "/api/v1/enrolment/requests?state=pending").await.ok();
    let ids: Vec<_> = waiting["items"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    walk.does(ada, by, "POST /api/v1/enrolment/requests/{request_id}/approve", &[ids[0]], None).await;
    walk.does(ada, by, "POST /api/v1/enrolment/requests/{request_id}/deny", &[ids[1]], None).await;
    let id = made["details"]["id"].as_str().unwrap();
    walk.does(ada, by, "DELETE /api/v1/enrolment/tokens/{token_id}", &[id], None).await;
}

//! What people and programs may ask, and what they may not.

use crate::fleet::{Answer, Fleet, ask, eventually};
use picket_hub::api::people::{Guard, Needs, routes};
use picket_hub::app::people::principal::Action;
use picket_hub_db::{ApiToken, Hidden, NewUser, Permission, TenantId};
use picket_protocol::hub::{EventsAnswer, ProblemCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use uuid::Uuid;

pub const PASSWORD: &str = "correct horse battery staple";

/// Somebody with an API token.
pub struct Person {
    pub token: String,
    headers: Vec<(String, String)>,
}

impl Person {
    /// Somebody with this token.
    pub fn of(token: String) -> Self {
        Self { token, headers: Vec::new() }
    }

    pub async fn ask(&self, fleet: &Fleet, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let mut headers = self.headers.clone();
        if !self.token.is_empty() {
            headers.push(("authorization".into(), format!("Bearer {}", self.token)));
        }
        if body.is_some() {
            headers.push(("content-type".into(), "application/json".into()));
        }
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let url = format!("https://{}{path}", fleet.running.api_address());
        let roots = fleet.running.hub().keys().roots.clone();
        ask(method, &url, &roots, None, &headers, body.map(|body| body.to_string().into_bytes()).unwrap_or_default())
            .await
    }

    pub async fn get(&self, fleet: &Fleet, path: &str) -> Answer {
        self.ask(fleet, "GET", path, None).await
    }

    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.push((name.into(), value.into()));
        Self { token: self.token.clone(), headers }
    }
}

pub fn nobody() -> Person {
    Person { token: String::new(), headers: Vec::new() }
}

/// A user with these permissions, and an API token of theirs.
pub async fn person(fleet: &Fleet, name: &str, grants: &[(&str, Option<&str>)]) -> Person {
    let hub = fleet.running.hub();
    let (id, now) = (Uuid::now_v7(), fleet.now());
    let password = Some(Hidden(hub.passwords.hash(name, PASSWORD).await.unwrap()));
    let user = NewUser { id, name: name.into(), display_name: name.into(), password, must_change: false };
    hub.db.create_user(TenantId::DEFAULT, &user, now).await.unwrap();
    let principal = format!("user:{id}");
    for (action, tag) in grants {
        let tag = tag.map(str::to_owned);
        let permission = Permission { principal: principal.clone(), action: (*action).into(), tag };
        hub.db.grant(TenantId::DEFAULT, &permission, "test", now).await.unwrap();
    }
    let token = format!("picket-api-1.{}", Uuid::now_v7());
    let kept = ApiToken {
        id: Uuid::now_v7(),
        hash: Hidden(Sha256::digest(token.as_bytes()).into()),
        name: "test".into(),
        principal,
        created_at: now,
        created_by: "test".into(),
        expires_at: None,
        last_used: None,
        revoked_at: None,
    };
    hub.db.create_api_token(TenantId::DEFAULT, &kept).await.unwrap();
    Person { token, headers: Vec::new() }
}

/// A token that the hub signed for this user.
pub async fn signed_token(fleet: &Fleet, name: &str) -> String {
    let body = json!({"name": name, "password": PASSWORD});
    let token: Value = nobody().ask(fleet, "POST", "/api/v1/auth/token", Some(&body)).await.ok();
    token["token"].as_str().unwrap().to_owned()
}

pub async fn unlimited() -> Fleet {
    Fleet::start_secured(|policies| {
        policies.rate_limiting.default_limit = 1_000_000;
        policies.rate_limiting.burst_limit = 1_000_000;
        policies.ip_blocking.whitelist.clear();
        policies.ip_blocking.auto_block_on_critical = false;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_closed_to_nobody_and_to_who_lacks_its_permission() {
    let fleet = unlimited().await;
    let guarded = routes(fleet.running.hub());
    let guards: Vec<Guard> = guarded.guards().to_vec();
    let (_, document) = guarded.into_parts();
    // What is described is what is guarded: a route cannot be in one and not in the other.
    let document = serde_json::to_value(&document).unwrap();
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(|method| (path.clone(), method.to_uppercase())))
        .collect();
    let listed: BTreeSet<(String, String)> =
        guards.iter().map(|guard| (guard.path.clone(), guard.method.to_owned())).collect();
    assert_eq!(described, listed);
    assert!(guards.len() > 15);
    // What is open is this and nothing else.
    let open: BTreeSet<&str> =
        guards.iter().filter(|guard| guard.needs == Needs::Nothing).map(|guard| guard.path.as_str()).collect();
    let auth = ["/api/v1/auth/keys", "/api/v1/auth/login", "/api/v1/auth/setup", "/api/v1/auth/token"];
    assert_eq!(open, BTreeSet::from(auth));

    for guard in guards {
        let described = &document["paths"][&guard.path][guard.method.to_lowercase()]["security"];
        if guard.needs == Needs::Nothing {
            assert_eq!(described, &json!([]), "{guard:?}");
            continue;
        }
        assert_eq!(described, &json!([{"bearer": []}, {"session": []}]), "{guard:?}");
        let segments =
            guard.path.split('/').map(|part| if part.starts_with('{') { Uuid::nil().to_string() } else { part.into() });
        let path = segments.collect::<Vec<_>>().join("/");
        let body = (guard.method != "GET" && guard.method != "DELETE").then(|| json!({}));
        let without = nobody().ask(&fleet, guard.method, &path, body.as_ref()).await.problem();
        assert_eq!(without.code, ProblemCode::Unauthenticated, "{guard:?}");
        let forged = Person { token: "picket-api-1.forged".into(), headers: vec![] };
        let forged = forged.ask(&fleet, guard.method, &path, body.as_ref()).await.problem();
        assert_eq!(forged.code, ProblemCode::Unauthenticated, "{guard:?}");
        let Needs::Permission(action) = guard.needs else { continue };
        // Everything but the one permission.
        let name = format!("without-{}-{}", action.as_str(), Uuid::now_v7());
        let all: Vec<_> =
            Action::ALL.iter().filter(|other| **other != action).map(|other| (other.as_str(), None)).collect();
        let lacking = person(&fleet, &name, &all).await;
        let refused = lacking.ask(&fleet, guard.method, &path, body.as_ref()).await.problem();
        assert_eq!(refused.code, ProblemCode::Forbidden, "{guard:?}");
        assert!(refused.detail.contains(action.as_str()), "{refused}");
        let permitted = person(&fleet, &format!("with-{name}"), &[(action.as_str(), None)]).await;
        let answer = permitted.ask(&fleet, guard.method, &path, body.as_ref()).await;
        assert!(![401, 403].contains(&answer.status) && answer.status < 500, "{guard:?}: {}", answer.status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_for_a_tag_shows_agents_with_that_tag_and_what_they_reported() {
    let fleet = unlimited().await;
    let (ours, theirs) = (fleet.machine().await, fleet.machine_tagged("other").await);
    for machine in [&ours, &theirs] {
        machine.send(&fleet, &machine.lines(1..=3)).await.ok::<EventsAnswer>();
    }
    let viewer = person(&fleet, "ada", &[("*.read", Some("test"))]).await;
    let agents: Value = viewer.get(&fleet, "/api/v1/agents").await.ok();
    let ids: Vec<&str> =
        agents["items"].as_array().unwrap().iter().map(|agent| agent["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [ours.id.to_string()]);
    let hidden = viewer.get(&fleet, &format!("/api/v1/agents/{}", theirs.id)).await.problem();
    assert_eq!(hidden.code, ProblemCode::NotFound, "that it exists is not told either");
    let events: Value = viewer.get(&fleet, "/api/v1/events").await.ok();
    let events = events["items"].as_array().unwrap();
    assert_eq!(events.len(), 3);
    assert!(events.iter().all(|event| event["agent_id"] == ours.id.to_string()));
    let all: Value = person(&fleet, "root", &[("*", None)]).await.get(&fleet, "/api/v1/events").await.ok();
    let foreign =
        all["items"].as_array().unwrap().iter().find(|event| event["agent_id"] == theirs.id.to_string()).unwrap();
    let path = format!("/api/v1/events/{}", foreign["id"].as_str().unwrap());
    assert_eq!(viewer.get(&fleet, &path).await.problem().code, ProblemCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_changed_in_the_version_that_was_read_and_in_no_other() {
    let fleet = unlimited().await;
    let machine = fleet.machine().await;
    let operator = person(&fleet, "ada", &[("agents.*", None)]).await;
    let path = format!("/api/v1/agents/{}", machine.id);
    let read = operator.get(&fleet, &path).await;
    let tag = read.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(operator.with("if-none-match", &tag).get(&fleet, &path).await.status, 304);
    let body = json!({"name": "web-2", "type": "server", "tags": ["test"], "config": {}});
    let unnamed = operator.ask(&fleet, "PUT", &path, Some(&body)).await.problem();
    assert_eq!((unnamed.code, unnamed.status), (ProblemCode::PreconditionRequired, 428));
    let changed: Value = operator.with("if-match", &tag).ask(&fleet, "PUT", &path, Some(&body)).await.ok();
    assert_eq!(changed["name"], "web-2");
    let stale = operator.with("if-match", &tag).ask(&fleet, "PUT", &path, Some(&body)).await.problem();
    assert_eq!(stale.code, ProblemCode::PreconditionFailed);
    // Retired: its certificate is worth nothing at once.
    assert_eq!(operator.ask(&fleet, "DELETE", &path, None).await.status, 204);
    let refused = machine.send(&fleet, &machine.lines(1..=1)).await.problem();
    assert_eq!(refused.code, ProblemCode::Revoked);
    let report = fleet.running.hub().verify_audit().await.unwrap();
    assert!(report.entries >= 3 && report.problems.is_empty(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_signs_in_with_a_password_and_changes_nothing_without_its_token() {
    let fleet = unlimited().await;
    person(&fleet, "ada", &[("*", None)]).await;
    let login = async |password: &str| {
        let body = json!({"name": "ada", "password": password});
        nobody().ask(&fleet, "POST", "/api/v1/auth/login", Some(&body)).await
    };
    assert_eq!(login("wrong wrong wrong").await.problem().code, ProblemCode::Unauthenticated);
    let answer = login(PASSWORD).await;
    let cookie = answer.headers["set-cookie"].to_str().unwrap();
    for word in ["__Host-picket=", "Secure", "HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let session: Value = answer.ok();
    let csrf = session["csrf_token"].as_str().unwrap();
    let ada = nobody().with("cookie", &cookie);
    let whoami: Value = ada.get(&fleet, "/api/v1/auth/whoami").await.ok();
    assert_eq!((whoami["name"].as_str(), whoami["via"].as_str()), (Some("ada"), Some("session")));
    let body = json!({"name": "made", "type": "server"});
    let forged = ada.ask(&fleet, "POST", "/api/v1/agents", Some(&body)).await.problem();
    assert_eq!(forged.code, ProblemCode::CsrfInvalid);
    let made = ada.with("x-csrf-token", csrf).ask(&fleet, "POST", "/api/v1/agents", Some(&body)).await;
    assert_eq!(made.status, 201);
    let ada = ada.with("x-csrf-token", csrf);
    assert_eq!(ada.ask(&fleet, "POST", "/api/v1/auth/logout", None).await.status, 204);
    assert_eq!(ada.get(&fleet, "/api/v1/auth/whoami").await.problem().code, ProblemCode::Unauthenticated);
    // A signed token does without cookie, and holds for an hour.
    let body = json!({"name": "ada", "password": PASSWORD});
    let token: Value = nobody().ask(&fleet, "POST", "/api/v1/auth/token", Some(&body)).await.ok();
    let ada = Person { token: token["token"].as_str().unwrap().into(), headers: vec![] };
    assert_eq!(ada.get(&fleet, "/api/v1/auth/whoami").await.ok::<Value>()["via"], "jwt");
    fleet.forward(std::time::Duration::from_secs(3601));
    assert_eq!(ada.get(&fleet, "/api/v1/auth/whoami").await.problem().code, ProblemCode::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fails_ten_times_is_blocked_for_a_day_and_agents_never_are() {
    let fleet = Fleet::start_secured(|policies| {
        policies.rate_limiting.default_limit = 1_000_000;
        policies.rate_limiting.burst_limit = 1_000_000;
        policies.ip_blocking.whitelist.clear();
    })
    .await;
    let machine = fleet.machine().await;
    let good = person(&fleet, "ada", &[("*", None)]).await;
    let forged = Person { token: "picket-api-1.forged".into(), headers: vec![] };
    for _ in 0..10 {
        assert_eq!(forged.get(&fleet, "/api/v1/agents").await.problem().code, ProblemCode::Unauthenticated);
    }
    let blocked = good.get(&fleet, "/api/v1/agents").await.problem();
    assert_eq!(blocked.code, ProblemCode::Blocked);
    assert!(blocked.retry_after.is_some_and(|seconds| seconds > 23 * 3600), "{blocked:?}");
    machine.send(&fleet, &machine.lines(1..=1)).await.ok::<EventsAnswer>();
    fleet.forward(std::time::Duration::from_secs(25 * 3600));
    assert_eq!(good.get(&fleet, "/api/v1/agents").await.status, 200);
    // The hub has told of it in an event of its own.
    let told = eventually(async || {
        let events: Value = good.get(&fleet, "/api/v1/events?type=authentication_abuse").await.ok();
        events["items"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(told["data"]["subject_kind"], "address");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_the_rate_are_told_when_to_come_back() {
    let fleet = Fleet::start().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let mut refused = None;
    for _ in 0..30 {
        let answer = ada.get(&fleet, "/api/v1/auth/whoami").await;
        if answer.status == 429 {
            assert!(answer.headers.contains_key("retry-after"));
            refused = Some(answer.problem().code);
            break;
        }
    }
    assert_eq!(refused, Some(ProblemCode::RateLimited));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_is_sent_again_under_its_key_is_done_once() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await.with("idempotency-key", "k-1");
    let body = json!({"name": "one", "type": "server"});
    let first: Value = ada.ask(&fleet, "POST", "/api/v1/agents", Some(&body)).await.ok();
    let again = ada.ask(&fleet, "POST", "/api/v1/agents", Some(&body)).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.ok::<Value>(), first);
    let other = json!({"name": "two", "type": "server"});
    let mismatch = ada.ask(&fleet, "POST", "/api/v1/agents", Some(&other)).await.problem();
    assert_eq!(mismatch.code, ProblemCode::IdempotencyMismatch);
    let agents: Value = ada.get(&fleet, "/api/v1/agents?type=server").await.ok();
    assert_eq!(agents["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finding_is_acknowledged_with_a_note_and_its_history_tells() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let machine = fleet.machine().await;
    let body = json!({
        "agent_id": machine.id, "type": "file",
        "data": {"action": "modified", "path": "/root/.ssh/authorized_keys", "kind": "file", "method": "fanotify", "confidence": "observed"},
    });
    let event: Value = ada.ask(&fleet, "POST", "/api/v1/events", Some(&body)).await.ok();
    let path = format!("/api/v1/findings?event_id={}", event["id"].as_str().unwrap());
    let finding = eventually(async || {
        let found: Value = ada.get(&fleet, &path).await.ok();
        found["items"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(finding["state"], "open");
    let one = format!("/api/v1/findings/{}", finding["id"].as_str().unwrap());
    let change = json!({"state": "acknowledged", "assignee": "ada", "note": "It was me."});
    let changed: Value = ada.with("if-match", "*").ask(&fleet, "PATCH", &one, Some(&change)).await.ok();
    assert_eq!((changed["state"].as_str(), changed["assignee"].as_str()), (Some("acknowledged"), Some("ada")));
    let history: Value = ada.get(&fleet, &format!("{one}/history")).await.ok();
    assert!(history["items"].as_array().unwrap().iter().any(|entry| entry["new"] == "It was me."), "{history}");
    let evidence: Value = ada.get(&fleet, &format!("{one}/events")).await.ok();
    assert_eq!(evidence["items"][0]["id"], event["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_what_a_browser_may_do_with_it() {
    let fleet = unlimited().await;
    for path in ["/api/v1/agents", "/api/openapi.json", "/api/docs", "/nowhere"] {
        let answer = nobody().get(&fleet, path).await;
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{path}");
        assert!(answer.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'self'"));
        assert!(answer.headers.contains_key("strict-transport-security"));
        assert!(answer.headers.contains_key("x-correlation-id"));
        assert!(!answer.headers.contains_key("x-xss-protection"));
    }
    let document: Value = nobody().get(&fleet, "/api/openapi.json").await.ok();
    assert_eq!(document["openapi"], "3.1.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_needs_approval_waits_until_somebody_approves_it() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let key = picket_pki::PrivateKey::generate().unwrap();
    let body = json!({"approval": true, "tags": ["web"], "label": "racks"});
    let made: Value = ada.ask(&fleet, "POST", "/api/v1/enrolment/tokens", Some(&body)).await.ok();
    let token = picket_pki::EnrolmentToken::parse(made["token"].as_str().unwrap()).unwrap();
    assert!(made["details"]["seconds_left"].as_u64().unwrap() > 1700);
    let request = fleet.request(&token, &key);
    let waits: Value = fleet.post(picket_protocol::hub::ENROL_PATH, &request).await.ok();
    assert_eq!(
        (waits["state"].as_str(), waits["fingerprint"].as_str()),
        (Some("pending"), Some(&*key.pin().to_string()))
    );
    let list: Value = ada.get(&fleet, "/api/v1/enrolment/requests?state=pending").await.ok();
    assert_eq!(list["items"][0]["fingerprint"], key.pin().to_string());
    let path = format!("/api/v1/enrolment/requests/{}/approve", list["items"][0]["id"].as_str().unwrap());
    assert_eq!(ada.ask(&fleet, "POST", &path, None).await.status, 204);
    let enrolled: Value = fleet.post(picket_protocol::hub::ENROL_PATH, &request).await.ok();
    assert_eq!(enrolled["state"], "enrolled");
    let again = ada.ask(&fleet, "POST", &path, None).await.problem();
    assert_eq!(again.code, ProblemCode::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_is_looked_at_tried_added_changed_and_taken_away() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let machine = fleet.machine().await;
    let line = crate::judge::changed(&machine, 1, "/srv/secret/plan");
    machine.send(&fleet, &line).await.ok::<EventsAnswer>();
    let source = r"title: Plans changed
id: 6f1c1f0e-5d0e-4c5e-9c39-0c2f6ab0a002
status: test
description: Somebody changed a plan.
logsource:
    product: linux
    category: file_change
detection:
    selection:
        TargetFilename|contains: /secret/
    condition: selection
level: high
";
    let wrong = json!({"source": source.replace("condition: selection", "condition: nothing")});
    let looked: Value = ada.ask(&fleet, "POST", "/api/v1/rules/validate", Some(&wrong)).await.ok();
    assert_eq!(looked["usable"], false);
    let refused = ada.ask(&fleet, "POST", "/api/v1/rules", Some(&wrong)).await.problem();
    assert!(refused.code == ProblemCode::Invalid && !refused.errors.is_empty(), "{refused:?}");
    let body = json!({ "source": source });
    let tried: Value = ada.ask(&fleet, "POST", "/api/v1/rules/dry-run", Some(&body)).await.ok();
    assert_eq!(tried["matches"], 1, "{tried}");
    let added = ada.ask(&fleet, "POST", "/api/v1/rules", Some(&body)).await;
    assert_eq!(added.status, 201);
    let added: Value = added.ok();
    let path = format!("/api/v1/rules/{}", added["id"].as_str().unwrap());
    let line = crate::judge::changed(&machine, 2, "/srv/secret/plan");
    machine.send(&fleet, &line).await.ok::<EventsAnswer>();
    let found = eventually(async || {
        let found: Value =
            ada.get(&fleet, &format!("/api/v1/findings?rule_id={}", added["id"].as_str().unwrap())).await.ok();
        found["items"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!((found["title"].as_str(), found["severity"].as_str()), (Some("Plans changed"), Some("high")));
    let off = json!({"source": source, "enabled": false});
    let off: Value = ada.with("if-match", "*").ask(&fleet, "PUT", &path, Some(&off)).await.ok();
    assert_eq!(off["enabled"], false);
    assert_eq!(ada.ask(&fleet, "DELETE", &path, None).await.status, 204);
    assert_eq!(ada.get(&fleet, &path).await.problem().code, ProblemCode::NotFound);
    let pack: Value = ada.get(&fleet, "/api/v1/rules?origin=pack").await.ok();
    let one = format!("/api/v1/rules/{}", pack["items"][0]["id"].as_str().unwrap());
    assert_eq!(ada.ask(&fleet, "DELETE", &one, None).await.problem().code, ProblemCode::Conflict, "it would come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_somebody_is_blocked_or_there_at_all_shows_in_no_answer_to_a_password() {
    let fleet = Fleet::start_secured(|policies| {
        policies.rate_limiting.default_limit = 1_000_000;
        policies.rate_limiting.burst_limit = 1_000_000;
        policies.ip_blocking.whitelist.clear();
        policies.ip_blocking.trusted_proxies = vec!["127.0.0.0/8".into()];
    })
    .await;
    person(&fleet, "ada", &[("*", None)]).await;
    let login = async |name: &str, password: &str, from: u32| {
        let body = json!({"name": name, "password": password});
        // The proxy adds a line of its own; what whoever asks wrote before it is not believed.
        let asker = nobody().with("x-forwarded-for", "203.0.113.9");
        let asker = asker.with("x-forwarded-for", &format!("198.51.100.{from}"));
        asker.ask(&fleet, "POST", "/api/v1/auth/login", Some(&body)).await
    };
    // Ten failures from ten addresses: the name is blocked, none of the addresses is.
    for from in 1..=10 {
        login("ada", "wrong wrong wrong", from).await.problem();
        login("nobody", "wrong wrong wrong", from).await.problem();
    }
    let root = person(&fleet, "root", &[("*", None)]).await;
    let blocks: Value = root.get(&fleet, "/api/v1/blocks").await.ok();
    let kinds: Vec<_> = blocks["items"].as_array().unwrap().iter().map(|block| block["kind"].clone()).collect();
    assert_eq!(kinds, ["principal"], "{blocks}");
    let [blocked, absent] = [login("ada", PASSWORD, 11).await.problem(), login("nobody", PASSWORD, 11).await.problem()];
    assert_eq!((blocked.code, &blocked.detail), (absent.code, &absent.detail));
    assert_eq!(blocked.code, ProblemCode::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_asks_on_after_its_session_and_a_program_with_an_old_token_block_nobody() {
    let fleet = Fleet::start_secured(|policies| {
        policies.rate_limiting.default_limit = 1_000_000;
        policies.rate_limiting.burst_limit = 1_000_000;
        policies.ip_blocking.whitelist.clear();
    })
    .await;
    let good = person(&fleet, "ada", &[("*", None)]).await;
    let (old, _) = fleet.running.hub().tokens.issue("user:1", fleet.now()).unwrap();
    fleet.forward(std::time::Duration::from_secs(3601));
    let old = Person { token: old, headers: vec![] };
    let page = nobody().with("cookie", "__Host-picket=ended");
    for _ in 0..12 {
        for asker in [&old, &page] {
            let refused = asker.get(&fleet, "/api/v1/agents").await.problem();
            assert_eq!(refused.code, ProblemCode::Unauthenticated);
        }
    }
    assert_eq!(good.get(&fleet, "/api/v1/agents").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_like_an_attack_is_handled_like_anything_else_and_becomes_a_finding() {
    let fleet = unlimited().await;
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let note = json!({"title": "seen in the logs: x' UNION SELECT password", "severity": "low"});
    let made = ada.ask(&fleet, "POST", "/api/v1/cases", Some(&note)).await;
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    let finding = eventually(async || {
        let found = crate::judge::findings(&fleet).await;
        found.into_iter().find(|finding| finding.title == "Suspicious Input To The Hub")
    })
    .await;
    assert_eq!(finding.entity.unwrap().kind, "ip");
    let hub = fleet.running.hub();
    let evidence = hub.db.evidence(TenantId::DEFAULT, finding.id, &picket_hub_db::PageRequest::first(5)).await.unwrap();
    let event = hub.db.events_by_id(TenantId::DEFAULT, &[evidence.items[0].event]).await.unwrap().remove(0);
    let told: Value = serde_json::from_str(&event.data).unwrap();
    assert_eq!((&told["place"], &told["route"]), (&json!("/title"), &json!("/api/v1/cases")));
    assert!(!event.data.contains("password"), "the text itself is not told: {}", event.data);
}

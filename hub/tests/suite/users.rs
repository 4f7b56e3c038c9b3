//! Who may be rid of whom.

use crate::fleet::Fleet;
use crate::people::{PASSWORD, Person, nobody, person, signed_token, unlimited};
use picket_hub_db::Permission;
use picket_protocol::hub::ProblemCode;
use serde_json::{Value, json};

/// The id of the user behind a token, and of the token.
async fn ids(fleet: &Fleet, root: &Person, who: &Person) -> (String, String) {
    let whoami: Value = who.get(fleet, "/api/v1/auth/whoami").await.ok();
    let principal = whoami["principal"].as_str().unwrap();
    let tokens: Value = root.get(fleet, &format!("/api/v1/tokens?principal={principal}")).await.ok();
    let token = tokens["items"][0]["id"].as_str().unwrap().to_owned();
    (principal.split_once(':').unwrap().1.to_owned(), token)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_after_users_is_not_rid_of_those_who_may_more_and_the_last_administrator_stays() {
    let fleet = unlimited().await;
    let root = person(&fleet, "root", &[("*", None)]).await;
    let clerk = person(&fleet, "clerk", &[("users.*", None)]).await;
    let plain = person(&fleet, "plain", &[("users.read", None)]).await;
    let (root_id, root_token) = ids(&fleet, &root, &root).await;
    let (plain_id, plain_token) = ids(&fleet, &root, &plain).await;
    let off = json!({"status": "disabled"});
    let user = |id: &str| format!("/api/v1/users/{id}");
    let status = |id: &str| format!("/api/v1/users/{id}/status");
    let token = |id: &str| format!("/api/v1/tokens/{id}");
    let refused = [
        clerk.ask(&fleet, "PUT", &status(&root_id), Some(&off)).await,
        clerk.ask(&fleet, "DELETE", &user(&root_id), None).await,
        clerk.ask(&fleet, "DELETE", &token(&root_token), None).await,
    ];
    for answer in refused {
        let problem = answer.problem();
        assert!(problem.code == ProblemCode::Forbidden && problem.detail.contains("agents.read"), "{problem}");
    }
    root.get(&fleet, "/api/v1/users").await.ok::<Value>();
    // Who may no more than they do is theirs to look after.
    assert_eq!(clerk.ask(&fleet, "DELETE", &token(&plain_token), None).await.status, 204);
    clerk.ask(&fleet, "PUT", &status(&plain_id), Some(&off)).await.ok::<Value>();
    assert_eq!(clerk.ask(&fleet, "DELETE", &user(&plain_id), None).await.status, 204);

    // A program that may everything: it is nobody who could sign in.
    let body = json!({"name": "program", "own_principal": true});
    let made: Value = root.ask(&fleet, "POST", "/api/v1/tokens", Some(&body)).await.ok();
    let all = |principal: &Value| json!({"principal": principal, "action": "*"});
    let grant = all(&made["details"]["principal"]);
    assert_eq!(root.ask(&fleet, "POST", "/api/v1/permissions", Some(&grant)).await.status, 204);
    let program = Person::of(made["token"].as_str().unwrap().to_owned());
    let of_root = all(&json!(format!("user:{root_id}")));
    let refused = [
        program.ask(&fleet, "PUT", &status(&root_id), Some(&off)).await,
        program.ask(&fleet, "DELETE", &user(&root_id), None).await,
        program.ask(&fleet, "POST", "/api/v1/permissions/revoke", Some(&of_root)).await,
    ];
    for answer in refused {
        let problem = answer.problem();
        assert!(problem.code == ProblemCode::Conflict && problem.detail.contains("last administrator"), "{problem}");
    }
    person(&fleet, "second", &[("*", None)]).await;
    program.ask(&fleet, "PUT", &status(&root_id), Some(&off)).await.ok::<Value>();
    assert_eq!(program.ask(&fleet, "DELETE", &user(&root_id), None).await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_for_a_first_password_is_void_once_a_password_was_set_in_another_way() {
    let fleet = unlimited().await;
    let clerk = person(&fleet, "clerk", &[("users.*", None)]).await;
    let hub = fleet.running.hub();
    let made: Value = clerk.ask(&fleet, "POST", "/api/v1/users", Some(&json!({"name": "bob"}))).await.ok();
    // Somebody who may everything makes more of bob, at the machine itself.
    let bob = hub.db.user_by_name(hub.tenant, "bob").await.unwrap().unwrap();
    hub.set_password(&bob, PASSWORD, "root").await.unwrap();
    let all = Permission { principal: format!("user:{}", bob.id), action: "*".into(), tag: None };
    hub.grant(&all, "root").await.unwrap();
    let set_up = json!({"secret": made["setup_secret"], "password": "of the clerk, who kept the link"});
    // It is gone for good, too.
    for _ in 0..2 {
        let refused = nobody().ask(&fleet, "POST", "/api/v1/auth/setup", Some(&set_up)).await.problem();
        assert!(refused.code == ProblemCode::Unauthenticated && refused.detail.contains("not valid any more"));
    }
    signed_token(&fleet, "bob").await;
    assert!(hub.db.settings(hub.tenant, "setup/").await.unwrap().is_empty());
}

//! Who fails to say who they are, who is turned away for that, and who is not.

use crate::fleet::{Answer, Fleet};
use crate::people::{PASSWORD, Person, nobody, person};
use base64::Engine as _;
use picket_hub::app::people::jwt::Tokens;
use picket_hub_db::TenantId;
use picket_protocol::hub::ProblemCode;
use serde_json::{Value, json};
use std::time::Duration;

/// A hub that believes a proxy on this machine, has no exceptions, and takes as many requests as come.
async fn strict() -> Fleet {
    Fleet::start_secured(|policies| {
        policies.rate_limiting.default_limit = 1_000_000;
        policies.rate_limiting.burst_limit = 1_000_000;
        policies.ip_blocking.whitelist.clear();
        policies.ip_blocking.trusted_proxies = vec!["127.0.0.0/8".into()];
    })
    .await
}

/// The same person at another address.
fn at(person: &Person, last: u32) -> Person {
    person.with("x-forwarded-for", &format!("198.51.100.{last}"))
}

async fn login(fleet: &Fleet, name: &str, password: &str, from: u32) -> Answer {
    let body = json!({"name": name, "password": password});
    at(&nobody(), from).ask(fleet, "POST", "/api/v1/auth/login", Some(&body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_key_that_is_not_known_blocks_nobody_and_is_believed_once_the_key_is_there() {
    let fleet = strict().await;
    let hub = fleet.running.hub();
    let ada = person(&fleet, "ada", &[("*", None)]).await;
    let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let header = encode(r#"{"alg":"EdDSA","kid":"0190-rotated-out"}"#);
    let gone = Person::of(format!("{header}.{}.{}", encode(r#"{"sub":"user:1"}"#), encode("signature")));
    for _ in 0..12 {
        let refused = gone.get(&fleet, "/api/v1/auth/whoami").await.problem();
        assert!(refused.code == ProblemCode::Unauthenticated && refused.detail.contains("expired"), "{refused}");
    }
    let whoami: Value = ada.get(&fleet, "/api/v1/auth/whoami").await.ok();

    // A replica changes the key. This hub has read its keys a moment ago, and reads them again.
    fleet.forward(Duration::from_secs(5));
    let replica = Tokens::new(&hub.public_url);
    let later = fleet.now().checked_add(jiff::SignedDuration::from_hours(31 * 24)).unwrap();
    replica.load(&hub.db, TenantId::DEFAULT, &hub.sealer, later).await.unwrap();
    let issue = || replica.issue(whoami["principal"].as_str().unwrap(), fleet.now()).unwrap().0;
    let (one, two) = (issue(), issue());
    let taken: Value = Person::of(one.clone()).get(&fleet, "/api/v1/auth/whoami").await.ok();
    assert_eq!((&taken["via"], &taken["name"]), (&json!("jwt"), &json!("ada")));

    // A signature that is not its key's is somebody who tries.
    let forged = format!("{}.{}", one.rsplit_once('.').unwrap().0, two.rsplit_once('.').unwrap().1);
    for _ in 0..10 {
        let refused = Person::of(forged.clone()).get(&fleet, "/api/v1/auth/whoami").await.problem();
        assert_eq!(refused.code, ProblemCode::Unauthenticated);
    }
    assert_eq!(ada.get(&fleet, "/api/v1/auth/whoami").await.problem().code, ProblemCode::Blocked);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_with_wrong_passwords_keep_nobody_out_who_is_in_and_a_block_can_be_lifted_on_the_machine() {
    let fleet = strict().await;
    let hub = fleet.running.hub();
    let ada = at(&person(&fleet, "ada", &[("*", None)]).await, 2);
    let signed_in = login(&fleet, "ada", PASSWORD, 2).await;
    let cookie = signed_in.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let session = at(&nobody().with("cookie", &cookie), 3);
    let body = json!({"name": "ada", "password": PASSWORD});
    let token: Value = at(&nobody(), 2).ask(&fleet, "POST", "/api/v1/auth/token", Some(&body)).await.ok();
    let jwt = at(&Person::of(token["token"].as_str().unwrap().to_owned()), 4);
    let in_anyway = async || {
        for who in [&ada, &session, &jwt] {
            who.get(&fleet, "/api/v1/auth/whoami").await.ok::<Value>();
        }
    };

    // One address blocks itself, and not the name.
    for _ in 0..10 {
        assert_eq!(login(&fleet, "ada", "wrong wrong wrong", 1).await.problem().code, ProblemCode::Unauthenticated);
    }
    assert_eq!(login(&fleet, "ada", PASSWORD, 1).await.problem().code, ProblemCode::Blocked);
    in_anyway().await;
    login(&fleet, "ada", PASSWORD, 5).await.ok::<Value>();

    // Ten block the name for new sign-ins, and not from where she signed in before.
    for from in 11..=20 {
        login(&fleet, "ada", "wrong wrong wrong", from).await.problem();
    }
    assert_eq!(login(&fleet, "ada", PASSWORD, 30).await.problem().code, ProblemCode::Unauthenticated);
    in_anyway().await;
    login(&fleet, "ada", PASSWORD, 2).await.ok::<Value>();

    for (who, from) in [("ada", 30), ("198.51.100.1", 1)] {
        let subject = hub.block_subject(who).await.unwrap();
        assert!(hub.lift_block(&subject, "local:root").await.unwrap(), "{who}");
        assert!(!hub.lift_block(&subject, "local:root").await.unwrap(), "{who}");
        login(&fleet, "ada", PASSWORD, from).await.ok::<Value>();
    }
    assert_eq!(hub.block_subject("nobody").await.unwrap_err().code(), ProblemCode::NotFound);
    let lifted: Value = ada.get(&fleet, "/api/v1/audit?action=blocks.lift&actor=local:root").await.ok();
    assert_eq!(lifted["items"].as_array().unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_of_ones_own_does_not_wash_off_the_names_that_one_tried() {
    let fleet = strict().await;
    person(&fleet, "eve", &[]).await;
    for number in 0..9 {
        login(&fleet, &format!("name-{number}"), "wrong wrong wrong", 1).await.problem();
    }
    login(&fleet, "eve", PASSWORD, 1).await.ok::<Value>();
    login(&fleet, "name-9", "wrong wrong wrong", 1).await.problem();
    assert_eq!(login(&fleet, "eve", PASSWORD, 1).await.problem().code, ProblemCode::Blocked);
}

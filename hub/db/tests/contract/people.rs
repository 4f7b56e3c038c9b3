//! People, sessions, API tokens, permissions and signing keys.

use crate::bench::{Bench, T, all, at, id};
use crate::contract;
use picket_hub_db::{ApiToken, Hidden, NewUser, Permission, Session, SigningKey, User, UserStatus, UserUpdate};

fn new_user(number: u128, name: &str) -> NewUser {
    NewUser {
        id: id(number),
        name: name.into(),
        display_name: name.to_uppercase(),
        password: Some(Hidden("$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA".into())),
        must_change: false,
    }
}

async fn user(bench: &Bench, number: u128, name: &str) -> User {
    bench.db.create_user(T, &new_user(number, name), at(0)).await.unwrap()
}

fn session(user: u128, hash: u8, seconds: i64) -> Session {
    Session {
        id_hash: Hidden([hash; 32]),
        user: id(user),
        csrf_hash: Hidden([hash + 100; 32]),
        address: "192.0.2.7".into(),
        user_agent: "curl\u{0}".into(),
        created_at: at(seconds),
        last_used: at(seconds),
        expires_at: at(seconds + 100),
    }
}

fn permission(principal: &str, action: &str, tag: Option<&str>) -> Permission {
    Permission { principal: principal.into(), action: action.into(), tag: tag.map(Into::into) }
}

fn api_token(number: u128, principal: &str) -> ApiToken {
    ApiToken {
        id: id(number),
        hash: Hidden([u8::try_from(number).unwrap(); 32]),
        name: format!("token {number}"),
        principal: principal.into(),
        created_at: at(i64::try_from(number).unwrap()),
        created_by: "user:ada".into(),
        expires_at: None,
        last_used: None,
        revoked_at: None,
    }
}

contract! {
    async fn a_name_is_one_persons(bench) {
        let ada = user(&bench, 1, "ada").await;
        assert_eq!(bench.db.user_by_name(T, "ada").await.unwrap().as_ref(), Some(&ada));
        assert_eq!(bench.db.user_by_name(T, "Ada").await.unwrap(), None);
        assert!(bench.db.create_user(T, &new_user(2, "ada"), at(0)).await.unwrap_err().is_conflict());
        assert!(bench.db.create_user(T, &new_user(1, "bob"), at(0)).await.unwrap_err().is_conflict());
        assert!(!format!("{ada:?}").contains("argon2"), "the hash of a password is shown");
        for number in 2..9 {
            user(&bench, number, &format!("user-{number}")).await;
        }
        let names: Vec<_> = all(3, async |page| bench.db.users(T, &page).await).await;
        assert_eq!(names.len(), 8);
        assert!(names.is_sorted_by_key(|user| user.name.clone()));
    }

    async fn a_new_password_and_a_disabled_account_end_all_sessions(bench) {
        let ada = user(&bench, 1, "ada").await;
        bench.db.create_session(T, &session(1, 1, 0)).await.unwrap();
        let rename = UserUpdate { display_name: Some("Ada L.".into()), ..UserUpdate::default() };
        let renamed = bench.db.update_user(T, ada.id, ada.revision, &rename, at(1)).await.unwrap();
        assert_eq!((renamed.display_name.as_str(), renamed.revision), ("Ada L.", 2));
        assert!(bench.db.session(T, &[1; 32], at(1)).await.unwrap().is_some());
        let password = UserUpdate { password: Some(Hidden("new".into())), ..UserUpdate::default() };
        bench.db.update_user(T, ada.id, 2, &password, at(2)).await.unwrap();
        assert_eq!(bench.db.session(T, &[1; 32], at(2)).await.unwrap(), None);
        bench.db.create_session(T, &session(1, 2, 0)).await.unwrap();
        let disable = UserUpdate { status: Some(UserStatus::Disabled), ..UserUpdate::default() };
        bench.db.update_user(T, ada.id, 3, &disable, at(3)).await.unwrap();
        assert_eq!(bench.db.session(T, &[2; 32], at(3)).await.unwrap(), None);
        assert!(bench.db.update_user(T, ada.id, 3, &disable, at(4)).await.unwrap_err().is_conflict());
        assert!(bench.db.update_user(T, id(9), 1, &disable, at(4)).await.unwrap_err().is_not_found());
        bench.db.user_signed_in(T, ada.id, at(5)).await.unwrap();
        let ada = bench.db.user(T, ada.id).await.unwrap().unwrap();
        assert_eq!((ada.last_login, ada.revision), (Some(at(5)), 4));
    }

    async fn a_session_ends_at_its_time_and_with_its_person(bench) {
        user(&bench, 1, "ada").await;
        user(&bench, 2, "bob").await;
        assert!(bench.db.create_session(T, &session(9, 9, 0)).await.unwrap_err().is_not_found());
        for (person, hash) in [(1, 1), (1, 2), (1, 3), (2, 4)] {
            bench.db.create_session(T, &session(person, hash, i64::from(hash))).await.unwrap();
        }
        let first = bench.db.session(T, &[1; 32], at(50)).await.unwrap().unwrap();
        assert_eq!(first.user_agent, "curl\u{fffd}");
        assert_eq!(bench.db.session(T, &[1; 32], at(101)).await.unwrap(), None);
        assert!(bench.db.touch_session(T, &[1; 32], at(60), at(300)).await.unwrap());
        assert!(bench.db.session(T, &[1; 32], at(101)).await.unwrap().is_some());
        assert!(!bench.db.touch_session(T, &[2; 32], at(150), at(300)).await.unwrap(), "it was over");
        assert_eq!(bench.db.sessions_of(T, id(1), at(50)).await.unwrap().len(), 3);
        assert_eq!(bench.db.delete_sessions_of(T, id(1), Some(&[1; 32])).await.unwrap(), 2);
        assert!(bench.db.delete_session(T, &[1; 32]).await.unwrap());
        assert!(!bench.db.delete_session(T, &[1; 32]).await.unwrap());
        bench.db.grant(T, &permission(&format!("user:{}", id(2)), "*", None), "init", at(0)).await.unwrap();
        assert!(bench.db.delete_user(T, id(2)).await.unwrap());
        assert!(!bench.db.delete_user(T, id(2)).await.unwrap());
        assert_eq!(bench.db.session(T, &[4; 32], at(5)).await.unwrap(), None);
        assert_eq!(bench.db.permissions_of(T, &format!("user:{}", id(2))).await.unwrap(), []);
    }

    async fn an_api_token_is_found_by_its_hash_until_somebody_revokes_it(bench) {
        for number in 1..=5 {
            bench.db.create_api_token(T, &api_token(number, if number == 3 { "token:3" } else { "user:1" })).await.unwrap();
        }
        assert!(bench.db.create_api_token(T, &api_token(3, "user:1")).await.unwrap_err().is_conflict());
        bench.db.api_tokens_used(T, &[(id(3), at(9)), (id(99), at(9)), (id(1), at(8))]).await.unwrap();
        bench.db.api_tokens_used(T, &[(id(3), at(7))]).await.unwrap();
        let found = bench.db.api_token_by_hash(T, &[3; 32]).await.unwrap().unwrap();
        assert_eq!(bench.db.api_token(T, id(3)).await.unwrap(), Some(found.clone()));
        assert_eq!(bench.db.api_token(T, id(9)).await.unwrap(), None);
        assert_eq!((found.id, found.last_used, found.revoked_at), (id(3), Some(at(9)), None));
        assert!(bench.db.revoke_api_token(T, id(3), at(10)).await.unwrap());
        assert!(!bench.db.revoke_api_token(T, id(3), at(11)).await.unwrap());
        assert!(bench.db.revoke_api_token(T, id(9), at(11)).await.unwrap_err().is_not_found());
        let found = bench.db.api_token_by_hash(T, &[3; 32]).await.unwrap().unwrap();
        assert_eq!(found.revoked_at, Some(at(10)));
        let of_user = all(2, async |page| bench.db.api_tokens(T, Some("user:1"), &page).await).await;
        assert_eq!(of_user.iter().map(|one| one.id).collect::<Vec<_>>(), [id(5), id(4), id(2), id(1)]);
    }

    async fn a_permission_is_granted_once_and_revoked_once(bench) {
        let wide = permission("user:1", "agents.read", None);
        let narrow = permission("user:1", "agents.read", Some("prod"));
        assert!(bench.db.grant(T, &wide, "init", at(1)).await.unwrap());
        assert!(!bench.db.grant(T, &wide, "user:2", at(2)).await.unwrap());
        assert!(bench.db.grant(T, &narrow, "user:2", at(2)).await.unwrap());
        assert_eq!(bench.db.permissions_of(T, "user:1").await.unwrap(), [wide.clone(), narrow.clone()]);
        let grants = all(1, async |page| bench.db.grants(T, &page).await).await;
        assert_eq!((grants.len(), grants[0].granted_by.as_str(), grants[0].granted_at), (2, "init", at(1)));
        assert!(bench.db.revoke(T, &wide).await.unwrap());
        assert!(!bench.db.revoke(T, &wide).await.unwrap());
        assert_eq!(bench.db.permissions_of(T, "user:1").await.unwrap(), [narrow]);
        assert!(bench.db.grant(T, &permission("", "x", None), "init", at(1)).await.is_err());
        assert!(bench.db.grant(T, &permission("user:1", "x", Some("")), "init", at(1)).await.is_err());
    }

    async fn one_key_signs_at_a_time_and_old_ones_are_kept_until_they_end(bench) {
        let key = |kid: &str, seconds| SigningKey {
            kid: kid.into(),
            purpose: "jwt".into(),
            public: vec![1; 32],
            sealed: Hidden(vec![2; 64]),
            created_at: at(seconds),
            retires_at: None,
        };
        bench.db.add_signing_key(T, &key("k1", 0), None).await.unwrap();
        bench.db.add_signing_key(T, &SigningKey { purpose: "command".into(), ..key("c1", 0) }, None).await.unwrap();
        bench.db.add_signing_key(T, &key("k2", 10), Some(at(3610))).await.unwrap();
        assert!(bench.db.add_signing_key(T, &key("k2", 10), Some(at(99))).await.unwrap_err().is_conflict());
        let keys = bench.db.signing_keys(T, "jwt").await.unwrap();
        let told: Vec<_> = keys.iter().map(|key| (key.kid.as_str(), key.retires_at)).collect();
        assert_eq!(told, [("k2", None), ("k1", Some(at(3610)))]);
        assert_eq!(bench.db.signing_keys(T, "command").await.unwrap()[0].retires_at, None);
        assert_eq!(bench.db.delete_signing_keys(T, at(3610)).await.unwrap(), 0);
        assert_eq!(bench.db.delete_signing_keys(T, at(3611)).await.unwrap(), 1);
    }
}

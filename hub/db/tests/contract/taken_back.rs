//! What a restore holds to that the backup does not know.

use crate::bench::{Bench, T, at, id};
use crate::contract;
use crate::portable::{backup, empty, fill, permission, put, wish};
use picket_hub_db::{
    Database, Hidden, NewAuditEntry, NewUser, Options, Permission, Restore, RevocationRecord, RevokedWhat, UserStatus,
    UserUpdate, open,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// An entry of the audit log, as the hub writes it before it does something.
async fn audit(db: &Arc<dyn Database>, seconds: i64, action: &str, object: String, details: &Value) {
    let payload = json!({ "details": details }).to_string();
    append(db, seconds, action, object, &payload).await;
}

async fn append(db: &Arc<dyn Database>, seconds: i64, action: &str, object: String, payload: &str) {
    let record = json!({ "purpose": "audit", "payload": payload, "signature": "" }).to_string();
    let head = db.audit_head(T).await.unwrap();
    let hash = [u8::try_from(head.seq).unwrap() + 1; 32];
    let (actor, action) = ("ada".to_owned(), action.to_owned());
    let entry = NewAuditEntry { at: at(seconds), actor, action, object, record, hash };
    db.audit_append(T, &head, &[entry]).await.unwrap();
}

/// A user with a password.
async fn add(db: &Arc<dyn Database>, number: u128) {
    let name = format!("user-{number}");
    let (id, password) = (id(number), Some(Hidden("$before$".into())));
    let user = NewUser { id, display_name: name.clone(), name, password, must_change: false };
    db.create_user(T, &user, at(0)).await.unwrap();
}

fn person(number: u128) -> String {
    format!("user:{}", id(number))
}

/// What the record beside the keys says.
fn recorded(seconds: i64, what: RevokedWhat) -> RevocationRecord {
    RevocationRecord { tenant: T.0, at: at(seconds), by: "ada".into(), what }
}

fn grant_lost() -> RevokedWhat {
    let Permission { principal, action, tag } = permission();
    RevokedWhat::Grant { principal, action, tag }
}

contract! {
    async fn what_people_lost_since_the_backup_is_told_by_the_database_that_is_replaced(bench) {
        fill(&bench).await;
        let db = &bench.db;
        for number in [51, 52] {
            add(db, number).await;
        }
        let (bytes, _) = backup(db).await;
        // As another replica does it, whose record beside the keys is not here.
        let audit = async |seconds, action: &str, object, details| audit(db, seconds, action, object, &details).await;
        audit(1100, "users.delete", person(51), json!({})).await;
        db.delete_user(T, id(51)).await.unwrap();
        let changed = UserUpdate { password: Some(Hidden("$after$".into())), ..UserUpdate::default() };
        audit(1100, "users.password", person(50), json!({})).await;
        db.update_user(T, id(50), 1, &changed, at(1100)).await.unwrap();
        let grant = permission();
        let details = json!({ "action": grant.action, "tag": null });
        audit(1100, "permissions.revoke", grant.principal.clone(), details).await;
        db.revoke(T, &grant).await.unwrap();
        // Before the backup, in which it is undone.
        audit(900, "users.delete", person(52), json!({})).await;
        db.close().await;
        put(&bench.location(), &bytes, wish(true)).await.unwrap();
        let db = bench.again().await;
        let user = async |number| db.user(T, id(number)).await.unwrap().unwrap();
        assert_eq!(user(51).await.status, UserStatus::Disabled, "who was removed does not come back");
        let ada = user(50).await;
        assert_eq!((ada.status, ada.password.unwrap().0.as_str()), (UserStatus::Active, "$after$"));
        assert!(db.permissions_of(T, &grant.principal).await.unwrap().is_empty());
        assert_eq!((user(52).await.status, user(52).await.password.unwrap().0.as_str()), (UserStatus::Active, "$before$"));
    }

    async fn what_was_given_again_since_the_backup_or_never_taken_is_not_taken_back(bench) {
        fill(&bench).await;
        let db = &bench.db;
        for number in [51, 52, 53] {
            add(db, number).await;
        }
        let (bytes, _) = backup(db).await;
        let (ada, grant) = (person(50), permission());
        let told = json!({ "action": grant.action, "tag": null });
        audit(db, 1100, "permissions.revoke", grant.principal.clone(), &told).await;
        db.revoke(T, &grant).await.unwrap();
        audit(db, 1200, "permissions.grant", grant.principal.clone(), &told).await;
        db.grant(T, &grant, "root", at(1200)).await.unwrap();
        for (seconds, status) in [(1100, UserStatus::Disabled), (1200, UserStatus::Active)] {
            audit(db, seconds, "users.status", ada.clone(), &json!({ "status": status.as_str() })).await;
            let revision = db.user(T, id(50)).await.unwrap().unwrap().revision;
            let update = UserUpdate { status: Some(status), ..UserUpdate::default() };
            db.update_user(T, id(50), revision, &update, at(seconds)).await.unwrap();
        }
        // Written down, and then it failed.
        audit(db, 1300, "users.password", person(51), &json!({})).await;
        audit(db, 1300, "users.delete", person(52), &json!({})).await;
        // In the moment of the backup, and not in it.
        audit(db, 1000, "users.password", person(53), &json!({})).await;
        let changed = UserUpdate { password: Some(Hidden("$after$".into())), ..UserUpdate::default() };
        db.update_user(T, id(53), 1, &changed, at(1000)).await.unwrap();
        // Somebody meddled with these.
        for payload in ["[1]", "7", "{}", "nothing"] {
            append(db, 1300, "permissions.revoke", grant.principal.clone(), payload).await;
        }
        db.close().await;
        // The record beside the keys is written just behind the audit log.
        let revoked = vec![
            recorded(1100, grant_lost()),
            recorded(1100, RevokedWhat::User { id: id(50) }),
            recorded(1301, RevokedWhat::Password { user: id(51) }),
            recorded(1301, RevokedWhat::User { id: id(52) }),
        ];
        put(&bench.location(), &bytes, Restore { revoked, ..wish(true) }).await.unwrap();
        let db = bench.again().await;
        assert_eq!(db.permissions_of(T, &grant.principal).await.unwrap(), [grant]);
        for (number, password) in [(50, "$argon2id$"), (51, "$before$"), (52, "$before$"), (53, "$after$")] {
            let user = db.user(T, id(number)).await.unwrap().unwrap();
            assert_eq!((user.status, user.password.unwrap().0.as_str()), (UserStatus::Active, password), "{number}");
        }
    }

    async fn a_database_says_nothing_against_what_was_taken_back_after_its_last_word(bench) {
        fill(&bench).await;
        let (bytes, _) = backup(&bench.db).await;
        // What is replaced was put back by itself, as a whole machine is: it is as it was before the backup.
        bench.db.close().await;
        let revoked = vec![
            recorded(1100, grant_lost()),
            recorded(1100, RevokedWhat::User { id: id(50) }),
            recorded(1100, RevokedWhat::Password { user: id(50) }),
        ];
        put(&bench.location(), &bytes, Restore { revoked, ..wish(true) }).await.unwrap();
        let db = bench.again().await;
        let ada = db.user(T, id(50)).await.unwrap().unwrap();
        assert_eq!((ada.status, ada.password), (UserStatus::Disabled, None));
        assert!(db.permissions_of(T, &permission().principal).await.unwrap().is_empty());
    }

    async fn the_backup_of_another_hub_is_taken_over_without_its_keys(bench) {
        fill(&bench).await;
        bench.db.put_setting(T, "authority/pins", b"theirs", None, at(0)).await.unwrap();
        let key = picket_hub_db::SigningKey {
            kid: "theirs".into(),
            purpose: "tokens".into(),
            public: vec![1],
            sealed: Hidden(vec![2]),
            created_at: at(0),
            retires_at: None,
        };
        bench.db.add_signing_key(T, &key, None).await.unwrap();
        let (bytes, _) = backup(&bench.db).await;
        let adopted = Some(("authority/pins".to_owned(), b"ours".to_vec()));
        let (_folder, location) = empty(bench.db.backend() == picket_hub_db::Backend::Postgres).await;
        put(&location, &bytes, Restore { adopted, ..wish(false) }).await.unwrap();
        let db = open(&location, &Options::default()).await.unwrap();
        assert_eq!(db.setting(T, "authority/pins").await.unwrap().unwrap().value, b"ours");
        assert_eq!(db.signing_keys(T, "tokens").await.unwrap().len(), 0);
        assert!(db.user(T, id(50)).await.unwrap().is_some());
        db.close().await;
    }
}

#[tokio::test]
async fn where_the_former_database_cannot_be_read_the_record_beside_the_keys_holds() {
    let bench = Bench::sqlite().await;
    fill(&bench).await;
    let (bytes, _) = backup(&bench.db).await;
    bench.db.close().await;
    let location = bench.location();
    let file = location.strip_prefix("sqlite:").unwrap();
    std::fs::write(file, "this was a database\n".repeat(500)).unwrap();
    let revoked = vec![recorded(1100, grant_lost()), recorded(1100, RevokedWhat::User { id: id(50) })];
    let restored = put(&location, &bytes, Restore { revoked, ..wish(true) }).await.unwrap();
    assert!(restored.unread.is_some() && restored.revoked == 2, "{restored:?}");
    let db = bench.again().await;
    assert_eq!(db.user(T, id(50)).await.unwrap().unwrap().status, UserStatus::Disabled);
    assert!(db.permissions_of(T, &permission().principal).await.unwrap().is_empty());
}

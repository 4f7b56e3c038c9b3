//! What a restore holds to that the backup does not know.

use crate::bench::{T, at, id};
use crate::contract;
use crate::portable::{backup, empty, fill, permission, put, wish};
use picket_hub_db::{Hidden, NewAuditEntry, NewUser, Options, Restore, UserStatus, UserUpdate, open};

contract! {
    async fn what_people_lost_since_the_backup_is_told_by_the_database_that_is_replaced(bench) {
        fill(&bench).await;
        let db = &bench.db;
        for number in [51, 52] {
            let name = format!("user-{number}");
            let (id, password) = (id(number), Some(Hidden("$before$".into())));
            let user = NewUser { id, display_name: name.clone(), name, password, must_change: false };
            db.create_user(T, &user, at(0)).await.unwrap();
        }
        let (bytes, _) = backup(db).await;
        // As another replica does it, whose record beside the keys is not here.
        let audit = async |seconds: i64, action: &str, object: String, details: serde_json::Value| {
            let payload = serde_json::json!({ "details": details }).to_string();
            let record = serde_json::json!({ "purpose": "audit", "payload": payload, "signature": "" }).to_string();
            let head = db.audit_head(T).await.unwrap();
            let hash = [u8::try_from(head.seq).unwrap() + 1; 32];
            let (actor, action) = ("ada".to_owned(), action.to_owned());
            let entry = NewAuditEntry { at: at(seconds), actor, action, object, record, hash };
            db.audit_append(T, &head, &[entry]).await.unwrap();
        };
        let person = |number| format!("user:{}", id(number));
        audit(1100, "users.delete", person(51), serde_json::json!({})).await;
        db.delete_user(T, id(51)).await.unwrap();
        let changed = UserUpdate { password: Some(Hidden("$after$".into())), ..UserUpdate::default() };
        audit(1100, "users.password", person(50), serde_json::json!({})).await;
        db.update_user(T, id(50), 1, &changed, at(1100)).await.unwrap();
        let grant = permission();
        audit(1100, "permissions.revoke", grant.principal.clone(), serde_json::json!({ "action": grant.action, "tag": null })).await;
        db.revoke(T, &grant).await.unwrap();
        // Before the backup, in which it is undone.
        audit(900, "users.delete", person(52), serde_json::json!({})).await;
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

//! The audit log.

use crate::bench::{T, all, at};
use crate::contract;
use picket_hub_db::{AuditFilter, AuditHead, NewAuditEntry};

fn entry(number: u8, actor: &str) -> NewAuditEntry {
    NewAuditEntry {
        at: at(i64::from(number)),
        actor: actor.into(),
        action: "agents.retire".into(),
        object: format!("agent:{number}"),
        record: format!("{{ \"n\": {number} }}"),
        hash: [number; 32],
    }
}

contract! {
    async fn entries_are_chained_one_to_the_next(bench) {
        let empty = bench.db.audit_head(T).await.unwrap();
        assert_eq!(empty, AuditHead { seq: 0, hash: [0; 32] });
        let head = bench.db.audit_append(T, &empty, &[entry(1, "ada"), entry(2, "bob")]).await.unwrap();
        assert_eq!(head, AuditHead { seq: 2, hash: [2; 32] });
        let head = bench.db.audit_append(T, &head, &[entry(3, "ada")]).await.unwrap();
        assert_eq!(bench.db.audit_head(T).await.unwrap(), head);
        let mut scanned = bench.db.audit_scan(T, 0, 2).await.unwrap();
        scanned.extend(bench.db.audit_scan(T, 2, 2).await.unwrap());
        let links: Vec<_> = scanned.iter().map(|one| (one.seq, one.previous[0], one.entry.hash[0])).collect();
        assert_eq!(links, [(1, 0, 1), (2, 1, 2), (3, 2, 3)]);
        assert_eq!(scanned[0].entry, entry(1, "ada"), "kept to the byte");
    }

    async fn who_appends_to_another_end_is_told_so(bench) {
        let empty = AuditHead::default();
        bench.db.audit_append(T, &empty, &[entry(1, "ada")]).await.unwrap();
        let late = bench.db.audit_append(T, &empty, &[entry(2, "bob")]).await;
        assert!(late.unwrap_err().is_conflict());
        let forged = AuditHead { seq: 1, hash: [9; 32] };
        assert!(bench.db.audit_append(T, &forged, &[entry(2, "bob")]).await.unwrap_err().is_conflict());
        assert_eq!(bench.db.audit_head(T).await.unwrap().seq, 1);
    }

    async fn many_who_append_at_once_make_one_chain(bench) {
        let tasks: Vec<_> = (1..=8_u8)
            .map(|number| {
                let db = std::sync::Arc::clone(&bench.db);
                tokio::spawn(async move {
                    loop {
                        let head = db.audit_head(T).await.unwrap();
                        match db.audit_append(T, &head, &[entry(number, "ada")]).await {
                            Ok(_) => break,
                            Err(error) => assert!(error.is_conflict(), "{error}"),
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let scanned = bench.db.audit_scan(T, 0, 100).await.unwrap();
        assert_eq!(scanned.len(), 8);
        for (index, one) in scanned.iter().enumerate() {
            let before = index.checked_sub(1).map_or([0; 32], |before| scanned[before].entry.hash);
            assert_eq!((one.seq, one.previous), (i64::try_from(index).unwrap() + 1, before));
        }
    }

    async fn entries_are_found_by_actor_object_and_time(bench) {
        let entries: Vec<_> = (1..=9).map(|number| entry(number, if number % 2 == 0 { "bob" } else { "ada" })).collect();
        bench.db.audit_append(T, &AuditHead::default(), &entries).await.unwrap();
        let find = async |filter: AuditFilter| -> Vec<i64> {
            all(2, async |page| bench.db.audit_entries(T, &filter, &page).await).await.iter().map(|one| one.seq).collect()
        };
        assert_eq!(find(AuditFilter::default()).await, (1..=9).rev().collect::<Vec<_>>());
        assert_eq!(find(AuditFilter { actor: Some("bob".into()), ..AuditFilter::default() }).await, [8, 6, 4, 2]);
        assert_eq!(find(AuditFilter { object: Some("agent:3".into()), ..AuditFilter::default() }).await, [3]);
        assert_eq!(find(AuditFilter { since: Some(at(4)), until: Some(at(6)), ..AuditFilter::default() }).await, [5, 4]);
        assert_eq!(find(AuditFilter { action: Some("other".into()), ..AuditFilter::default() }).await, [0_i64; 0]);
    }
}

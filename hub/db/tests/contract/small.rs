//! Tenants, settings, idempotency keys and blocks.

use crate::bench::{Bench, T, all, at, batch, certificate, id, matched};
use crate::contract;
use picket_hub_db::{
    AgentFilter, Block, BlockSubject, DbError, EventFilter, FindingFilter, Idempotency, IdempotentRequest,
    KeptResponse, PageRequest, Position, SETTING_MAX_BYTES, TenantId,
};

fn request(key: &str, hash: u8, seconds: i64) -> IdempotentRequest {
    IdempotentRequest {
        principal: "user:ada".into(),
        key: key.into(),
        request_hash: [hash; 32],
        now: at(seconds),
        locked_until: at(seconds + 30),
        expires_at: at(seconds + 1000),
    }
}

fn response(status: u16) -> KeptResponse {
    KeptResponse { status, headers: serde_json::json!({"etag": "1"}), body: b"{}\0\xff".to_vec() }
}

async fn begin(bench: &Bench, request: &IdempotentRequest) -> Idempotency {
    bench.db.begin_request(T, request).await.unwrap()
}

fn block(subject: BlockSubject, until: Option<i64>) -> Block {
    Block {
        subject,
        until: until.map(at),
        reason: "too many wrong passwords".into(),
        created_at: at(0),
        created_by: "hub".into(),
    }
}

contract! {
    async fn tenants_do_not_see_each_other(bench) {
        let other = bench.db.create_tenant("other", at(0)).await.unwrap().id;
        assert!(bench.db.create_tenant("other", at(0)).await.unwrap_err().is_conflict());
        assert_eq!(bench.db.tenants().await.unwrap().len(), 2);
        assert_eq!(bench.db.ensure_default_tenant(at(9)).await.unwrap().created_at, at(0));
        bench.agent(1).await;
        bench.agent_of(other, 2).await;
        bench.db.insert_certificate(T, &certificate(id(1), "0a", 1)).await.unwrap();
        bench.db.ingest(T, &[batch(1, 100, 1..=3)]).await.unwrap();
        assert!(bench.db.ingest(other, &[batch(1, 100, 1..=3)]).await.unwrap()[0].refused);
        bench.db.ingest(other, &[batch(2, 100, 1..=5)]).await.unwrap();
        crate::findings::found(&bench, vec![matched("r", "k", &[1])]).await;
        bench.db.put_setting(T, "k", b"v", None, at(0)).await.unwrap();
        let page = PageRequest::default();
        bench.settle().await;
        for (tenant, agent, events) in [(T, 1, 3), (other, 2, 5)] {
            let agents = bench.db.agents(tenant, &AgentFilter::default(), &page).await.unwrap().items;
            assert_eq!(agents.iter().map(|one| one.id).collect::<Vec<_>>(), [id(agent)]);
            assert_eq!(bench.db.events(tenant, &EventFilter::default(), &page).await.unwrap().items.len(), events);
            let tail = bench.db.events_after(tenant, Position::START, &[], 100).await.unwrap();
            assert_eq!(tail.events.len(), events);
            assert_eq!(bench.db.agent_books(tenant, &page).await.unwrap().items.len(), 1);
        }
        assert_eq!(bench.db.agent(other, id(1)).await.unwrap(), None);
        assert_eq!(bench.db.certificate(other, "0a").await.unwrap(), None);
        assert_eq!(bench.db.setting(other, "k").await.unwrap(), None);
        assert_eq!(bench.db.findings(other, &FindingFilter::default(), &page).await.unwrap().items, []);
        let nobodys = bench.db.create_agent(TenantId(77), &crate::bench::new_agent(5), at(0)).await;
        assert!(nobodys.unwrap_err().is_not_found(), "a tenant that is not there");
    }

    async fn a_setting_is_written_by_who_saw_it_last(bench) {
        assert_eq!(bench.db.put_setting(T, "hub/a", b"1", Some(0), at(1)).await.unwrap(), 1);
        assert!(bench.db.put_setting(T, "hub/a", b"2", Some(0), at(2)).await.unwrap_err().is_conflict());
        assert_eq!(bench.db.put_setting(T, "hub/a", b"\0\xff", Some(1), at(2)).await.unwrap(), 2);
        assert!(bench.db.put_setting(T, "hub/a", b"3", Some(1), at(3)).await.unwrap_err().is_conflict());
        assert_eq!(bench.db.put_setting(T, "hub/a", b"4", None, at(4)).await.unwrap(), 3);
        bench.db.put_setting(T, "hub/b", b"", None, at(4)).await.unwrap();
        bench.db.put_setting(T, "hubx", b"", None, at(4)).await.unwrap();
        let keys: Vec<_> = bench.db.settings(T, "hub/").await.unwrap().into_iter().map(|one| one.key).collect();
        assert_eq!(keys, ["hub/a", "hub/b"]);
        let read = bench.db.setting(T, "hub/a").await.unwrap().unwrap();
        assert_eq!((read.value.as_slice(), read.revision, read.updated_at), (&b"4"[..], 3, at(4)));
        assert!(bench.db.delete_setting(T, "hub/a").await.unwrap());
        assert!(!bench.db.delete_setting(T, "hub/a").await.unwrap());
        let long = vec![0; SETTING_MAX_BYTES + 1];
        assert!(matches!(bench.db.put_setting(T, "k", &long, None, at(0)).await, Err(DbError::Invalid { .. })));
    }

    async fn a_request_sent_twice_is_done_once_and_answered_twice(bench) {
        assert_eq!(begin(&bench, &request("k", 1, 0)).await, Idempotency::New(1));
        assert_eq!(begin(&bench, &request("k", 1, 1)).await, Idempotency::InProgress);
        assert_eq!(begin(&bench, &request("k", 2, 1)).await, Idempotency::Mismatch);
        assert!(bench.db.finish_request(T, "user:ada", "k", 1, &response(201)).await.unwrap());
        assert!(!bench.db.finish_request(T, "user:ada", "k", 1, &response(500)).await.unwrap());
        assert_eq!(begin(&bench, &request("k", 1, 2)).await, Idempotency::Replay(response(201)));
        assert_eq!(begin(&bench, &request("k", 2, 2)).await, Idempotency::Mismatch);
        let mut bobs = request("k", 2, 2);
        bobs.principal = "user:bob".into();
        assert_eq!(begin(&bench, &bobs).await, Idempotency::New(1));
        assert_eq!(begin(&bench, &request("k", 3, 1000)).await, Idempotency::New(2), "its time is over");
    }

    async fn a_request_whose_doer_died_is_done_by_the_next_one(bench) {
        begin(&bench, &request("k", 1, 0)).await;
        assert_eq!(begin(&bench, &request("k", 1, 30)).await, Idempotency::New(2));
        assert!(!bench.db.finish_request(T, "user:ada", "k", 1, &response(201)).await.unwrap(), "it came back too late");
        assert!(!bench.db.abandon_request(T, "user:ada", "k", 1).await.unwrap());
        assert!(bench.db.abandon_request(T, "user:ada", "k", 2).await.unwrap());
        assert_eq!(begin(&bench, &request("k", 1, 31)).await, Idempotency::New(1));
    }

    async fn one_key_from_many_at_once_is_new_to_one(bench) {
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let db = std::sync::Arc::clone(&bench.db);
                tokio::spawn(async move { db.begin_request(T, &request("k", 1, 0)).await.unwrap() })
            })
            .collect();
        let mut new = 0;
        for task in tasks {
            new += u32::from(task.await.unwrap() == Idempotency::New(1));
        }
        assert_eq!(new, 1);
    }

    async fn a_block_lasts_as_long_as_the_longest_of_its_reasons(bench) {
        let address = BlockSubject::Address("192.0.2.7".into());
        let principal = BlockSubject::Principal("user:ada".into());
        bench.db.block(T, &block(address.clone(), Some(100))).await.unwrap();
        let shorter = bench.db.block(T, &block(address.clone(), Some(50))).await.unwrap();
        assert_eq!(shorter.until, Some(at(100)));
        assert!(bench.db.blocked(T, &address, at(99)).await.unwrap().is_some());
        assert_eq!(bench.db.blocked(T, &address, at(100)).await.unwrap(), None);
        assert_eq!(bench.db.block(T, &block(principal.clone(), None)).await.unwrap().until, None);
        assert_eq!(bench.db.block(T, &block(principal.clone(), Some(5))).await.unwrap().until, None, "for good");
        let now = at(99);
        let listed = all(1, async |page| bench.db.blocks(T, now, &page).await).await;
        assert_eq!(listed.iter().map(|one| one.subject.clone()).collect::<Vec<_>>(), [address, principal.clone()]);
        assert!(bench.db.unblock(T, &principal).await.unwrap());
        assert!(!bench.db.unblock(T, &principal).await.unwrap());
    }
}

//! What one agent says that cannot be stored costs nobody else anything.

use jiff::Timestamp;
use picket_hub::app::batch::Streams;
use picket_hub::app::heartbeats::Heartbeats;
use picket_hub::app::intake::Intake;
use picket_hub_db::{AgentSeen, Database, NewAgent, NewEvent, Options, TenantId, open};
use picket_protocol::event::Priority;
use picket_protocol::hub::ProblemCode;
use picket_testkit::postgres::Postgres;
use picket_testkit::wait_until;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

const T: TenantId = TenantId::DEFAULT;

/// A server with agents.
async fn server(agents: &[Uuid]) -> (Postgres, Arc<dyn Database>) {
    let server = tokio::task::spawn_blocking(|| {
        let server = Postgres::start_new(false);
        server.create_database("hub");
        server
    });
    let server = server.await.unwrap();
    let db = open(&server.url("hub"), &Options::default()).await.unwrap();
    db.ensure_default_tenant(Timestamp::now()).await.unwrap();
    for id in agents {
        let (name, kind) = (id.to_string(), "server".to_owned());
        let agent = NewAgent { id: *id, name, kind, tags: [].into(), config: serde_json::json!({}) };
        db.create_agent(T, &agent, Timestamp::now()).await.unwrap();
    }
    (server, db)
}

fn streams(seq: u64) -> Streams {
    let event = NewEvent {
        seq,
        kind: "file".into(),
        class: Priority::Normal,
        timestamp: Timestamp::now(),
        weight: 1,
        gap: 0,
        data: "{}".into(),
    };
    Streams::from([(Uuid::nil(), vec![event])])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_cannot_be_stored_is_refused_alone_and_nobody_is_told_that_it_is_wrong() {
    let (good, bad) = ([Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()], Uuid::now_v7());
    let (server, db) = server(&[good[0], good[1], good[2], bad]).await;
    let (intake, _task) = Intake::start(Arc::clone(&db), T, 1 << 20, |_| {});
    let store = |agent, seq| intake.store(agent, streams(seq), Timestamp::now(), intake.reserve(100).unwrap());
    store(bad, 1).await.unwrap();
    // Its books are full: a number that the database cannot count to.
    server.sql("hub", &format!("UPDATE streams SET stored = 9223372036854775807 WHERE agent_id = '{bad}'"));
    // While the first is stored, the others gather.
    let (first, poisoned, second, third) =
        tokio::join!(store(good[0], 1), store(bad, 2), store(good[1], 1), store(good[2], 1));
    for stored in [first, second, third] {
        assert_eq!(stored.unwrap().new, 1);
    }
    assert_eq!(poisoned.unwrap_err().code(), ProblemCode::StorageUnavailable);
    assert_eq!(intake.counters().events.load(Ordering::Relaxed), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_does_not_wait_for_a_transaction_that_waits_itself() {
    let (held, other) = (Uuid::now_v7(), Uuid::now_v7());
    let (server, db) = server(&[held, other]).await;
    let server = Arc::new(server);
    let (intake, _task) = Intake::start(Arc::clone(&db), T, 1 << 20, |_| {});
    let store = |agent, seq| {
        let intake = intake.clone();
        async move { intake.store(agent, streams(seq), Timestamp::now(), intake.reserve(100).unwrap()).await }
    };
    store(held, 1).await.unwrap();
    // Somebody has the books of the first until something of the other is stored.
    let holder = tokio::task::spawn_blocking({
        let server = Arc::clone(&server);
        let sql = format!(
            "DO $$ BEGIN PERFORM 1 FROM streams WHERE agent_id = '{held}' FOR UPDATE; FOR tick IN 1..600 LOOP \
             IF EXISTS (SELECT 1 FROM streams WHERE agent_id = '{other}') THEN RETURN; END IF; \
             PERFORM pg_sleep(0.05); END LOOP; RAISE EXCEPTION 'nothing of the other came'; END $$"
        );
        move || server.sql("hub", &sql)
    });
    let waits_for = |what: &str, sql: &str| {
        tokio::task::block_in_place(|| wait_until(what, || server.sql("hub", sql) == "t"));
    };
    let locked = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'streams'::regclass AND mode = 'RowShareLock'";
    waits_for("the books to be held", locked);
    let first = tokio::spawn(store(held, 2));
    let blocked = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    waits_for("the first batch to wait for them", blocked);
    assert_eq!(store(other, 1).await.unwrap().new, 1);
    holder.await.unwrap();
    assert_eq!(first.await.unwrap().unwrap().new, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_that_cannot_be_stored_is_refused_alone() {
    let (good, bad) = ([Uuid::now_v7(), Uuid::now_v7()], Uuid::now_v7());
    let (_server, db) = server(&[good[0], good[1], bad]).await;
    let (heartbeats, _task) = Heartbeats::start(Arc::clone(&db), T);
    let seen = |agent, at| heartbeats.store(AgentSeen::new(agent, at));
    let now = Timestamp::now();
    let (first, poisoned, second) = tokio::join!(seen(good[0], now), seen(bad, Timestamp::MIN), seen(good[1], now));
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    assert_eq!(poisoned.unwrap_err().code(), ProblemCode::StorageUnavailable);
}

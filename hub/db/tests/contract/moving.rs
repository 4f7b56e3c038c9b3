//! The way from one database to another, with the hub at work.

use crate::bench::{Bench, T, at, batch, id};
use crate::portable::{empty, fill, quiet, tail};
use jiff::Timestamp;
use picket_hub_db::{Closed, DbError, IngestBatch, Location, Migration, Options, Position, StoredEvent, open};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A move to a server of the tests, and what it would take to see it happen.
fn migration(from: &str, to: &str) -> Migration {
    Migration { from: from.into(), to: to.into(), now: at(3000), progress: quiet(), closing: Arc::new(|| {}) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_to_postgres_loses_nothing_that_was_acknowledged_while_agents_go_on_sending() {
    let bench = Bench::sqlite().await;
    fill(&bench).await;
    let to = empty(true).await.1;
    // The hub, in its own process as it were: with connections of its own.
    let hub = bench.again().await;
    let (acknowledged, began) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Notify::new()));
    let writers: Vec<_> = (1..=3_u128)
        .map(|agent| {
            let (hub, acknowledged, began) = (Arc::clone(&hub), Arc::clone(&acknowledged), Arc::clone(&began));
            tokio::spawn(async move {
                let mut seq = 1_u64;
                loop {
                    let events: IngestBatch = batch(agent, 500 + agent, seq..seq + 50);
                    match hub.ingest(T, &[events]).await {
                        Ok(outcomes) => {
                            acknowledged.fetch_add(outcomes[0].records, Ordering::AcqRel);
                            seq += 50;
                            if seq > 2000 {
                                began.notify_one();
                            }
                        }
                        Err(DbError::Shut { .. }) => return seq,
                        Err(error) => assert!(error.is_transient(), "{error}"),
                    }
                }
            })
        })
        .collect();
    began.notified().await;
    let before = hub.progress(T, "judge/file").await.unwrap();
    let moved = picket_hub_db::migrate(&migration(&bench.location(), &to), &Options::default()).await.unwrap();
    for writer in writers {
        writer.await.unwrap();
    }
    let told = hub.ingest(T, &[batch(1, 999, 1..3)]).await.unwrap_err();
    assert!(told.to_string().contains("moved to postgres://"), "{told}");
    let refused = open(&bench.location(), &Options::default()).await.unwrap_err();
    assert!(refused.to_string().contains("hub.yaml"), "{refused}");

    let there = open(&to, &Options::default()).await.unwrap();
    let expected = 60 + acknowledged.load(Ordering::Acquire);
    assert_eq!(moved.events, expected);
    let (events, _) = tail(&there, Position::START).await;
    assert_eq!(events.len() as u64, expected);
    let even = Options { even_closed: true, ..Options::default() };
    let old = open(&bench.location(), &even).await.unwrap();
    let (old_events, end) = tail(&old, Position::START).await;
    let place = |events: &[StoredEvent]| events.iter().map(|e| (e.position, e.id)).collect::<Vec<_>>();
    assert_eq!(place(&events), place(&old_events), "the same events at the same places");
    let progress = there.progress(T, "judge/file").await.unwrap();
    assert_eq!(progress, before, "the judge goes on where it was");
    // A live view that was at the end of the old database sees what is new, and only that.
    there.ingest(T, &[batch(1, 777, 1..4)]).await.unwrap();
    loop {
        let (new, _) = tail(&there, end).await;
        if new.len() == 3 {
            break;
        }
        assert!(new.is_empty(), "{}", new.len());
        tokio::task::yield_now().await;
    }
    let balance = there.agent_book(T, id(1)).await.unwrap().unwrap();
    assert_eq!(balance.totals.duplicates, 0);
    let again = picket_hub_db::migrate(&migration(&bench.location(), &to), &Options::default()).await.unwrap_err();
    assert!(again.to_string().contains("nothing left to move"), "{again}");
    assert!(picket_hub_db::abort_migration(&bench.location(), &Options::default()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_fails_leaves_the_hub_where_it_was_and_can_be_given_up_or_done_again() {
    let bench = Bench::sqlite().await;
    fill(&bench).await;
    let occupied = Bench::postgres().await;
    occupied.agent(1).await;
    let told = picket_hub_db::migrate(&migration(&bench.location(), &occupied.location()), &Options::default()).await;
    assert!(told.unwrap_err().to_string().contains("take an empty one"));
    bench.db.ingest(T, &[batch(1, 900, 1..3)]).await.unwrap();

    // The server goes away just when the file was closed: it is opened again.
    let server = picket_testkit::postgres::Postgres::start_new(false);
    server.create_database("hub");
    let (to, server) = (server.url("hub"), Arc::new(Mutex::new(server)));
    let killed = Arc::clone(&server);
    let wish = Migration {
        closing: Arc::new(move || tokio::task::block_in_place(|| killed.lock().unwrap().kill())),
        ..migration(&bench.location(), &to)
    };
    let options = Options { connect: std::time::Duration::from_secs(2), ..Options::default() };
    assert!(picket_hub_db::migrate(&wish, &options).await.is_err());
    bench.db.ingest(T, &[batch(1, 900, 3..5)]).await.unwrap();
    tokio::task::block_in_place(|| server.lock().unwrap().start());
    let half = open(&to, &Options::default()).await.unwrap_err();
    assert!(half.to_string().contains("picket hub migrate"), "{half}");

    let moved = picket_hub_db::migrate(&migration(&bench.location(), &to), &options).await.unwrap();
    assert_eq!(moved.events, 64);
    let there = open(&to, &Options::default()).await.unwrap();
    assert_eq!(there.closed().await.unwrap(), None);
    assert!(matches!(bench.db.closed().await.unwrap(), Some(Closed::Moved { .. })));
    there.close().await;
}

#[tokio::test]
async fn a_move_that_was_killed_with_the_file_closed_is_given_up_by_word() {
    let bench = Bench::sqlite().await;
    fill(&bench).await;
    let (to, now): (String, Timestamp) = ("postgres://h/d".into(), at(1));
    assert!(!picket_hub_db::abort_migration(&bench.location(), &Options::default()).await.unwrap(), "none was begun");
    let Location::Sqlite(path) = Location::parse(&bench.location()).unwrap() else { panic!() };
    let raw = rusqlite::Connection::open(path).unwrap();
    let value = serde_json::to_vec(&Closed::Moving { id: id(5), to }).unwrap();
    let sql = "INSERT INTO settings (tenant_id, key, value, revision, updated_at) VALUES (1, ?1, ?2, 1, ?3)";
    raw.execute(sql, rusqlite::params!["database.closed", value, now.as_microsecond()]).unwrap();
    raw.execute_batch("PRAGMA user_version = 1").unwrap();
    let told = bench.db.ingest(T, &[batch(1, 900, 1..3)]).await.unwrap_err();
    assert!(told.to_string().contains("--abort"), "{told}");
    picket_hub_db::abort_migration(&bench.location(), &Options::default()).await.unwrap();
    bench.db.ingest(T, &[batch(1, 900, 1..3)]).await.unwrap();
}

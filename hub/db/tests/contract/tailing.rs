//! Reading in the order of commits while many write.

use crate::bench::{Bench, T, batch, id};
use crate::contract;
use picket_hub_db::{Position, Shard};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const WRITERS: u128 = 8;
const CALLS: u64 = 25;
const EVENTS: u64 = 7;

contract! {
    async fn a_reader_misses_nothing_while_many_write(bench) {
        for writer in 1..=WRITERS {
            bench.agent(writer).await;
        }
        let done = Arc::new(AtomicBool::new(false));
        let reader = {
            let (db, done) = (Arc::clone(&bench.db), Arc::clone(&done));
            tokio::spawn(async move {
                let (mut seen, mut position, began) = (Vec::new(), Position::START, Instant::now());
                loop {
                    let last = done.load(Ordering::Acquire);
                    let tail = db.events_after(T, position, &[Shard::File], 50).await.unwrap();
                    assert!(tail.next >= position);
                    position = tail.next;
                    seen.extend(tail.events.iter().map(|event| (event.agent, event.seq)));
                    let all = seen.len() as u64 == u64::try_from(WRITERS).unwrap() * CALLS * EVENTS;
                    if last && tail.at_end && all || began.elapsed() > Duration::from_secs(60) {
                        return seen;
                    }
                    tokio::task::yield_now().await;
                }
            })
        };
        let writers: Vec<_> = (1..=WRITERS)
            .map(|writer| {
                let db = Arc::clone(&bench.db);
                tokio::spawn(async move {
                    for call in 0..CALLS {
                        let first = call * EVENTS + 1;
                        db.ingest(T, &[batch(writer, 100, first..first + EVENTS)]).await.unwrap();
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        done.store(true, Ordering::Release);
        let seen = reader.await.unwrap();
        let once: BTreeSet<_> = seen.iter().copied().collect();
        assert_eq!(once.len(), seen.len(), "an event was read twice");
        let expected = (1..=WRITERS).flat_map(|writer| (1..=CALLS * EVENTS).map(move |seq| (id(writer), seq)));
        assert_eq!(once, expected.collect::<BTreeSet<_>>());
    }
}

/// What was removed leaves a hole in the positions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_steps_over_a_hole_however_large() {
    let bench = Bench::sqlite().await;
    bench.agent(1).await;
    bench.db.ingest(T, &[batch(1, 100, [1])]).await.unwrap();
    let file = bench.location().replace("sqlite:", "");
    let sql = "UPDATE sqlite_sequence SET seq = 1000000000000 WHERE name = 'events'";
    assert_eq!(rusqlite::Connection::open(file).unwrap().execute(sql, []).unwrap(), 1);
    bench.db.ingest(T, &[batch(1, 100, [2])]).await.unwrap();
    let first = bench.db.events_after(T, Position::START, &[Shard::File], 10).await.unwrap();
    let second = bench.db.events_after(T, first.next, &[Shard::File], 10).await.unwrap();
    let seqs = first.events.iter().chain(&second.events).map(|event| event.seq);
    assert_eq!((seqs.collect::<Vec<_>>(), first.at_end, second.at_end), (vec![1, 2], false, true));
}

/// The order of commits is not that in which transactions began: who begins first may commit last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_shows_nothing_before_what_an_older_transaction_may_still_commit() {
    let bench = Bench::postgres().await;
    bench.agent(1).await;
    bench.db.ingest(T, &[batch(1, 100, [1])]).await.unwrap();
    bench.settle().await;
    let (older, connection) = tokio_postgres::connect(&bench.location(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    older
        .batch_execute(
            "BEGIN; INSERT INTO events (tenant_id, id, agent_id, boot_id, seq, received_at, timestamp, type, class, shard, \
             data) SELECT tenant_id, gen_random_uuid(), agent_id, boot_id, 2, received_at, timestamp, type, class, shard, \
             data FROM events",
        )
        .await
        .unwrap();
    bench.db.ingest(T, &[batch(1, 100, [3])]).await.unwrap();
    let before = bench.db.events_after(T, Position::START, &[], 10).await.unwrap();
    assert_eq!(before.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [1]);
    older.batch_execute("COMMIT").await.unwrap();
    bench.settle().await;
    let after = bench.db.events_after(T, before.next, &[], 10).await.unwrap();
    assert_eq!(after.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [2, 3]);
}

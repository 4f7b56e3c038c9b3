//! Reading in the order of commits while many write.

use crate::bench::{T, batch, id};
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

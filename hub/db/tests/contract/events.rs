//! Events: stored once, listed, and kept books of.

use crate::bench::{Bench, T, all, at, batch, event, id};
use crate::contract;
use picket_hub_db::{
    DbError, EventFilter, INGEST_MAX_EVENTS, IngestOutcome, NewEvent, PageRequest, Position, SeqRange, Shard, Totals,
    event_id,
};
use picket_protocol::event::Priority;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use std::collections::BTreeSet;

fn stored(records: u64, duplicates: u64) -> IngestOutcome {
    IngestOutcome { records, stored: records, duplicates, ..IngestOutcome::default() }
}

/// All events in the order of commits.
async fn tail(bench: &Bench, shards: &[Shard], limit: u32) -> Vec<u64> {
    bench.settle().await;
    let (mut seqs, mut position) = (Vec::new(), Position::START);
    loop {
        let tail = bench.db.events_after(T, position, shards, limit).await.unwrap();
        assert!(tail.events.is_sorted_by_key(|event| event.position));
        assert!(tail.events.iter().all(|event| event.position > position && event.position <= tail.next));
        seqs.extend(tail.events.iter().map(|event| event.seq));
        position = tail.next;
        if tail.at_end {
            return seqs;
        }
    }
}

/// What is told of a stream that got these numbers, against a set of numbers.
async fn ranges_are_a_set(bench: &Bench, boot: u128, calls: &[Vec<u64>]) {
    let mut model = BTreeSet::new();
    for call in calls {
        let new = call.iter().filter(|seq| model.insert(**seq)).count() as u64;
        let outcome = bench.db.ingest(T, &[batch(1, boot, call.iter().copied())]).await.unwrap();
        assert_eq!(outcome, [stored(new, call.len() as u64 - new)]);
    }
    let highest = model.last().copied().unwrap_or(0);
    let missing: BTreeSet<u64> = (1..=highest).filter(|seq| !model.contains(seq)).collect();
    let told = bench.db.missing(T, id(1), id(boot), 1000).await.unwrap();
    assert_eq!(told.iter().flat_map(|range| range.first..=range.last).collect::<BTreeSet<_>>(), missing);
    assert!(told.windows(2).all(|pair| pair[0].last + 1 < pair[1].first), "ranges that touch are one: {told:?}");
    let books = bench.db.stream_books(T, id(1), &PageRequest::default()).await.unwrap();
    let book = books.items.iter().find(|book| book.boot_id == id(boot)).unwrap();
    assert_eq!((book.totals.records, book.last_seq), (model.len() as u64, highest));
}

contract! {
    async fn an_event_is_read_as_it_came(bench) {
        bench.agent(1).await;
        let mut new = event(1);
        new.data = r#"{ "path":"/tmp/\u0000","b": [1,2.50],"a":"ü" }"#.into();
        let mut batch = batch(1, 100, []);
        batch.events = vec![new.clone()];
        assert_eq!(bench.db.ingest(T, &[batch.clone()]).await.unwrap(), [stored(1, 0)]);
        let expected = event_id(T, id(1), id(100), 1, batch.received_at);
        let read = bench.db.event(T, expected).await.unwrap().unwrap();
        assert_eq!((read.id, read.agent, read.boot_id, read.seq), (expected, id(1), id(100), 1));
        assert_eq!((read.received_at, read.timestamp), (batch.received_at, new.timestamp));
        assert_eq!((read.kind.as_str(), read.class, read.data.as_str()), ("file", Priority::Normal, new.data.as_str()));
        assert_eq!(bench.db.event(T, id(5)).await.unwrap(), None);
        assert_eq!(bench.db.events_by_id(T, &[id(5), expected]).await.unwrap(), [read]);
    }

    async fn what_came_before_is_dropped_and_counted(bench) {
        bench.agent(1).await;
        let first = bench.db.ingest(T, &[batch(1, 100, [1, 2, 3, 2]), batch(1, 100, [3, 4]), batch(1, 200, [1])]).await;
        assert_eq!(first.unwrap(), [stored(3, 1), stored(1, 1), stored(1, 0)]);
        let again = bench.db.ingest(T, &[batch(1, 100, 1..=6)]).await.unwrap();
        assert_eq!(again, [stored(2, 4)]);
        let page = bench.db.events(T, &EventFilter::default(), &PageRequest::default()).await.unwrap();
        assert_eq!(page.items.len(), 7);
        let book = bench.db.agent_book(T, id(1)).await.unwrap().unwrap();
        assert_eq!(book.streams, 2);
        assert_eq!(book.totals, Totals { stored: 7, records: 7, duplicates: 6, ..Totals::default() });
    }

    async fn one_batch_twenty_times_at_once_is_stored_once(bench) {
        bench.agent(1).await;
        bench.agent(2).await;
        // The first round finds the streams missing, the others find all connections open.
        for round in 0..5_u64 {
            let tasks: Vec<_> = (0..20_usize)
                .map(|number| {
                    let db = std::sync::Arc::clone(&bench.db);
                    let seqs = round * 50 + 1..=round * 50 + 50;
                    let mut batches = vec![batch(1, 100, seqs.clone()), batch(2, 100, seqs)];
                    // In either order: streams are locked in one.
                    batches.rotate_left(number % 2);
                    tokio::spawn(async move { db.ingest(T, &batches).await.unwrap() })
                })
                .collect();
            let mut records = 0;
            for task in tasks {
                records += task.await.unwrap().iter().map(|outcome| outcome.records).sum::<u64>();
            }
            assert_eq!(records, 100);
        }
        let filter = EventFilter::default();
        let listed = all(30, async |page| bench.db.events(T, &filter, &page).await).await;
        assert_eq!(listed.len(), 500);
        let books = all(1, async |page| bench.db.agent_books(T, &page).await).await;
        assert_eq!(books.iter().map(|book| book.totals.duplicates).sum::<u64>(), 9500);
    }

    async fn an_agent_that_is_not_known_keeps_no_other_from_being_stored(bench) {
        bench.agent(1).await;
        bench.agent(2).await;
        bench.db.retire_agent(T, id(2), "user:ada", at(1)).await.unwrap();
        let batches = [batch(9, 100, [1]), batch(1, 100, [1]), batch(2, 100, [1])];
        let outcomes = bench.db.ingest(T, &batches).await.unwrap();
        assert_eq!(outcomes.iter().map(|outcome| outcome.refused).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(tail(&bench, &[], 10).await, [1]);
    }

    async fn an_event_that_can_never_be_stored_costs_no_other(bench) {
        bench.agent(1).await;
        let mut batch = batch(1, 100, [1, 2, 3, 4, 5]);
        batch.events[1].data = "not JSON".into();
        batch.events[2].seq = u64::MAX;
        batch.events[3].kind = "x".repeat(51);
        batch.events.push(NewEvent { seq: 0, ..event(1) });
        batch.events.push(NewEvent { data: ("[".repeat(1000) + &"]".repeat(1000)).into(), ..event(9) });
        let outcome = bench.db.ingest(T, &[batch]).await.unwrap().remove(0);
        assert_eq!((outcome.records, outcome.rejected, outcome.duplicates), (2, 5, 0));
        assert_eq!(tail(&bench, &[], 10).await, [1, 5]);
        let again = bench.db.ingest(T, &[crate::bench::batch(1, 100, [2])]).await.unwrap();
        assert_eq!(again, [stored(0, 1)], "what was rejected is no gap, and is not asked for again");
    }

    async fn the_books_balance_with_folded_events_and_gaps(bench) {
        bench.agent(1).await;
        let mut batch = batch(1, 100, 1..=4);
        batch.events[1].weight = 1000;
        batch.events[2] = NewEvent { kind: "gap".into(), weight: 0, gap: 30, ..event(3) };
        batch.ledger = Some(serde_json::json!({"emitted": 1032}));
        let outcome = bench.db.ingest(T, &[batch]).await.unwrap().remove(0);
        assert_eq!((outcome.records, outcome.stored, outcome.gaps), (4, 1002, 30));
        let books = bench.db.stream_books(T, id(1), &PageRequest::default()).await.unwrap();
        let book = &books.items[0];
        assert_eq!((book.totals.stored + book.totals.gaps, book.last_seq), (1032, 4));
        assert_eq!(book.ledger, Some(serde_json::json!({"emitted": 1032})));
        assert_eq!((book.first_seen, book.last_seen), (at(10), at(10)));
        bench.db.ingest(T, &[crate::bench::batch(1, 100, [5])]).await.unwrap();
        let books = bench.db.stream_books(T, id(1), &PageRequest::default()).await.unwrap();
        assert_eq!(books.items[0].ledger, Some(serde_json::json!({"emitted": 1032})), "what is not said stays");
    }

    async fn missing_numbers_are_told_as_ranges(bench) {
        bench.agent(1).await;
        bench.db.ingest(T, &[batch(1, 100, [3, 4, 9, 12])]).await.unwrap();
        let missing = bench.db.missing(T, id(1), id(100), 10).await.unwrap();
        let range = |first, last| SeqRange { first, last };
        assert_eq!(missing, [range(1, 2), range(5, 8), range(10, 11)]);
        assert_eq!(bench.db.missing(T, id(1), id(100), 2).await.unwrap(), missing[..2]);
        bench.db.ingest(T, &[batch(1, 100, [1, 2, 5, 6, 7, 8, 10, 11])]).await.unwrap();
        assert_eq!(bench.db.missing(T, id(1), id(100), 10).await.unwrap(), []);
        assert_eq!(bench.db.missing(T, id(1), id(200), 10).await.unwrap(), []);
    }

    async fn a_stream_holds_what_a_set_holds(bench) {
        bench.agent(1).await;
        let strategy = prop::collection::vec(prop::collection::vec(1_u64..60, 0..12), 1..8);
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        for boot in 0..25 {
            let calls = strategy.new_tree(&mut runner).unwrap().current();
            ranges_are_a_set(&bench, 1000 + boot, &calls).await;
        }
    }

    async fn events_are_found_by_agent_type_class_and_time(bench) {
        bench.agent(1).await;
        bench.agent(2).await;
        for (agent, seconds, kind) in [(1, 10, "file"), (2, 20, "network"), (1, 30, "alert"), (2, 40, "file")] {
            let mut batch = batch(agent, 100, [u64::try_from(seconds).unwrap()]);
            batch.received_at = at(seconds);
            batch.events[0].kind = kind.into();
            batch.events[0].class = if kind == "alert" { Priority::High } else { Priority::Normal };
            bench.db.ingest(T, &[batch]).await.unwrap();
        }
        let find = async |filter: EventFilter| -> Vec<u64> {
            let page = bench.db.events(T, &filter, &PageRequest::default()).await.unwrap();
            page.items.iter().map(|event| event.seq).collect()
        };
        assert_eq!(find(EventFilter::default()).await, [40, 30, 20, 10]);
        assert_eq!(find(EventFilter { oldest_first: true, ..EventFilter::default() }).await, [10, 20, 30, 40]);
        assert_eq!(find(EventFilter { agent: Some(id(2)), ..EventFilter::default() }).await, [40, 20]);
        assert_eq!(find(EventFilter { kind: Some("file".into()), ..EventFilter::default() }).await, [40, 10]);
        assert_eq!(find(EventFilter { class: Some(Priority::High), ..EventFilter::default() }).await, [30]);
        let between = EventFilter { since: Some(at(20)), until: Some(at(40)), ..EventFilter::default() };
        assert_eq!(find(between.clone()).await, [30, 20]);
        assert_eq!(find(EventFilter { agent: Some(id(2)), ..between }).await, [20]);
    }

    async fn events_within_tags_are_paged_as_if_there_were_no_others(bench) {
        let silent = (100..125).map(|number| (number, "ours"));
        for (number, tag) in [(1, "ours"), (2, "theirs"), (3, "ours"), (4, "none")].into_iter().chain(silent) {
            let mut new = crate::bench::new_agent(number);
            new.tags = [tag.to_owned(), "all".to_owned()].into();
            bench.db.create_agent(T, &new, at(0)).await.unwrap();
        }
        for seconds in 1..=30_u32 {
            let seconds = u64::from(seconds);
            let mut batch = batch(1 + u128::from(seconds % 3), 100, [seconds]);
            batch.received_at = at(i64::try_from(seconds).unwrap());
            bench.db.ingest(T, &[batch]).await.unwrap();
        }
        let within = |tag: &str| Some([tag.to_owned()].into());
        let wanted: Vec<u64> = (1..=30).filter(|seconds| seconds % 3 != 1).collect();
        // Of few agents, and of so many that the list is gone through instead.
        for limit in [1, 7, 20, 1000] {
            for oldest_first in [true, false] {
                let filter = EventFilter { within: within("ours"), oldest_first, ..EventFilter::default() };
                let (mut seqs, mut request) = (Vec::new(), PageRequest::first(limit));
                loop {
                    let page = bench.db.events(T, &filter, &request).await.unwrap();
                    assert!(page.next.is_none() || page.items.len() == limit as usize);
                    seqs.extend(page.items.iter().map(|event| event.seq));
                    let Some(next) = page.next else { break };
                    request = PageRequest::after(next, limit);
                }
                if !oldest_first {
                    seqs.reverse();
                }
                assert_eq!(seqs, wanted, "{limit} at a time");
            }
        }
        for tag in ["none", "nobody"] {
            let filter = EventFilter { within: within(tag), ..EventFilter::default() };
            let page = bench.db.events(T, &filter, &PageRequest::first(1)).await.unwrap();
            assert_eq!((page.items.len(), page.next), (0, None), "{tag}");
        }
        let foreign = EventFilter { within: within("ours"), agent: Some(id(2)), ..EventFilter::default() };
        assert_eq!(bench.db.events(T, &foreign, &PageRequest::first(5)).await.unwrap().items, []);
    }

    async fn a_list_of_events_gives_each_once_while_more_come(bench) {
        bench.agent(1).await;
        bench.db.ingest(T, &[batch(1, 100, 1..=100)]).await.unwrap();
        let added = std::sync::atomic::AtomicU64::new(101);
        let filter = EventFilter::default();
        let listed = all(9, async |page| {
            let seq = added.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut more = batch(1, 100, [seq]);
            // By a clock that steps back and forth.
            more.received_at = at(if seq.is_multiple_of(2) { 5 } else { 500 });
            bench.db.ingest(T, &[more]).await.unwrap();
            bench.db.events(T, &filter, &page).await
        })
        .await;
        let mut seqs: Vec<u64> = listed.iter().map(|event| event.seq).collect();
        seqs.sort_unstable();
        let before = seqs.len();
        seqs.dedup();
        assert_eq!(seqs.len(), before, "an event was listed twice");
        assert!((1..=100).all(|seq| seqs.contains(&seq)), "an event was left out");
    }

    async fn a_reader_gets_the_events_of_its_shards_in_the_order_of_commits(bench) {
        bench.agent(1).await;
        for seq in 1..=40 {
            let mut batch = batch(1, 100, [seq]);
            batch.events[0].kind = ["file", "network", "gap", "hitherto_unknown"][usize::try_from(seq % 4).unwrap()].into();
            bench.db.ingest(T, &[batch]).await.unwrap();
        }
        assert_eq!(tail(&bench, &[], 7).await, (1..=40).collect::<Vec<_>>());
        assert_eq!(tail(&bench, &[Shard::File], 3).await, (1..=10).map(|n| n * 4).collect::<Vec<_>>());
        let two = tail(&bench, &[Shard::Network, Shard::Other], 100).await;
        assert_eq!(two, (1..=40).filter(|seq| seq % 4 != 0).collect::<Vec<_>>());
        assert_eq!(tail(&bench, &[Shard::Alert], 5).await, [0_u64; 0]);
        let end = bench.db.events_horizon(T).await.unwrap();
        bench.db.ingest(T, &[batch(1, 100, [41])]).await.unwrap();
        bench.settle().await;
        let from_now_on = bench.db.events_after(T, end, &[], 10).await.unwrap();
        assert_eq!(from_now_on.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [41]);
        let text = from_now_on.next.to_string();
        assert_eq!(text.parse::<Position>().unwrap(), from_now_on.next);
    }

    async fn a_reader_passes_over_what_is_for_others_however_much(bench) {
        bench.agent(1).await;
        bench.db.ingest(T, &[batch(1, 100, 1..=30_000)]).await.unwrap();
        let mut batch = batch(1, 100, [30_001]);
        batch.events[0].kind = "network".into();
        bench.db.ingest(T, &[batch]).await.unwrap();
        assert_eq!(tail(&bench, &[Shard::Network], 5).await, [30_001]);
        assert_eq!(tail(&bench, &[Shard::Network, Shard::Alert], 5).await, [30_001]);
        assert_eq!(tail(&bench, &[Shard::Alert], 5).await, [0_u64; 0]);
        assert_eq!(tail(&bench, &[], 5000).await, (1..=30_001).collect::<Vec<_>>());
    }

    async fn a_call_takes_no_more_than_it_says(bench) {
        bench.agent(1).await;
        let too_many = batch(1, 100, 1..=INGEST_MAX_EVENTS as u64 + 1);
        assert!(matches!(bench.db.ingest(T, &[too_many]).await, Err(DbError::Invalid { .. })));
        assert_eq!(bench.db.ingest(T, &[]).await.unwrap(), []);
        assert_eq!(bench.db.ingest(T, &[batch(1, 100, [])]).await.unwrap(), [stored(0, 0)]);
    }
}

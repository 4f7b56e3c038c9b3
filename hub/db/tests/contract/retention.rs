//! What goes when its time has come, and what stays after a restart.

use crate::bench::{Bench, T, at, batch, id, matched, server};
use crate::cases::delivery;
use crate::contract;
use crate::enrolment::token;
use crate::findings::found;
use picket_hub_db::{
    EventFilter, FindingUpdate, NewCase, NewState, Options, PageRequest, Removed, Retention, Severity, open,
};

const DAY: i64 = 86_400;

/// Removes until nothing is left.
async fn remove(bench: &Bench, retention: &Retention) -> Removed {
    let mut total = Removed::default();
    loop {
        let step = bench.db.remove_old(T, retention).await.unwrap();
        total.events += step.events;
        total.partitions += step.partitions;
        total.findings += step.findings;
        total.deliveries += step.deliveries;
        total.enrolment += step.enrolment;
        total.ended += step.ended;
        if !step.more {
            return total;
        }
    }
}

/// A reader that takes its time keeps the day that it reads, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_cannot_go_yet_keep_nothing_else_and_nobody_waiting() {
    let bench = Bench::postgres().await;
    bench.agent(1).await;
    bench.db.ingest(T, &[batch(1, 100, 1..10)]).await.unwrap();
    let made = found(&bench, vec![matched("r", "1", &[1])]).await;
    let resolve = FindingUpdate { state: Some(NewState::Resolved), ..FindingUpdate::default() };
    bench.db.change_finding(T, made[0].id, None, &resolve, "ada", at(200)).await.unwrap();
    let location = bench.location();
    let database = location.rsplit('/').next().unwrap().to_owned();
    let reading = database.clone();
    let reader = tokio::task::spawn_blocking(move || {
        server()
            .sql(&reading, "SELECT count(*) FROM events; SELECT 1 FROM (SELECT pg_sleep(8), count(*) FROM events) x")
    });
    let waits = move || {
        let sql = "SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
                   WHERE a.query LIKE '%pg_sleep(8)%' AND a.pid <> pg_backend_pid() AND l.relation = 'events'::regclass";
        picket_testkit::wait_until("the reader to read", || server().sql(&database, sql) == "t");
    };
    tokio::task::spawn_blocking(waits).await.unwrap();
    let began = std::time::Instant::now();
    let all = Retention {
        now: at(9 * DAY),
        events_before: Some(at(9 * DAY)),
        findings_before: Some(at(1000)),
        ..Retention::default()
    };
    let told = bench.db.remove_old(T, &all).await.unwrap_err();
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}: {told}", began.elapsed());
    assert_eq!(bench.db.finding(T, made[0].id).await.unwrap(), None, "findings go all the same");
    reader.await.unwrap();
    assert!(remove(&bench, &all).await.partitions > 0);
}

contract! {
    async fn events_older_than_their_time_go_and_the_books_stay(bench) {
        bench.agent(1).await;
        for day in 0..4 {
            let first = u64::try_from(day).unwrap() * 10 + 1;
            let mut batch = batch(1, 100, first..first + 10);
            batch.received_at = at(day * DAY);
            bench.db.ingest(T, &[batch]).await.unwrap();
        }
        let before: jiff::Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        remove(&bench, &Retention { events_before: Some(before), now: at(4 * DAY), ..Retention::default() }).await;
        let left = bench.db.events(T, &EventFilter::default(), &PageRequest::default()).await.unwrap().items;
        assert_eq!(left.iter().map(|event| event.seq).min(), Some(21));
        assert_eq!(left.len(), 20);
        let book = bench.db.agent_book(T, id(1)).await.unwrap().unwrap();
        assert_eq!(book.totals.records, 40);
        let again = bench.db.ingest(T, &[batch(1, 100, [1])]).await.unwrap();
        assert_eq!(again[0].duplicates, 1, "what was removed does not come back");
        let stats = bench.db.stats(T).await.unwrap();
        assert_eq!(stats.oldest_event, Some(at(2 * DAY)));
        bench.db.maintain(at(4 * DAY)).await.unwrap();
    }

    async fn resolved_findings_go_unless_they_are_in_a_case(bench) {
        let made = found(&bench, (1..=4).map(|n| matched("r", &n.to_string(), &[n])).collect()).await;
        let resolve = FindingUpdate { state: Some(NewState::Resolved), ..FindingUpdate::default() };
        for finding in &made[..3] {
            bench.db.change_finding(T, finding.id, None, &resolve, "ada", at(200)).await.unwrap();
        }
        let case = NewCase {
            id: id(1),
            title: "kept".into(),
            description: String::new(),
            severity: Severity::Low,
            assignee: None,
            findings: vec![made[0].id],
            deliveries: Vec::new(),
        };
        bench.db.create_case(T, &case, "ada", at(201)).await.unwrap();
        let removed = remove(&bench, &Retention { findings_before: Some(at(1000)), now: at(1000), ..Retention::default() }).await;
        assert_eq!(removed.findings, 2);
        for (finding, stays) in made.iter().zip([true, false, false, true]) {
            assert_eq!(bench.db.finding(T, finding.id).await.unwrap().is_some(), stays);
        }
        assert_eq!(bench.db.evidence(T, made[1].id, &PageRequest::default()).await.unwrap().items, []);
    }

    async fn deliveries_and_tokens_have_a_time_of_their_own_and_what_waits_stays(bench) {
        bench.db.enqueue_deliveries(T, &[delivery(1, 0), delivery(2, 900)], at(0)).await.unwrap();
        let claimed = bench.db.claim_deliveries(T, "a", at(10), at(40), 10, &[]).await.unwrap();
        assert_eq!(claimed.len(), 1, "the other one is not due");
        assert!(bench.db.delivery_done(T, id(1), "a", at(20)).await.unwrap());
        bench.db.create_enrol_token(T, &token(1), at(0)).await.unwrap();
        let old = |deliveries, enrolment| Retention {
            deliveries_before: deliveries,
            enrolment_before: enrolment,
            now: at(5000),
            ..Retention::default()
        };
        let gone = remove(&bench, &old(None, None)).await;
        assert_eq!((gone.deliveries, gone.enrolment), (0, 0));
        let gone = remove(&bench, &old(Some(at(1000)), None)).await;
        assert_eq!((gone.deliveries, gone.enrolment), (1, 0), "the one that waits stays");
        let gone = remove(&bench, &old(None, Some(at(1800)))).await;
        assert_eq!(gone.enrolment, 0, "it had not ended then");
        let gone = remove(&bench, &old(None, Some(at(1801)))).await;
        assert_eq!((gone.deliveries, gone.enrolment), (0, 1));
        assert_eq!(bench.db.enrol_token(T, token(1).id).await.unwrap(), None);
        assert_eq!(bench.db.deliveries(T, None, &PageRequest::default()).await.unwrap().items.len(), 1);
    }

    async fn what_is_measured_is_what_is_there(bench) {
        bench.agent(1).await;
        bench.agent(2).await;
        bench.db.retire_agent(T, id(2), "ada", at(1)).await.unwrap();
        bench.db.ingest(T, &[batch(1, 100, 1..=30)]).await.unwrap();
        found(&bench, vec![matched("r", "k", &[1])]).await;
        let stats = bench.db.stats(T).await.unwrap();
        assert_eq!((stats.agents, stats.findings, stats.streams, stats.deliveries_waiting), (1, 1, 1, 0));
        assert_eq!(stats.oldest_event, Some(at(10)));
        assert!(stats.size_bytes > 10_000 && stats.schema >= 1, "{stats:?}");
        bench.db.ping().await.unwrap();
    }

    async fn everything_is_there_after_a_restart(bench) {
        bench.agent(1).await;
        bench.db.ingest(T, &[batch(1, 100, 1..=30)]).await.unwrap();
        bench.settle().await;
        let before = bench.db.events_after(T, picket_hub_db::Position::START, &[], 100).await.unwrap();
        found(&bench, vec![matched("r", "k", &[1])]).await;
        bench.db.close().await;
        assert!(bench.db.ping().await.is_err(), "it is closed");
        assert!(bench.db.agent(T, id(1)).await.is_err(), "it is closed");
        let again = bench.again().await;
        let events = again.events_after(T, picket_hub_db::Position::START, &[], 100).await.unwrap();
        assert_eq!(events.events, before.events);
        assert_eq!(again.ingest(T, &[batch(1, 100, 1..=31)]).await.unwrap()[0].duplicates, 30);
        bench.settle().await;
        let more = again.events_after(T, events.next, &[], 100).await.unwrap();
        assert_eq!(more.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [31]);
        assert_eq!(again.findings(T, &picket_hub_db::FindingFilter::default(), &PageRequest::default()).await.unwrap().items.len(), 1);
    }

    async fn who_only_looks_opens_a_database_that_is_up_to_date(bench) {
        let looking = Options { migrate: false, ..Options::default() };
        let other = open(&bench.location(), &looking).await.unwrap();
        assert_eq!(other.tenants().await.unwrap().len(), 1);
    }
}

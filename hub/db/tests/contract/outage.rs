//! A server that is killed, and what is told and kept meanwhile.

use crate::bench::{T, at, batch, id, new_agent};
use picket_hub_db::{DbError, Options, Position, open};
use picket_testkit::postgres::Postgres;
use std::time::Duration;

fn options() -> Options {
    Options { connections: 4, wait: Duration::from_secs(2), connect: Duration::from_secs(2), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_before_a_crash_of_the_server_is_there_after_it() {
    let mut server = Postgres::start_new(true);
    server.create_database("hub");
    let db = open(&server.url("hub"), &options()).await.unwrap();
    db.ensure_default_tenant(at(0)).await.unwrap();
    db.create_agent(T, &new_agent(1), at(0)).await.unwrap();
    let mut stored = 0;
    for round in 0..3_u64 {
        // Writers that are cut off in the middle: each call is stored whole or not at all.
        let writers: Vec<_> = (0..4_u64)
            .map(|writer| {
                let db = std::sync::Arc::clone(&db);
                tokio::spawn(async move {
                    let mut acknowledged = 0;
                    for call in 0..1000 {
                        let boot = u128::from(round * 10 + writer + 1);
                        let first = call * 20 + 1;
                        match db.ingest(T, &[batch(1, boot, first..first + 20)]).await {
                            Ok(outcomes) => acknowledged += outcomes[0].records,
                            Err(error) => {
                                assert!(error.is_transient(), "{error:?}");
                                return acknowledged;
                            }
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        let reached = stored + 400;
        picket_testkit::wait_until("some events to be stored", || {
            server.sql("hub", "SELECT coalesce(sum(records), 0) FROM streams").parse::<u64>().unwrap() > reached
        });
        let server = &mut server;
        tokio::task::block_in_place(|| server.kill());
        for writer in writers {
            stored += writer.await.unwrap();
        }
        let told = db.ping().await.unwrap_err();
        assert!(matches!(told, DbError::Unavailable { .. }), "{told:?}");
        tokio::task::block_in_place(|| server.start());
    }
    let book = db.agent_book(T, id(1)).await.unwrap().unwrap();
    assert!(book.totals.records >= stored, "{} events were acknowledged, {} are there", stored, book.totals.records);
    let (mut read, mut position) = (0, Position::START);
    loop {
        let tail = db.events_after(T, position, &[], 5000).await.unwrap();
        read += tail.events.len() as u64;
        position = tail.next;
        if tail.at_end {
            break;
        }
    }
    assert_eq!(read, book.totals.records, "the books say what is there");
    assert_eq!(book.totals.duplicates, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_told_in_time_and_without_its_password() {
    let began = std::time::Instant::now();
    let told = open("postgres://ada:hunter2@127.0.0.1:1/hub", &options()).await.map(drop).unwrap_err();
    assert!(matches!(told, DbError::Unavailable { .. }), "{told:?}");
    assert!(told.to_string().contains("cannot be reached") && !format!("{told:?}").contains("hunter2"), "{told}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_once_make_one_schema() {
    let url = tokio::task::spawn_blocking(|| {
        crate::bench::server().create_database("together");
        crate::bench::server().url("together")
    });
    let url = url.await.unwrap();
    let replicas: Vec<_> = (0..5)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { open(&url, &options()).await.map(drop) })
        })
        .collect();
    for replica in replicas {
        replica.await.unwrap().unwrap();
    }
    let looking = Options { migrate: false, ..options() };
    open(&url, &looking).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_a_later_schema_or_of_none_is_refused_to_who_only_looks() {
    let urls = tokio::task::spawn_blocking(|| {
        let server = crate::bench::server();
        ["later", "empty"].map(|name| {
            server.create_database(name);
            server.url(name)
        })
    });
    let [later, empty] = urls.await.unwrap();
    open(&later, &options()).await.unwrap().close().await;
    let raise = "INSERT INTO refinery_schema_history VALUES (999, 'later', '2030-01-01T00:00:00Z', '1')";
    tokio::task::spawn_blocking(move || crate::bench::server().sql("later", raise)).await.unwrap();
    let told = open(&later, &options()).await.map(drop).unwrap_err();
    assert!(matches!(told, DbError::Newer { found: 999, .. }), "{told:?}");
    let looking = Options { migrate: false, ..options() };
    let told = open(&empty, &looking).await.map(drop).unwrap_err();
    assert!(matches!(told, DbError::Invalid { .. }), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_let_the_hub_in_is_away_and_nothing_that_was_asked_is_wrong() {
    let url = tokio::task::spawn_blocking(|| crate::bench::server().url("nowhere")).await.unwrap();
    let told = open(&url, &options()).await.map(drop).unwrap_err();
    assert!(matches!(told, DbError::Unavailable { .. }) && told.to_string().contains("let the hub in"), "{told:?}");
    let stranger = url.replace("postgres@", "stranger@");
    let told = open(&stranger, &options()).await.map(drop).unwrap_err();
    assert!(matches!(told, DbError::Unavailable { .. }) && told.to_string().contains("let the hub in"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_becomes_a_standby_is_away_and_its_connections_are_left() {
    let server = tokio::task::spawn_blocking(|| Postgres::start_new(false)).await.unwrap();
    server.create_database("hub");
    let db = open(&server.url("hub"), &options()).await.unwrap();
    db.ensure_default_tenant(at(0)).await.unwrap();
    db.create_agent(T, &new_agent(1), at(0)).await.unwrap();
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'picket-hub'";
    let read_only = |on: &str| {
        server.sql("hub", &format!("ALTER SYSTEM SET default_transaction_read_only = {on}"));
        server.sql("hub", "SELECT pg_reload_conf()");
        picket_testkit::wait_until("the server to take that over", || {
            server.sql("hub", "SHOW default_transaction_read_only") == on
        });
    };
    read_only("on");
    // Until no connection is left; then none that could be made takes writes.
    for attempt in 1.. {
        let stored = db.ingest(T, &[batch(1, 1, 1..11)]).await.unwrap_err();
        assert!(matches!(stored, DbError::Unavailable { .. }), "{stored:?}");
        let written = db.create_agent(T, &new_agent(2), at(0)).await.unwrap_err();
        assert!(matches!(written, DbError::Unavailable { .. }), "{written:?}");
        if server.sql("hub", sessions) == "0" {
            break;
        }
        assert!(attempt < 10, "connections to a server that takes no writes are kept");
    }
    read_only("off");
    assert_eq!(db.ingest(T, &[batch(1, 1, 1..11)]).await.unwrap()[0].records, 10);
}

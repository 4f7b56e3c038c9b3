//! What a killed server costs.

use bytes::Bytes;
use picket_bus::{Bus, BusError, Enqueued, Heard, QueueSpec, Subject};
use picket_testkit::NatsServer;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, TENANT, connect, everything, item, next, settings, spec};

/// Waits until the bus has seen what is so.
async fn connected(bus: &dyn Bus, so: bool) {
    let seen = tokio::time::timeout(PATIENCE, async {
        while bus.health().connected != so {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    seen.await.expect("the bus never noticed");
}

/// The sentence that everything rests on: acknowledged is kept, whatever happens to the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_again_and_again_loses_nothing_that_it_acknowledged_and_doubles_nothing() {
    let mut server = NatsServer::start();
    let bus = connect(&server).await;
    let spec = QueueSpec { lease: Duration::from_secs(2), dedupe_window: Duration::from_secs(300), ..spec() };
    let queue = bus.queue(&spec).await.unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let sender = {
        let (queue, sent) = (Arc::clone(&queue), Arc::clone(&sent));
        tokio::spawn(async move {
            for n in 0..1500 {
                // As an agent does: the same id until it is acknowledged.
                while queue.enqueue(item(&n.to_string())).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                sent.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    for round in 1..=3 {
        // In the midst of it, each time.
        let under_way = tokio::time::timeout(PATIENCE, async {
            while sent.load(Ordering::Relaxed) < round * 100 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        under_way.await.expect("nothing is sent");
        assert!(!sender.is_finished(), "all was sent before the server was killed for the last time");
        server.kill();
        connected(&bus, false).await;
        server.start_again();
        connected(&bus, true).await;
    }
    tokio::time::timeout(PATIENCE * 2, sender).await.expect("the sender never got through").unwrap();
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    let began = Instant::now();
    while counts.len() < 1500 || !queue.pull(1, Duration::from_millis(300)).await.unwrap().is_empty() {
        assert!(began.elapsed() < PATIENCE * 2, "{} of 1500 came", counts.len());
        for delivery in queue.pull(200, Duration::from_secs(3)).await.unwrap() {
            *counts.entry(delivery.item.id.parse().unwrap()).or_default() += 1;
            delivery.ack().await.unwrap();
        }
    }
    assert_eq!(counts.len(), 1500);
    assert!(counts.values().all(|count| *count == 1), "some came twice");
    assert!(bus.health().reconnects >= 3, "{:?}", bus.health());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_in_hand_or_waiting_when_the_server_died_comes_again() {
    let mut server = NatsServer::start();
    let bus = connect(&server).await;
    let queue = bus.queue(&QueueSpec { lease: Duration::from_secs(1), ..spec() }).await.unwrap();
    for id in ["done", "in hand", "waiting"] {
        queue.enqueue(item(id)).await.unwrap();
    }
    let mut taken = queue.pull(2, PATIENCE).await.unwrap();
    taken.remove(0).ack().await.unwrap();
    server.kill();
    connected(&bus, false).await;
    assert!(matches!(taken.remove(0).ack().await, Err(BusError::Disconnected | BusError::TimedOut(_))));
    server.start_again();
    connected(&bus, true).await;
    assert_eq!(
        queue.enqueue(item("waiting")).await.unwrap(),
        Enqueued::Duplicate,
        "its id is remembered over the restart"
    );
    let mut came = std::collections::BTreeSet::new();
    let began = Instant::now();
    while !(came.contains("in hand") && came.contains("waiting")) && began.elapsed() < PATIENCE {
        for delivery in queue.pull(10, Duration::from_secs(2)).await.unwrap() {
            came.insert(delivery.item.id.clone());
            delivery.ack().await.unwrap();
        }
    }
    // "done" may come again as well: the server is killed right after it confirmed that.
    assert!(came.contains("in hand") && came.contains("waiting"), "{came:?}");
    for delivery in queue.pull(10, Duration::from_millis(1500)).await.unwrap() {
        assert_eq!(delivery.item.id, "done");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_away_everything_fails_soon_in_words_and_afterwards_all_goes_on() {
    let mut server = NatsServer::start();
    let bus = connect(&server).await;
    let queue = bus.queue(&spec()).await.unwrap();
    let subject = Subject::stored(TENANT);
    let mut subscription = bus.subscribe(&everything(), 10).await.unwrap();
    server.kill();
    connected(&bus, false).await;
    let began = Instant::now();
    let mut errors = Vec::new();
    errors.extend(bus.publish(&subject, Bytes::new()).await.err());
    errors.extend(bus.subscribe(&everything(), 1).await.err());
    errors.extend(bus.queue(&spec()).await.err());
    errors.extend(queue.enqueue(item("a")).await.err());
    errors.extend(queue.pull(1, Duration::from_secs(60)).await.err());
    errors.extend(queue.depth().await.err());
    assert_eq!(errors.len(), 6);
    assert!(errors.iter().all(BusError::is_transient), "{errors:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(next(&mut subscription).await, Heard::Interrupted, "who listens is told");
    server.start_again();
    connected(&bus, true).await;
    let heard = tokio::time::timeout(PATIENCE, async {
        // The server hears of the old subscription with the new connection.
        loop {
            bus.publish(&subject, Bytes::from_static(b"again")).await.unwrap();
            if let Ok(Some(Heard::Message { body, .. })) =
                tokio::time::timeout(Duration::from_millis(500), subscription.next()).await
            {
                return body;
            }
        }
    });
    assert_eq!(heard.await.unwrap(), "again");
    assert_eq!(queue.enqueue(item("a")).await.unwrap(), Enqueued::New);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_said_so() {
    let mut server = NatsServer::start();
    server.kill();
    let error = picket_bus::NatsBus::connect(settings(&server)).await.unwrap_err();
    assert!(matches!(error, BusError::Connect { .. }) && error.to_string().contains(&server.url()), "{error}");
}

//! What a bus promises, whichever it is.

use bytes::Bytes;
use picket_bus::{Bus, BusError, Delivery, Enqueued, Heard, MAX_MESSAGE, Pattern, Queue, QueueSpec, Subject};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

use crate::support::{AGENT, PATIENCE, Replicas, TENANT, everything, item, next, said, spec, until};

macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod in_process {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(crate::support::memory().await).await; })*
        }
        mod over_nats {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(crate::support::nats().await).await; })*
        }
    };
}

contract!(
    every_subscriber_hears_what_it_listens_to_and_nothing_else,
    a_slow_subscriber_counts_its_losses_is_told_and_keeps_nobody_waiting,
    an_item_is_handled_by_exactly_one_of_several_consumers,
    what_is_not_acknowledged_comes_again_and_counts,
    what_is_acknowledged_never_comes_again,
    a_consumer_keeps_its_item_as_long_as_it_says_so,
    what_is_given_back_comes_again_after_its_delay,
    the_same_id_is_taken_once_within_the_window_and_again_after_it,
    a_full_queue_refuses_what_is_new_and_keeps_what_it_has,
    an_item_arrives_as_it_was_sent,
    what_an_agent_says_where_the_queue_listens_falls_into_it,
    what_cannot_be_sent_is_refused_before_it_is,
    a_pull_waits_for_the_first_item_and_not_for_all,
    a_queue_tells_how_full_it_is,
    a_closed_bus_ends_its_subscriptions,
);

async fn pull(queue: &Arc<dyn Queue>, max: usize) -> Vec<Delivery> {
    queue.pull(max, PATIENCE).await.unwrap()
}

async fn is_empty(queue: &Arc<dyn Queue>) -> bool {
    queue.pull(10, Duration::from_millis(300)).await.unwrap().is_empty()
}

fn short(lease: u64) -> QueueSpec {
    QueueSpec { lease: Duration::from_millis(lease), ..spec() }
}

async fn every_subscriber_hears_what_it_listens_to_and_nothing_else(replicas: Replicas) {
    let (stored, rules) = (Subject::stored(TENANT), Subject::rules(TENANT));
    let mut all = replicas.one.subscribe(&everything(), 10).await.unwrap();
    let mut one = replicas.two.subscribe(&stored.clone().into(), 10).await.unwrap();
    let mut other = replicas.two.subscribe(&Pattern::tenant(Uuid::from_u128(2)), 10).await.unwrap();
    replicas.two.publish(&rules, Bytes::from_static(b"1")).await.unwrap();
    replicas.two.publish(&stored, Bytes::from_static(b"2")).await.unwrap();
    replicas.two.publish(&Subject::stored(Uuid::from_u128(2)), Bytes::from_static(b"3")).await.unwrap();
    assert_eq!(next(&mut all).await, said(&rules, "1"));
    assert_eq!(next(&mut all).await, said(&stored, "2"));
    assert_eq!(next(&mut one).await, said(&stored, "2"));
    assert_eq!(next(&mut other).await, said(&Subject::stored(Uuid::from_u128(2)), "3"));
    assert!(replicas.two.health().connected && replicas.two.health().published >= 3);
}

async fn a_slow_subscriber_counts_its_losses_is_told_and_keeps_nobody_waiting(replicas: Replicas) {
    let subject = Subject::stored(TENANT);
    let mut slow = replicas.one.subscribe(&everything(), 5).await.unwrap();
    let mut quick = replicas.one.subscribe(&everything(), 2000).await.unwrap();
    let began = Instant::now();
    for n in 0..1000 {
        replicas.two.publish(&subject, Bytes::from(n.to_string())).await.unwrap();
    }
    replicas.two.publish(&subject, Bytes::from_static(b"last")).await.unwrap();
    assert_eq!(until(&mut quick, "last").await.len(), 1000, "the other subscriber hears all");
    assert!(began.elapsed() < PATIENCE);
    let lost = tokio::time::timeout(PATIENCE, async {
        while slow.lost() < 996 {
            tokio::task::yield_now().await;
        }
        slow.lost()
    });
    assert_eq!(lost.await.unwrap(), 996);
    assert_eq!(next(&mut slow).await, Heard::Lost(996));
    for n in ["0", "1", "2", "3", "4"] {
        assert_eq!(next(&mut slow).await, said(&subject, n));
    }
    assert_eq!(replicas.one.health().lost, 996);
    replicas.two.publish(&subject, Bytes::from_static(b"again")).await.unwrap();
    assert_eq!(next(&mut slow).await, said(&subject, "again"), "it goes on hearing");
}

async fn an_item_is_handled_by_exactly_one_of_several_consumers(replicas: Replicas) {
    const ITEMS: usize = 200;
    let queue = replicas.one.queue(&spec()).await.unwrap();
    for n in 0..ITEMS {
        assert_eq!(queue.enqueue(item(&n.to_string())).await.unwrap(), Enqueued::New);
    }
    let (sender, mut handled) = tokio::sync::mpsc::unbounded_channel();
    let mut consumers = Vec::new();
    for n in 0..4 {
        let bus = if n % 2 == 0 { &replicas.one } else { &replicas.two };
        let (queue, sender) = (bus.queue(&spec()).await.unwrap(), sender.clone());
        consumers.push(tokio::spawn(async move {
            loop {
                for delivery in queue.pull(7, Duration::from_secs(1)).await.unwrap() {
                    sender.send(delivery.item.id.clone()).unwrap();
                    delivery.ack().await.unwrap();
                }
            }
        }));
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    while counts.len() < ITEMS {
        let id = tokio::time::timeout(PATIENCE, handled.recv()).await.expect("an item was handled by nobody").unwrap();
        *counts.entry(id).or_default() += 1;
    }
    assert!(is_empty(&queue).await);
    consumers.iter().for_each(tokio::task::JoinHandle::abort);
    while let Ok(id) = handled.try_recv() {
        *counts.entry(id).or_default() += 1;
    }
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
}

async fn what_is_not_acknowledged_comes_again_and_counts(replicas: Replicas) {
    let queue = replicas.one.queue(&short(300)).await.unwrap();
    queue.enqueue(item("a")).await.unwrap();
    for deliveries in 1..=3 {
        let again = pull(&queue, 10).await;
        assert_eq!(again.iter().map(|d| (d.item.id.as_str(), d.deliveries)).collect::<Vec<_>>(), [("a", deliveries)]);
    }
    assert!(replicas.one.health().redeliveries >= 2);
}

async fn what_is_acknowledged_never_comes_again(replicas: Replicas) {
    let queue = replicas.one.queue(&short(300)).await.unwrap();
    for id in ["a", "b", "c"] {
        queue.enqueue(item(id)).await.unwrap();
    }
    for delivery in pull(&queue, 3).await {
        if delivery.item.id != "b" {
            delivery.ack().await.unwrap();
        }
    }
    for _ in 0..3 {
        let again = pull(&queue, 10).await;
        assert_eq!(again.iter().map(|d| d.item.id.as_str()).collect::<Vec<_>>(), ["b"]);
    }
}

async fn a_consumer_keeps_its_item_as_long_as_it_says_so(replicas: Replicas) {
    let queue = replicas.one.queue(&short(600)).await.unwrap();
    let other = replicas.two.queue(&short(600)).await.unwrap();
    queue.enqueue(item("a")).await.unwrap();
    let delivery = pull(&queue, 1).await.remove(0);
    for _ in 0..6 {
        delivery.in_progress().await.unwrap();
        assert!(is_empty(&other).await, "somebody else got it");
    }
    delivery.ack().await.unwrap();
    assert!(is_empty(&other).await);
}

async fn what_is_given_back_comes_again_after_its_delay(replicas: Replicas) {
    let queue = replicas.one.queue(&spec()).await.unwrap();
    queue.enqueue(item("a")).await.unwrap();
    pull(&queue, 1).await.remove(0).nak(Duration::from_millis(700)).await.unwrap();
    let began = Instant::now();
    let again = pull(&queue, 1).await.remove(0);
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(15), "it waited for the lease instead");
    assert_eq!(again.deliveries, 2);
}

async fn the_same_id_is_taken_once_within_the_window_and_again_after_it(replicas: Replicas) {
    let spec = QueueSpec { dedupe_window: Duration::from_millis(1500), ..spec() };
    let queue = replicas.one.queue(&spec).await.unwrap();
    let other = replicas.two.queue(&spec).await.unwrap();
    let began = Instant::now();
    assert_eq!(queue.enqueue(item("a")).await.unwrap(), Enqueued::New);
    assert_eq!(other.enqueue(item("a")).await.unwrap(), Enqueued::Duplicate);
    pull(&queue, 1).await.remove(0).ack().await.unwrap();
    if began.elapsed() < Duration::from_secs(1) {
        assert_eq!(queue.enqueue(item("a")).await.unwrap(), Enqueued::Duplicate, "also when it is done");
    }
    assert!(is_empty(&queue).await);
    let taken = tokio::time::timeout(PATIENCE, async {
        while queue.enqueue(item("a")).await.unwrap() == Enqueued::Duplicate {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    taken.await.expect("the id was never forgotten");
    assert!(began.elapsed() >= Duration::from_millis(1400));
    assert_eq!(pull(&queue, 10).await.len(), 1);
}

async fn a_full_queue_refuses_what_is_new_and_keeps_what_it_has(replicas: Replicas) {
    let queue = replicas.one.queue(&QueueSpec { max_items: 3, ..spec() }).await.unwrap();
    for id in ["a", "b", "c"] {
        queue.enqueue(item(id)).await.unwrap();
    }
    let error = queue.enqueue(item("d")).await.unwrap_err();
    assert!(matches!(error, BusError::Full { .. }) && error.is_transient(), "{error:?}");
    let mut first = pull(&queue, 10).await;
    assert_eq!(first.iter().map(|d| d.item.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    first.remove(0).ack().await.unwrap();
    assert_eq!(queue.enqueue(item("d")).await.unwrap(), Enqueued::New, "there is room again");
}

async fn an_item_arrives_as_it_was_sent(replicas: Replicas) {
    let queue = replicas.one.queue(&spec()).await.unwrap();
    let mut sent = item("id-1");
    sent.reply = Some(Subject::inbox(TENANT, AGENT, "q7").unwrap().to_string());
    sent.headers = vec![("Batch".into(), "17".into()), ("Encoding".into(), "zstd, level 3".into())];
    sent.body = Bytes::from((0..=255u8).cycle().take(100_000).collect::<Vec<u8>>());
    queue.enqueue(sent.clone()).await.unwrap();
    let came = replicas.two.queue(&spec()).await.unwrap().pull(1, PATIENCE).await.unwrap().remove(0);
    assert_eq!((came.item, came.deliveries), (sent, 1));
}

async fn what_an_agent_says_where_the_queue_listens_falls_into_it(replicas: Replicas) {
    let queue = replicas.one.queue(&spec()).await.unwrap();
    replicas.two.publish(&Subject::events(TENANT, AGENT), Bytes::from_static(b"batch")).await.unwrap();
    let came = pull(&queue, 1).await.remove(0);
    assert_eq!((came.item.id.as_str(), came.item.body.as_ref()), ("", &b"batch"[..]));
    assert_eq!(Subject::parse_events(came.item.subject.as_str()).unwrap(), (TENANT, AGENT));
}

async fn what_cannot_be_sent_is_refused_before_it_is(replicas: Replicas) {
    let queue = replicas.one.queue(&spec()).await.unwrap();
    let long = Bytes::from(vec![0; MAX_MESSAGE + 1]);
    let error = replicas.one.publish(&Subject::stored(TENANT), long.clone()).await.unwrap_err();
    assert!(matches!(error, BusError::TooLong { .. }), "{error:?}");
    let mut cases = vec![item(""), item("a\nb"), item(&"x".repeat(129))];
    let mut elsewhere = item("a");
    elsewhere.subject = Subject::stored(TENANT);
    let mut header = item("a");
    header.headers = vec![("Bad Name".into(), "x".into())];
    let mut value = item("a");
    value.headers = vec![("Name".into(), "x\r\ny".into())];
    let mut body = item("a");
    body.body = long;
    cases.extend([elsewhere, header, value, body]);
    for case in cases {
        let error = queue.enqueue(case).await.unwrap_err();
        assert!(matches!(error, BusError::Refused { .. } | BusError::TooLong { .. }), "{error:?}");
    }
    assert!(is_empty(&queue).await);
    assert!(replicas.one.queue(&QueueSpec { name: "No Name".into(), ..spec() }).await.is_err());
}

async fn a_pull_waits_for_the_first_item_and_not_for_all(replicas: Replicas) {
    let queue = replicas.one.queue(&spec()).await.unwrap();
    let began = Instant::now();
    let mut waiting = std::pin::pin!(queue.pull(100, Duration::from_secs(20)));
    // It waits before there is anything.
    let polled = std::future::poll_fn(|context| std::task::Poll::Ready(waiting.as_mut().poll(context))).await;
    assert!(polled.is_pending());
    let (pulled, enqueued) = tokio::join!(waiting, queue.enqueue(item("a")));
    enqueued.unwrap();
    assert_eq!(pulled.unwrap().len(), 1);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(queue.pull(0, PATIENCE).await.unwrap().is_empty());
    assert!(queue.pull(5, Duration::ZERO).await.unwrap().is_empty());
}

async fn a_queue_tells_how_full_it_is(replicas: Replicas) {
    let queue = replicas.one.queue(&short(500)).await.unwrap();
    for id in ["a", "b", "c"] {
        queue.enqueue(item(id)).await.unwrap();
    }
    let in_hand = pull(&queue, 1).await;
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.waiting + depth.in_hand, depth.redelivered), (3, 0), "{depth:?}");
    assert!(depth.in_hand == 1 && depth.bytes > 20, "{depth:?}");
    drop(in_hand);
    let again = pull(&queue, 10).await;
    assert!(!again.is_empty());
    for delivery in again {
        delivery.ack().await.unwrap();
    }
}

async fn a_closed_bus_ends_its_subscriptions(replicas: Replicas) {
    let bus: &dyn Bus = &*replicas.one;
    let mut subscription = bus.subscribe(&everything(), 10).await.unwrap();
    bus.publish(&Subject::stored(TENANT), Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(next(&mut subscription).await, said(&Subject::stored(TENANT), "1"));
    bus.close().await;
    let end = tokio::time::timeout(PATIENCE, async { while subscription.next().await.is_some() {} });
    end.await.expect("the subscription goes on");
    assert!(!bus.health().connected);
    assert!(bus.publish(&Subject::stored(TENANT), Bytes::new()).await.is_err());
}

//! The bus within one process: nothing to set up, nothing that outlives the process.
//!
//! It behaves as the one over NATS does, except that a queue is in memory: what was enqueued and not acknowledged is gone
//! when the process ends. Whoever enqueued it must still have it (an agent has its outbox).

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::bus::{
    Bus, Delivery, Depth, Enqueued, Health, Heard, Item, Losses, MAX_MESSAGE, Queue, QueueSpec, Settle, Subscription,
};
use crate::error::{BusError, Result};
use crate::subject::{Pattern, Subject};

/// The bus within one process.
#[derive(Debug, Clone, Default)]
pub struct MemoryBus {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    subscribers: Mutex<Vec<Subscriber>>,
    queues: Mutex<BTreeMap<String, Arc<MemoryQueue>>>,
    closed: AtomicBool,
    published: AtomicU64,
    lost: AtomicU64,
}

#[derive(Debug)]
struct Subscriber {
    pattern: Pattern,
    sender: mpsc::Sender<Heard>,
    losses: Arc<Losses>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryBus {
    /// A bus that nobody else knows; its clones are the same bus.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Inner {
    fn is_open(&self) -> Result<()> {
        if self.closed.load(Relaxed) { Err(BusError::Closed) } else { Ok(()) }
    }

    /// Tells whoever listens now.
    fn tell(&self, subject: &Subject, body: &Bytes) {
        self.published.fetch_add(1, Relaxed);
        lock(&self.subscribers).retain(|subscriber| {
            if !subscriber.pattern.matches(subject) {
                return true;
            }
            let heard = Heard::Message { subject: subject.clone(), body: body.clone() };
            match subscriber.sender.try_send(heard) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    subscriber.losses.add(1);
                    self.lost.fetch_add(1, Relaxed);
                    true
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
    }

    /// The queue that a subject falls into.
    fn queue_of(&self, subject: &Subject) -> Option<Arc<MemoryQueue>> {
        lock(&self.queues).values().find(|queue| queue.takes(subject)).map(Arc::clone)
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn publish(&self, subject: &Subject, body: Bytes) -> Result<()> {
        self.inner.is_open()?;
        check_length(body.len())?;
        if let Some(queue) = self.inner.queue_of(subject) {
            let item = Item {
                id: String::new(),
                subject: subject.clone(),
                reply: None,
                headers: Vec::new(),
                body: body.clone(),
            };
            queue.put(item)?;
        }
        self.inner.tell(subject, &body);
        Ok(())
    }

    async fn subscribe(&self, pattern: &Pattern, capacity: usize) -> Result<Subscription> {
        self.inner.is_open()?;
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        let losses = Arc::new(Losses::default());
        let subscriber = Subscriber { pattern: pattern.clone(), sender, losses: Arc::clone(&losses) };
        lock(&self.inner.subscribers).push(subscriber);
        Ok(Subscription { receiver, losses, feeder: None })
    }

    async fn queue(&self, spec: &QueueSpec) -> Result<Arc<dyn Queue>> {
        self.inner.is_open()?;
        spec.check()?;
        let mut queues = lock(&self.inner.queues);
        let made = queues.entry(spec.name.clone()).or_insert_with(|| {
            Arc::new(MemoryQueue {
                spec: Mutex::new(spec.clone()),
                bus: Arc::downgrade(&self.inner),
                shelf: Mutex::default(),
                wake: Notify::new(),
            })
        });
        // As with a stream that is there: what is asked for last is in force.
        *lock(&made.spec) = spec.clone();
        Ok(Arc::new(MemoryHandle(Arc::clone(made))))
    }

    fn health(&self) -> Health {
        let redeliveries = lock(&self.inner.queues).values().map(|queue| lock(&queue.shelf).redeliveries).sum();
        Health {
            connected: !self.inner.closed.load(Relaxed),
            reconnects: 0,
            lost: self.inner.lost.load(Relaxed),
            redeliveries,
            published: self.inner.published.load(Relaxed),
        }
    }

    async fn close(&self) {
        self.inner.closed.store(true, Relaxed);
        lock(&self.inner.subscribers).clear();
        lock(&self.inner.queues).values().for_each(|queue| queue.wake.notify_waiters());
    }
}

/// Whether a message may be sent.
pub(crate) fn check_length(bytes: usize) -> Result<()> {
    if bytes > MAX_MESSAGE { Err(BusError::TooLong { bytes, limit: MAX_MESSAGE }) } else { Ok(()) }
}

/// A queue as its consumers hold it.
#[derive(Debug)]
struct MemoryHandle(Arc<MemoryQueue>);

impl std::ops::Deref for MemoryHandle {
    type Target = MemoryQueue;

    fn deref(&self) -> &MemoryQueue {
        &self.0
    }
}

#[derive(Debug)]
struct MemoryQueue {
    spec: Mutex<QueueSpec>,
    bus: Weak<Inner>,
    shelf: Mutex<Shelf>,
    wake: Notify,
}

/// What a queue holds.
#[derive(Debug, Default)]
struct Shelf {
    next: u64,
    items: BTreeMap<u64, Stored>,
    /// Items that may be delivered now, by when they came: those that come again keep their place.
    ready: BTreeSet<u64>,
    /// Items in hand or put off, by when they may be delivered again.
    later: BTreeSet<(Instant, u64)>,
    /// Ids that were taken lately, by when they are forgotten.
    ids: HashSet<String>,
    forget: VecDeque<(Instant, String)>,
    bytes: u64,
    redeliveries: u64,
}

#[derive(Debug)]
struct Stored {
    item: Item,
    deliveries: u64,
    /// When it may be delivered again, while it is in hand or put off.
    due: Option<Instant>,
    in_hand: bool,
}

impl Shelf {
    /// Lets time pass: leases and ids end.
    fn pass(&mut self, now: Instant) {
        while self.later.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, number)) = self.later.pop_first() else { break };
            if let Some(stored) = self.items.get_mut(&number) {
                stored.due = None;
                stored.in_hand = false;
                self.ready.insert(number);
            }
        }
        while self.forget.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, id)) = self.forget.pop_front() {
                self.ids.remove(&id);
            }
        }
    }

    fn put_off(&mut self, number: u64, until: Instant, in_hand: bool) {
        let Some(stored) = self.items.get_mut(&number) else { return };
        if let Some(due) = stored.due.replace(until) {
            self.later.remove(&(due, number));
        }
        stored.in_hand = in_hand;
        self.ready.remove(&number);
        self.later.insert((until, number));
    }

    fn remove(&mut self, number: u64) {
        if let Some(stored) = self.items.remove(&number) {
            self.bytes -= weight(&stored.item);
            self.ready.remove(&number);
            if let Some(due) = stored.due {
                self.later.remove(&(due, number));
            }
        }
    }

    fn take(&mut self, now: Instant, lease: Duration, max: usize) -> Vec<(u64, Item, u64)> {
        let numbers: Vec<u64> = self.ready.iter().copied().take(max).collect();
        let mut taken = Vec::with_capacity(numbers.len());
        for number in numbers {
            self.put_off(number, now + lease, true);
            if let Some(stored) = self.items.get_mut(&number) {
                stored.deliveries += 1;
                self.redeliveries += u64::from(stored.deliveries > 1);
                taken.push((number, stored.item.clone(), stored.deliveries));
            }
        }
        taken
    }
}

/// What an item takes of a queue's bytes.
fn weight(item: &Item) -> u64 {
    let headers: usize = item.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    let reply = item.reply.as_ref().map_or(0, String::len);
    (item.body.len() + item.id.len() + item.subject.as_str().len() + reply + headers) as u64
}

impl MemoryQueue {
    fn takes(&self, subject: &Subject) -> bool {
        lock(&self.spec).subjects.iter().any(|pattern| pattern.matches(subject))
    }

    fn put(&self, item: Item) -> Result<Enqueued> {
        let spec = lock(&self.spec).clone();
        let bytes = weight(&item);
        check_length(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        let now = Instant::now();
        let mut shelf = lock(&self.shelf);
        shelf.pass(now);
        if !item.id.is_empty() && shelf.ids.contains(&item.id) {
            return Ok(Enqueued::Duplicate);
        }
        if shelf.items.len() as u64 >= spec.max_items || shelf.bytes + bytes > spec.max_bytes {
            return Err(BusError::Full { queue: spec.name });
        }
        if !item.id.is_empty() {
            shelf.ids.insert(item.id.clone());
            shelf.forget.push_back((now + spec.dedupe_window, item.id.clone()));
        }
        let number = shelf.next;
        shelf.next += 1;
        shelf.bytes += bytes;
        shelf.items.insert(number, Stored { item, deliveries: 0, due: None, in_hand: false });
        shelf.ready.insert(number);
        drop(shelf);
        self.wake.notify_one();
        Ok(Enqueued::New)
    }

    fn bus(&self) -> Result<Arc<Inner>> {
        let bus = self.bus.upgrade().ok_or(BusError::Closed)?;
        bus.is_open()?;
        Ok(bus)
    }
}

#[async_trait]
impl Queue for MemoryHandle {
    async fn enqueue(&self, item: Item) -> Result<Enqueued> {
        let bus = self.bus()?;
        crate::bus::check_item(&item, &lock(&self.spec))?;
        let (subject, body) = (item.subject.clone(), item.body.clone());
        let enqueued = self.put(item)?;
        bus.tell(&subject, &body);
        Ok(enqueued)
    }

    async fn pull(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
        let end = Instant::now() + wait;
        loop {
            self.bus()?;
            let woken = self.wake.notified();
            let lease = lock(&self.spec).lease;
            let (taken, next) = {
                let mut shelf = lock(&self.shelf);
                let now = Instant::now();
                shelf.pass(now);
                (shelf.take(now, lease, max), shelf.later.first().map(|(due, _)| *due))
            };
            if !taken.is_empty() || Instant::now() >= end || max == 0 {
                if !lock(&self.shelf).ready.is_empty() {
                    // More is there than this consumer takes: the next one must not sleep through it.
                    self.wake.notify_one();
                }
                let deliver = |(number, item, deliveries)| {
                    let settle = Box::new(Hand { queue: Arc::clone(&self.0), number });
                    Delivery { item, deliveries, settle }
                };
                return Ok(taken.into_iter().map(deliver).collect());
            }
            let until = next.map_or(end, |next| next.min(end));
            let _ = tokio::time::timeout_at(until, woken).await;
        }
    }

    async fn depth(&self) -> Result<Depth> {
        self.bus()?;
        let mut shelf = lock(&self.shelf);
        shelf.pass(Instant::now());
        let in_hand = shelf.items.values().filter(|stored| stored.in_hand).count() as u64;
        let redelivered = shelf.items.values().filter(|stored| stored.in_hand && stored.deliveries > 1).count() as u64;
        Ok(Depth { waiting: shelf.items.len() as u64 - in_hand, in_hand, redelivered, bytes: shelf.bytes })
    }
}

/// A delivery in hand.
#[derive(Debug)]
struct Hand {
    queue: Arc<MemoryQueue>,
    number: u64,
}

#[async_trait]
impl Settle for Hand {
    async fn ack(&self) -> Result<()> {
        lock(&self.queue.shelf).remove(self.number);
        Ok(())
    }

    async fn nak(&self, delay: Duration) -> Result<()> {
        lock(&self.queue.shelf).put_off(self.number, Instant::now() + delay, false);
        self.queue.wake.notify_one();
        Ok(())
    }

    async fn in_progress(&self) -> Result<()> {
        let lease = lock(&self.queue.spec).lease;
        let mut shelf = lock(&self.queue.shelf);
        if shelf.items.get(&self.number).is_some_and(|stored| stored.in_hand) {
            shelf.put_off(self.number, Instant::now() + lease, true);
        }
        Ok(())
    }
}

//! What the hub asks of a bus.

use async_trait::async_trait;
use bytes::Bytes;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

use crate::error::{BusError, Result};
use crate::subject::{Pattern, Subject};

/// The longest message in bytes, headers included: what `nats-server` allows unless it is told otherwise (`max_payload`).
pub const MAX_MESSAGE: usize = 1 << 20;

/// A message of the fan-out, or what became of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Somebody said something.
    Message {
        /// Where.
        subject: Subject,
        /// What.
        body: Bytes,
    },
    /// So many messages did not fit into this subscriber's queue since the last one it heard.
    Lost(u64),
    /// The connection was away: nobody knows how many messages were missed.
    Interrupted,
}

/// One subscriber's queue. It ends when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    pub(crate) receiver: mpsc::Receiver<Heard>,
    pub(crate) losses: Arc<Losses>,
    /// Ends what feeds it.
    #[allow(dead_code, reason = "held for its drop")]
    pub(crate) feeder: Option<Feeder>,
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(crate) struct Feeder(pub tokio::task::JoinHandle<()>);

impl Drop for Feeder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What did not fit, and was not told yet.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    pub untold: std::sync::atomic::AtomicU64,
    pub total: std::sync::atomic::AtomicU64,
}

impl Losses {
    pub fn add(&self, count: u64) {
        self.untold.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
        self.total.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Subscription {
    /// What comes next; nothing when the bus is closed. Losses are told as soon as there is room to tell them.
    pub async fn next(&mut self) -> Option<Heard> {
        let untold = self.losses.untold.swap(0, std::sync::atomic::Ordering::Relaxed);
        if untold > 0 {
            return Some(Heard::Lost(untold));
        }
        self.receiver.recv().await
    }

    /// How many messages did not fit into this subscriber's queue, since it began.
    pub fn lost(&self) -> u64 {
        self.losses.total.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// A queue of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSpec {
    /// Its name: lower-case letters, digits and `-`, at most 32 bytes.
    pub name: String,
    /// What falls into it, whoever says it.
    pub subjects: Vec<Pattern>,
    /// How long a consumer has an item to itself before it is delivered again.
    pub lease: Duration,
    /// How long an id is remembered: an item with the same id within it is dropped. A NATS server that starts again
    /// remembers the ids of items it still has, and not of those that are done.
    pub dedupe_window: Duration,
    /// The most items that wait or are in hand.
    pub max_items: u64,
    /// The most bytes of them.
    pub max_bytes: u64,
}

impl QueueSpec {
    /// The batches of events that agents publish: two minutes of ids, 1 GiB, and 20 seconds to store one. Who takes longer
    /// shares it with another hub, and the store drops what comes twice; who was killed keeps an agent waiting for as long.
    pub fn events() -> Self {
        Self {
            name: "events".into(),
            subjects: vec![Pattern::all_events()],
            lease: Duration::from_secs(20),
            dedupe_window: Duration::from_secs(120),
            max_items: 1_000_000,
            max_bytes: 1 << 30,
        }
    }

    /// Whether it can be used.
    pub(crate) fn check(&self) -> Result<()> {
        let named = !self.name.is_empty()
            && self.name.len() <= 32
            && self.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let sized = self.lease >= Duration::from_millis(100)
            && self.dedupe_window >= Duration::from_millis(100)
            && self.max_items > 0
            && self.max_bytes > 0
            && !self.subjects.is_empty();
        if named && sized {
            return Ok(());
        }
        Err(BusError::Settings {
            what: format!("the queue {:?} cannot be used", self.name),
            help: "a queue needs a name of lower-case letters, digits and `-`, subjects, and a lease, a window and limits \
                   that are not zero"
                .into(),
        })
    }
}

/// An item of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The same for the same work: within the queue's window it is taken once. At most 128 bytes.
    pub id: String,
    /// Where it is said; one of the queue's subjects.
    pub subject: Subject,
    /// Where the sender wants to be answered when the work is done. It is the sender's word: check it
    /// ([`Subject::parse_inbox`]) before anything is said there.
    pub reply: Option<String>,
    /// What is said about it: names of letters, digits and `-`, values of printable ASCII.
    pub headers: Vec<(String, String)>,
    /// The work.
    pub body: Bytes,
}

/// Whether an item may be put into a queue.
pub(crate) fn check_item(item: &Item, spec: &QueueSpec) -> Result<()> {
    let refused = |what: &str| {
        Err(BusError::Refused { operation: format!("enqueue into {}", spec.name), reason: what.to_owned() })
    };
    let printable = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if item.id.is_empty() || item.id.len() > 128 || !printable(&item.id) {
        return refused("an id has 1 to 128 printable characters of ASCII");
    }
    if !spec.subjects.iter().any(|pattern| pattern.matches(&item.subject)) {
        return refused("the subject is none of the queue's");
    }
    let named = |name: &str| {
        !name.is_empty() && name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if item.headers.len() > 32
        || !item.headers.iter().all(|(name, value)| named(name) && value.len() <= 4096 && printable(value))
    {
        return refused("at most 32 headers, with names of letters, digits and `-`, and printable values of ASCII");
    }
    if item.reply.as_ref().is_some_and(|reply| reply.len() > 512 || !printable(reply)) {
        return refused("the subject of the reply is too long or not printable");
    }
    Ok(())
}

/// What became of an item that was enqueued: the bus has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// It is new.
    New,
    /// One with the same id was there within the window; this one was dropped.
    Duplicate,
}

/// An item in hand.
#[derive(Debug)]
pub struct Delivery {
    /// The item; its id is empty where the sender gave none.
    pub item: Item,
    /// How often it was delivered, this time included.
    pub deliveries: u64,
    pub(crate) settle: Box<dyn Settle>,
}

impl Delivery {
    /// It is done: it will not come again, and the bus has confirmed that. A NATS server that is killed in the next moments
    /// may still forget it, because JetStream writes such confirmations a little later: whoever handles items must bear to
    /// see one twice.
    ///
    /// # Errors
    /// The confirmation did not come: it may be delivered again.
    pub async fn ack(self) -> Result<()> {
        self.settle.ack().await
    }

    /// It is not done: it shall come again, after `delay`.
    ///
    /// # Errors
    /// It could not be said; it comes again when the lease ends.
    pub async fn nak(self, delay: Duration) -> Result<()> {
        self.settle.nak(delay).await
    }

    /// It takes longer: the lease begins anew.
    ///
    /// # Errors
    /// It could not be said.
    pub async fn in_progress(&self) -> Result<()> {
        self.settle.in_progress().await
    }
}

/// How an implementation settles a delivery.
#[async_trait]
pub trait Settle: Send + Sync + Debug {
    /// See [`Delivery::ack`].
    async fn ack(&self) -> Result<()>;
    /// See [`Delivery::nak`].
    async fn nak(&self, delay: Duration) -> Result<()>;
    /// See [`Delivery::in_progress`].
    async fn in_progress(&self) -> Result<()>;
}

/// How full a queue is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Items that nobody has in hand.
    pub waiting: u64,
    /// Items in hand.
    pub in_hand: u64,
    /// Items in hand that were delivered before.
    pub redelivered: u64,
    /// Bytes of all of them; zero where it is not known.
    pub bytes: u64,
}

/// A queue of work. Any number of consumers may pull from it, in any process.
#[async_trait]
pub trait Queue: Send + Sync + Debug {
    /// Puts an item in. When this returns the bus has it: with NATS on its disk, in the process in memory.
    ///
    /// # Errors
    /// It is full, too long, or there is no connection or answer: the item may be there all the same, and the same id makes
    /// trying again safe.
    async fn enqueue(&self, item: Item) -> Result<Enqueued>;

    /// Takes up to `max` items in hand; waits up to `wait` for the first one. None is no error.
    ///
    /// # Errors
    /// There is no connection.
    async fn pull(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>>;

    /// How full it is.
    ///
    /// # Errors
    /// There is no connection or answer.
    async fn depth(&self) -> Result<Depth>;
}

/// How a bus is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether something that is said now can be heard.
    pub connected: bool,
    /// How often the connection was made again.
    pub reconnects: u64,
    /// Messages that did not fit into subscribers' queues, of all subscribers.
    pub lost: u64,
    /// Deliveries that were not the first of their item.
    pub redeliveries: u64,
    /// Messages said.
    pub published: u64,
}

/// How replicas of the hub tell each other.
#[async_trait]
pub trait Bus: Send + Sync + Debug {
    /// Says something to everybody who listens now. It never waits for a subscriber.
    ///
    /// # Errors
    /// It is too long, or there is no connection: nothing is kept for later.
    async fn publish(&self, subject: &Subject, body: Bytes) -> Result<()>;

    /// Listens. What is said after this returns is heard, as long as the queue of `capacity` messages has room.
    ///
    /// # Errors
    /// There is no connection.
    async fn subscribe(&self, pattern: &Pattern, capacity: usize) -> Result<Subscription>;

    /// Opens a queue of work, and makes it where it is not there.
    ///
    /// # Errors
    /// It cannot be made as it is asked for, or there is no connection.
    async fn queue(&self, spec: &QueueSpec) -> Result<Arc<dyn Queue>>;

    /// How it is doing.
    fn health(&self) -> Health;

    /// Sends what is on its way and ends. Subscriptions end with it.
    async fn close(&self);
}

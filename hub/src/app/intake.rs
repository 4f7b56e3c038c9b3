//! The way of events into the database: many agents' batches in one transaction, and an answer to each once that is on
//! disk.
//!
//! Several writers take batches by turns: while the transaction of one is at the database, the next one is made ready and
//! begun. A batch waits at most as long as the transactions before it take: whatever has come meanwhile goes into the next
//! one. So under load transactions grow, and one sync of the disk serves many agents. Bytes are reserved before a batch is
//! unpacked; when none are left, agents are told to come back.

use crate::refusal::{Outcome, Refusal, storage};
use jiff::Timestamp;
use picket_hub_db::{Backend, Database, DbError, INGEST_MAX_EVENTS, IngestBatch, IngestOutcome, TenantId};
use picket_protocol::hub::ProblemCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

use super::batch::Streams;

/// Batches that may wait for the writer.
const MAX_WAITING: usize = 1024;
/// How many events go into one transaction, unless one batch has more: the wait for the disk is no longer what it costs then,
/// and whoever comes next is not kept waiting. It is less than a call of the database takes.
const TOGETHER: usize = 10_000;
const _: () = assert!(TOGETHER <= INGEST_MAX_EVENTS);
/// When a batch is refused for want of room: about as long as a few transactions take.
const COME_BACK: Duration = Duration::from_secs(2);

/// What came of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored {
    /// Events that were new.
    pub new: u64,
    /// Events that were here already.
    pub duplicates: u64,
}

/// What the intake counted.
#[derive(Debug, Default)]
pub struct IntakeCounters {
    /// Events that were stored.
    pub events: AtomicU64,
    /// Events that were here already.
    pub duplicates: AtomicU64,
    /// Batches that were stored.
    pub batches: AtomicU64,
    /// Transactions.
    pub transactions: AtomicU64,
    /// Batches that were refused for want of room.
    pub shed: AtomicU64,
    /// Transactions that failed.
    pub failed: AtomicU64,
    /// Microseconds that transactions took, together.
    pub busy_us: AtomicU64,
}

/// Takes batches.
#[derive(Debug, Clone)]
pub struct Intake {
    to_writer: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    limit: usize,
    counters: Arc<IntakeCounters>,
}

/// Room for a batch, given back when it is dropped.
#[derive(Debug)]
pub struct Room {
    _permit: OwnedSemaphorePermit,
}

struct Waiting {
    batches: Vec<IngestBatch>,
    events: usize,
    done: oneshot::Sender<Outcome<Stored>>,
    _room: Room,
}

impl Intake {
    /// Begins to take batches of at most `max_bytes` together, unpacked. `stored` hears of each transaction: how many
    /// events are new.
    pub fn start(
        db: Arc<dyn Database>,
        tenant: TenantId,
        max_bytes: usize,
        stored: impl Fn(u64) + Send + Sync + 'static,
    ) -> (Self, JoinHandle<()>) {
        let (to_writer, waiting) = mpsc::channel(MAX_WAITING);
        let counters = Arc::new(IntakeCounters::default());
        let writers = writers(db.backend());
        let writer = Arc::new(Writer {
            db,
            tenant,
            counters: Arc::clone(&counters),
            stored: Box::new(stored),
            queue: Mutex::new(Queue { waiting, kept: None }),
        });
        let task = tokio::spawn(async move {
            // They end with this task, and it with them.
            let mut all: JoinSet<()> = (0..writers).map(|_| Arc::clone(&writer).run()).collect();
            while all.join_next().await.is_some() {}
        });
        let limit = max_bytes.clamp(1, Semaphore::MAX_PERMITS);
        (Self { to_writer, room: Arc::new(Semaphore::new(limit)), limit, counters }, task)
    }

    /// Reserves room for a batch that will have `raw_bytes` once it is unpacked.
    ///
    /// # Errors
    /// `overloaded` with a time to come back, when there is none.
    pub fn reserve(&self, raw_bytes: usize) -> Outcome<Room> {
        // Bookkeeping takes about as much again as the text; a batch larger than everything would never find room.
        let wanted = raw_bytes.saturating_mul(2).clamp(1, self.limit);
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        Arc::clone(&self.room)
            .try_acquire_many_owned(wanted)
            .map(|permit| Room { _permit: permit })
            .map_err(|_| self.busy())
    }

    /// Stores the events of an agent. When it returns, they are on disk.
    ///
    /// # Errors
    /// When they are not known to be stored, with a time to come back: the same batch may be sent again.
    pub async fn store(&self, agent: Uuid, streams: Streams, received_at: Timestamp, room: Room) -> Outcome<Stored> {
        let batches: Vec<IngestBatch> = streams
            .into_iter()
            .map(|(boot_id, events)| IngestBatch { agent, boot_id, received_at, ledger: None, events })
            .collect();
        let events = batches.iter().map(|batch| batch.events.len()).sum();
        let (done, answer) = oneshot::channel();
        let waiting = Waiting { batches, events, done, _room: room };
        self.to_writer.try_send(waiting).map_err(|_| self.busy())?;
        answer
            .await
            .unwrap_or_else(|_| Err(Refusal::new(ProblemCode::Draining, "the hub is stopping").after(COME_BACK)))
    }

    /// What was counted.
    pub fn counters(&self) -> &Arc<IntakeCounters> {
        &self.counters
    }

    /// How many batches wait, and how many bytes are reserved for them.
    pub fn waiting(&self) -> (usize, usize) {
        (MAX_WAITING - self.to_writer.capacity(), self.limit - self.room.available_permits())
    }

    fn busy(&self) -> Refusal {
        self.counters.shed.fetch_add(1, Ordering::Relaxed);
        Refusal::new(ProblemCode::Overloaded, "the hub has as many events to store as it can hold").after(COME_BACK)
    }
}

/// How many transactions are on their way at a time. SQLite writes one after the other, and so one more is made ready;
/// PostgreSQL stores as many side by side as it has processors, of which more than a few are not the hub's alone.
fn writers(backend: Backend) -> usize {
    match backend {
        Backend::Sqlite => 2,
        Backend::Postgres => 3,
    }
}

/// Batches that wait.
struct Queue {
    waiting: mpsc::Receiver<Waiting>,
    /// The one that had no place in the last transaction.
    kept: Option<Waiting>,
}

impl Queue {
    /// What goes into the next transaction; none when nothing will come any more.
    async fn next(&mut self) -> Option<Vec<Waiting>> {
        let first = match self.kept.take() {
            Some(first) => first,
            None => self.waiting.recv().await?,
        };
        let mut events = first.events;
        let mut together = vec![first];
        while let Ok(next) = self.waiting.try_recv() {
            if events + next.events > TOGETHER {
                self.kept = Some(next);
                break;
            }
            events += next.events;
            together.push(next);
        }
        Some(together)
    }
}

struct Writer {
    db: Arc<dyn Database>,
    tenant: TenantId,
    counters: Arc<IntakeCounters>,
    stored: Box<dyn Fn(u64) + Send + Sync>,
    queue: Mutex<Queue>,
}

impl Writer {
    /// Writes until all senders are gone: the hub is stopping, and everything that came is stored.
    async fn run(self: Arc<Self>) {
        loop {
            let next = self.queue.lock().await.next().await;
            match next {
                Some(together) => self.transaction(together).await,
                None => return,
            }
        }
    }

    async fn transaction(&self, mut together: Vec<Waiting>) {
        let mut batches = Vec::new();
        let mut lengths = Vec::with_capacity(together.len());
        for waiting in &mut together {
            lengths.push(waiting.batches.len());
            batches.append(&mut waiting.batches);
        }
        let began = Instant::now();
        let outcome = self.db.ingest(self.tenant, &batches).await;
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counters.busy_us.fetch_add(took, Ordering::Relaxed);
        match outcome {
            Ok(outcomes) => {
                drop(batches);
                self.counters.transactions.fetch_add(1, Ordering::Relaxed);
                let mut outcomes = outcomes.into_iter();
                let mut new = 0;
                for (waiting, length) in together.into_iter().zip(lengths) {
                    let answer = sum(outcomes.by_ref().take(length));
                    if let Ok(stored) = &answer {
                        new += stored.new;
                        self.counters.batches.fetch_add(1, Ordering::Relaxed);
                        self.counters.events.fetch_add(stored.new, Ordering::Relaxed);
                        self.counters.duplicates.fetch_add(stored.duplicates, Ordering::Relaxed);
                    }
                    // Whoever asked may be gone; the batch is stored all the same, and comes again as a duplicate.
                    let _ = waiting.done.send(answer);
                }
                if new > 0 {
                    (self.stored)(new);
                }
            }
            // Something in one of them cannot be stored: each by itself, so that nobody answers for another.
            Err(DbError::Invalid { why, .. }) if together.len() > 1 => {
                tracing::warn!(why, batches = together.len(), "batches that came together are stored one by one");
                for (mut waiting, length) in together.into_iter().zip(lengths) {
                    waiting.batches = batches.drain(..length).collect();
                    Box::pin(self.transaction(vec![waiting])).await;
                }
            }
            Err(error) => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                let refusal = storage(error);
                for waiting in together {
                    let _ = waiting.done.send(Err(refusal.clone()));
                }
            }
        }
    }
}

/// What became of the streams of one batch.
fn sum(outcomes: impl Iterator<Item = IngestOutcome>) -> Outcome<Stored> {
    let mut stored = Stored::default();
    for outcome in outcomes {
        if outcome.refused {
            let detail = "this hub does not know the agent, or has retired it; enrol again with: picket enroll";
            return Err(Refusal::new(ProblemCode::UnknownAgent, detail));
        }
        stored.new += outcome.records;
        stored.duplicates += outcome.duplicates;
    }
    Ok(stored)
}

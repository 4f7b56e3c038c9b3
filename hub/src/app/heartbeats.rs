//! The way of heartbeats into the database: many in one transaction, an answer to each once it is stored.

use crate::refusal::{Outcome, Refusal, storage};
use picket_hub_db::{AgentSeen, Database, DbError, SeenOutcome, TenantId};
use picket_protocol::hub::ProblemCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Heartbeats that may wait: what ten thousand agents send in fifteen seconds of the usual interval.
const MAX_WAITING: usize = 5_000;
/// Heartbeats of one transaction.
const MAX_TOGETHER: usize = 1_000;
/// How long the first one waits for others: a fleet's come evenly, and each transaction syncs the disk.
const GATHER: Duration = Duration::from_millis(50);
/// When one is refused for want of room.
const COME_BACK: Duration = Duration::from_secs(5);

/// Takes heartbeats.
#[derive(Debug, Clone)]
pub struct Heartbeats {
    to_writer: mpsc::Sender<Waiting>,
    counters: Arc<HeartbeatCounters>,
}

/// What was counted.
#[derive(Debug, Default)]
pub struct HeartbeatCounters {
    /// Heartbeats that were stored.
    pub stored: AtomicU64,
    /// Heartbeats that were refused for want of room.
    pub shed: AtomicU64,
    /// Transactions that failed.
    pub failed: AtomicU64,
}

struct Waiting {
    seen: AgentSeen,
    done: oneshot::Sender<Outcome<SeenOutcome>>,
}

impl Heartbeats {
    /// Begins to take heartbeats.
    pub fn start(db: Arc<dyn Database>, tenant: TenantId) -> (Self, JoinHandle<()>) {
        let (to_writer, waiting) = mpsc::channel(MAX_WAITING);
        let counters = Arc::new(HeartbeatCounters::default());
        let task = tokio::spawn(write(db, tenant, Arc::clone(&counters), waiting));
        (Self { to_writer, counters }, task)
    }

    /// Stores one. When it returns, it is on disk.
    ///
    /// # Errors
    /// When it is not known to be stored; the next one says the same and more.
    pub async fn store(&self, seen: AgentSeen) -> Outcome<SeenOutcome> {
        let (done, answer) = oneshot::channel();
        self.to_writer.try_send(Waiting { seen, done }).map_err(|_| {
            self.counters.shed.fetch_add(1, Ordering::Relaxed);
            Refusal::new(ProblemCode::Overloaded, "the hub has more heartbeats to store than it can hold")
                .after(COME_BACK)
        })?;
        answer
            .await
            .unwrap_or_else(|_| Err(Refusal::new(ProblemCode::Draining, "the hub is stopping").after(COME_BACK)))
    }

    /// What was counted.
    pub fn counters(&self) -> &Arc<HeartbeatCounters> {
        &self.counters
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        MAX_WAITING - self.to_writer.capacity()
    }
}

async fn write(
    db: Arc<dyn Database>,
    tenant: TenantId,
    counters: Arc<HeartbeatCounters>,
    mut waiting: mpsc::Receiver<Waiting>,
) {
    while let Some(first) = waiting.recv().await {
        let mut together = vec![first];
        let full = tokio::time::sleep(GATHER);
        tokio::pin!(full);
        while together.len() < MAX_TOGETHER {
            tokio::select! {
                next = waiting.recv() => match next {
                    Some(next) => together.push(next),
                    None => break,
                },
                () = &mut full => break,
            }
        }
        let (seen, done): (Vec<_>, Vec<_>) = together.into_iter().map(|one| (one.seen, one.done)).unzip();
        let stored = db.agents_seen(tenant, &seen).await;
        match stored {
            // Something in one of them cannot be stored: each by itself, so that nobody answers for another.
            Err(DbError::Invalid { why, .. }) if seen.len() > 1 => {
                tracing::warn!(why, heartbeats = seen.len(), "heartbeats that came together are stored one by one");
                for (seen, done) in seen.into_iter().zip(done) {
                    let stored = db.agents_seen(tenant, std::slice::from_ref(&seen)).await;
                    answer(&counters, stored, vec![done]);
                }
            }
            stored => answer(&counters, stored, done),
        }
    }
}

fn answer(
    counters: &HeartbeatCounters,
    stored: picket_hub_db::Result<Vec<SeenOutcome>>,
    waiting: Vec<oneshot::Sender<Outcome<SeenOutcome>>>,
) {
    match stored {
        Ok(outcomes) => {
            counters.stored.fetch_add(outcomes.len() as u64, Ordering::Relaxed);
            for (done, outcome) in waiting.into_iter().zip(outcomes) {
                let _ = done.send(Ok(outcome));
            }
        }
        Err(error) => {
            counters.failed.fetch_add(1, Ordering::Relaxed);
            let refusal = storage(error);
            for done in waiting {
                let _ = done.send(Err(refusal.clone()));
            }
        }
    }
}

//! The bounded queue between those who append and the one writer, and the receipts that say what became of rows.

use crate::error::{Result, StoreError};
use crate::{Origin, Table};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many rows a commit holds at most.
pub const BATCH_ROWS: usize = 256;
/// How long a row waits for others before it is committed.
pub const BATCH_DELAY: Duration = Duration::from_millis(100);
/// How many plain bytes a commit holds at most; a single row may have more.
const BATCH_BYTES: usize = 4 << 20;
/// How many rows may wait.
pub const QUEUE_ROWS: usize = 8192;
/// How many plain bytes may wait. An empty queue takes one row of any allowed length.
pub const QUEUE_BYTES: usize = 16 << 20;
/// How many failed batches are remembered for those who have not asked yet.
const FAILURES_KEPT: usize = 256;

/// A row that waits to be sealed.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) table: Table,
    pub(crate) at: i64,
    pub(crate) plain: Vec<u8>,
    /// Where it comes from, if it may be brought again.
    pub(crate) origin: Option<Origin>,
    /// Which rows it was queued with: the number of the first of them. The queue gives it.
    pub(crate) run: u64,
}

/// What the writer did so far, since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Rows that are durable.
    pub rows_written: u64,
    /// Rows of these that were brought again and had been durable before.
    pub rows_repeated: u64,
    /// Commits that held rows.
    pub batches_written: u64,
    /// Rows that are lost because their batch could not be written.
    pub rows_failed: u64,
    /// Rows that were refused because the queue was full.
    pub rows_refused: u64,
    /// Rows that retention removed.
    pub rows_expired: u64,
    /// Rows that wait.
    pub queued_rows: usize,
    /// Bytes that wait.
    pub queued_bytes: usize,
    /// Whether the last batch failed because the disk is full.
    pub disk_full: bool,
    /// Why the last batch failed, if it did; none once one was written again.
    pub last_error: Option<String>,
    /// Whether retention by age waits because the wall clock leapt forward and is not believed yet.
    pub clock_doubted: bool,
    /// What the last round of retention could not do, if so.
    pub retention_error: Option<String>,
    /// What is wrong with the key file while its keys are still in memory: it must be put back before a restart.
    pub key_error: Option<String>,
}

#[derive(Debug)]
struct Failure {
    first: u64,
    last: u64,
    error: StoreError,
}

#[derive(Default)]
struct State {
    rows: VecDeque<Pending>,
    bytes: usize,
    /// When the oldest waiting row came.
    since: Option<Instant>,
    /// How many rows were ever queued: the number of the newest one.
    queued: u64,
    /// The number of the last row whose fate is known.
    settled: u64,
    /// Somebody waits for rows up to this one.
    hurry: u64,
    failures: VecDeque<Failure>,
    /// Failures up to this row are no longer remembered, nor how many of their rows there were.
    forgotten: (u64, u64),
    closed: bool,
    gone: bool,
    /// Somebody wants retention to be done now.
    sweep: bool,
    counters: Counters,
}

/// What the writer is to do next.
pub(crate) enum Work {
    /// Commit these rows.
    Batch(Vec<Pending>),
    /// Nothing waits: time for chores.
    Idle {
        /// Whether somebody asked for retention.
        sweep: bool,
    },
    /// Nothing waits and nothing will come.
    End,
}

#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    writer: Condvar,
    waiting: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues all rows or none.
    pub(crate) fn push(self: &Arc<Self>, rows: Vec<Pending>) -> Result<Receipt> {
        let bytes: usize = rows.iter().map(|row| row.plain.len()).sum();
        let mut state = self.lock();
        if state.closed || state.gone {
            return Err(StoreError::Closed);
        }
        let fits = state.rows.len() + rows.len() <= QUEUE_ROWS && state.bytes + bytes <= QUEUE_BYTES;
        if !fits && !state.rows.is_empty() {
            state.counters.rows_refused += rows.len() as u64;
            return Err(StoreError::QueueFull { rows: state.rows.len(), bytes: state.bytes });
        }
        let first = state.queued + 1;
        state.queued += rows.len() as u64;
        state.bytes += bytes;
        let before = state.rows.len();
        state.rows.extend(rows.into_iter().map(|row| Pending { run: first, ..row }));
        if before == 0 && !state.rows.is_empty() {
            state.since = Some(Instant::now());
            self.writer.notify_one();
        } else if before < BATCH_ROWS && state.rows.len() >= BATCH_ROWS {
            self.writer.notify_one();
        }
        Ok(Receipt { first, last: state.queued, queue: Arc::clone(self) })
    }

    /// A receipt for every row after the number `told`.
    pub(crate) fn receipt_since(self: &Arc<Self>, told: u64) -> Receipt {
        let last = self.lock().queued;
        Receipt { first: told + 1, last, queue: Arc::clone(self) }
    }

    /// Waits for what is to be done next; with chores to do it does not wait for rows, and otherwise no longer than `limit`.
    pub(crate) fn next(&self, chores: bool, limit: Duration) -> Work {
        let began = Instant::now();
        let mut state = self.lock();
        loop {
            let due = state.since.map(|since| since + BATCH_DELAY);
            let now = Instant::now();
            let ready = state.rows.len() >= BATCH_ROWS
                || state.bytes >= BATCH_BYTES
                || state.hurry > state.settled
                || state.closed
                || due.is_some_and(|due| due <= now);
            if !state.rows.is_empty() && ready {
                return Work::Batch(state.take_batch());
            }
            if state.closed {
                return Work::End;
            }
            let left = limit.saturating_sub(began.elapsed());
            if chores || state.sweep || left.is_zero() {
                return Work::Idle { sweep: std::mem::take(&mut state.sweep) };
            }
            let wait = due.map_or(left, |due| left.min(due.saturating_duration_since(now)));
            state = self.writer.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Tells what became of the batch of `rows` rows that was taken last.
    pub(crate) fn settle(&self, rows: usize, outcome: Result<(), StoreError>) {
        let mut state = self.lock();
        let first = state.settled + 1;
        state.settled += rows as u64;
        let last = state.settled;
        match outcome {
            Ok(()) => {
                state.counters.rows_written += rows as u64;
                state.counters.batches_written += 1;
                state.counters.last_error = None;
                state.counters.disk_full = false;
            }
            Err(error) => {
                state.counters.rows_failed += rows as u64;
                state.counters.disk_full = error.is_disk_full();
                state.counters.last_error = Some(error.to_string());
                state.fail(first, last, error);
            }
        }
        self.waiting.notify_all();
    }

    /// Changes what is counted.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.lock().counters);
    }

    pub(crate) fn counters(&self) -> Counters {
        let state = self.lock();
        Counters { queued_rows: state.rows.len(), queued_bytes: state.bytes, ..state.counters.clone() }
    }

    /// Asks for retention now.
    pub(crate) fn ask_sweep(&self) {
        self.lock().sweep = true;
        self.writer.notify_one();
    }

    /// Takes no more rows; the writer writes what waits and ends.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.writer.notify_one();
    }

    /// The writer is gone: what waits will never be written.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.gone = true;
        state.rows.clear();
        state.bytes = 0;
        let (first, last) = (state.settled + 1, state.queued);
        if first <= last {
            state.counters.rows_failed += last - state.settled;
            state.settled = last;
            state.fail(first, last, StoreError::Closed);
        }
        self.waiting.notify_all();
    }
}

impl State {
    fn take_batch(&mut self) -> Vec<Pending> {
        let mut bytes = 0;
        let mut count = 0;
        for row in self.rows.iter().take(BATCH_ROWS) {
            if count > 0 && bytes + row.plain.len() > BATCH_BYTES {
                break;
            }
            bytes += row.plain.len();
            count += 1;
        }
        self.bytes -= bytes;
        let batch: Vec<_> = self.rows.drain(..count).collect();
        self.since = (!self.rows.is_empty()).then(Instant::now);
        batch
    }

    fn fail(&mut self, first: u64, last: u64, error: StoreError) {
        self.failures.push_back(Failure { first, last, error });
        if self.failures.len() > FAILURES_KEPT
            && let Some(oldest) = self.failures.pop_front()
        {
            self.forgotten = (oldest.last, self.forgotten.1 + oldest.last - oldest.first + 1);
        }
    }
}

/// Stands for rows that were queued; says what became of exactly these.
#[derive(Clone)]
#[must_use = "rows are queued, not yet durable: wait for the receipt, flush, or drop it knowingly"]
pub struct Receipt {
    first: u64,
    last: u64,
    queue: Arc<Queue>,
}

impl std::fmt::Debug for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receipt").field("first", &self.first).field("last", &self.last).finish_non_exhaustive()
    }
}

impl Receipt {
    /// Waits until the rows are durable: they survive a power cut from then on. Makes the writer hurry.
    ///
    /// # Errors
    /// Why the first of them is not; all rows of its batch are lost then.
    pub fn wait(&self) -> Result<()> {
        let mut state = self.queue.lock();
        if state.settled < self.last {
            state.hurry = state.hurry.max(self.last);
            self.queue.writer.notify_one();
        }
        while state.settled < self.last {
            state = self.queue.waiting.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.forgotten.0 >= self.first {
            return Err(StoreError::Forgotten(state.forgotten.1));
        }
        match state.failures.iter().find(|failure| failure.first <= self.last && failure.last >= self.first) {
            Some(failure) => Err(failure.error.clone()),
            None => Ok(()),
        }
    }

    /// The number of the last row it stands for.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize, bytes: usize) -> Vec<Pending> {
        (0..count)
            .map(|_| Pending { table: Table::Logs, at: 0, plain: vec![b'x'; bytes], origin: None, run: 0 })
            .collect()
    }

    #[test]
    fn a_full_queue_refuses_all_of_what_does_not_fit_and_counts_it() {
        let queue = Arc::new(Queue::default());
        let _ = queue.push(rows(QUEUE_ROWS - 1, 1)).unwrap();
        assert!(matches!(queue.push(rows(2, 1)), Err(StoreError::QueueFull { rows, .. }) if rows == QUEUE_ROWS - 1));
        let _ = queue.push(rows(1, 1)).unwrap();
        assert_eq!(queue.counters().rows_refused, 2);
        let queue = Arc::new(Queue::default());
        let _ = queue.push(rows(1, QUEUE_BYTES + 1)).unwrap();
        assert!(matches!(queue.push(rows(1, 1)), Err(StoreError::QueueFull { .. })));
    }

    #[test]
    fn a_batch_is_bounded_in_rows_and_in_bytes() {
        let queue = Arc::new(Queue::default());
        let _ = queue.push(rows(BATCH_ROWS + 7, 1)).unwrap();
        let Work::Batch(batch) = queue.next(false, Duration::ZERO) else { panic!("a full batch waits") };
        assert_eq!(batch.len(), BATCH_ROWS);
        let queue = Arc::new(Queue::default());
        let _ = queue.push(rows(3, BATCH_BYTES / 2)).unwrap();
        let Work::Batch(batch) = queue.next(false, Duration::ZERO) else { panic!("a full batch waits") };
        assert_eq!(batch.len(), 2);
    }

    #[test]
    fn a_receipt_tells_of_its_own_rows_and_of_no_others() {
        let queue = Arc::new(Queue::default());
        let lost = queue.push(rows(2, 1)).unwrap();
        let kept = queue.push(rows(3, 1)).unwrap();
        queue.settle(2, Err(StoreError::TooLong(1)));
        queue.settle(3, Ok(()));
        assert!(matches!(lost.wait(), Err(StoreError::TooLong(1))));
        assert!(kept.wait().is_ok());
        assert!(queue.receipt_since(0).wait().is_err() && queue.receipt_since(2).wait().is_ok());
        for _ in 0..FAILURES_KEPT {
            let _ = queue.push(rows(1, 1)).unwrap();
            queue.settle(1, Err(StoreError::Closed));
        }
        assert!(matches!(lost.wait(), Err(StoreError::Forgotten(2))));
    }

    #[test]
    fn whoever_waits_when_the_writer_dies_is_told() {
        let queue = Arc::new(Queue::default());
        let receipt = queue.push(rows(2, 1)).unwrap();
        queue.abandon();
        assert!(matches!(receipt.wait(), Err(StoreError::Closed)));
        assert!(matches!(queue.push(rows(1, 1)), Err(StoreError::Closed)));
        assert_eq!(queue.counters().rows_failed, 2);
    }

    #[test]
    fn an_idle_writer_is_given_time_for_chores_and_an_end_when_closed() {
        let queue = Arc::new(Queue::default());
        assert!(matches!(queue.next(true, Duration::from_secs(60)), Work::Idle { sweep: false }));
        queue.ask_sweep();
        assert!(matches!(queue.next(false, Duration::from_secs(60)), Work::Idle { sweep: true }));
        queue.close();
        assert!(matches!(queue.next(true, Duration::from_secs(60)), Work::End));
    }
}

//! The one writer: a thread that takes jobs from a bounded queue and commits those that wait together.

use super::tx::{SqliteTx, wrong};
use crate::portable::closed::closed;
use crate::{DbError, Result};
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// How many jobs are committed together at most. They share one wait for the disk.
const GROUP: usize = 64;

/// Something to do in a transaction.
pub(super) trait Job: Send {
    /// What it does, for errors.
    fn operation(&self) -> &'static str;
    /// Does it; says whether it is to be committed.
    fn run(&mut self, tx: &mut SqliteTx<'_>) -> bool;
    /// Tells whoever waits what became of it: of the job itself, and of the commit.
    fn answer(self: Box<Self>, committed: Result<()>);
}

/// A function on the connection outside any transaction.
pub(super) type Chore = Box<dyn FnOnce(&mut Connection) + Send>;

/// What the writer takes from its queue.
pub(super) enum Message {
    /// Something to do in a transaction.
    Job(Box<dyn Job>),
    /// Something to do outside any.
    Chore(Chore),
}

/// The writer's end of the queue, and its thread.
#[derive(Debug)]
pub(super) struct Writer {
    queue: SyncSender<Message>,
    waiting: Arc<AtomicU64>,
}

impl Writer {
    /// Starts the thread. `even_closed` lets it write to a file whose data moved.
    pub(super) fn start(connection: Connection, queue: usize, even_closed: bool) -> Result<(Self, JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(queue.max(1));
        let waiting = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&waiting);
        let thread = std::thread::Builder::new()
            .name("hub-db-writer".into())
            .spawn(move || run(connection, &receiver, &counter, even_closed))
            .map_err(|error| DbError::Io { operation: "start the database's writer", why: error.to_string() })?;
        Ok((Self { queue: sender, waiting }, thread))
    }

    /// How many jobs wait.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Queues something to do.
    pub(super) fn send(&self, operation: &'static str, message: Message) -> Result<()> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.queue.try_send(message).map_err(|error| {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => DbError::Busy { operation, why: "too many writes wait already".into() },
                TrySendError::Disconnected(_) => DbError::Closed { operation },
            }
        })
    }
}

fn run(mut connection: Connection, queue: &Receiver<Message>, waiting: &AtomicU64, even_closed: bool) {
    while let Ok(first) = queue.recv() {
        let mut group = Vec::new();
        let mut chore = None;
        let mut next = Some(first);
        while let Some(message) = next.take() {
            waiting.fetch_sub(1, Ordering::Relaxed);
            match message {
                Message::Job(job) => group.push(job),
                Message::Chore(work) => {
                    chore = Some(work);
                    break;
                }
            }
            if group.len() < GROUP {
                next = queue.try_recv().ok();
            }
        }
        if !group.is_empty() {
            commit(&connection, group, even_closed);
        }
        if let Some(work) = chore {
            work(&mut connection);
        }
    }
    // The next start need not read the log; a failure costs nothing but time.
    let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
}

/// Whether the data is moving or moved. Asked within the transaction: whoever closed the file had it before.
fn is_closed(connection: &Connection) -> rusqlite::Result<bool> {
    let version: i64 = connection.prepare_cached("PRAGMA user_version")?.query_row([], |row| row.get(0))?;
    Ok(version != 0)
}

fn check(connection: &Connection, operation: &'static str) -> Result<()> {
    if !is_closed(connection).map_err(|error| wrong(operation, &error))? {
        return Ok(());
    }
    let why = closed(&mut SqliteTx { connection, operation })?;
    let why = why.map_or_else(|| "it was closed".to_owned(), |why| why.to_string());
    Err(DbError::Shut { operation, why })
}

/// Commits all together; if that fails, each by itself, so that each is told the truth about itself.
fn commit(connection: &Connection, mut group: Vec<Box<dyn Job>>, even_closed: bool) {
    if group.len() > 1 && try_together(connection, &mut group, even_closed).is_ok() {
        group.into_iter().for_each(|job| job.answer(Ok(())));
        return;
    }
    for mut job in group {
        let committed = alone(connection, job.as_mut(), even_closed);
        job.answer(committed);
    }
}

fn try_together(connection: &Connection, group: &mut [Box<dyn Job>], even_closed: bool) -> rusqlite::Result<()> {
    let done = together(connection, group, even_closed);
    if done.is_err() && !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    done
}

fn together(connection: &Connection, group: &mut [Box<dyn Job>], even_closed: bool) -> rusqlite::Result<()> {
    let run = |sql: &str| connection.prepare_cached(sql)?.execute([]).map(drop);
    run("BEGIN IMMEDIATE")?;
    if !even_closed && is_closed(connection)? {
        // Each is told by itself.
        return Err(rusqlite::Error::InvalidQuery);
    }
    for job in group {
        run("SAVEPOINT job")?;
        let operation = job.operation();
        let keep = job.run(&mut SqliteTx { connection, operation });
        if connection.is_autocommit() {
            // SQLite gave the whole transaction up (a full disk, an I/O error): none of the jobs before it is done.
            return Err(rusqlite::Error::InvalidQuery);
        }
        if !keep {
            run("ROLLBACK TO job")?;
        }
        run("RELEASE job")?;
    }
    run("COMMIT")
}

fn alone(connection: &Connection, job: &mut dyn Job, even_closed: bool) -> Result<()> {
    let operation = job.operation();
    let run = |sql: &str| connection.prepare_cached(sql)?.execute([]).map(drop);
    let doing = |result: rusqlite::Result<()>| result.map_err(|error| wrong(operation, &error));
    doing(run("BEGIN IMMEDIATE"))?;
    let shut = if even_closed { Ok(()) } else { check(connection, operation) };
    if let Err(error) = shut {
        let _ = run("ROLLBACK");
        return Err(error);
    }
    let keep = job.run(&mut SqliteTx { connection, operation });
    let done = if keep { doing(run("COMMIT")) } else { Ok(()) };
    if !connection.is_autocommit() {
        let _ = run("ROLLBACK");
    }
    done
}

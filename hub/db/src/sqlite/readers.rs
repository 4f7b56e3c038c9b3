//! The connections that read: as many at once as there are, on threads that may wait.

use super::connect::{Access, connect};
use super::tx::{SqliteTx, wrong};
use crate::shared::Tx;
use crate::{DbError, Result};
use rusqlite::Connection;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// The connections that read.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Readers {
    pub(super) fn new(path: PathBuf, connections: usize) -> Self {
        Self { path, idle: Mutex::new(Vec::new()), permits: Arc::new(Semaphore::new(connections.max(1))) }
    }

    /// How many are open and idle.
    pub(super) fn idle(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Lets nobody in any more, and closes those that are idle.
    pub(super) fn close(&self) {
        self.permits.close();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Runs `work` on one view of the data.
    pub(super) async fn read<R: Send + 'static>(
        self: &Arc<Self>,
        operation: &'static str,
        work: impl FnOnce(&mut dyn Tx) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| DbError::Closed { operation })?;
        let readers = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let idle = readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match idle {
                Some(connection) => connection,
                None => connect(&readers.path, Access::Read)?,
            };
            let done = view(&connection, operation, work);
            if connection.is_autocommit() && !readers.permits.is_closed() {
                readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            }
            done
        });
        done.await.map_err(|error| DbError::Io { operation, why: error.to_string() })?
    }
}

fn view<R>(connection: &Connection, operation: &'static str, work: impl FnOnce(&mut dyn Tx) -> Result<R>) -> Result<R> {
    let run = |sql: &str| {
        let done = connection.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
        done.map(drop).map_err(|error| wrong(operation, &error))
    };
    run("BEGIN")?;
    let done = work(&mut SqliteTx { connection, operation });
    // An error may have ended it already.
    if !connection.is_autocommit() {
        let _ = run("ROLLBACK");
    }
    done
}

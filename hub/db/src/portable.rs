//! A hub's data as a whole: backups, restores, and the way from one database to another.
//!
//! A backup is one consistent view of all tables in a form that both databases share: what was of SQLite goes into
//! PostgreSQL, and the other way round.

pub(crate) mod closed;
mod export;
mod format;
mod import;
mod migrate;
mod places;
mod restore;
mod revoked;
mod tables;

pub use closed::Closed;
pub use format::{BackupHeader, BackupTotals, BackupWriter};
pub use migrate::{Migration, Moved, abort_migration, migrate};
pub use restore::{Restore, Restored, Verified, restore, verify};
pub use revoked::{RevocationRecord, RevokedWhat, taken_back};

use crate::shared::{Engine, Store};
use crate::{DbError, Result};
use async_trait::async_trait;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Hears how many rows of a table are done.
pub type OnRows = Arc<dyn Fn(&str, u64) + Send + Sync>;
/// Opens a backup from its beginning, each time it is asked.
pub type Source = Arc<dyn Fn() -> Result<Box<dyn Read + Send>> + Send + Sync>;
/// Where a backup is written to.
pub type Sink = Box<dyn Write + Send>;

/// Taking all that there is.
#[async_trait]
pub trait Portable {
    /// Writes everything, of one view, into a backup. What is stored meanwhile is not in it. What the sink makes slow
    /// keeps the view open, and SQLite's log growing.
    ///
    /// # Errors
    /// When the database cannot be read, or the backup not be written.
    async fn export(&self, writer: BackupWriter<Sink>, progress: OnRows) -> Result<(BackupWriter<Sink>, BackupTotals)>;

    /// Why it is closed; none when it is open.
    ///
    /// # Errors
    /// When it cannot be read.
    async fn closed(&self) -> Result<Option<Closed>>;
}

#[async_trait]
impl<E: Engine> Portable for Store<E> {
    async fn export(&self, writer: BackupWriter<Sink>, progress: OnRows) -> Result<(BackupWriter<Sink>, BackupTotals)> {
        // Once: a view is never worked on anew.
        let writer = Mutex::new(Some(writer));
        let read = move |tx: &mut dyn crate::shared::Tx| {
            let taken = writer.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut writer =
                taken.ok_or_else(|| DbError::invalid("write the backup", "it was broken off; try again"))?;
            let totals = export::export(tx, &mut writer, 0, &progress)?;
            Ok((writer, totals))
        };
        self.engine.read("write the backup", read).await
    }

    async fn closed(&self) -> Result<Option<Closed>> {
        self.engine.read("open the database", closed::closed).await
    }
}

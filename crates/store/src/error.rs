//! Why the store could not do what was asked.

use crate::Table;
use picket_seal::{FileError, KeyError, SealError};
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

/// Why the store could not do what was asked. Cheap to clone: one failed batch is told to all who wait for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// SQLite could not do what it was asked.
    #[error("cannot {operation} the store {}", path.display())]
    Sqlite {
        /// A verb: `open`, `write`, `read`.
        operation: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: Arc<rusqlite::Error>,
    },
    /// A file beside the database could not be used.
    #[error("the store's files cannot be used")]
    File(#[source] Arc<picket_durable::Error>),
    /// There is no store here.
    #[error("there is no store at {}; the agent makes it when it first starts", .0.display())]
    Absent(PathBuf),
    /// Another process writes to this store.
    #[error("the store {} is in use by {}; stop the agent first: picket service stop", path.display(), holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")))]
    InUse {
        /// The store's folder.
        path: PathBuf,
        /// The process that holds it, where it can be told.
        holder: Option<u32>,
    },
    /// The file is not a store of Picket's.
    #[error("{} is not a store of Picket's: {why}. Nothing was changed; move it away, or try: picket data recover", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// What tells.
        why: &'static str,
    },
    /// The file is damaged.
    #[error("the store {} is damaged: {why}. Nothing was changed; save what is intact with: picket data recover", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What tells.
        why: String,
    },
    /// The store belongs to another device.
    #[error(
        "the store {} belongs to device {file}, and the key file to device {key}: nothing was changed. Put the \
         right key file back, or move the store away to begin anew", path.display()
    )]
    OtherDevice {
        /// The database.
        path: PathBuf,
        /// The device that its meta table names.
        file: Uuid,
        /// The device that the key file names.
        key: Uuid,
    },
    /// The key file is this device's, but not of this time.
    #[error(
        "the store {} is sealed under key {key}, which the key file does not have: it is an older copy. Nothing was \
         changed; put the newest key file back", path.display()
    )]
    KeyMissing {
        /// The database.
        path: PathBuf,
        /// The number of the key.
        key: u32,
    },
    /// The key file has the right names and the wrong keys.
    #[error("the key file does not open the store {}: a key in it is not the one that sealed. Nothing was changed", .0.display())]
    WrongKey(PathBuf),
    /// A later version wrote the file.
    #[error(
        "the store {} has schema {file}, and this version reads up to {reads}: a later version wrote it. Nothing was \
         changed; use that version", path.display()
    )]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its schema.
        file: u32,
        /// The highest that this version reads.
        reads: u32,
    },
    /// The key file cannot be used.
    #[error("the keys of the store cannot be used")]
    Key(#[source] Arc<KeyError>),
    /// A row cannot be sealed or opened.
    #[error("row {id} of {table}")]
    Row {
        /// Its table.
        table: Table,
        /// Its id.
        id: i64,
        /// Why.
        source: SealError,
    },
    /// A row is not the one that was written.
    #[error("row {id} of {table} is damaged: its checksum does not hold; see: picket data verify")]
    RowDamaged {
        /// Its table.
        table: Table,
        /// Its id.
        id: i64,
    },
    /// A payload is longer than a record can be.
    #[error("the payload of {0} bytes is longer than a row can be: {limit}", limit = picket_seal::MAX_RECORD_BYTES)]
    TooLong(usize),
    /// A payload could not be written as JSON.
    #[error("the payload cannot be written as JSON: {0}")]
    Json(String),
    /// The queue to the writer has no room.
    #[error("the store's queue is full ({rows} rows, {bytes} bytes wait)")]
    QueueFull {
        /// How many rows wait.
        rows: usize,
        /// How many bytes they have.
        bytes: usize,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Nobody knows any more what became of the rows.
    #[error("it is too long ago to say whether these rows were written: {0} rows failed since")]
    Forgotten(u64),
    /// A sealed file could not be written or read.
    #[error("the sealed file {} cannot be used", path.display())]
    SealedFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<FileError>,
    },
    /// What is exported could not be written.
    #[error("cannot write the export")]
    Export(#[source] Arc<std::io::Error>),
    /// The backup that was restored does not hold together.
    #[error("the backup {} is not whole: {why}. Nothing was changed", path.display())]
    BadBackup {
        /// The backup.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody asked to stop.
    #[error("stopped before the end")]
    Stopped,
}

/// Shorthand for the results of this crate.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    /// Whether the disk, the quota or the store's own ceiling is full: writing goes on once there is room.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => matches!(code(source), Some(rusqlite::ErrorCode::DiskFull)),
            Self::File(source) => source.is_disk_full(),
            Self::Export(source) => {
                matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            }
            Self::SealedFile { source, .. } => {
                matches!(&**source, FileError::Io(error) if error.kind() == std::io::ErrorKind::StorageFull)
            }
            _ => false,
        }
    }

    /// Whether SQLite found the file damaged.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => is_damage(source),
            Self::Damaged { .. } | Self::NotAStore { .. } | Self::RowDamaged { .. } => true,
            Self::Row { source, .. } => !matches!(source, SealError::Random),
            _ => false,
        }
    }

    /// Whether the keys are at fault, not the file.
    pub fn is_key_trouble(&self) -> bool {
        matches!(self, Self::OtherDevice { .. } | Self::KeyMissing { .. } | Self::WrongKey(_) | Self::Key(_))
    }
}

fn code(error: &rusqlite::Error) -> Option<rusqlite::ErrorCode> {
    error.sqlite_error_code()
}

/// Whether it says that the file is damaged. A flipped bit in the header of a row changes the type of a column or its
/// length, and makes a text of no text.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::{Error as E, ErrorCode as C};
    match error {
        E::FromSqlConversionFailure(..)
        | E::IntegralValueOutOfRange(..)
        | E::InvalidColumnType(..)
        | E::Utf8Error(..) => true,
        error => matches!(code(error), Some(C::DatabaseCorrupt | C::NotADatabase | C::TooBig)),
    }
}

impl From<picket_durable::Error> for StoreError {
    fn from(error: picket_durable::Error) -> Self {
        Self::File(Arc::new(error))
    }
}

impl From<KeyError> for StoreError {
    fn from(error: KeyError) -> Self {
        Self::Key(Arc::new(error))
    }
}

/// Attaches operation and database to what SQLite said.
pub(crate) trait Doing<T> {
    fn doing(self, operation: &'static str, path: &std::path::Path) -> Result<T>;
}

impl<T> Doing<T> for rusqlite::Result<T> {
    fn doing(self, operation: &'static str, path: &std::path::Path) -> Result<T> {
        self.map_err(|source| StoreError::Sqlite { operation, path: path.to_owned(), source: Arc::new(source) })
    }
}

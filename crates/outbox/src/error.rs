//! Why the outbox could not do what it was asked for.

use std::path::{Path, PathBuf};

/// Why the outbox could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// Another process owns it.
    #[error("the outbox is in use")]
    Lock(#[from] picket_durable::LockError),
    /// A file beside the database could not be used.
    #[error("a file of the outbox cannot be used")]
    File(#[from] picket_durable::Error),
    /// The disk is full. What is queued stays; what is new waits in memory.
    #[error("the disk that holds {} is full; free some space", .0.display())]
    DiskFull(PathBuf),
    /// The disk fails.
    #[error("cannot {operation} {}; look at the disk", path.display())]
    Database {
        /// What was tried.
        operation: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// It was sealed under keys this device does not have; nothing was changed.
    #[error(
        "{} was sealed under other keys than those of this device's key file; put the right key file back, or move the \
         folder away to begin anew", .0.display()
    )]
    OtherKeys(PathBuf),
    /// It was written by a later version; nothing was changed.
    #[error("{} has form {form}, which is a later version's; update, or move the folder away to begin anew", path.display())]
    Later {
        /// The database.
        path: PathBuf,
        /// Its `user_version`.
        form: i64,
    },
    /// A record could not be sealed.
    #[error("a record cannot be sealed")]
    Seal(#[from] picket_seal::SealError),
    /// The records are not durable yet; they are in memory and are tried again.
    #[error("not durable within the time given: {0}")]
    NotYet(String),
    /// The event was given up before it was durable, and counted as a gap.
    #[error("the event was given up for lack of room, and counted")]
    GivenUp,
    /// The outbox was closed.
    #[error("the outbox is closed")]
    Closed,
}

/// What went wrong inside of one transaction, and hence what is to be done about it.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// A row is not what was written.
    Row,
    /// SQLite cannot make sense of the file.
    Structure(rusqlite::Error),
    /// No room.
    Full,
    /// The disk, or anything else that may be better later.
    Io(rusqlite::Error),
    /// No random bytes to seal with.
    Seal(picket_seal::SealError),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error as E;
        match &error {
            // A flipped bit in a record's header changes the type of a column, or makes a text of no text.
            E::FromSqlConversionFailure(..)
            | E::IntegralValueOutOfRange(..)
            | E::InvalidColumnType(..)
            | E::Utf8Error(..) => Self::Row,
            E::SqlInputError { error: inner, .. } | E::SqliteFailure(inner, _) => Self::of_code(inner.code, error),
            _ => Self::Io(error),
        }
    }
}

impl Trouble {
    fn of_code(code: rusqlite::ErrorCode, error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as C;
        match code {
            C::DiskFull => Self::Full,
            // `Unknown` is SQL that does not fit the tables: the schema page was damaged. A duplicate key is a row that
            // the marks say was never written.
            C::DatabaseCorrupt
            | C::NotADatabase
            | C::Unknown
            | C::ConstraintViolation
            | C::TypeMismatch
            | C::TooBig => Self::Structure(error),
            _ => Self::Io(error),
        }
    }

    pub(crate) fn into_error(self, operation: &'static str, path: &Path) -> OutboxError {
        let path = path.to_owned();
        match self {
            Self::Row => OutboxError::Database { operation, path, source: rusqlite::Error::InvalidQuery },
            Self::Structure(source) | Self::Io(source) => OutboxError::Database { operation, path, source },
            Self::Full => OutboxError::DiskFull(path),
            Self::Seal(error) => OutboxError::Seal(error),
        }
    }
}

impl OutboxError {
    /// Whether it is the lack of room.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull(_) => true,
            Self::File(error) => error.is_disk_full(),
            _ => false,
        }
    }
}

//! What can go wrong with the database, in words that say what was done, to what, and what to do about it.

use std::time::Duration;

/// What the functions of this package return.
pub type Result<T> = std::result::Result<T, DbError>;

/// What went wrong. No text of it ever holds a connection's URL, a password or the value of a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// The database does not answer, or refuses connections.
    #[error(
        "{operation}: the database cannot be reached ({why}); look whether it runs, and whether this machine may connect"
    )]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// What the driver says.
        why: String,
        /// When it makes sense to try again.
        retry: Duration,
    },
    /// It answers, but has no room for one more request just now: nothing was done.
    #[error("{operation}: the database is busy ({why}); try again later")]
    Busy {
        /// What was being done.
        operation: &'static str,
        /// What is full or locked.
        why: String,
    },
    /// Somebody else changed it first: nothing was done. Read it again and decide anew.
    #[error("{operation}: {object} was changed by somebody else meanwhile; read it again")]
    Conflict {
        /// What was being done.
        operation: &'static str,
        /// What had changed.
        object: String,
    },
    /// There is no such thing in this tenant.
    #[error("{operation}: there is no {object}")]
    NotFound {
        /// What was being done.
        operation: &'static str,
        /// What was looked for.
        object: String,
    },
    /// What was asked for cannot be: nothing was done.
    #[error("{operation}: {why}")]
    Invalid {
        /// What was being done.
        operation: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Stored bytes are damaged.
    #[error("{operation}: the database is damaged ({why}); {way_out}")]
    Corrupt {
        /// What was being done.
        operation: &'static str,
        /// What is damaged.
        why: String,
        /// What to do.
        way_out: &'static str,
    },
    /// The disk, or the quota, is full: nothing was written.
    #[error("{operation}: no room is left for the database ({why}); free some, or shorten retention")]
    Full {
        /// What was being done.
        operation: &'static str,
        /// What the system says.
        why: String,
    },
    /// The database was written by a later version of Picket, which this one must not touch.
    #[error(
        "the database has schema {found}, this version knows up to {known}; start the version that wrote it, or restore \
         a backup that is older than the upgrade"
    )]
    Newer {
        /// Its schema.
        found: i64,
        /// The highest schema known here.
        known: i64,
    },
    /// The system failed in some other way.
    #[error("{operation}: {why}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// What the system or the driver says.
        why: String,
    },
    /// Its data moved, or is moving: nothing is stored in it any more.
    #[error("{operation}: the database takes nothing any more: {why}")]
    Shut {
        /// What was being done.
        operation: &'static str,
        /// Where the data is, and what to do.
        why: String,
    },
    /// A backup cannot be used: nothing was done.
    #[error("the backup cannot be used: {why}")]
    Backup {
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The database was closed.
    #[error("{operation}: the database is closed, because the hub is ending")]
    Closed {
        /// What was being done.
        operation: &'static str,
    },
}

impl DbError {
    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Busy { .. })
    }

    /// Whether a compare failed: somebody else was faster.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// Whether the thing is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// [`DbError::Invalid`].
    pub fn invalid(operation: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { operation, why: why.into() }
    }

    pub(crate) fn backup(why: impl Into<String>) -> Self {
        Self::Backup { why: why.into() }
    }

    pub(crate) fn conflict(operation: &'static str, object: impl Into<String>) -> Self {
        Self::Conflict { operation, object: object.into() }
    }

    pub(crate) fn not_found(operation: &'static str, object: impl Into<String>) -> Self {
        Self::NotFound { operation, object: object.into() }
    }

    pub(crate) fn corrupt(operation: &'static str, why: impl Into<String>) -> Self {
        Self::Corrupt {
            operation,
            why: why.into(),
            way_out: "stop the hub, keep a copy of the files, and restore the last backup (picket hub restore)",
        }
    }
}

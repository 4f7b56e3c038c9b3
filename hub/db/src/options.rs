//! How a database is opened.

use crate::{DbError, Result};
use std::path::PathBuf;
use std::time::Duration;

/// How a database is opened. The defaults serve a hub of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How many connections read (SQLite), or are open at most (PostgreSQL). The one writer of SQLite is apart.
    pub connections: usize,
    /// How many requests may wait for the writer (SQLite); more fail with [`DbError::Busy`].
    pub queue: usize,
    /// How many bytes the file may grow to (SQLite), the log beside it left out: beyond it writes fail with
    /// [`DbError::Full`]. None for as much as the disk has.
    pub max_bytes: Option<u64>,
    /// How long one waits for a connection (PostgreSQL) before [`DbError::Busy`].
    pub wait: Duration,
    /// How long connecting may take (PostgreSQL) before [`DbError::Unavailable`].
    pub connect: Duration,
    /// How long one statement (PostgreSQL) or one view of the data (SQLite) may be worked on; then [`DbError::Busy`].
    pub statement: Duration,
    /// The certificates that the server's must be signed by (PEM; PostgreSQL). Without it those of the system.
    pub ca_file: Option<PathBuf>,
    /// Do not change the schema: fail if it is not the newest already. For tools that only look.
    pub migrate: bool,
    /// Open a database that is closed, too, and write to it: for what moves data, and for looking at what is left.
    pub even_closed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 8,
            queue: 4096,
            max_bytes: None,
            wait: Duration::from_secs(5),
            connect: Duration::from_secs(10),
            statement: Duration::from_secs(60),
            ca_file: None,
            migrate: true,
            even_closed: false,
        }
    }
}

/// Where a database is. Its text form leaves user, password and parameters out.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A file of SQLite.
    Sqlite(PathBuf),
    /// A server, by its URL.
    Postgres(String),
}

impl Location {
    /// `sqlite:<path>`, `postgres://…` or `postgresql://…`, or a path.
    ///
    /// # Errors
    /// [`DbError::Invalid`] for any other scheme, and for an empty path.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |why: &str| Err(DbError::invalid("read where the database is", why));
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Self::Postgres(text.to_owned()));
        }
        let path = match text.strip_prefix("sqlite:") {
            Some(path) => path.strip_prefix("//").unwrap_or(path),
            None if text.contains("://") => return invalid("it is neither sqlite:<path> nor postgres://… nor a path"),
            None => text,
        };
        if path.is_empty() || path.contains('\0') || path == ":memory:" {
            return invalid("the path of the file is missing");
        }
        Ok(Self::Sqlite(path.into()))
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => {
                let rest = url.split_once("://").map_or("", |(_, rest)| rest);
                let plain = rest.split('?').next().unwrap_or_default();
                // A password that was not escaped may hold any of the signs that divide an URL: then nothing is shown.
                let host = match plain.rsplit_once('@') {
                    Some((_, host)) => host,
                    None if rest.contains('@') => "",
                    None => plain,
                };
                write!(f, "postgres://{host}")
            }
        }
    }
}

impl std::fmt::Debug for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

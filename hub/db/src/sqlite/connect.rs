//! How the file is made, checked and opened.

use super::tx::wrong;
use crate::{DbError, Options, Result};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `PRAGMA application_id` of a hub's file: "PCKH".
const APPLICATION_ID: i64 = 0x5043_4b48;
/// How long a connection waits for another process's transaction.
const BUSY_LIMIT: Duration = Duration::from_secs(10);
/// After how many pages the log is taken over into the file: 16 MiB. The log holds each page once a transaction, so that
/// taking over less often writes pages of indexes less often.
const CHECKPOINT_PAGES: u32 = 4000;
/// How long the write-ahead log may stay on disk after it was taken over, in bytes.
const WAL_KEPT_BYTES: u32 = 64 << 20;
/// The longest value, in bytes: the state of a judge's engine.
const VALUE_MAX_BYTES: i32 = 256 << 20;
/// How many statements a connection keeps prepared.
const STATEMENTS: usize = 256;

mod embedded {
    refinery::embed_migrations!("migrations/sqlite");
}

/// The highest version of the schema that is known here.
pub(super) fn known_schema() -> i64 {
    embedded::migrations::runner().get_migrations().iter().map(|one| i64::from(one.version())).max().unwrap_or(0)
}

/// Which connection is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Write,
    Read,
}

/// The file with the links of its folder resolved: SQLite then refuses a link in its place.
pub(crate) fn real_path(path: &Path) -> Result<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().map_err(|error| DbError::Io {
        operation: "open the database",
        why: format!("its folder {} cannot be found ({error}); make it first", folder.display()),
    })?;
    let name = path.file_name().ok_or_else(|| DbError::invalid("open the database", "the path names no file"))?;
    Ok(folder.join(name))
}

/// Makes the file, the owner's alone, unless it is there.
pub(super) fn create(path: &Path) -> Result<()> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path);
    match opened {
        Ok(file) if file.metadata().is_ok_and(|meta| meta.is_file()) => Ok(()),
        Ok(_) => Err(DbError::invalid("open the database", format!("{} is not a file", path.display()))),
        Err(error) => {
            let why = format!("{} cannot be opened ({error})", path.display());
            Err(match error.kind() {
                std::io::ErrorKind::StorageFull => DbError::Full { operation: "open the database", why },
                _ => DbError::Io { operation: "open the database", why },
            })
        }
    }
}

/// Opens a connection with everything set that a connection must have set.
pub(super) fn connect(path: &Path, access: Access) -> Result<Connection> {
    try_connect(path, access).map_err(|error| wrong("open the database", &error))
}

fn try_connect(path: &Path, access: Access) -> rusqlite::Result<Connection> {
    // Readers may write the file's shared memory: a connection of WAL that cannot waits for one that can.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_LIMIT)?;
    connection.set_limit(rusqlite::limits::Limit::SQLITE_LIMIT_LENGTH, VALUE_MAX_BYTES)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    // mmap_size 0: an I/O error is an error then, not a SIGBUS. cell_size_check: a damaged page is found when it is read.
    connection.execute_batch(
        "PRAGMA mmap_size=0; PRAGMA cell_size_check=ON; PRAGMA trusted_schema=OFF; PRAGMA temp_store=MEMORY; \
         PRAGMA foreign_keys=ON;",
    )?;
    match access {
        Access::Write => connection.execute_batch(&format!(
            "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; \
             PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}; PRAGMA journal_size_limit={WAL_KEPT_BYTES}; \
             PRAGMA cache_size=-65536;"
        ))?,
        Access::Read => connection.execute_batch("PRAGMA query_only=ON; PRAGMA cache_size=-8192;")?,
    }
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Keeps the file from growing beyond what it may; one that is larger already stays as it is and grows no more.
pub(super) fn limit(connection: &Connection, bytes: Option<u64>) -> Result<()> {
    let Some(bytes) = bytes else { return Ok(()) };
    let set = || {
        let page: u32 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let sql = format!("PRAGMA max_page_count={}", (bytes / u64::from(page.max(1))).max(1));
        connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).map(drop)
    };
    set().map_err(|error| wrong("open the database", &error))
}

/// Whose file it is, and which schema it has; 0 for a new one.
fn look(connection: &Connection) -> rusqlite::Result<(i64, bool, i64)> {
    let id: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let history = "SELECT 1 FROM sqlite_schema WHERE name = 'refinery_schema_history'";
    let known: Option<i64> = connection.query_row(history, [], |row| row.get(0)).optional()?;
    let found = match known {
        Some(_) => {
            let sql = "SELECT coalesce(max(version), 0) FROM refinery_schema_history";
            connection.query_row(sql, [], |row| row.get(0))?
        }
        None => 0,
    };
    Ok((id, tables == 0, found))
}

/// Brings the schema up to date.
///
/// # Errors
/// [`DbError::Newer`] for that of a later version; [`DbError::Invalid`] for a file that is not a hub's.
pub(super) fn migrate(connection: &mut Connection, path: &Path, options: &Options) -> Result<i64> {
    let operation = "prepare the database";
    let (id, empty, found) = look(connection).map_err(|error| wrong(operation, &error))?;
    if !empty && id != APPLICATION_ID {
        return Err(DbError::invalid(operation, format!("{} is not a hub's database", path.display())));
    }
    let known = known_schema();
    if found > known {
        return Err(DbError::Newer { found, known });
    }
    if found == known {
        return Ok(known);
    }
    if !options.migrate {
        let why = format!("the database has schema {found} and not {known}; start the hub once to bring it up to date");
        return Err(DbError::invalid(operation, why));
    }
    if empty {
        // First, so that a file that is left half-made is known as ours.
        let sql = format!("PRAGMA application_id={APPLICATION_ID}");
        connection.execute_batch(&sql).map_err(|error| wrong(operation, &error))?;
    }
    embedded::migrations::runner().run(connection).map_err(|error| {
        let cause = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<rusqlite::Error>());
        cause.map_or_else(|| DbError::Io { operation, why: error.to_string() }, |cause| wrong(operation, cause))
    })?;
    Ok(known)
}

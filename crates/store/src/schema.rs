//! The schema of the file, how it is made and carried forward, and whose file it is.
//!
//! # Versions
//! `PRAGMA user_version` is the schema. The updater keeps a way back of one release, so a file must serve the release
//! before the one that wrote it. The rule: a release raises the schema by at most one, and only **adds** (tables, columns
//! with defaults, indexes). It writes into `meta` under `reads_from` the oldest schema whose code can read and write the
//! file. This version takes a file of up to [`SCHEMA_WRITES`] + 1 if that file's `reads_from` allows it and all columns
//! that this version knows are there; it leaves the higher number as it is. Anything newer is refused, unchanged. A
//! change that is not an addition takes two releases: one that can read both forms, then one that writes the new.

use crate::Table;
use crate::error::{Doing as _, Result, StoreError};
use picket_seal::{Keyring, Place, SealError, Sealer};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior};
use sha2::{Digest as _, Sha256};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// The schema that this version writes.
pub const SCHEMA_WRITES: u32 = 1;
/// The oldest schema that this version can carry forward, and whose code can work with files of this version.
pub const SCHEMA_READS_FROM: u32 = 1;

/// `PRAGMA application_id` of a store: "PCKT".
pub(crate) const APPLICATION_ID: u32 = 0x5043_4b54;
/// The page size of every store, in bytes: SQLite's default, and what recovery assumes when the header is gone.
pub(crate) const PAGE_BYTES: u32 = 4096;
/// How long a connection waits for another process's transaction; those last milliseconds.
const BUSY_LIMIT: Duration = Duration::from_secs(20);
/// How long the write-ahead log may stay on disk after a checkpoint, in bytes.
const WAL_KEPT_BYTES: u32 = 8 << 20;

/// The longest value and the longest row that SQLite reads, in bytes: the longest record, sealed, and the other columns.
const ROW_BYTES_MAX: i32 = (17 << 20) + 4096;

const DEVICE: &str = "device";
const KEY_CHECK: &str = "key_check";
const READS_FROM: &str = "reads_from";
const KEY_CHECK_TEXT: &[u8] = b"picket store";

/// Which connection is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// The writer's.
    Write,
    /// One that cannot write.
    Read,
}

/// The database file with its folder's links resolved: SQLite refuses a link anywhere in the path below
/// (`SQLITE_OPEN_NOFOLLOW`), so that nobody leads a privileged reader elsewhere.
pub(crate) fn real_path(path: &Path) -> Result<PathBuf> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder
        .canonicalize()
        .map_err(|source| StoreError::from(picket_durable::Error::new("find the folder", folder, source)))?;
    Ok(folder.join(path.file_name().unwrap_or_default()))
}

/// Opens a connection with everything set that a connection must have set.
pub(crate) fn connect(path: &Path, access: Access) -> Result<Connection> {
    let flags = match access {
        Access::Write => OpenFlags::SQLITE_OPEN_READ_WRITE,
        Access::Read => OpenFlags::SQLITE_OPEN_READ_ONLY,
    };
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags).doing("open", path)?;
    connection.busy_timeout(BUSY_LIMIT).doing("open", path)?;
    defend(&connection).doing("open", path)?;
    // mmap_size 0: an I/O error is an error then, not a SIGBUS. cell_size_check: a damaged page is found when it is read.
    let common = "PRAGMA mmap_size=0; PRAGMA cell_size_check=ON; PRAGMA trusted_schema=OFF; PRAGMA temp_store=MEMORY;";
    connection.execute_batch(common).doing("open", path)?;
    let rest = match access {
        // secure_delete=FAST zeroes what is deleted on pages that are written anyway. All of it is ciphertext; this keeps
        // deleted rows from being salvaged as if they were live.
        Access::Write => format!(
            "PRAGMA synchronous=FULL; PRAGMA secure_delete=FAST; PRAGMA journal_size_limit={WAL_KEPT_BYTES}; \
             PRAGMA cache_size=-4096;"
        ),
        Access::Read => "PRAGMA query_only=ON; PRAGMA cache_size=-1024;".to_owned(),
    };
    connection.execute_batch(&rest).doing("open", path)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// A file that somebody tampered with runs no code of its own, and takes no more memory than a row of ours (SQLite,
/// "Defense Against The Dark Arts").
fn defend(connection: &Connection) -> rusqlite::Result<()> {
    use rusqlite::config::DbConfig;
    connection.set_limit(rusqlite::limits::Limit::SQLITE_LIMIT_LENGTH, ROW_BYTES_MAX)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    Ok(())
}

/// What the file is, from its first bytes, before SQLite touches it.
pub(crate) fn look(path: &Path) -> Result<Look> {
    let beside = |suffix: &str| {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        path.with_file_name(name).metadata().map_or(0, |meta| meta.len())
    };
    let mut header = Vec::with_capacity(100);
    match crate::files::open(path) {
        Ok(Some(file)) => {
            let read = file.take(100).read_to_end(&mut header);
            read.map_err(|source| StoreError::from(picket_durable::Error::new("read", path, source)))?;
        }
        Ok(None) => {}
        Err(source) => return Err(picket_durable::Error::new("open", path, source).into()),
    }
    if header.is_empty() {
        // A write-ahead log without its database holds somebody's rows; SQLite would delete it.
        return match beside("-wal") {
            0 => Ok(Look::Fresh),
            _ => Err(StoreError::Damaged {
                path: path.to_owned(),
                why: "the database is gone, but its write-ahead log is there".to_owned(),
            }),
        };
    }
    // A journal is that of a creation which was interrupted: SQLite takes it back first.
    if beside("-journal") > 0 {
        return Ok(Look::Store);
    }
    let not_a_store = |why| StoreError::NotAStore { path: path.to_owned(), why };
    if header.len() < 100 || !header.starts_with(b"SQLite format 3\0") {
        return Err(not_a_store("it does not begin as a database does"));
    }
    if header[68..72] != APPLICATION_ID.to_be_bytes() {
        return Err(not_a_store("it is a database of another program"));
    }
    Ok(Look::Store)
}

/// What lies at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing, or nothing yet.
    Fresh,
    /// A store, by its first bytes.
    Store,
}

/// SQL of one table. `at` is milliseconds since 1970; ids are given by the writer, so that the seal can bind them.
pub(crate) fn table_sql(table: Table) -> [String; 2] {
    let name = table.as_str();
    [
        format!(
            "CREATE TABLE {name}(id INTEGER PRIMARY KEY, at INTEGER NOT NULL, sealed BLOB NOT NULL, sha256 BLOB NOT NULL)"
        ),
        format!("CREATE INDEX {name}_at ON {name}(at)"),
    ]
}

pub(crate) const META_SQL: &str =
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL, sha256 BLOB NOT NULL) WITHOUT ROWID";

/// Makes the schema in an empty file and carries an older one forward. The file is in WAL mode afterwards.
pub(crate) fn prepare(connection: &mut Connection, path: &Path, keyring: &Keyring, sealer: &Sealer) -> Result<()> {
    let version = user_version(connection, path)?;
    if version == 0 {
        create(connection, path, keyring, sealer)?;
    }
    check(connection, path, keyring, sealer)?;
    let mode: String =
        connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).doing("set the journal of", path)?;
    if mode != "wal" {
        let why = format!("its journal is {mode} and cannot be made a write-ahead log");
        return Err(StoreError::Damaged { path: path.to_owned(), why });
    }
    Ok(())
}

/// In one transaction with a rollback journal, so that the first page is complete or absent from the first moment.
fn create(connection: &mut Connection, path: &Path, keyring: &Keyring, sealer: &Sealer) -> Result<()> {
    let doing = "create";
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).doing(doing, path)?;
    if tables > 0 {
        let why = "it has tables, but no schema number".to_owned();
        return Err(StoreError::Damaged { path: path.to_owned(), why });
    }
    connection
        .execute_batch(&format!("PRAGMA page_size={PAGE_BYTES}; PRAGMA auto_vacuum=INCREMENTAL;"))
        .doing(doing, path)?;
    let transaction = begin(connection, path)?;
    transaction.execute_batch(META_SQL).doing(doing, path)?;
    for sql in Table::ALL.into_iter().flat_map(table_sql) {
        transaction.execute_batch(&sql).doing(doing, path)?;
    }
    set_meta(&transaction, path, DEVICE, keyring.device().as_bytes())?;
    set_meta(&transaction, path, READS_FROM, SCHEMA_READS_FROM.to_string().as_bytes())?;
    set_key_check(&transaction, path, sealer)?;
    transaction
        .execute_batch(&format!("PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_WRITES};"))
        .doing(doing, path)?;
    transaction.commit().doing(doing, path)
}

/// Whether this version may work with the file, and whether it is this device's and these keys'.
pub(crate) fn check(connection: &Connection, path: &Path, keyring: &Keyring, sealer: &Sealer) -> Result<()> {
    check_schema(connection, path)?;
    check_owner(connection, path, keyring, sealer)
}

/// Whether this version may work with the file.
pub(crate) fn check_schema(connection: &Connection, path: &Path) -> Result<()> {
    let version = user_version(connection, path)?;
    let damaged = |why: String| StoreError::Damaged { path: path.to_owned(), why };
    if version < SCHEMA_READS_FROM {
        return Err(damaged(format!("its schema is {version}, which no version ever wrote")));
    }
    if version > SCHEMA_WRITES {
        let too_new = StoreError::TooNew { path: path.to_owned(), file: version, reads: SCHEMA_WRITES };
        let reads_from = meta(connection, path, READS_FROM)?
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.parse::<u32>().ok());
        if version > SCHEMA_WRITES + 1 || reads_from.is_none_or(|oldest| oldest > SCHEMA_WRITES) {
            return Err(too_new);
        }
    }
    for table in Table::ALL {
        let sql = format!("SELECT id, at, sealed, sha256 FROM {table} LIMIT 0");
        connection
            .prepare(&sql)
            .map_err(|error| damaged(format!("the table {table} is not as it should be: {error}")))?;
    }
    Ok(())
}

fn check_owner(connection: &Connection, path: &Path, keyring: &Keyring, sealer: &Sealer) -> Result<()> {
    let damaged = |why: &str| StoreError::Damaged { path: path.to_owned(), why: why.to_owned() };
    let device = meta(connection, path, DEVICE)?.ok_or_else(|| damaged("it does not say whose it is"))?;
    let device = Uuid::from_slice(&device).map_err(|_| damaged("it does not say whose it is"))?;
    if device != keyring.device() {
        return Err(StoreError::OtherDevice { path: path.to_owned(), file: device, key: keyring.device() });
    }
    let check = meta(connection, path, KEY_CHECK)?.ok_or_else(|| damaged("the record that proves the key is gone"))?;
    match sealer.open(key_check_place(), &check) {
        Ok(plain) if plain == KEY_CHECK_TEXT => Ok(()),
        Err(SealError::UnknownKey(key)) => Err(StoreError::KeyMissing { path: path.to_owned(), key }),
        // The record's own checksum held, so it is the key that is wrong.
        Ok(_) | Err(_) => Err(StoreError::WrongKey(path.to_owned())),
    }
}

fn key_check_place() -> Place<'static> {
    Place { table: "meta", row: 0, context: KEY_CHECK.as_bytes() }
}

/// Writes the record that proves the active key.
pub(crate) fn set_key_check(connection: &Connection, path: &Path, sealer: &Sealer) -> Result<()> {
    let sealed =
        sealer.seal(key_check_place(), KEY_CHECK_TEXT).map_err(|_| StoreError::from(picket_seal::KeyError::Random))?;
    set_meta(connection, path, KEY_CHECK, &sealed)
}

/// The number of the key that the proving record is sealed under.
pub(crate) fn key_check_key(connection: &Connection, path: &Path) -> Result<Option<u32>> {
    Ok(meta(connection, path, KEY_CHECK)?.and_then(|record| Sealer::key_of(&record).ok()))
}

pub(crate) fn user_version(connection: &Connection, path: &Path) -> Result<u32> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0)).doing("read", path)
}

/// A writing transaction: nobody else writes until it ends.
pub(crate) fn begin<'c>(connection: &'c mut Connection, path: &Path) -> Result<Transaction<'c>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate).doing("write", path)
}

/// A value of the meta table whose checksum holds.
pub(crate) fn meta(connection: &Connection, path: &Path, key: &str) -> Result<Option<Vec<u8>>> {
    let row: Option<(Vec<u8>, Vec<u8>)> = connection
        .prepare_cached("SELECT value, sha256 FROM meta WHERE key=?1")
        .and_then(|mut statement| statement.query_row([key], |row| Ok((blob(row, 0)?, blob(row, 1)?))).optional())
        .doing("read", path)?;
    match row {
        Some((value, sha256)) if sha256 != meta_digest(key, &value) => {
            Err(StoreError::Damaged { path: path.to_owned(), why: format!("the checksum of `{key}` does not hold") })
        }
        row => Ok(row.map(|(value, _)| value)),
    }
}

/// The column's bytes; none if it is of another type, which no checksum fits.
fn blob(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<Vec<u8>> {
    Ok(row.get_ref(index)?.as_blob().unwrap_or_default().to_vec())
}

/// What is wrong with the records of the meta table, in words.
pub(crate) fn bad_meta(connection: &Connection, path: &Path) -> Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT key, value, sha256 FROM meta").doing("read", path)?;
    let mut rows = statement.query([]).doing("read", path)?;
    let mut bad = Vec::new();
    while let Some(row) = rows.next().doing("read", path)? {
        let key = row.get_ref(0).doing("read", path)?;
        let Ok(key) = key.as_str() else {
            bad.push("a record of meta has no name".to_owned());
            continue;
        };
        let (value, sha256) = (blob(row, 1).doing("read", path)?, blob(row, 2).doing("read", path)?);
        if sha256 != meta_digest(key, &value) {
            bad.push(format!("the checksum of `{}` in meta does not hold", key.escape_debug()));
        }
    }
    Ok(bad)
}

pub(crate) fn set_meta(connection: &Connection, path: &Path, key: &str, value: &[u8]) -> Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta(key, value, sha256) VALUES(?1, ?2, ?3)")
        .and_then(|mut statement| statement.execute((key, value, &meta_digest(key, value)[..])))
        .doing("write", path)
        .map(drop)
}

fn meta_digest(key: &str, value: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"picket meta\0");
    hash.update(u64::try_from(key.len()).unwrap_or(u64::MAX).to_be_bytes());
    hash.update(key.as_bytes());
    hash.update(value);
    hash.finalize().into()
}

/// The highest id of `table` that was ever deleted: ids are never given twice.
pub(crate) fn high(connection: &Connection, path: &Path, table: Table) -> Result<i64> {
    let value = meta(connection, path, &format!("high:{table}"))?;
    Ok(value.and_then(|bytes| bytes.try_into().ok()).map_or(0, i64::from_be_bytes))
}

/// Notes that ids up to `id` were given.
pub(crate) fn raise_high(connection: &Connection, path: &Path, table: Table, id: i64) -> Result<()> {
    if id > high(connection, path, table)? {
        set_meta(connection, path, &format!("high:{table}"), &id.to_be_bytes())?;
    }
    Ok(())
}

/// Makes the device of this keyring the owner: for a store that was put together from salvaged or restored rows.
pub(crate) fn set_owner(connection: &Connection, path: &Path, keyring: &Keyring, sealer: &Sealer) -> Result<()> {
    set_meta(connection, path, DEVICE, keyring.device().as_bytes())?;
    set_key_check(connection, path, sealer)
}

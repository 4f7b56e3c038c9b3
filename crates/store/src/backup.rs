//! The whole store as one sealed file, and back.
//!
//! A backup is a consistent copy of the database (SQLite's online backup within one read transaction, while the writer
//! goes on), sealed in chunks (`picket_seal::FileSealer`). The copy lies for that time in the store's folder, mode 0600;
//! its rows are sealed as ever.
//!
//! What is copied is verified, so that a backup with damaged rows is known for one when it is made. Restoring believes
//! nothing before it has seen all: the file is opened to its end, the database in it is verified row by row, and only then
//! gets its name. Of one with damaged rows, those that are whole are salvaged. What it replaces is kept as
//! `picket.db.before-restore`.

use crate::error::{Doing as _, Result, StoreError};
use crate::maintenance::{Progress, Watch, reseal};
use crate::recover::{self, MissingRows, RecoverReport, close};
use crate::replace::{self, BAD, Copy, UNPROVEN, beside, put_in_place, remove_database, sync};
use crate::schema::{self, Access};
use crate::store::{DATABASE, lock};
use crate::verify::{self, Finding, VerifyReport};
use crate::{Reader, Table, reader};
use jiff::Timestamp;
use picket_seal::{FileError, FileOpener, FileSealer, Keyring, Sealer};
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many pages are copied between two looks at whether to stop.
const STEP_PAGES: i32 = 512;
/// How many rows are sealed anew in one transaction.
const STEP_ROWS: usize = 256;
const BUFFER: usize = 256 << 10;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BackupReport {
    /// Rows of all tables.
    pub rows: u64,
    /// Bytes of the sealed file.
    pub bytes: u64,
    /// The number of the key it is sealed under.
    pub key: u32,
    /// What is not as it was written in what was copied, at most a thousand.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub unnamed: u64,
}

/// What was restored.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RestoreReport {
    /// Rows of all tables.
    pub rows: u64,
    /// The time of the newest row.
    pub newest: Option<Timestamp>,
    /// Whether the rows were sealed anew, under this device's key.
    pub resealed: bool,
    /// What was not as it was written in the backup, at most a thousand. The rest was salvaged then.
    pub findings: Vec<Finding>,
    /// Ids between the first and the last of a table that were not salvaged: lost, or removed before the backup.
    pub missing: Vec<MissingRows>,
    /// Where the store that was there is kept.
    pub kept: Vec<PathBuf>,
}

/// Writes a backup of the store in `dir` to `out`, which the caller made, syncs and names. Progress is in pages.
///
/// # Errors
/// When the store cannot be read, its folder has no room for the copy, or `out` cannot be written.
pub fn backup(dir: &Path, keyring: &Arc<Keyring>, out: impl Write, watch: Watch<'_>) -> Result<BackupReport> {
    let reader = Reader::open(dir, keyring)?;
    let copy = Copy::begin(reader.path())?;
    let result = copy_and_seal(&reader, copy.path(), keyring, out, watch);
    copy.end()?;
    result
}

fn copy_and_seal(
    reader: &Reader,
    copy: &Path,
    keyring: &Arc<Keyring>,
    out: impl Write,
    watch: Watch<'_>,
) -> Result<BackupReport> {
    drop(picket_durable::create_new(copy, 0o600)?);
    let pages = copy_database(reader.connection(), reader.path(), copy, &mut *watch)?;
    let found = verify::verify_file(copy, Some(keyring), false, &mut |_| watch(pages))?;
    let key = keyring.active();
    let sealed_file = |source: FileError| match source {
        FileError::Io(source) => StoreError::Export(Arc::new(source)),
        source => StoreError::SealedFile { path: copy.to_owned(), source: Arc::new(source) },
    };
    let mut out = Counted { inner: out, bytes: 0 };
    let mut sealer = FileSealer::new(keyring, &mut out).map_err(sealed_file)?;
    let mut file = File::open(copy).map_err(|source| picket_durable::Error::new("read", copy, source))?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(picket_durable::Error::new("read", copy, source).into()),
        };
        sealer.write_all(&buffer[..read]).map_err(|source| StoreError::Export(Arc::new(source)))?;
    }
    sealer.finish().map_err(sealed_file)?;
    let VerifyReport { rows, findings, unnamed, .. } = found;
    Ok(BackupReport { rows, bytes: out.bytes, key, findings, unnamed })
}

/// Copies the database as it is at one moment; says how many pages that are.
pub(crate) fn copy_database(from: &Connection, path: &Path, copy: &Path, watch: Watch<'_>) -> Result<Progress> {
    // The read transaction holds the moment: without it, each commit of the writer would start the copy anew.
    from.execute_batch("BEGIN").doing("read", path)?;
    let result = (|| {
        // SQLite takes its snapshot with the first reading.
        schema::user_version(from, path)?;
        let mut to = schema::connect(copy, Access::Write)?;
        let pages = {
            let backup = Backup::new(from, &mut to).doing("copy", path)?;
            loop {
                let step = backup.step(STEP_PAGES).doing("copy", path)?;
                let progress = backup.progress();
                let total = u64::try_from(progress.pagecount).unwrap_or(0);
                let left = u64::try_from(progress.remaining).unwrap_or(0);
                let pages = Progress { done: total.saturating_sub(left), total: Some(total) };
                if watch(pages).is_break() {
                    return Err(StoreError::Stopped);
                }
                match step {
                    StepResult::Done => break pages,
                    StepResult::More => {}
                    // Another connection is in the way for a moment.
                    _ => std::thread::sleep(std::time::Duration::from_millis(20)),
                }
            }
        };
        close(to, copy)?;
        Ok(pages)
    })();
    let _ = from.execute_batch("ROLLBACK");
    result
}

struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Puts the backup that `sealed` holds in the place of the store in `dir`. `name` is the backup's name in errors.
///
/// `theirs` are the keys it was made with, if they are not this device's present ones: another device's backup, or one
/// from before a rekeying. Its rows are then sealed anew under this device's key. Progress is in rows.
///
/// # Errors
/// [`StoreError::InUse`] while an agent runs; [`StoreError::BadBackup`] and [`StoreError::SealedFile`] when it is cut, not
/// to be opened, or has not one whole row. The store that was there is untouched then.
pub fn restore(
    dir: &Path,
    keyring: &Arc<Keyring>,
    theirs: Option<&Arc<Keyring>>,
    name: &Path,
    sealed: impl Read,
    watch: Watch<'_>,
) -> Result<RestoreReport> {
    picket_durable::create_dir(dir, 0o700)?;
    let _lock = lock(dir)?;
    let path = schema::real_path(&dir.join(DATABASE))?;
    replace::finish(&path)?;
    replace::tidy(&path)?;
    let new = path.with_file_name(UNPROVEN);
    let result = prepare(&new, keyring, theirs.unwrap_or(keyring), name, sealed, watch);
    match result {
        Ok(mut report) => {
            report.kept = put_in_place(&new, &path, ".before-restore")?;
            Ok(report)
        }
        Err(error) => {
            remove_database(&new)?;
            Err(error)
        }
    }
}

fn prepare(
    new: &Path,
    ours: &Arc<Keyring>,
    theirs: &Arc<Keyring>,
    name: &Path,
    sealed: impl Read,
    watch: Watch<'_>,
) -> Result<RestoreReport> {
    unseal(new, theirs, name, sealed)?;
    let bad = |why: String| StoreError::BadBackup { path: name.to_owned(), why };
    let found = verify::verify_file(new, Some(theirs), false, &mut *watch).map_err(|error| match error {
        StoreError::Stopped => error,
        error => bad(error.to_string()),
    })?;
    let (mut rows, mut missing) = (found.rows, Vec::new());
    if let Some(first) = found.findings.first() {
        let saved = salvage_copy(new, theirs, &mut *watch).map_err(|error| match error {
            StoreError::Stopped => error,
            error => bad(format!("{first}; nothing of it can be saved: {error}")),
        })?;
        if saved.rows() == 0 {
            return Err(bad(format!("{first}; no row of it is whole")));
        }
        (rows, missing) = (saved.rows(), saved.missing);
    }
    let mut connection = schema::connect(new, Access::Write)?;
    let resealed = !Arc::ptr_eq(ours, theirs);
    if resealed {
        reseal_all(&mut connection, new, ours, theirs)?;
    }
    let newest = crate::writer::newest_ms(&connection, new)?.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    close(connection, new)?;
    if resealed {
        let again = verify::verify_file(new, Some(ours), false, watch)?;
        if let Some(finding) = again.findings.first() {
            return Err(bad(finding.to_string()));
        }
    }
    sync(new)?;
    Ok(RestoreReport { rows, newest, resealed, findings: found.findings, missing, kept: Vec::new() })
}

/// Puts a new database with the whole rows of the unproven one in its place.
fn salvage_copy(new: &Path, keyring: &Arc<Keyring>, watch: Watch<'_>) -> Result<RecoverReport> {
    let copy = beside(new, BAD);
    remove_database(&copy)?;
    picket_durable::rename(new, &copy)?;
    remove_database(new)?;
    let mut report = RecoverReport::default();
    let result = recover::salvage(&copy, new, keyring, &mut report, watch);
    remove_database(&copy)?;
    result.map(|()| report)
}

/// Opens the sealed file to its end into the unproven database.
fn unseal(new: &Path, keyring: &Keyring, name: &Path, sealed: impl Read) -> Result<()> {
    let sealed_file = |source| StoreError::SealedFile { path: name.to_owned(), source: Arc::new(source) };
    let mut opener = FileOpener::new(keyring, sealed).map_err(sealed_file)?;
    let mut file = picket_durable::create_new(new, 0o600)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = match opener.read(&mut buffer) {
            Ok(0) => return sync(new),
            Ok(read) => read,
            Err(error) => return Err(sealed_file(unwrap_io(error))),
        };
        file.write_all(&buffer[..read]).map_err(|source| picket_durable::Error::new("write", new, source))?;
    }
}

/// The error that a reader had to wrap.
fn unwrap_io(error: io::Error) -> FileError {
    match error.downcast::<FileError>() {
        Ok(error) => error,
        Err(error) => FileError::Io(error),
    }
}

fn reseal_all(connection: &mut Connection, path: &Path, ours: &Arc<Keyring>, theirs: &Arc<Keyring>) -> Result<()> {
    let from = Sealer::new(Arc::clone(theirs))?;
    let to = Sealer::new(Arc::clone(ours))?;
    for table in Table::ALL {
        let mut last = i64::MIN;
        loop {
            let transaction = schema::begin(connection, path)?;
            let sql = format!("SELECT id, at, sealed, sha256 FROM {table} WHERE id > ?1 ORDER BY id LIMIT {STEP_ROWS}");
            let rows = reader::read_rows(&transaction, path, table, &sql, [last])?;
            let Some(end) = rows.last().map(|row| row.id) else { break };
            for row in &rows {
                if !reseal(&transaction, path, (&from, &to), row)? {
                    return Err(StoreError::RowDamaged { table, id: row.id });
                }
            }
            transaction.commit().doing("write", path)?;
            last = end;
        }
    }
    let transaction = schema::begin(connection, path)?;
    schema::set_owner(&transaction, path, ours, &to)?;
    transaction.commit().doing("write", path)
}

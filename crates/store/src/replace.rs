//! A new database in the place of the old one, whatever moment the power fails at; and what killed runs left lying.
//!
//! A database and its write-ahead log are two files, and no call renames both. So the new database, which is whole, synced
//! and has no log, first gets a name of its own that says "this is the store now" ([`READY`]): that one rename is the moment
//! of change. Before it the old store is complete. After it the old files are moved aside, log and all, and the new one gets
//! its final name; each of these steps can be done again. Whoever opens the store next finishes what was not.

use crate::error::{Result, StoreError};
use crate::schema::{self, Look};
use crate::store::{DATABASE, lock};
use picket_durable::{Context as _, Lock};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The name under which a new store is put together. What is found under it was never finished.
pub(crate) const UNPROVEN: &str = "picket.db.unproven";
/// The beginning of the name of a database that is to take the place of the old one. The ending that the old one is kept
/// under follows.
const READY: &str = "picket.db.next";
/// The beginning of the name of a backup's copy; the process's number follows.
const COPY: &str = "picket.db.copy-";

/// How far a replacement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The new database is the store, whatever happens from now on.
    Ready,
    /// The old database has its other name, too.
    DatabaseKept,
    /// The old log has its other name.
    LogKept,
    /// The old index is gone.
    IndexGone,
    /// The new database has its name.
    InPlace,
}

/// Hears of each step that is done; an error stops there.
pub(crate) type Reached<'a> = &'a mut dyn FnMut(Step) -> Result<()>;

/// Gives the closed database `new` the name `path`. What was there is kept under its name and `suffix`; of what was kept
/// before, nothing is overwritten.
pub(crate) fn put_in_place(new: &Path, path: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    stepwise(new, path, suffix, &mut |_| Ok(()))
}

pub(crate) fn stepwise(new: &Path, path: &Path, suffix: &str, reached: Reached<'_>) -> Result<Vec<PathBuf>> {
    let log = beside(new, "-wal");
    if log.metadata().is_ok_and(|meta| meta.len() > 0) {
        // A database is moved without its log only when nothing is in that.
        let why = "its write-ahead log could not be taken over".to_owned();
        return Err(StoreError::Damaged { path: new.to_owned(), why });
    }
    for part in ["-wal", "-shm", "-journal"] {
        picket_durable::remove_if_present(&beside(new, part))?;
    }
    sync(new)?;
    let suffix = free_suffix(path, suffix);
    let ready = path.with_file_name(format!("{READY}{suffix}"));
    picket_durable::rename(new, &ready)?;
    reached(Step::Ready)?;
    carry_on(&ready, path, &suffix, reached)
}

/// Finishes a replacement that was interrupted. The store's lock is held.
pub(crate) fn finish(path: &Path) -> Result<()> {
    for (ready, suffix) in pending(path)? {
        if schema::look(&ready)? == Look::Fresh {
            let why = "it is empty, and was to take the place of the store".to_owned();
            return Err(StoreError::Damaged { path: ready, why });
        }
        carry_on(&ready, path, &suffix, &mut |_| Ok(()))?;
        tracing::warn!(store = %path.display(), "a new database took the place of the old one, as an earlier run began");
    }
    Ok(())
}

/// [`finish`] for those who do not hold the lock: they take it for as long.
pub(crate) fn settle(dir: &Path, path: &Path) -> Result<()> {
    if pending(path)?.is_empty() {
        return Ok(());
    }
    let _lock = lock(dir)?;
    finish(path)
}

/// Whether there is a store in `dir`, or what is left of one: a write-ahead log without its database holds rows, too, and
/// so does a database that is about to take its place.
pub fn is_present(dir: &Path) -> bool {
    let there = |name: &str| dir.join(name).symlink_metadata().is_ok();
    there(DATABASE)
        || there(&format!("{DATABASE}-wal"))
        || pending(&dir.join(DATABASE)).map_or(true, |all| !all.is_empty())
}

/// Moves the old files aside and the new one into their place. Every step may have been done before.
fn carry_on(ready: &Path, path: &Path, suffix: &str, reached: Reached<'_>) -> Result<Vec<PathBuf>> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let suffix = match is_same(path, &beside(path, suffix)) {
        Some(false) => free_suffix(path, suffix),
        _ => suffix.to_owned(),
    };
    let mut kept = Vec::new();
    let database = beside(path, &suffix);
    if path.symlink_metadata().is_ok() {
        if is_same(path, &database).is_none() {
            std::fs::hard_link(path, &database).doing("keep", &database)?;
        }
        picket_durable::sync_dir(dir)?;
        kept.push(database);
    }
    reached(Step::DatabaseKept)?;
    let (log, kept_log) = (beside(path, "-wal"), beside(path, &format!("{suffix}-wal")));
    if log.symlink_metadata().is_ok() {
        picket_durable::rename(&log, &kept_log)?;
    }
    if kept_log.symlink_metadata().is_ok() {
        kept.push(kept_log);
    }
    reached(Step::LogKept)?;
    // The index is made anew from a log, and a journal is of a creation that was interrupted.
    for part in ["-shm", "-journal"] {
        picket_durable::remove_if_present(&beside(path, part))?;
    }
    reached(Step::IndexGone)?;
    picket_durable::rename(ready, path)?;
    reached(Step::InPlace)?;
    Ok(kept)
}

/// Databases that are to take the place of the one at `path`, with the ending that it is to be kept under.
fn pending(path: &Path) -> Result<Vec<(PathBuf, String)>> {
    let names = names(path)?;
    let ready = names.into_iter().filter_map(|name| {
        let suffix = name.strip_prefix(READY)?.to_owned();
        let is_database = !["-wal", "-shm", "-journal"].iter().any(|part| suffix.ends_with(part));
        (is_database && suffix.starts_with('.')).then(|| (path.with_file_name(&name), suffix))
    });
    Ok(ready.collect())
}

/// The names of what lies beside `path`; none where its folder is not there.
fn names(path: &Path) -> Result<Vec<String>> {
    let dir = path.parent().unwrap_or(Path::new("."));
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(picket_durable::Error::new("list", dir, source).into()),
    }
}

/// The ending, with a number if something has it already.
fn free_suffix(path: &Path, suffix: &str) -> String {
    let taken = |suffix: &str| {
        ["", "-wal"].iter().any(|part| beside(path, &format!("{suffix}{part}")).symlink_metadata().is_ok())
    };
    let mut free = suffix.to_owned();
    let mut number = 1;
    while taken(&free) {
        number += 1;
        free = format!("{suffix}-{number}");
    }
    free
}

/// Whether two names are those of one file; `None` if one of them is not there.
fn is_same(one: &Path, other: &Path) -> Option<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let place = |path: &Path| path.symlink_metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    Some(place(one)? == place(other)?)
}

/// A backup's copy of the database, which is its alone while this lives.
pub(crate) struct Copy {
    path: PathBuf,
    _lock: Lock,
}

impl Copy {
    /// A name for the copy of the database at `path`. What killed runs left is removed.
    pub(crate) fn begin(path: &Path) -> Result<Self> {
        remove_copies(path)?;
        let copy = path.with_file_name(format!("{COPY}{}", std::process::id()));
        let lock = Lock::acquire(&beside(&copy, ".lock")).map_err(|error| crate::store::lock_error(error, &copy))?;
        remove_database(&copy)?;
        Ok(Self { path: copy, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it.
    pub(crate) fn end(self) -> Result<()> {
        remove_database(&self.path)?;
        picket_durable::remove_if_present(&beside(&self.path, ".lock"))?;
        Ok(())
    }
}

/// Removes copies of backups that are no longer under way.
fn remove_copies(path: &Path) -> Result<()> {
    for name in names(path)? {
        let Some(process) = name.strip_prefix(COPY) else { continue };
        let process = process.split(['-', '.']).next().unwrap_or_default();
        let copy = path.with_file_name(format!("{COPY}{process}"));
        let lock = beside(&copy, ".lock");
        if !process.is_empty() && Lock::holder(&lock).is_none() {
            remove_database(&copy)?;
            picket_durable::remove_if_present(&lock)?;
        }
    }
    Ok(())
}

/// Removes what runs that were killed left beside the store: it only takes room. The store's lock is held.
pub(crate) fn tidy(path: &Path) -> Result<()> {
    remove_unproven(path)?;
    remove_copies(path)
}

/// Removes a database that was never finished.
pub(crate) fn remove_unproven(path: &Path) -> Result<()> {
    let new = path.with_file_name(UNPROVEN);
    remove_database(&beside(&new, BAD))?;
    remove_database(&new)
}

/// The ending of the name of a backup's database from which rows are salvaged.
pub(crate) const BAD: &str = ".bad";

/// Removes a database that never got its final name.
pub(crate) fn remove_database(path: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        picket_durable::remove_if_present(&beside(path, suffix))?;
    }
    Ok(())
}

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(crate) fn sync(path: &Path) -> Result<()> {
    Ok(File::open(path).and_then(|file| file.sync_all()).doing("sync", path)?)
}

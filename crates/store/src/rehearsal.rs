//! What a clean-up would remove, without removing it.
//!
//! Rows that are too old are counted. How many rows must go until the file is small enough is not to be reckoned from
//! outside: it depends on how they lie on pages. So a store that is too large is copied, as for a backup, and the copy is
//! cleaned up by the very steps that the real clean-up takes.

use crate::backup::copy_database;
use crate::error::{Doing as _, Result, StoreError};
use crate::maintenance::{CleanupReport, Progress, Watch};
use crate::replace::Copy;
use crate::retention::{Step, Sweep, Vacuum, expired_future, horizon};
use crate::schema::{self, Access};
use crate::{Policy, Reader, Table};
use picket_seal::Keyring;
use std::path::Path;
use std::sync::Arc;

/// What [`crate::Maintenance::clean_up`] with the same `policy` would remove at `now_ms`. The bytes that would go back to
/// the file system are told only where the store is over its size; they are 0 otherwise.
///
/// # Errors
/// When the store cannot be read, or its folder has no room for a copy of one that is over its size.
pub fn rehearse_clean_up(
    dir: &Path,
    keyring: &Arc<Keyring>,
    policy: Policy,
    now_ms: i64,
    watch: Watch<'_>,
) -> Result<CleanupReport> {
    let reader = Reader::open(dir, keyring)?;
    if policy.max_bytes().is_some_and(|max| reader.size().is_ok_and(|size| size.used_bytes() > max)) {
        let copy = Copy::begin(reader.path())?;
        let result = on_copy(&reader, copy.path(), policy, now_ms, watch);
        copy.end()?;
        return result;
    }
    let mut removed = Vec::new();
    for table in Table::ALL {
        let Some(keep) = policy.keep(table) else { continue };
        let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
        let rows = too_old(&reader, table, keep, now_ms)?;
        if rows > 0 {
            removed.push((table, rows));
        }
    }
    Ok(CleanupReport { removed, freed_bytes: 0 })
}

/// How many rows have had their time, by the index alone.
fn too_old(reader: &Reader, table: Table, keep: i64, now: i64) -> Result<u64> {
    let (connection, path) = (reader.connection(), reader.path());
    let before = now.saturating_sub(keep);
    let sql = format!("SELECT count(*), coalesce(max(id), 0) FROM {table} WHERE at < ?1");
    let (old, last): (i64, i64) =
        connection.query_row(&sql, [before], |row| Ok((row.get(0)?, row.get(1)?))).doing("read", path)?;
    let expired = expired_future(connection, path, table, keep, now)?.max(last);
    let sql = format!("SELECT count(*) FROM {table} WHERE at > ?1 AND id <= ?2");
    let future: i64 = connection.query_row(&sql, [horizon(now), expired], |row| row.get(0)).doing("read", path)?;
    Ok(u64::try_from(old.saturating_add(future)).unwrap_or(0))
}

fn on_copy(reader: &Reader, copy: &Path, policy: Policy, now_ms: i64, watch: Watch<'_>) -> Result<CleanupReport> {
    drop(picket_durable::create_new(copy, 0o600)?);
    copy_database(reader.connection(), reader.path(), copy, &mut *watch)?;
    let mut connection = schema::connect(copy, Access::Write)?;
    // It is thrown away: nothing of it need survive anything.
    connection.execute_batch("PRAGMA synchronous=OFF").doing("write", copy)?;
    let before = crate::Size::of(&connection, copy)?;
    let mut sweep = Sweep::new(policy, Some(now_ms), Vacuum::All);
    let mut removed = [0; Table::ALL.len()];
    loop {
        match sweep.step(&mut connection, copy)? {
            Step::Done => break,
            Step::Vacuumed => {}
            Step::Removed(table, rows) => removed[table.index()] += rows,
        }
        if watch(Progress { done: removed.iter().sum(), total: None }).is_break() {
            return Err(StoreError::Stopped);
        }
    }
    let after = crate::Size::of(&connection, copy)?;
    let removed = Table::ALL.into_iter().zip(removed).filter(|(_, rows)| *rows > 0).collect();
    Ok(CleanupReport { removed, freed_bytes: before.pages.saturating_sub(after.pages) * before.page_bytes })
}

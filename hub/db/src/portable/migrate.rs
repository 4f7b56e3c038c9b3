//! From SQLite to PostgreSQL while agents are connected.
//!
//! 1. Events are copied, in their order, while the hub goes on storing; they are most of all that there is.
//! 2. The file is closed: no process stores anything in it from that commit on, so nothing is acknowledged that would be
//!    left behind. Agents are told to come back, and keep what they have.
//! 3. The last events and everything else are copied in one transaction, and counted.
//! 4. The file says where its data went; then the server is opened. A hub serves from neither in between.
//!
//! Broken off in 1, it goes on where it was. Broken off in 3, the file stays closed until the same is done again or given up.
//! Events keep their numbers, as rows of transaction 0, so the cursors of judges and of people's live views hold.

use super::closed::{Closed, closed, set_closed};
use super::export::{export, values};
use super::format::{BackupHeader, BackupWriter, TableFrame};
use super::import::{Fill, Writing, is_empty, mark};
use super::restore::Filling;
use super::revoked::Standing;
use super::{OnRows, Source, tables};
use crate::postgres::Postgres;
use crate::shared::{Engine as _, Tx, Value, params};
use crate::sqlite::{Sqlite, file_of};
use crate::{Backend, DbError, Location, Options, Result, TenantId};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

const OPERATION: &str = "move the hub's data";
/// How many events are copied in one transaction.
const RUN: i64 = 2000;
/// Fewer new events than this are left for when the file is closed: a second's work.
const FEW: u64 = 2000;
/// The setting of the source that says which move is under way.
const MOVE: &str = "database.move";
const MICROS_OF_DAY: i64 = 86_400_000_000;

/// A move that is wished for.
#[derive(Clone)]
pub struct Migration {
    /// Where the data is.
    pub from: String,
    /// Where it is to be.
    pub to: String,
    /// The time now.
    pub now: Timestamp,
    /// Hears of the rows.
    pub progress: OnRows,
    /// Hears when the file is closed, and so the hub does not store any more.
    pub closing: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Migration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Nothing of the address: it may hold a password.
        f.debug_struct("Migration").field("now", &self.now).finish_non_exhaustive()
    }
}

/// What was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// How many events are there now.
    pub events: u64,
    /// How many of them were copied after the file was closed.
    pub last_events: u64,
    /// How many other rows.
    pub rows: u64,
    /// It was done before; nothing was left but to open the server.
    pub was_done: bool,
}

fn invalid<T>(why: impl Into<String>) -> Result<T> {
    Err(DbError::invalid(OPERATION, why))
}

fn joined(error: &tokio::task::JoinError) -> DbError {
    DbError::Io { operation: OPERATION, why: error.to_string() }
}

async fn file(from: &str, options: &Options) -> Result<(PathBuf, Sqlite)> {
    let Location::Sqlite(path) = Location::parse(from)? else {
        return invalid(
            "only a database of SQLite is moved like this; for others: picket hub backup, picket hub restore",
        );
    };
    let path = file_of(&path)?;
    if !path.metadata().is_ok_and(|meta| meta.len() > 0) {
        return invalid(format!("there is no database at {}", path.display()));
    }
    let (opened, options) = (path.clone(), options.clone());
    let opening = tokio::task::spawn_blocking(move || Sqlite::open(&opened, &options));
    Ok((path, opening.await.map_err(|error| joined(&error))??))
}

/// Gives a move up that did not come to its end: the hub goes on with the file.
///
/// # Errors
/// When the data has moved already.
pub async fn abort_migration(from: &str, options: &Options) -> Result<bool> {
    let options = Options { even_closed: true, ..options.clone() };
    let (_, source) = file(from, &options).await?;
    let done = source
        .write(OPERATION, |tx| {
            let was = closed(tx)?;
            if let Some(Closed::Moved { to, .. }) = &was {
                return invalid(format!("the data is at {to} already; this file is out of date"));
            }
            let begun =
                tx.changes("DELETE FROM settings WHERE tenant_id = $1 AND key = $2", params![TenantId::DEFAULT, MOVE])?;
            if matches!(was, Some(Closed::Moving { .. })) {
                set_closed(tx, None)?;
            }
            Ok(begun)
        })
        .await;
    source.close().await;
    done
}

/// Moves a hub's data from a file of SQLite to a server of PostgreSQL.
///
/// # Errors
/// [`DbError::Invalid`] for other databases and for a server that holds something else; what the databases say. Until the
/// file is closed nothing is changed in it; when something fails after that, it is opened again.
pub async fn migrate(wish: &Migration, options: &Options) -> Result<Moved> {
    let options = Options { even_closed: true, ..options.clone() };
    let target = Location::parse(&wish.to)?;
    let Location::Postgres(url) = &target else {
        return invalid("data is moved to a server of PostgreSQL: postgres://user:password@host/database");
    };
    let (path, source) = file(&wish.from, &options).await?;
    let server = match Postgres::open(url, &options).await {
        Ok(server) => server,
        Err(error) => {
            source.close().await;
            return Err(error);
        }
    };
    let work = Work { path, source, server, wish: wish.clone(), shown: target.to_string() };
    let done = work.run().await;
    work.source.close().await;
    work.server.close().await;
    done
}

struct Work {
    path: PathBuf,
    source: Sqlite,
    server: Postgres,
    wish: Migration,
    /// Where the data goes, without the password.
    shown: String,
}

impl Work {
    async fn run(&self) -> Result<Moved> {
        let id = match self.source.read(OPERATION, closed).await? {
            Some(Closed::Moved { id, .. }) => return self.only_open(id).await,
            Some(other @ (Closed::Restoring { .. } | Closed::Filling { .. })) => {
                return invalid(format!("the database cannot be moved: {other}"));
            }
            Some(Closed::Moving { .. }) | None => self.begin().await?,
        };
        let mut last = self.server.read(OPERATION, copied).await?;
        let mut before = u64::MAX;
        loop {
            let behind = self.source.read(OPERATION, move |tx| count_after(tx, last)).await?;
            // A hub that stores about as fast as this copies is never caught up with: the rest comes with the file closed.
            if behind < FEW || behind > before / 2 {
                break;
            }
            before = behind;
            last = self.copy_events(last, behind).await?;
        }
        let moving = Closed::Moving { id, to: self.shown.clone() };
        self.source.write(OPERATION, move |tx| set_closed(tx, Some(&moving))).await?;
        (self.wish.closing)();
        let done = self.finish(id, last).await;
        if done.is_err() {
            // As long as the server is not open, the file is all there is.
            let undo = |tx: &mut dyn Tx| match closed(tx)? {
                Some(Closed::Moving { .. }) => set_closed(tx, None),
                _ => Ok(()),
            };
            self.source.write(OPERATION, undo).await?;
        }
        done
    }

    /// Which move this is, known to both sides from here on.
    async fn begin(&self) -> Result<Uuid> {
        let (new, now) = (Uuid::now_v7(), self.wish.now);
        let id = self
            .source
            .write(OPERATION, move |tx| {
                let sql = "SELECT value FROM settings WHERE tenant_id = $1 AND key = $2";
                if let Some(row) = tx.row(sql, params![TenantId::DEFAULT, MOVE])? {
                    let id = Uuid::from_slice(&row.bytes(0)?).ok();
                    return id.map_or_else(
                        || invalid("which move is under way cannot be read; give it up with --abort"),
                        Ok,
                    );
                }
                mark(tx, &[(MOVE, new.as_bytes().to_vec())])?;
                Ok(new)
            })
            .await?;
        self.server
            .write(OPERATION, move |tx| {
                match closed(tx)? {
                    Some(Closed::Filling { id: filling }) if filling == id => return Ok(()),
                    Some(other) => return invalid(format!("the server's database cannot be used: {other}")),
                    None => {}
                }
                if !is_empty(tx)? {
                    return invalid("there is a hub's data in the server's database already; take an empty one");
                }
                tx.execute(
                    "INSERT INTO tenants (tenant_id, name, created_at) VALUES ($1, 'default', $2) ON CONFLICT DO NOTHING",
                    params![TenantId::DEFAULT, now],
                )?;
                set_closed(tx, Some(&Closed::Filling { id }))
            })
            .await?;
        Ok(id)
    }

    /// Copies about so many events behind a place; gives the place behind the last.
    async fn copy_events(&self, mut last: i64, wanted: u64) -> Result<i64> {
        let table = tables::find("events").ok_or_else(|| DbError::invalid(OPERATION, "a table is missing"))?;
        let mut done = 0_u64;
        loop {
            let rows = self
                .source
                .read(OPERATION, move |tx| {
                    let sql = "position > $1 ORDER BY position LIMIT $2";
                    values(tx, table, sql, params![last, RUN])
                })
                .await?;
            let (Some(Value::Int(end)), days) = (rows.last().and_then(|row| row.last()).cloned(), days(&rows)) else {
                return Ok(last);
            };
            let count = rows.len() as u64;
            self.server.make_days(&days).await?;
            self.server
                .write(OPERATION, move |tx| {
                    let columns = table.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
                    let mut writing =
                        Writing::new(&TableFrame { name: table.name.to_owned(), columns }, Backend::Postgres)?;
                    for row in &rows {
                        writing.row(tx, row.clone())?;
                    }
                    writing.finish(tx)
                })
                .await?;
            last = end;
            done += count;
            (self.wish.progress)("events", done);
            if count < RUN.unsigned_abs() || done >= wanted {
                return Ok(last);
            }
        }
    }

    /// Everything that is left, in one transaction; the source stores nothing any more.
    async fn finish(&self, id: Uuid, last: i64) -> Result<Moved> {
        let rest = {
            let mut name = self.path.as_os_str().to_owned();
            name.push(".moving");
            PathBuf::from(name)
        };
        let done = self.carry(&rest, id, last).await;
        let _ = std::fs::remove_file(&rest);
        let moved = done?;
        let gone = Closed::Moved { id, to: self.shown.clone(), at: self.wish.now };
        self.source
            .write(OPERATION, move |tx| {
                tx.execute("DELETE FROM settings WHERE tenant_id = $1 AND key = $2", params![TenantId::DEFAULT, MOVE])?;
                set_closed(tx, Some(&gone))
            })
            .await?;
        self.server.write(OPERATION, |tx| set_closed(tx, None)).await?;
        Ok(moved)
    }

    async fn carry(&self, rest: &Path, id: Uuid, last: i64) -> Result<Moved> {
        let progress = Arc::clone(&self.wish.progress);
        let (file, now) = (rest.to_owned(), self.wish.now);
        let (digest, totals) = self
            .source
            .read(OPERATION, move |tx| {
                let header = BackupHeader {
                    created_at: now,
                    version: String::new(),
                    backend: Backend::Sqlite.as_str().to_owned(),
                    schema: 0,
                    command_key: String::new(),
                };
                let io = |error: picket_durable::Error| DbError::Io { operation: OPERATION, why: error.to_string() };
                picket_durable::remove_if_present(&file).map_err(io)?;
                let out = picket_durable::create_new(&file, 0o600).map_err(io)?;
                let mut writer = BackupWriter::new(std::io::BufWriter::new(out), &header)?;
                let totals = export(tx, &mut writer, last, &progress)?;
                let digest = writer.digest();
                writer
                    .finish("")?
                    .into_inner()
                    .map_err(|error| DbError::Io { operation: OPERATION, why: error.to_string() })?;
                Ok((digest, totals))
            })
            .await?;
        self.server.make_days(&totals.days).await?;
        let path = rest.to_owned();
        let source: Source = Arc::new(move || {
            let file = std::fs::File::open(&path)
                .map_err(|error| DbError::Io { operation: OPERATION, why: error.to_string() })?;
            Ok(Box::new(std::io::BufReader::new(file)))
        });
        let filling = Filling { source, digest, progress: Arc::clone(&self.wish.progress) };
        let (here, lowest) = self
            .source
            .read(OPERATION, |tx| {
                let row = tx.row("SELECT count(*), coalesce(min(position), 0) FROM events", &[])?;
                row.map_or(Ok((0, 0)), |row| Ok((row.int(0)?, row.int(1)?)))
            })
            .await?;
        let marks = vec![(super::closed::KEY, serde_json::to_vec(&Closed::Filling { id }).unwrap_or_default())];
        let fill = Fill { replace: true, keep_events: true, standing: Standing::default(), restored_at: None, marks };
        let expected = totals.clone();
        self.server
            .write(OPERATION, move |tx| {
                filling.fill(tx, &fill)?;
                compare(tx, &expected, here, lowest)
            })
            .await?;
        let events = totals.tables.get("events").copied().unwrap_or_default();
        let rows = totals.tables.iter().filter(|(name, _)| *name != "events").map(|(_, rows)| rows).sum();
        Ok(Moved { events: here.unsigned_abs(), last_events: events, rows, was_done: false })
    }

    /// The move was done, but for the last step.
    async fn only_open(&self, id: Uuid) -> Result<Moved> {
        let opened = self
            .server
            .write(OPERATION, move |tx| match closed(tx)? {
                Some(Closed::Filling { id: filling }) if filling == id => set_closed(tx, None).map(|()| true),
                _ => Ok(false),
            })
            .await?;
        if !opened {
            let why = self.source.read(OPERATION, closed).await?;
            let why = why.map(|why| why.to_string()).unwrap_or_default();
            return invalid(format!("there is nothing left to move: {why}"));
        }
        let events = self.source.read(OPERATION, |tx| count_after(tx, 0)).await?;
        Ok(Moved { events, last_events: 0, rows: 0, was_done: true })
    }
}

/// The place of the last event that was copied.
fn copied(tx: &mut dyn Tx) -> Result<i64> {
    tx.number("SELECT coalesce(max(position), 0) FROM events WHERE tenant_id >= 0 AND xid = '0'::xid8", &[])
}

fn count_after(tx: &mut dyn Tx, last: i64) -> Result<u64> {
    Ok(tx.number("SELECT count(*) FROM events WHERE position > $1", params![last])?.unsigned_abs())
}

/// The days on which events were received.
fn days(rows: &[Vec<Value>]) -> BTreeSet<i32> {
    let day = |row: &Vec<Value>| match row.get(5) {
        Some(Value::Time(time)) => i32::try_from(time.as_microsecond().div_euclid(MICROS_OF_DAY)).ok(),
        _ => None,
    };
    rows.iter().filter_map(day).collect()
}

/// Counts what is there now, before it is committed. Events that the source has removed since they were copied may be more.
fn compare(tx: &mut dyn Tx, expected: &super::BackupTotals, events: i64, lowest: i64) -> Result<()> {
    let there = tx.number("SELECT count(*) FROM events WHERE position >= $1", params![lowest])?;
    if there != events {
        return invalid(format!(
            "{there} events arrived of {events}; nothing was moved, and the hub goes on as it was"
        ));
    }
    for (name, rows) in &expected.tables {
        // The counters may have one more: that of changes.
        if ["events", "settings", "counters"].contains(&name.as_str()) {
            continue;
        }
        let there = tx.number(&format!("SELECT count(*) FROM {name}"), &[])?.unsigned_abs();
        if there != *rows {
            return invalid(format!("{there} rows of {name} arrived of {rows}; nothing was moved"));
        }
    }
    Ok(())
}

//! Writing every row of a backup into a database, in one transaction.

use super::export::quoted;
use super::format::{BackupReader, BackupTotals, Frame, TableFrame, decode};
use super::revoked::{self, Standing};
use super::tables::{self, TABLES, Table};
use crate::shared::{Tx, Value, params};
use crate::{Backend, DbError, Result};
use jiff::Timestamp;
use std::io::Read;

/// How many parameters a statement has at most: fewer than a message of PostgreSQL's can count (65,535).
const PARAMETERS: usize = 8000;

/// What becomes of a backup's rows, and of what was there.
#[derive(Debug, Clone)]
pub(crate) struct Fill {
    /// Take away what is there before.
    pub(crate) replace: bool,
    /// But not the events: some of them came already.
    pub(crate) keep_events: bool,
    /// What must hold afterwards whatever the backup says.
    pub(crate) standing: Standing,
    /// This is a restore, at this time: what can be used once may have been used since, and is void.
    pub(crate) restored_at: Option<Timestamp>,
    /// Settings that are written in the same transaction.
    pub(crate) marks: Vec<(&'static str, Vec<u8>)>,
}

/// How rows of a table are written.
pub(super) struct Writing {
    table: &'static Table,
    names: Vec<&'static str>,
    width: usize,
    /// How many columns that hold the transaction of a place follow those of the backup.
    zeros: usize,
    /// How many rows a full statement has.
    at_once: usize,
    sql_full: String,
    sql_one: String,
    waiting: Vec<Value>,
    waiting_rows: usize,
}

fn newer(what: impl std::fmt::Display) -> DbError {
    DbError::backup(format!(
        "it has {what}, which this version of Picket does not know; use the one that wrote it, or a later one"
    ))
}

impl Writing {
    pub(super) fn new(frame: &TableFrame, backend: Backend) -> Result<Self> {
        let table = tables::find(&frame.name).ok_or_else(|| newer(format!("a table {}", frame.name)))?;
        let mut names = Vec::new();
        let mut zeros = Vec::new();
        for column in &frame.columns {
            let known = table.columns.iter().find(|(name, _)| name == column);
            let (name, kind) = known.ok_or_else(|| newer(format!("a column {column} in {}", frame.name)))?;
            names.push(*name);
            // SQLite makes that of an event by itself.
            if !(table.name == "events" && backend == Backend::Sqlite) {
                zeros.extend(kind.transaction());
            }
        }
        let width = names.len();
        names.extend(&zeros);
        let at_once = match backend {
            Backend::Sqlite => 1,
            Backend::Postgres => (PARAMETERS / names.len().max(1)).max(1),
        };
        let mut writing = Self {
            table,
            width,
            zeros: zeros.len(),
            names,
            at_once,
            sql_full: String::new(),
            sql_one: String::new(),
            waiting: Vec::new(),
            waiting_rows: 0,
        };
        (writing.sql_full, writing.sql_one) = (writing.insert(at_once), writing.insert(1));
        Ok(writing)
    }

    fn insert(&self, rows: usize) -> String {
        let width = self.names.len();
        let row = |row: usize| {
            let places = (row * width + 1..=(row + 1) * width).map(|n| format!("${n}")).collect::<Vec<_>>();
            format!("({})", places.join(", "))
        };
        let rows = (0..rows).map(row).collect::<Vec<_>>().join(", ");
        format!("INSERT INTO {} ({}) VALUES {rows}", self.table.name, quoted(self.names.iter().copied()))
    }

    fn rows(&mut self, tx: &mut dyn Tx, mut bytes: &[u8]) -> Result<u64> {
        let mut count = 0;
        while !bytes.is_empty() {
            let row = cells(&mut bytes, self.width)?;
            self.row(tx, row)?;
            count += 1;
        }
        Ok(count)
    }

    pub(super) fn row(&mut self, tx: &mut dyn Tx, cells: Vec<Value>) -> Result<()> {
        self.waiting.extend(cells);
        self.waiting.extend(std::iter::repeat_n(Value::Int(0), self.zeros));
        self.waiting_rows += 1;
        if self.waiting_rows == self.at_once {
            tx.execute(&self.sql_full, &self.waiting)?;
            self.waiting.clear();
            self.waiting_rows = 0;
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, tx: &mut dyn Tx) -> Result<()> {
        for row in self.waiting.chunks(self.names.len().max(1)) {
            tx.execute(&self.sql_one, row)?;
        }
        self.waiting.clear();
        self.waiting_rows = 0;
        Ok(())
    }
}

/// The cells of one row.
pub(super) fn cells(bytes: &mut &[u8], width: usize) -> Result<Vec<Value>> {
    let all = (0..width).map(|_| decode(bytes)).collect::<Option<Vec<_>>>();
    all.filter(|all| !all.is_empty()).ok_or_else(|| DbError::backup("a row of it is damaged"))
}

/// Whether anything is kept already, beside what every database has.
pub(super) fn is_empty(tx: &mut dyn Tx) -> Result<bool> {
    for table in TABLES.iter().filter(|table| table.name != "tenants") {
        if tx.row(&format!("SELECT 1 FROM {} LIMIT 1", table.name), &[])?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes away what is there.
fn clear(tx: &mut dyn Tx, keep_events: bool) -> Result<()> {
    let tables = TABLES.iter().map(|table| table.name).filter(|name| !(keep_events && *name == "events"));
    let all: Vec<&str> = ["leases", "sessions", "idempotency"].into_iter().chain(tables).collect();
    match tx.backend() {
        Backend::Postgres => tx.execute(&format!("TRUNCATE {}", all.join(", ")), &[]).map(drop),
        Backend::Sqlite => {
            for table in all.iter().rev() {
                tx.execute(&format!("DELETE FROM {table}"), &[])?;
            }
            Ok(())
        }
    }
}

/// Writes all rows of a backup. What a reader gives is committed only when it came whole.
pub(super) fn import<R: Read>(
    tx: &mut dyn Tx,
    reader: &mut BackupReader<R>,
    fill: &Fill,
    progress: &super::OnRows,
) -> Result<BackupTotals> {
    if fill.replace {
        clear(tx, fill.keep_events)?;
    }
    let mut totals = BackupTotals::default();
    let mut writing: Option<Writing> = None;
    let mut count = 0;
    loop {
        match reader.next()? {
            // What they say was seen to before.
            Some(Frame::Header(_) | Frame::Signature(_)) => {}
            Some(Frame::Table(frame)) => {
                if let Some(mut done) = writing.take() {
                    done.finish(tx)?;
                }
                writing = Some(Writing::new(&frame, tx.backend())?);
                count = 0;
            }
            Some(Frame::Rows(bytes)) => {
                let writing = writing.as_mut().ok_or_else(|| DbError::backup("rows without a table"))?;
                count += writing.rows(tx, &bytes)?;
                progress(writing.table.name, count);
            }
            Some(Frame::Totals(told)) => {
                if let Some(mut done) = writing.take() {
                    done.finish(tx)?;
                }
                totals = told;
            }
            None => break,
        }
    }
    order(tx, &totals)?;
    if let Some(now) = fill.restored_at {
        void_what_is_used_once(tx, now)?;
    }
    revoked::apply(tx, &fill.standing)?;
    mark(tx, &fill.marks)?;
    Ok(totals)
}

/// New events and changes come behind those that were there.
fn order(tx: &mut dyn Tx, totals: &BackupTotals) -> Result<()> {
    if tx.backend() == Backend::Sqlite {
        let raised = tx.changes(
            "UPDATE sqlite_sequence SET seq = max(seq, $1) WHERE name = 'events'",
            params![totals.event_place],
        )?;
        if !raised {
            tx.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', $1)", params![totals.event_place])?;
        }
    }
    for (tenant, place) in &totals.change_places {
        tx.execute(
            "INSERT INTO counters (tenant_id, name, value) VALUES ($1, 'changes', $2)",
            params![crate::TenantId(*tenant), *place],
        )?;
    }
    Ok(())
}

/// Enrolment tokens and links to set a password hold for a day at most, and can be used once: whether one was used since
/// the backup nobody knows.
fn void_what_is_used_once(tx: &mut dyn Tx, now: Timestamp) -> Result<()> {
    tx.execute("UPDATE enrol_tokens SET revoked_at = $1 WHERE revoked_at IS NULL AND expires_at > $1", params![now])?;
    tx.execute("DELETE FROM settings WHERE key >= 'setup/' AND key < 'setup0'", &[]).map(drop)
}

pub(super) fn mark(tx: &mut dyn Tx, marks: &[(&'static str, Vec<u8>)]) -> Result<()> {
    for (key, value) in marks {
        tx.execute(
            "INSERT INTO settings (tenant_id, key, value, revision, updated_at) VALUES ($1, $2, $3, 1, $4) \
             ON CONFLICT (tenant_id, key) DO UPDATE SET value = excluded.value",
            params![crate::TenantId::DEFAULT, *key, value, Timestamp::UNIX_EPOCH],
        )?;
    }
    Ok(())
}

//! Reading every table of one view, row by row, into a backup.

use super::format::{BackupTotals, BackupWriter};
use super::places::Places;
use super::tables::{Kind, TABLES, Table};
use crate::shared::{Cell, Row, Tx, Value, params};
use crate::{Backend, Position, Result};
use std::io::Write;

/// How many rows are read at a time.
const PAGE: i64 = 500;
/// How many rows of a table whose rows may be very large are.
const PAGE_OF_LARGE: i64 = 1;
/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;

/// The order in which a table is read: one that an index has, and for PostgreSQL that of the places in it.
fn key(table: &Table, backend: Backend) -> &'static [&'static str] {
    match (table.name, backend) {
        ("events", Backend::Sqlite) => &["position"],
        ("findings", Backend::Postgres) => &["tenant_id", "changed_xid", "changed_position"],
        _ => table.key,
    }
}

/// Names as both databases take them, whatever words they are.
pub(super) fn quoted<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    names.into_iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

/// The value of a column.
fn value(row: &Row, column: usize, kind: Kind) -> Result<Value> {
    let there = !matches!(row.cells.get(column), None | Some(Cell::Null));
    if !there {
        return Ok(Value::Null);
    }
    Ok(match kind {
        Kind::Int | Kind::Small | Kind::Event(_) | Kind::Change(_) => Value::Int(row.int(column)?),
        Kind::Bool => Value::Bool(row.bool(column)?),
        Kind::Text => Value::Text(row.text(column)?),
        Kind::Bytes => Value::Bytes(row.bytes(column)?),
        Kind::Uuid => Value::Uuid(row.uuid(column)?),
        Kind::Time => Value::Time(row.time(column)?),
        Kind::Json => Value::Json(row.text(column)?),
    })
}

/// The rows of a table for which a condition holds; one without places in it.
pub(super) fn values(tx: &mut dyn Tx, table: &Table, condition: &str, params: &[Value]) -> Result<Vec<Vec<Value>>> {
    let columns = quoted(table.columns.iter().map(|(name, _)| *name));
    let rows = tx.query(&format!("SELECT {columns} FROM {} WHERE {condition}", table.name), params)?;
    let cells = |row: &Row| table.columns.iter().enumerate().map(|(at, (_, kind))| value(row, at, *kind)).collect();
    rows.iter().map(cells).collect()
}

/// How the rows of a table are read.
struct Reading {
    table: &'static Table,
    sql: String,
    /// The statement of the first page.
    first: String,
    /// Where the transactions of places are among the columns, in the order of [`Table::columns`].
    transactions: Vec<Option<usize>>,
    /// What the key is, and where in a row.
    key: Vec<(usize, Kind)>,
    limit: i64,
}

impl Reading {
    fn new(table: &'static Table, backend: Backend) -> Self {
        let mut names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
        let mut transactions = Vec::new();
        for (_, kind) in table.columns {
            transactions.push(kind.transaction().map(|column| {
                names.push(column);
                names.len() - 1
            }));
        }
        let key = key(table, backend);
        let kind = |name: &str| table.columns.iter().find(|(column, _)| *column == name).map_or(Kind::Int, |(_, k)| *k);
        let from = names.len();
        names.extend(key);
        let keys = key.iter().enumerate().map(|(at, name)| (from + at, kind(name))).collect();
        let (columns, order) = (quoted(names), quoted(key.iter().copied()));
        let places = (2..key.len() + 2).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ");
        let name = table.name;
        Self {
            table,
            first: format!("SELECT {columns} FROM {name} ORDER BY {order} LIMIT $1"),
            sql: format!("SELECT {columns} FROM {name} WHERE ({order}) > ({places}) ORDER BY {order} LIMIT $1"),
            transactions,
            key: keys,
            limit: if name == "progress" { PAGE_OF_LARGE } else { PAGE },
        }
    }

    fn page(&self, tx: &mut dyn Tx, after: Option<&[Value]>) -> Result<Vec<Row>> {
        match after {
            None => tx.query(&self.first, params![self.limit]),
            Some(after) => {
                let mut values = vec![Value::Int(self.limit)];
                values.extend(after.iter().cloned());
                tx.query(&self.sql, &values)
            }
        }
    }

    /// The cells of a row as a backup has them, with their places as numbers.
    fn cells(&self, row: &Row, places: &mut Places) -> Result<Vec<Value>> {
        let mut cells = Vec::with_capacity(self.table.columns.len());
        for (column, ((_, kind), transaction)) in self.table.columns.iter().zip(&self.transactions).enumerate() {
            let Some(transaction) = transaction else {
                cells.push(value(row, column, *kind)?);
                continue;
            };
            let (tenant, place) = (row.int(0)?, Position::new(row.count(*transaction)?, row.count(column)?));
            cells.push(Value::Int(match kind {
                Kind::Event(_) if self.table.name == "events" => places.event(tenant, place)?,
                Kind::Event(_) => places.at(tenant, place)?,
                _ => places.change(tenant, place),
            }));
        }
        Ok(cells)
    }
}

/// Writes all tables. `after` leaves out the events up to a place of SQLite's; `progress` hears of each run of rows.
pub(super) fn export<W: Write>(
    tx: &mut dyn Tx,
    writer: &mut BackupWriter<W>,
    after: i64,
    progress: &super::OnRows,
) -> Result<BackupTotals> {
    let backend = tx.backend();
    let mut places = Places::new(backend)?;
    let mut totals = BackupTotals::default();
    // Whether this database is closed says nothing of the next one.
    let closed = Value::from(super::closed::KEY);
    let moving = Value::from("database.move");
    let changes = Value::from("changes");
    for table in TABLES {
        writer.table(table.name, table.columns.iter().map(|(name, _)| (*name).to_owned()).collect())?;
        let reading = Reading::new(table, backend);
        let mut behind = (table.name == "events" && after > 0).then(|| vec![Value::Int(after)]);
        let mut count = 0_u64;
        loop {
            let rows = reading.page(tx, behind.as_deref())?;
            for row in &rows {
                let cells = reading.cells(row, &mut places)?;
                if table.name == "settings" && cells.get(1).is_some_and(|key| *key == closed || *key == moving) {
                    continue;
                }
                // PostgreSQL keeps that one elsewhere.
                if table.name == "counters" && cells.get(1) == Some(&changes) {
                    if let (Some(Value::Int(tenant)), Some(Value::Int(value))) = (cells.first(), cells.get(2)) {
                        places.changed(*tenant, *value);
                    }
                    continue;
                }
                if table.name == "events"
                    && let Some(Value::Time(time)) = cells.get(5)
                {
                    let day = time.as_microsecond().div_euclid(DAY);
                    totals.days.insert(i32::try_from(day).unwrap_or_default());
                }
                writer.row(&cells)?;
                count += 1;
            }
            progress(table.name, count);
            let Some(last) = rows.last().filter(|_| i64::try_from(rows.len()).is_ok_and(|rows| rows == reading.limit))
            else {
                break;
            };
            behind = Some(reading.key.iter().map(|(at, kind)| value(last, *at, *kind)).collect::<Result<_>>()?);
        }
        totals.tables.insert(table.name.to_owned(), count);
    }
    totals.event_place = match backend {
        // Whether the event is still there or not.
        Backend::Sqlite => tx.number("SELECT seq FROM sqlite_sequence WHERE name = 'events'", &[])?,
        Backend::Postgres => places.last_event(),
    };
    totals.change_places = places.changes();
    writer.totals(&totals)?;
    Ok(totals)
}

//! Rows in clear for other programs: CSV, JSON, NDJSON; a row in memory at a time.
//!
//! # Forms
//! - **NDJSON**: a line for each row: `{"table":…,"id":…,"at":…,"data":…}`.
//! - **JSON**: one object, a key for each table, each an array of `{"id":…,"at":…,"data":…}`.
//! - **CSV** (RFC 4180), one table: `id`, `at`, then a column for each field, nested ones joined by dots. The columns
//!   are found in a first pass over the rows; what has no column of its own (more than [`MAX_COLUMNS`] fields, lists) is
//!   written as JSON.
//!
//! A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@`, and what is exported holds words of strangers (names of
//! files and processes). So texts in CSV that begin with one of these, a tab or a carriage return get an apostrophe before
//! them (OWASP, "CSV Injection"). Numbers stay as they are. JSON and NDJSON are exact.

use crate::error::{Result, StoreError};
use crate::maintenance::{Progress, Watch};
use crate::{Range, Reader, Row, Table};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

/// How many fields get a column of their own in CSV.
pub const MAX_COLUMNS: usize = 256;
/// How many levels of objects are taken apart into columns.
const MAX_DEPTH: usize = 8;
/// How often progress is told, in rows.
const TELL_EVERY: u64 = 256;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Comma-separated values with a line of names.
    Csv,
    /// One JSON object.
    Json,
    /// One JSON object a line.
    Ndjson,
}

/// What was exported.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct ExportReport {
    /// Rows written.
    pub rows: u64,
    /// Rows that do not open and were left out.
    pub damaged: u64,
}

/// Writes the rows of `table` as CSV with columns of the caller's own: `lines` makes as many lines of a row as it likes,
/// each a value for each column after `id` and `at`. The report counts rows, not lines.
///
/// # Errors
/// Those of [`export`].
pub fn export_lines(
    reader: &Reader,
    table: Table,
    range: &Range,
    columns: &[&str],
    mut lines: impl FnMut(&Row) -> Vec<Vec<Value>>,
    out: impl Write,
    watch: Watch<'_>,
) -> Result<ExportReport> {
    let total = Some(reader.count(table, range)?);
    let mut run = Run { reader, range, report: ExportReport::default(), seen: 0, total, watch };
    let mut csv = csv::WriterBuilder::new().from_writer(io::BufWriter::with_capacity(64 << 10, out));
    csv.write_record(["id", "at"].iter().chain(columns)).map_err(broken_csv)?;
    run.each(table, |row, _| {
        for line in lines(row) {
            csv.write_field(row.id.to_string()).map_err(broken_csv)?;
            csv.write_field(row.at.to_string()).map_err(broken_csv)?;
            for value in line {
                csv.write_field(cell(Some(value))).map_err(broken_csv)?;
            }
            csv.write_record(None::<&[u8]>).map_err(broken_csv)?;
        }
        Ok(())
    })?;
    csv.flush().map_err(writing)?;
    Ok(run.report)
}

fn broken_csv(error: csv::Error) -> StoreError {
    // The crate's own conversion hides what kind of failure it was, and a reader that left is none.
    match error.into_kind() {
        csv::ErrorKind::Io(error) => writing(error),
        other => writing(io::Error::other(format!("{other:?}"))),
    }
}

/// Writes the rows of `tables` within `range` to `out`. CSV takes the first table only.
///
/// # Errors
/// When the store cannot be read, `out` cannot be written, or `watch` asks to stop.
pub fn export(
    reader: &Reader,
    tables: &[Table],
    range: &Range,
    form: Form,
    out: impl Write,
    watch: Watch<'_>,
) -> Result<ExportReport> {
    let mut out = io::BufWriter::with_capacity(64 << 10, out);
    let tables = if form == Form::Csv { tables.get(..1).unwrap_or_default() } else { tables };
    let mut total = 0;
    for table in tables {
        total += reader.count(*table, range)?;
    }
    let mut run = Run { reader, range, report: ExportReport::default(), seen: 0, total: Some(total), watch };
    match form {
        Form::Csv => run.csv(tables.first().copied().unwrap_or(Table::Metrics), &mut out)?,
        Form::Json => run.json(tables, &mut out)?,
        Form::Ndjson => run.ndjson(tables, &mut out)?,
    }
    out.flush().map_err(writing)?;
    Ok(run.report)
}

fn writing(error: io::Error) -> StoreError {
    StoreError::Export(Arc::new(error))
}

struct Run<'a> {
    reader: &'a Reader,
    range: &'a Range,
    report: ExportReport,
    seen: u64,
    total: Option<u64>,
    watch: Watch<'a>,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<Table>,
    id: i64,
    at: jiff::Timestamp,
    data: &'a Value,
}

impl Run<'_> {
    /// Gives every row that opens, with its payload as JSON, to `visit`.
    fn each(&mut self, table: Table, mut visit: impl FnMut(&Row, Value) -> Result<()>) -> Result<()> {
        let Self { reader, range, report, seen, total, watch } = self;
        reader.rows(table, range, |row| {
            *seen += 1;
            match row {
                Ok(row) => {
                    visit(&row, data(&row.payload))?;
                    report.rows += 1;
                }
                Err(error) if error.is_damage() => report.damaged += 1,
                Err(error) => return Err(error),
            }
            if seen.is_multiple_of(TELL_EVERY) && watch(Progress { done: *seen, total: *total }).is_break() {
                return Err(StoreError::Stopped);
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn ndjson(&mut self, tables: &[Table], out: &mut impl Write) -> Result<()> {
        for table in tables {
            self.each(*table, |row, data| {
                write_json(out, &Line { table: Some(*table), id: row.id, at: row.at, data: &data })?;
                out.write_all(b"\n").map_err(writing)
            })?;
        }
        Ok(())
    }

    fn json(&mut self, tables: &[Table], out: &mut impl Write) -> Result<()> {
        out.write_all(b"{").map_err(writing)?;
        for (index, table) in tables.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(out, "{comma}\n\"{table}\": [").map_err(writing)?;
            let mut first = true;
            self.each(*table, |row, data| {
                let before: &[u8] = if std::mem::take(&mut first) { b"\n" } else { b",\n" };
                out.write_all(before).map_err(writing)?;
                write_json(out, &Line { table: None, id: row.id, at: row.at, data: &data })
            })?;
            out.write_all(b"\n]").map_err(writing)?;
        }
        out.write_all(b"\n}\n").map_err(writing)
    }

    fn csv(&mut self, table: Table, out: &mut impl Write) -> Result<()> {
        let columns = self.columns(table)?;
        // The first pass counted the rows.
        self.total = Some(self.seen * 2);
        self.report = ExportReport::default();
        let mut csv = csv::WriterBuilder::new().from_writer(out);
        let names = ["id", "at"].map(str::to_owned).into_iter().chain(columns.iter().map(|name| guarded(name)));
        csv.write_record(names).map_err(broken_csv)?;
        self.each(table, |row, mut data| {
            csv.write_field(row.id.to_string()).map_err(broken_csv)?;
            csv.write_field(row.at.to_string()).map_err(broken_csv)?;
            for column in &columns {
                csv.write_field(cell(take(&mut data, column))).map_err(broken_csv)?;
            }
            csv.write_record(None::<&[u8]>).map_err(broken_csv)
        })?;
        csv.flush().map_err(writing)
    }

    /// The names of all fields; `data` stands for a payload that is no object.
    fn columns(&mut self, table: Table) -> Result<Vec<String>> {
        let mut columns = BTreeSet::new();
        self.each(table, |_, data| {
            name_fields(&data, "", 0, &mut columns);
            Ok(())
        })?;
        // What is left is only known when all others were taken.
        let rest = columns.take(REST);
        Ok(columns.into_iter().chain(rest).collect())
    }
}

/// The payload as JSON; what is none is given as text, not lost.
fn data(payload: &[u8]) -> Value {
    serde_json::from_slice(payload).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(payload).into_owned()))
}

fn write_json(out: &mut impl Write, value: &impl Serialize) -> Result<()> {
    serde_json::to_writer(out, value).map_err(|error| writing(error.into()))
}

/// Adds the names of the leaves below `value`; whole objects where there are too many or they are too deep.
fn name_fields(value: &Value, name: &str, depth: usize, columns: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if depth < MAX_DEPTH && (!fields.is_empty() || depth == 0) => {
            for (key, value) in fields {
                let name = if depth == 0 { key.clone() } else { format!("{name}.{key}") };
                name_fields(value, &name, depth + 1, columns);
            }
        }
        _ => {
            let name = if depth == 0 { "data" } else { name };
            if columns.len() < MAX_COLUMNS {
                columns.insert(name.to_owned());
            } else if !columns.contains(name) {
                columns.insert(REST.to_owned());
            }
        }
    }
}

/// The column of what has none.
const REST: &str = "~rest";

/// Takes the value of a column out of a payload. The column [`REST`] comes last and gets what is left.
fn take(data: &mut Value, column: &str) -> Option<Value> {
    if column == REST {
        prune(data);
        return Some(data.take()).filter(|rest| !rest.is_null());
    }
    if !data.is_object() {
        return (column == "data").then(|| data.take());
    }
    take_path(data, column)
}

/// A name may itself have dots, so each way of cutting it is tried.
fn take_path(value: &mut Value, path: &str) -> Option<Value> {
    let fields = value.as_object_mut()?;
    if let Some(found) = fields.get_mut(path) {
        return Some(found.take());
    }
    let dots: Vec<usize> = path.match_indices('.').map(|(at, _)| at).collect();
    dots.into_iter().find_map(|at| take_path(fields.get_mut(&path[..at])?, &path[at + 1..]))
}

/// Removes what was taken: nulls, and objects with nothing in them.
fn prune(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.values_mut().for_each(prune);
        fields.retain(|_, value| !value.is_null());
        if fields.is_empty() {
            *value = Value::Null;
        }
    }
}

fn cell(value: Option<Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => guarded(&text),
        Some(value) => value.to_string(),
    }
}

/// A text that no spreadsheet runs.
fn guarded(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn nested_fields_become_columns_and_come_out_under_their_names() {
        let mut data = json!({ "cpu": { "load": 1.5, "cores": [1, 2] }, "host": "a", "a.b": { "c": true } });
        let mut columns = BTreeSet::new();
        name_fields(&data, "", 0, &mut columns);
        assert_eq!(columns.iter().collect::<Vec<_>>(), ["a.b.c", "cpu.cores", "cpu.load", "host"]);
        let cells: Vec<_> = columns.iter().map(|column| cell(take(&mut data, column))).collect();
        assert_eq!(cells, ["true", "[1,2]", "1.5", "a"]);
    }

    #[test]
    fn fields_beyond_the_limit_are_in_the_rest_and_none_is_lost() {
        let wide: serde_json::Map<_, _> = (0..MAX_COLUMNS + 10).map(|i| (format!("f{i:04}"), json!(i))).collect();
        let mut columns = BTreeSet::new();
        name_fields(&Value::Object(wide.clone()), "", 0, &mut columns);
        assert_eq!(columns.len(), MAX_COLUMNS + 1);
        let mut data = Value::Object(wide);
        let cells: Vec<_> = columns.iter().map(|column| cell(take(&mut data, column))).collect();
        let rest: Value = serde_json::from_str(cells.last().unwrap()).unwrap();
        assert_eq!(rest.as_object().unwrap().len(), 10);
    }

    #[test]
    fn a_text_that_a_spreadsheet_would_run_is_told_not_to_and_a_number_is_left() {
        for text in ["=1+1", "+x", "-x", "@SUM(A1)", "\t=1", "\r=1"] {
            assert_eq!(cell(Some(json!(text))), format!("'{text}"));
        }
        assert_eq!(cell(Some(json!(-5))), "-5");
        assert_eq!(cell(Some(json!("a=b"))), "a=b");
    }

    proptest! {
        #[test]
        fn outside_bytes_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut value = data(&payload);
            let mut columns = BTreeSet::new();
            name_fields(&value, "", 0, &mut columns);
            for column in &columns {
                let _ = cell(take(&mut value, column));
            }
        }
    }
}

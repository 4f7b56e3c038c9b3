//! `picket data export-…`: rows in clear, for other programs.

use super::super::Context;
use super::target::Target;
use super::{Following, keyring, store_dir};
use crate::cli::{ExportArgs, Format, TablesExportArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::wiring::as_owner;
use picket_agent::collect::Sample;
use picket_store::{ExportReport, Form, Range, Reader, Row, StoreError, Table, export, export_lines};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::path::Path;

/// The columns of metrics in CSV after `id` and `at`. One figure a line, so that every line has the same columns and a
/// pivot table or a filter finds what is wanted; `kind` and `object` tell apart what there are several of.
const METRIC_COLUMNS: [&str; 5] = ["metric", "value", "unit", "kind", "object"];
/// How deep a sample of a later version is searched for figures.
const MAX_DEPTH: usize = 8;

/// What logs are: everything that happened, as opposed to what was measured or set.
const LOGS: [Table; 5] = [Table::Logs, Table::TaskLogs, Table::CommunicationLogs, Table::Events, Table::Alerts];

/// `picket data export-metrics`.
pub(super) fn metrics(context: &Context<'_>, args: &ExportArgs) -> Result<ExitCode, CommandError> {
    write(context, args, &[Table::Metrics], Format::Csv)
}

/// `picket data export-logs`.
pub(super) fn logs(context: &Context<'_>, args: &TablesExportArgs) -> Result<ExitCode, CommandError> {
    write(context, &args.export, chosen(&args.tables, &LOGS), Format::Json)
}

/// `picket data export-json`.
pub(super) fn all(context: &Context<'_>, args: &TablesExportArgs) -> Result<ExitCode, CommandError> {
    write(context, &args.export, chosen(&args.tables, &Table::ALL), Format::Json)
}

fn chosen<'a>(named: &'a [Table], all: &'a [Table]) -> &'a [Table] {
    if named.is_empty() { all } else { named }
}

/// The form: as named, as the file's ending says, or as is usual.
fn format(args: &ExportArgs, usual: Format) -> Format {
    let ending = args.output.as_deref().and_then(Path::extension).and_then(|ending| ending.to_str());
    let by_ending = match ending.map(str::to_ascii_lowercase).as_deref() {
        Some("csv") => Some(Format::Csv),
        Some("json") => Some(Format::Json),
        Some("ndjson" | "jsonl") => Some(Format::Ndjson),
        _ => None,
    };
    args.format.or(by_ending).unwrap_or(usual)
}

fn write(context: &Context<'_>, args: &ExportArgs, tables: &[Table], usual: Format) -> Result<ExitCode, CommandError> {
    let format = format(args, usual);
    if format == Format::Csv && tables.len() != 1 {
        return Err(CommandError::Usage("CSV holds one table; choose it with --table, or take json".to_owned()));
    }
    let mut target = Target::open(context.output, args.output.as_deref(), args.force)?;
    if args.json && target.is_stream() {
        return Err(CommandError::Usage("--json reports on a file; name it with --output".to_owned()));
    }
    let range = Range { since: args.since, until: args.until, ..Range::default() };
    let following = if target.is_stream() { Following::unseen("rows")? } else { Following::begin(context, "rows")? };
    let written = as_owner(&context.layout, || {
        let reader = Reader::open(&store_dir(context)?, &keyring(context)?)?;
        let report = rows(&reader, tables, &range, format, &mut target, &following);
        Ok(report)
    })?;
    drop(following);
    let report = match written {
        // Whoever read has seen enough.
        Err(StoreError::Export(error)) if target.is_stream() && error.kind() == ErrorKind::BrokenPipe => {
            return Ok(ExitCode::Success);
        }
        written => written?,
    };
    let is_stream = target.is_stream();
    target.finish()?;
    if args.json {
        let tables: Vec<&str> = tables.iter().map(|table| table.as_str()).collect();
        context.output.json(&json!({
            "rows": report.rows, "damaged": report.damaged, "tables": tables, "output": args.output,
        }));
    } else if let Some(path) = args.output.as_ref().filter(|_| !is_stream) {
        context.output.say(format_args!("{} rows in clear in {} (mode 0600)", report.rows, path.display()));
    }
    if report.damaged > 0 {
        context.output.warn(format_args!(
            "{} rows are damaged and were left out; `picket data verify` names them",
            report.damaged
        ));
        return Ok(ExitCode::Damaged);
    }
    Ok(ExitCode::Success)
}

fn rows(
    reader: &Reader,
    tables: &[Table],
    range: &Range,
    format: Format,
    target: &mut Target,
    following: &Following,
) -> Result<ExportReport, StoreError> {
    let watch = &mut |progress| following.look(progress);
    let form = match format {
        Format::Csv if tables == [Table::Metrics] => {
            return export_lines(reader, Table::Metrics, range, &METRIC_COLUMNS, figures, target, watch);
        }
        Format::Csv => Form::Csv,
        Format::Json => Form::Json,
        Format::Ndjson => Form::Ndjson,
    };
    export(reader, tables, range, form, target, watch)
}

/// The lines of one sample. One that this version does not know gives every number in it under its path.
fn figures(row: &Row) -> Vec<Vec<Value>> {
    match Sample::from_stored(&row.payload) {
        Some(sample) => sample
            .readings()
            .into_iter()
            .map(|reading| {
                let (kind, object) = reading
                    .tags
                    .into_iter()
                    .next()
                    .map_or((Value::Null, Value::Null), |(kind, object)| (kind.into(), object.into()));
                vec![reading.name.into(), plain(reading.value), reading.unit.into(), kind, object]
            })
            .collect(),
        None => {
            let mut lines = Vec::new();
            let value: Value = serde_json::from_slice(&row.payload).unwrap_or_default();
            numbers(&value, String::new(), 0, &mut lines);
            lines
        }
    }
}

/// A number without a fraction as a whole one: bytes and counts are.
fn plain(value: f64) -> Value {
    // Up to 2^53 every whole number is itself in an f64.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and within what both hold")]
        return (value as i64).into();
    }
    value.into()
}

fn numbers(value: &Value, path: String, depth: usize, lines: &mut Vec<Vec<Value>>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Number(_) => lines.push(vec![path.into(), value.clone(), Value::Null, Value::Null, Value::Null]),
        _ if depth == MAX_DEPTH => {}
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| numbers(value, below(name), depth + 1, lines));
        }
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, item)| numbers(item, below(&index.to_string()), depth + 1, lines));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use proptest::prelude::*;

    fn lines(payload: &str) -> Vec<Vec<Value>> {
        figures(&Row { table: Table::Metrics, id: 1, at: Timestamp::UNIX_EPOCH, payload: payload.into() })
    }

    #[test]
    fn a_known_sample_gives_named_figures_with_units_and_objects() {
        let sensors =
            r#"{"at":"2026-01-01T00:00:00Z","sensors":[{"sensor":"cpu","celsius":41.5,"critical_celsius":null}]}"#;
        assert_eq!(
            lines(sensors),
            [[json!("temperature"), json!(41.5), json!("celsius"), json!("sensor"), json!("cpu")]]
        );
    }

    #[test]
    fn an_unknown_sample_gives_its_numbers_under_their_paths() {
        let all = lines(r#"{"gpu":{"busy":7,"name":"x"},"fans":[900,1000]}"#);
        let told: Vec<_> = all.iter().map(|line| (line[0].as_str().unwrap(), line[1].as_u64().unwrap())).collect();
        assert_eq!(told, [("fans.0", 900), ("fans.1", 1000), ("gpu.busy", 7)]);
        assert!(all.iter().all(|line| line.len() == METRIC_COLUMNS.len()));
    }

    proptest! {
        #[test]
        fn outside_bytes_never_panic(payload in "\\PC{0,80}") {
            let _ = lines(&payload);
        }
    }
}

//! `picket data stats`: what is kept, in numbers.

use super::super::Context;
use super::{keyring, size, store_dir, tool_settings};
use crate::cli::JsonArgs;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::settings;
use crate::wiring::as_owner;
use picket_config::Interval;
use picket_store::{Policy, Reader, Stats, TableStats, writer_process};
use serde::Serialize;
use std::path::PathBuf;

/// What `data stats` reports.
#[derive(Debug, Serialize)]
struct Report {
    /// The store's folder.
    store: PathBuf,
    /// Whether an agent writes to it at present.
    in_use: bool,
    /// How large the configuration lets it grow, in bytes.
    max_bytes: Option<u64>,
    /// The number of the key that seals.
    key: u32,
    #[serde(flatten)]
    stats: Stats,
    /// How long each table is kept, in seconds; absent is for ever.
    retention_seconds: serde_json::Map<String, serde_json::Value>,
}

/// Runs `picket data stats`.
pub(super) fn run(context: &Context<'_>, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    let policy = Policy::from(&settings::data(&tool_settings(context)?));
    let (store, in_use, key, stats) = as_owner(&context.layout, || {
        let dir = store_dir(context)?;
        let keyring = keyring(context)?;
        let stats = Reader::open(&dir, &keyring)?.stats()?;
        let in_use = writer_process(&dir).is_some();
        Ok((dir, in_use, keyring.active(), stats))
    })?;
    let keep = |table: &TableStats| policy.keep(table.table);
    let seconds = stats.tables.iter().map(|table| {
        (table.table.to_string(), keep(table).map_or(serde_json::Value::Null, |keep| keep.as_secs().into()))
    });
    let retention_seconds = seconds.collect();
    let report = Report { store, in_use, max_bytes: policy.max_bytes(), key, stats, retention_seconds };
    if json.json {
        context.output.json(&report);
        return Ok(ExitCode::Success);
    }
    show(context, &report, &policy);
    Ok(ExitCode::Success)
}

fn show(context: &Context<'_>, report: &Report, policy: &Policy) {
    let (output, stats) = (context.output, &report.stats);
    let writer = if report.in_use { "an agent writes to it" } else { "no agent writes to it" };
    output.field("Store", format_args!("{} ({writer})", report.store.display()));
    let free = stats.size.free_pages * stats.size.page_bytes;
    let limit = report.max_bytes.map(|max| format!(", may grow to {}", size(max))).unwrap_or_default();
    output.field(
        "Size",
        format_args!("{}, {} of it free, log {}{limit}", size(stats.file_bytes), size(free), size(stats.log_bytes)),
    );
    output.field("Sealed under", format_args!("key {}", report.key));
    let time = |time: Option<jiff::Timestamp>| {
        time.map_or_else(|| "-".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
    };
    output.result(format_args!(
        "{:<18}  {:>9}  {:>10}  {:>10}  {:<20}  {:<20}  kept",
        "table", "rows", "payload", "on disk", "oldest", "newest"
    ));
    for table in &stats.tables {
        let keep = policy.keep(table.table);
        let keep = keep.map_or_else(|| "for ever".to_owned(), |keep| Interval::seconds(keep.as_secs()).to_string());
        output.result(format_args!(
            "{:<18}  {:>9}  {:>10}  {:>10}  {:<20}  {:<20}  {keep}",
            table.table,
            table.rows,
            size(table.payload_bytes),
            size(table.bytes),
            time(table.oldest),
            time(table.newest)
        ));
    }
}

//! `picket data …` and `picket cache …`.

use super::JsonArgs;
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use picket_protocol::event::Priority;
use picket_store::Table;
use std::path::PathBuf;
use std::time::Duration;

/// `picket data …`.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Show what is kept: rows, times, sizes, and how long each table is kept.
    Stats(JsonArgs),
    /// Write what the machine measured, in clear: a line for each figure.
    ExportMetrics(ExportArgs),
    /// Write logs, events and alerts, in clear.
    ExportLogs(TablesExportArgs),
    /// Write all tables, in clear.
    ExportJson(TablesExportArgs),
    /// Remove what is old, and give the space back; the agent may go on.
    ///
    /// Without --days, what retention would remove anyway. --days shortens the time of every table that has one; it
    /// lengthens none. A table that is kept for ever is touched only when it is named with --table.
    Cleanup(CleanupArgs),
    /// Look at every row: its checksum, its seal, and the file it is in. Names each row that is not as it was written.
    Verify(VerifyDataArgs),
    /// Save every intact row of a damaged store into a new one; the damaged files are kept beside it.
    Recover(JsonArgs),
    /// Write the whole store as one file, sealed under this device's key; the agent may go on.
    Backup(BackupArgs),
    /// Put a backup in the place of the store; the store that was there is kept beside it.
    Restore(RestoreArgs),
    /// Make a new key, seal everything under it, and forget the old ones; the agent may go on.
    ///
    /// When it is interrupted, the next run goes on where it stopped, with the key that was made then; --new-key makes
    /// another one. Backups made before need the key file of their time: copy it first if you have such.
    Rekey(RekeyArgs),
}

/// Options of `picket data rekey`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RekeyArgs {
    /// Make another key even if an interrupted run left one.
    #[arg(long)]
    pub(crate) new_key: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket cache …`.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Show the queue of events, its books, and whether they are delivered.
    Status(JsonArgs),
    /// Drop queued events; they are counted as missing and the receiver is told.
    Clean(CleanArgs),
}

/// The form of what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Comma-separated values with a line of names; one table.
    Csv,
    /// One JSON document.
    Json,
    /// A JSON object a line.
    Ndjson,
}

/// Where an export goes, and which rows are in it.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExportArgs {
    /// Write to this file; - or nothing is standard output.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Replace the file if it is there.
    #[arg(long)]
    pub(crate) force: bool,
    /// The form; if not given, the file's ending says it (.csv, .json, .ndjson).
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Only rows from this time on: 2026-01-31T12:00:00Z, or how long ago (24h, 7d).
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) since: Option<Timestamp>,
    /// Only rows before this time.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) until: Option<Timestamp>,
    /// Print a report in JSON; needs --output FILE.
    #[arg(long)]
    pub(crate) json: bool,
}

/// An export of some tables.
#[derive(Debug, Clone, Args)]
pub(crate) struct TablesExportArgs {
    /// Only this table; can be given more than once.
    #[arg(long = "table", value_name = "TABLE", value_parser = table_parser())]
    pub(crate) tables: Vec<Table>,
    #[command(flatten)]
    pub(crate) export: ExportArgs,
}

/// `picket data cleanup`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CleanupArgs {
    /// Remove rows that are older than so many days.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=36_500))]
    pub(crate) days: Option<u32>,
    /// Only of this table.
    #[arg(long, value_name = "TABLE", value_parser = table_parser())]
    pub(crate) table: Option<Table>,
    /// Only show how many rows are old enough.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket data verify`.
#[derive(Debug, Clone, Args)]
pub(crate) struct VerifyDataArgs {
    /// Only look at the checksums, which need no key: they tell decay, not who wrote a row.
    #[arg(long)]
    pub(crate) without_key: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket data backup`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BackupArgs {
    /// Write to this file, by custom with the ending .enc; - is standard output.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace the file if it is there.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket data restore`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RestoreArgs {
    /// The backup.
    #[arg(value_name = "FILE")]
    pub(crate) backup: PathBuf,
    /// The key file that it was sealed with, if that is not this device's present one.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket cache clean`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CleanArgs {
    /// Drop events of this class and below: low (samples), normal (files, network) or high (alerts).
    #[arg(long, value_name = "CLASS", value_parser = parse_class, default_value = "high")]
    pub(crate) class: Priority,
    /// Only events that have waited so long, for example 2h or 7d.
    #[arg(long, value_name = "AGE", value_parser = parse_age, default_value = "0s")]
    pub(crate) older_than: Duration,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

fn table_parser() -> impl clap::builder::TypedValueParser<Value = Table> {
    use clap::builder::TypedValueParser as _;
    let names = Table::ALL.map(Table::as_str);
    // Only these names get here.
    clap::builder::PossibleValuesParser::new(names).map(|name| Table::from_name(&name).unwrap_or(Table::Metrics))
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let ago = parse_age(text)
        .map_err(|_| "expected a time such as 2026-01-31T12:00:00Z, or how long ago, such as 24h or 7d".to_owned())?;
    Timestamp::now().checked_sub(ago).map_err(|error| error.to_string())
}

fn parse_age(text: &str) -> Result<Duration, String> {
    let expected = || "expected an age such as 90s, 2h or 7d".to_owned();
    let span: jiff::Span = text.parse().map_err(|_| expected())?;
    // A day is 24 hours here: an age is not a calendar.
    let age = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| expected())?;
    age.try_into().map_err(|_| expected())
}

fn parse_class(text: &str) -> Result<Priority, String> {
    let class = Priority::ALL.into_iter().find(|class| class.as_str() == text);
    class.ok_or_else(|| "expected low, normal or high".to_owned())
}

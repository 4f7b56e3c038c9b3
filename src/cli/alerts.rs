//! `picket alerts …` and `picket events …`.

use super::JsonArgs;
use clap::{Args, Subcommand};

/// `picket alerts …`.
#[derive(Debug, Subcommand)]
pub(crate) enum AlertsCommand {
    /// Show the alerts that are open.
    List(ListArgs),
    /// Say that somebody has seen an alert; it stays open until its metric is back.
    Ack(AckArgs),
}

/// `picket alerts list`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ListArgs {
    /// Show those that were closed lately, too.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket alerts ack`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct AckArgs {
    /// The alert's id, or enough of its beginning or its end.
    pub(crate) id: String,
    /// What there is to say about it.
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<String>,
    /// Who has seen it; you, if not given.
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket events …`.
#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// Print the JSON schema of an event.
    Schema,
}

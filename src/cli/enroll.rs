//! `picket enroll`, `picket cert …` and `picket test-connection`.

use super::JsonArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Where the token is read from.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TokenArgs {
    /// Read the enrolment token from this file; - is standard input. Without it, from `PICKET_ENROLL_TOKEN`, or asked for.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// `picket enroll`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct EnrollArgs {
    #[command(flatten)]
    pub(crate) token: TokenArgs,
    /// The name to be shown by; the host's if not given.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// What the machine is for, for example server or desktop.
    #[arg(long = "type", value_name = "TYPE", default_value = "server")]
    pub(crate) agent_type: String,
    /// Wait until somebody has approved this machine, where the hub asks for that.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Enrol anew even if this machine is an agent already.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket cert …`.
#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Show the certificate: whose it is, until when it holds, and when it is renewed.
    Check(JsonArgs),
    /// Get the next certificate, with a new key; the agent that runs takes it by itself.
    Renew(RenewArgs),
    /// Go back to the certificate before, which is kept for seven days.
    Rollback(JsonArgs),
}

/// `picket cert renew`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RenewArgs {
    /// Renew it even if it is not due.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket test-connection`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TestConnectionArgs {
    #[command(flatten)]
    pub(crate) token: TokenArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

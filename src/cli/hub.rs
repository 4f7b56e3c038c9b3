//! `picket hub …`: types of the command line.

use super::JsonArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `picket hub …`.
#[derive(Debug, Subcommand)]
pub(crate) enum HubCommand {
    /// Make the hub's keys, its configuration and the first administrator.
    ///
    /// Run again, it makes what is missing and nothing else: no key is ever overwritten.
    Init(HubInitArgs),
    /// Run the hub in the foreground until SIGTERM or SIGINT.
    Serve(HubConfigArgs),
    /// Tokens with which machines enrol.
    #[command(subcommand)]
    Token(HubTokenCommand),
    /// People who may use the hub.
    #[command(subcommand)]
    User(HubUserCommand),
    /// Read the hub's audit log from its beginning, and say whether anything in it was changed.
    AuditVerify(JsonArgs),
}

/// Where the hub's configuration comes from.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HubConfigArgs {
    /// Read this file instead of hub.yaml in the configuration folder.
    #[arg(long, value_name = "FILE", env = "PICKET_HUB_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Set one key, over file and environment; can be given more than once.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = super::parse_assignment)]
    pub(crate) set: Vec<(String, String)>,
}

/// `picket hub init`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HubInitArgs {
    /// A DNS name or address by which machines and people reach this hub; the first one stands in tokens.
    #[arg(long = "name", value_name = "HOST")]
    pub(crate) names: Vec<String>,
    /// What the fleet is called.
    #[arg(long, value_name = "NAME")]
    pub(crate) fleet: Option<String>,
    /// The first administrator's name.
    #[arg(long, value_name = "NAME", default_value = "admin")]
    pub(crate) admin: String,
    /// Read the administrator's password from this file, or from standard input for `-`; without it, ask on a terminal.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Print a secret with which the administrator sets the password once, within a day, instead of asking for one.
    #[arg(long, conflicts_with = "password_file")]
    pub(crate) one_time: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket hub token …`.
#[derive(Debug, Subcommand)]
pub(crate) enum HubTokenCommand {
    /// Make a token. It is shown once.
    Create(TokenCreateArgs),
    /// Show tokens, and how long each may still be used.
    List(JsonArgs),
    /// Revoke a token. Who has enrolled with it stays.
    Revoke {
        /// The token's id.
        id: uuid::Uuid,
    },
}

/// `picket hub token create`.
#[derive(Debug, Clone, Args)]
pub(crate) struct TokenCreateArgs {
    /// For how long it may be used, up to 24h.
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = parse_duration)]
    pub(crate) ttl: jiff::SignedDuration,
    /// How many machines may enrol with it.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) max_uses: u32,
    /// A tag that these machines get; can be given more than once.
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
    /// From which network it may be used, for example 10.0.0.0/8; can be given more than once.
    #[arg(long = "from", value_name = "NETWORK")]
    pub(crate) networks: Vec<String>,
    /// Who uses it waits until somebody approves.
    #[arg(long)]
    pub(crate) approval: bool,
    /// What it is for.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) label: String,
    /// Write the token to this file, readable by you alone, instead of printing it.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket hub user …`.
#[derive(Debug, Subcommand)]
pub(crate) enum HubUserCommand {
    /// Add somebody, with a secret to set the first password with, or a password.
    Add(UserAddArgs),
    /// Set a new password.
    Password {
        /// Whose.
        name: String,
        /// Read it from this file, or from standard input for `-`; without it, ask on a terminal.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Show who there is, and what each may do.
    List(JsonArgs),
    /// Make an API token that acts for somebody. It is shown once.
    Token {
        /// For whom.
        name: String,
        /// What it is for.
        #[arg(long, value_name = "TEXT", default_value = "command line")]
        label: String,
        /// For how long it holds; for good unless it is said.
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        ttl: Option<jiff::SignedDuration>,
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Let somebody do something.
    Grant(GrantArgs),
    /// Let somebody do something no more.
    Revoke(GrantArgs),
}

/// `picket hub user add`.
#[derive(Debug, Clone, Args)]
pub(crate) struct UserAddArgs {
    /// The name to sign in with.
    pub(crate) name: String,
    /// What they may: an action such as agents.read, `agents.*`, `*.read` or `*`; can be given more than once.
    #[arg(long = "grant", value_name = "ACTION")]
    pub(crate) grants: Vec<String>,
    /// Read the password from this file, or from standard input for `-`.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// A permission on the command line.
#[derive(Debug, Clone, Args)]
pub(crate) struct GrantArgs {
    /// Who.
    pub(crate) name: String,
    /// What: an action such as agents.read, `agents.*`, `*.read` or `*`.
    pub(crate) action: String,
    /// On agents with this tag only.
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Option<String>,
}

/// A length of time as people write it: `90s`, `30m`, `12h`.
fn parse_duration(text: &str) -> Result<jiff::SignedDuration, String> {
    let duration: jiff::SignedDuration =
        text.parse().map_err(|error: jiff::Error| format!("{error}; a time looks like 90s, 30m or 12h"))?;
    if duration.is_positive() { Ok(duration) } else { Err("the time must be longer than nothing".to_owned()) }
}

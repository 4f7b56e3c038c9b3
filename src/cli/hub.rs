//! `picket hub …`: types of the command line.

use super::JsonArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `picket hub …`.
#[derive(Debug, Args)]
pub(crate) struct HubArgs {
    #[command(flatten)]
    pub(crate) config: HubConfigArgs,
    #[command(subcommand)]
    pub(crate) command: HubCommand,
}

/// What of it.
#[derive(Debug, Subcommand)]
pub(crate) enum HubCommand {
    /// Make the hub's keys, its configuration and the first administrator.
    ///
    /// Run again, it makes what is missing and nothing else: no key is ever overwritten.
    Init(HubInitArgs),
    /// Run the hub in the foreground until SIGTERM or SIGINT.
    Serve,
    /// Tokens with which machines enrol.
    #[command(subcommand)]
    Token(HubTokenCommand),
    /// People who may use the hub.
    #[command(subcommand)]
    User(HubUserCommand),
    /// Who is turned away after they failed to sign in.
    #[command(subcommand)]
    Block(HubBlockCommand),
    /// Take a backup of everything the hub keeps, also while it runs.
    ///
    /// One file, of one moment, the same for SQLite and PostgreSQL: a backup of one restores into the other. It holds hashes of
    /// passwords and sealed keys, so it is readable by you alone (0600). The hub's folder of keys is not in it: keep a copy of
    /// that apart; a backup without it brings events and findings back, but no agent.
    Backup(HubBackupArgs),
    /// Put a backup in the place of the hub's database, which must not be in use.
    ///
    /// The whole backup is verified before anything is changed, and all of it comes or nothing. What was revoked since stays
    /// revoked: certificates, agents, API tokens, people, passwords and permissions, as the present database and the record
    /// beside the keys say.
    Restore(HubRestoreArgs),
    /// Move everything from SQLite to PostgreSQL, with agents connected.
    ///
    /// The hub goes on while most is copied. Then its database is closed: agents are told to come back, and keep what they
    /// have. When this ends, name the new address in hub.yaml and start the hub again.
    Migrate(HubMigrateArgs),
    /// The hub's root authority, and another in its place.
    #[command(subcommand)]
    Ca(HubCaCommand),
    /// Read the hub's audit log from its beginning, and say whether anything in it was changed.
    AuditVerify(JsonArgs),
}

/// Where the hub's configuration comes from.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HubConfigArgs {
    /// Read this file instead of hub.yaml in the configuration folder.
    #[arg(long, value_name = "FILE", env = "PICKET_HUB_CONFIG", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Set one key, over file and environment; can be given more than once.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = super::parse_assignment, global = true)]
    pub(crate) set: Vec<(String, String)>,
}

/// `picket hub ca …`.
#[derive(Debug, Subcommand)]
pub(crate) enum HubCaCommand {
    /// Make a new root and put it in force beside the old one.
    ///
    /// Agents' certificates come from the new one from now on, and bring both roots along; agents that are connected are
    /// asked to renew. The hub goes on showing a certificate of the old root, which all agents know. A hub that runs takes
    /// it up within ten minutes. Run again after it was broken off, it goes on.
    Roll(JsonArgs),
    /// Show the roots in force, and which agents do not know the new one yet.
    Status(JsonArgs),
    /// Drop the old root, when every agent knows the new one.
    Finish {
        /// Drop it although agents depend on it: they must be enrolled again.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        json: JsonArgs,
    },
}

/// `picket hub backup`.
#[derive(Debug, Clone, Args)]
pub(crate) struct HubBackupArgs {
    /// The file to make; there must be none of that name.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket hub restore`.
#[derive(Debug, Clone, Args)]
pub(crate) struct HubRestoreArgs {
    /// The backup.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Replace a database that is not empty. A file of SQLite's is kept beside it.
    #[arg(long)]
    pub(crate) replace: bool,
    /// Take a backup that was not signed with this hub's keys.
    #[arg(long)]
    pub(crate) other_keys: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket hub migrate`.
#[derive(Debug, Clone, Args)]
pub(crate) struct HubMigrateArgs {
    /// Read the address of the PostgreSQL database from this file, or from standard input for `-`: it has a password.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["to", "abort"])]
    pub(crate) to_file: Option<PathBuf>,
    /// The address of the PostgreSQL database, for one without a password; others on the machine can read it here.
    #[arg(long, value_name = "URL", env = "PICKET_HUB_MIGRATE_TO", hide_env_values = true, conflicts_with = "to_file")]
    pub(crate) to: Option<String>,
    /// The SQLite database to move; the one of hub.yaml unless it is said.
    #[arg(long, value_name = "sqlite:PATH")]
    pub(crate) from: Option<String>,
    /// Give up a move that was broken off: the hub goes on with the database it has.
    #[arg(long, conflicts_with_all = ["to", "to_file"])]
    pub(crate) abort: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
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
    /// Make command.key and seal.key anew if they are missing and there is no copy: what was sealed is lost with them.
    #[arg(long)]
    pub(crate) replace_lost_keys: bool,
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

/// `picket hub block …`.
#[derive(Debug, Subcommand)]
pub(crate) enum HubBlockCommand {
    /// Show who is turned away, and until when.
    List(JsonArgs),
    /// Let somebody in again, at once and also while the hub runs.
    Lift {
        /// An address, or the name of a user.
        #[arg(value_name = "ADDRESS|NAME")]
        who: String,
    },
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

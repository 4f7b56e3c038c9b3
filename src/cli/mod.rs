//! The command line: types only. What they mean is in [`crate::commands`].
//!
//! One definition gives the parser, the help, the shell completions and the manual pages.

mod alerts;
mod config_history;
mod data;
mod enroll;
mod hub;
mod release;
mod rollout;
mod update;

pub(crate) use alerts::{AckArgs, AlertsCommand, EventsCommand, ListArgs};
pub(crate) use config_history::{ConfigRestoreArgs, DiffArgs, HistoryArgs, Pick};
pub(crate) use data::{
    BackupArgs, CacheCommand, CleanArgs, CleanupArgs, DataCommand, ExportArgs, Format, RekeyArgs, RestoreArgs,
    TablesExportArgs, VerifyDataArgs,
};
pub(crate) use enroll::{CertCommand, EnrollArgs, RenewArgs, TestConnectionArgs, TokenArgs};
pub(crate) use hub::{
    GrantArgs, HubArgs, HubBackupArgs, HubBlockCommand, HubCaCommand, HubCommand, HubConfigArgs, HubInitArgs,
    HubMigrateArgs, HubRestoreArgs, HubTokenCommand, HubUserCommand, TokenCreateArgs, UserAddArgs,
};
pub(crate) use release::{
    AddArgs, BundleArgs, InitArgs, KeyKind, KeygenArgs, PublishArgs, ReleaseCommand, SignArgs, VerifyArgs, YankArgs,
};
pub(crate) use rollout::{HeadArgs, PlanArgs, ResumeArgs, RolloutArgs, StopArgs, WavesArgs};
pub(crate) use update::{ApplyArgs, CheckArgs, UpdateCommand};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use picket_layout::Role;
use semver::Version;
use std::ffi::OsString;
use std::path::PathBuf;

/// Installer, service, agent and updater in one binary.
#[derive(Debug, Parser)]
#[command(name = "picket", bin_name = "picket", disable_version_flag = true)]
#[command(max_term_width = 100, infer_subcommands = false)]
pub(crate) struct Cli {
    /// Print the version, the commit, the target and the day of the build.
    #[arg(short = 'V', long)]
    pub(crate) version: bool,
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Options that every command understands.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Global {
    /// Use the installation below this folder; needs no root.
    #[arg(long, global = true, value_name = "DIR", env = "PICKET_PREFIX", conflicts_with = "user")]
    pub(crate) prefix: Option<PathBuf>,
    /// Use the installation in the caller's home folder; needs no root.
    #[arg(long, global = true)]
    pub(crate) user: bool,
    /// When to use colours.
    #[arg(long, global = true, value_enum, default_value_t, env = "PICKET_COLOR", value_name = "WHEN")]
    pub(crate) color: Color,
    /// Say less; twice: only errors.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "verbose")]
    pub(crate) quiet: u8,
    /// Show what happens inside; twice: everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless `NO_COLOR` says otherwise.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Install this very executable, or upgrade to it, and start the agent.
    ///
    /// Running it again changes nothing, or completes what was interrupted. Another version is put beside the one that
    /// runs and tried like any update. With --role hub the machine becomes a hub, besides or instead of an agent: keys,
    /// configuration and the first administrator are made as `picket hub init` makes them, and nothing that is there is
    /// overwritten.
    Install(InstallArgs),
    /// Remove the installation; data and configuration are kept unless --purge is given.
    ///
    /// Works with the service down, without the network, and from any copy of the executable.
    Uninstall(UninstallArgs),
    /// Start, stop and watch the agent, and the hub where there is one, through the service manager.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// The agent itself.
    #[command(subcommand)]
    Agent(AgentCommand),
    /// The sensor: what sees files and connections for the agent, started by the service manager.
    #[command(subcommand, hide = true)]
    Sensor(SensorCommand),
    /// Make this machine an agent of a hub.
    ///
    /// The token says where the hub is and by which key it is known. It is read from --token-file, from
    /// `PICKET_ENROLL_TOKEN`, or asked for; it is no argument, because others could see it. A run that was interrupted is
    /// gone on with by another one with the same token. An agent that runs takes its new identity by itself.
    #[command(visible_alias = "register")]
    Enroll(EnrollArgs),
    /// This machine's certificate for its hub.
    #[command(subcommand)]
    Cert(CertCommand),
    /// Walk the way to the hub and name the step that fails: DNS, TCP, TLS, pin, certificate, clock, authorization.
    TestConnection(TestConnectionArgs),
    /// Look for anything that is not as it should be.
    Doctor(JsonArgs),
    /// Show and check the configuration, and bring back an earlier one.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What the machine keeps: look, export, clean, verify, save, restore.
    #[command(subcommand)]
    Data(DataCommand),
    /// The queue of events that wait to be delivered.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Show alerts, and say that somebody has seen them.
    #[command(subcommand)]
    Alerts(AlertsCommand),
    /// The form of events.
    #[command(subcommand)]
    Events(EventsCommand),
    /// Become the next version, or go back.
    #[command(subcommand)]
    Update(UpdateCommand),
    /// Manage a fleet: enrol machines, hear them, judge what they report.
    Hub(HubArgs),
    /// Run a hub and an agent of its in one process, to look at and to try out: nothing of it stays.
    ///
    /// Everything listens on loopback and lies in a temporary folder, which Ctrl-C removes. The administrator's password and
    /// an API token are printed: this is not for machines that others use.
    Dev(DevArgs),
    /// Make and sign releases (for vendors).
    #[command(subcommand)]
    Release(ReleaseCommand),
    /// Check that this executable works on this machine.
    SelfTest(SelfTestArgs),
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all of them to a folder.
    Man {
        /// Write picket.1, picket-update.1 and so on here.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Print the reference of all commands, keys and exit codes as Markdown.
    #[command(hide = true)]
    Reference {
        /// What to print.
        #[arg(value_enum)]
        part: ReferencePart,
    },
    /// The unprivileged half of the updater: reads one job from standard input and does it, confined.
    #[command(hide = true)]
    Fetcher {
        /// Where it meets the other half.
        #[arg(long)]
        work: PathBuf,
    },
    /// Run one of the operator's hooks, and print how it went: how the updater starts each of them.
    #[command(hide = true)]
    Hook {
        /// How long it may run, in milliseconds.
        #[arg(long)]
        limit_ms: u64,
        /// The user it runs as.
        #[arg(long)]
        run_as: Option<String>,
        /// The hook.
        file: PathBuf,
    },
    /// Confine this process and become another program: how the updater starts a new version's self-test.
    #[command(hide = true)]
    Sandbox {
        /// The one folder that may be written to.
        #[arg(long)]
        scratch: PathBuf,
        /// Leave the network open.
        #[arg(long)]
        network: bool,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
}

/// Parts of the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReferencePart {
    /// Every command with its options, and the exit codes.
    Cli,
    /// Every configuration key of an agent.
    Config,
    /// Every configuration key of a hub.
    Hub,
}

/// A command that can report in JSON.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct JsonArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `picket install`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct InstallArgs {
    /// Trust the releases that this root metadata (root.json from the vendor) vouches for.
    #[arg(long, value_name = "FILE")]
    pub(crate) root_keys: Option<PathBuf>,
    /// Follow the releases at this address.
    #[arg(long, value_name = "URL")]
    pub(crate) releases: Option<String>,
    /// Follow this channel.
    #[arg(long, value_name = "NAME")]
    pub(crate) channel: Option<String>,
    /// What the machine becomes, besides what it is; without it, what it is, and an agent where it is nothing.
    #[arg(long = "role", value_name = "ROLE", value_enum)]
    pub(crate) roles: Vec<RoleArg>,
    /// A DNS name or address by which machines and people reach this hub; the first one stands in tokens.
    #[arg(long = "hub-name", value_name = "HOST")]
    pub(crate) hub_names: Vec<String>,
    /// Read the hub's administrator's password from this file, or from standard input for `-`; without it, ask on a
    /// terminal, and elsewhere print a secret with which the password is set once, within a day.
    #[arg(long, value_name = "FILE")]
    pub(crate) hub_password_file: Option<PathBuf>,
    /// Then take the release in this file, which `picket release bundle` made, under a trial: needs no network.
    #[arg(long, value_name = "FILE", conflicts_with = "no_start")]
    pub(crate) bundle: Option<PathBuf>,
    /// Do not start what was installed.
    #[arg(long)]
    pub(crate) no_start: bool,
    /// Only show what would change.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// What an installation can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleArg {
    /// Watches its machine.
    Agent,
    /// Manages a fleet.
    Hub,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Agent => Self::Agent,
            RoleArg::Hub => Self::Hub,
        }
    }
}

/// `picket uninstall`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct UninstallArgs {
    /// Take only this from the machine, where it is more.
    #[arg(long, value_name = "ROLE", value_enum)]
    pub(crate) role: Option<RoleArg>,
    /// Remove data and configuration, too.
    #[arg(long)]
    pub(crate) purge: bool,
    /// Only show what would be removed.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket service …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Start the agent and wait until it is ready.
    Start,
    /// Stop the agent and wait until it has stopped.
    Stop,
    /// Restart the agent and wait until it is ready.
    Restart,
    /// Show what the service manager and the agent say.
    Status(JsonArgs),
    /// Show the agent's log.
    Logs {
        /// How many of the last lines.
        #[arg(short = 'n', long, default_value_t = 50)]
        lines: u32,
        /// Go on as new lines come.
        #[arg(short, long)]
        follow: bool,
    },
    /// Be the service manager of a prefix or a container: run the agent and the updater until told to stop.
    Run {
        /// Go on in the background, and log to the log folder.
        #[arg(long, hide = true)]
        detached: bool,
    },
}

/// `picket agent …`.
#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Run the agent in the foreground until SIGTERM or SIGINT.
    Run(ConfigArgs),
}

/// `picket sensor …`.
#[derive(Debug, Subcommand)]
pub(crate) enum SensorCommand {
    /// Run the sensor in the foreground until SIGTERM or SIGINT.
    Run(ConfigArgs),
}

/// Where configuration comes from.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ConfigArgs {
    /// Read this file instead of the one in the configuration folder.
    #[arg(long, value_name = "FILE", env = "PICKET_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Set one key, over file and environment; can be given more than once.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_assignment)]
    pub(crate) set: Vec<(String, String)>,
    /// Log this much: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
}

fn parse_assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, for example update.auto=all")?;
    if key.is_empty() { Err("the key is missing".to_owned()) } else { Ok((key.to_owned(), value.to_owned())) }
}

/// `picket config …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every key with the value in force.
    Show {
        /// Show where each value came from.
        #[arg(long)]
        origin: bool,
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Report everything that is wrong with the configuration, unknown keys included.
    Check {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Print the configuration file's path, or the folder where one can be put.
    Path,
    /// Print the JSON schema of the configuration.
    Schema,
    /// Show every configuration that was in force, newest first.
    History(HistoryArgs),
    /// Show what differs between two of them, key by key, secrets left out.
    Diff(DiffArgs),
    /// Bring back the files of an earlier configuration.
    ///
    /// The files that are replaced stay beside the restored ones. An agent that runs takes the change by itself.
    Restore(ConfigRestoreArgs),
}

/// `picket dev`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DevArgs {
    /// Watch this folder instead of one in the temporary folder; can be given more than once.
    #[arg(long, value_name = "DIR")]
    pub(crate) watch: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket self-test`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SelfTestArgs {
    /// Also fetch and verify the release metadata from this address.
    #[arg(long, value_name = "URL", requires = "trust")]
    pub(crate) releases: Option<String>,
    /// The channel to look for there.
    #[arg(long, value_name = "NAME", default_value = "stable")]
    pub(crate) channel: String,
    /// The folder with the trusted root.json; what is fetched is kept there.
    #[arg(long, value_name = "DIR")]
    pub(crate) trust: Option<PathBuf>,
    /// Write the units of these roles instead of the installation's.
    #[arg(long = "role", value_name = "ROLE", value_enum, hide = true)]
    pub(crate) roles: Vec<RoleArg>,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// The definition of the whole command line, with the product's version.
pub(crate) fn definition() -> clap::Command {
    Cli::command().version(crate::build::version())
}

/// A version on the command line: a leading `v` is forgiven.
fn parse_version(text: &str) -> Result<Version, String> {
    let bare = text.strip_prefix('v').unwrap_or(text);
    Version::parse(bare).map_err(|error| format!("{error}; a version looks like 1.2.3"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_is_free_of_contradictions() {
        super::definition().debug_assert();
    }
}

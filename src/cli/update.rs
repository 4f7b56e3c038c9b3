//! `picket update …`.

use super::{JsonArgs, parse_version};
use clap::{Args, Subcommand};
use semver::Version;
use std::path::PathBuf;

/// `picket update …`.
#[derive(Debug, Subcommand)]
pub(crate) enum UpdateCommand {
    /// Look whether a newer release is there, or which ones there are.
    #[command(after_help = "Examples:\n  sudo picket update check\n  sudo picket update check --releases\n  \
                            sudo picket update check --releases --limit 3 --json")]
    Check(CheckArgs),
    /// Update to the channel's newest release, or to one by name, under a trial.
    ///
    /// The new version runs on trial first. If it does not do well, the old one is back by itself; a power cut during
    /// the trial starts the old one. It is safe to close the terminal: the service manager owns the update.
    Apply(ApplyArgs),
    /// Go back to the previous version, under a trial; needs no network.
    ///
    /// A version that the vendor took back is not gone back to, as far as the last check heard of it.
    Rollback {
        /// Go back even to a version that the vendor took back.
        #[arg(long)]
        force: bool,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Show what runs, what happened last, and what is known.
    Status(JsonArgs),
    /// Show the updates of the past, newest first, and what each decision rests on; the last 50 are kept.
    ///
    /// With an id, everything that is known of that update: each health check before and after, hooks, restarts, what
    /// was reached, and the time of each step.
    History {
        /// One of them: its id, or the beginning or end of it.
        id: Option<String>,
        /// How many.
        #[arg(short = 'n', long, default_value_t = 10)]
        limit: usize,
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Stay on this version (or go to it) until unpinned.
    Pin {
        /// The version.
        #[arg(value_parser = parse_version)]
        version: Version,
    },
    /// Follow the channel again.
    Unpin,
    /// Remove old versions and partial downloads; never the current, the previous or a running version.
    Clean(JsonArgs),
    /// Finish or undo an update that a crash interrupted; runs by itself at every boot.
    Recover(JsonArgs),
    /// Do what the service manager starts the updater for: take up a request, or do the daily check.
    Run,
}

/// `picket update check`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CheckArgs {
    /// List the newest releases and their notes: those of the GitHub repository in update.releases as its API has them, or
    /// those of the signed channel in a release tree.
    ///
    /// A token for the API is taken from `GH_TOKEN` or `GITHUB_TOKEN`, for another host than github.com from
    /// `GH_ENTERPRISE_TOKEN` or `GITHUB_ENTERPRISE_TOKEN`, and goes to that API alone.
    #[arg(long)]
    pub(crate) releases: bool,
    /// List so many at most.
    #[arg(long, value_name = "COUNT", default_value_t = 20, requires = "releases",
          value_parser = clap::value_parser!(u16).range(1..=300))]
    pub(crate) limit: u16,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket update apply`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ApplyArgs {
    /// The release; the channel's newest one if not given.
    #[arg(value_parser = parse_version)]
    pub(crate) version: Option<Version>,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Take the release from this file, which `picket release bundle` made: needs no network.
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: Option<PathBuf>,
    /// Do not wait for hooks that call the machine busy, nor for this machine's turn in a rollout.
    #[arg(long)]
    pub(crate) now: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

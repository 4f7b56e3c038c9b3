//! `picket release …`: the vendor's side.

use super::rollout::{HeadArgs, PlanArgs, ResumeArgs, RolloutArgs, StopArgs};
use super::{JsonArgs, parse_version};
use clap::{Args, Subcommand, ValueEnum};
use picket_protocol::TargetTriple;
use semver::Version;
use std::path::PathBuf;

/// `picket release …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ReleaseCommand {
    /// Make a signing key, encrypted under a passphrase.
    Keygen(KeygenArgs),
    /// Make a release repository, or draft its next root.
    Init(InitArgs),
    /// Add a build of a release: sign it with minisign and list it in a channel.
    Add(AddArgs),
    /// Sign what waits for signatures, or a document apart from any repository.
    Sign(SignArgs),
    /// Sign and write the release tree that machines follow.
    Publish(PublishArgs),
    /// Bring a release out in waves, so that a broken one meets few machines first.
    Rollout(RolloutArgs),
    /// Show who gets a release when, and how many machines a broken one would hit by then.
    ///
    /// With --waves, --window or --jitter, these are tried out instead of what the repository says.
    Plan(PlanArgs),
    /// Halt a rollout, or all: machines that have not taken it do not. Those that run it stay, unless it is yanked.
    Stop(StopArgs),
    /// Go on with what was stopped; waves that had not opened come later by the length of the halt.
    Resume(ResumeArgs),
    /// Choose which release machines should run.
    Head(HeadArgs),
    /// Take a release back: machines no longer go to it, and those that run it leave it.
    Yank(YankArgs),
    /// Sign the timestamp anew, so that machines know that the newest is still the newest. For a schedule.
    Refresh(PublishArgs),
    /// Do what a machine does with a release tree, and say what it would do.
    Verify(VerifyArgs),
    /// Put a release into one file, for machines without a network: `picket update apply --bundle FILE`.
    ///
    /// Takes what is published; needs no key. Machines verify the file as they verify a server, so it is good for as long as
    /// the metadata in it is. Unpacked, it is a release tree.
    Bundle(BundleArgs),
}

/// Which repository, and how keys are opened.
#[derive(Debug, Clone, Args)]
pub(crate) struct RepositoryArgs {
    /// The release repository.
    #[arg(long, value_name = "DIR", default_value = "release-repository")]
    pub(crate) repo: PathBuf,
}

/// How keys are opened.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PassphraseArgs {
    /// Read the passphrase from the first line of this file instead of asking (or set `PICKET_RELEASE_PASSPHRASE`).
    #[arg(long, value_name = "FILE", env = "PICKET_RELEASE_PASSPHRASE_FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

/// The kinds of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyKind {
    /// Says which keys count; keep it offline, have several.
    Root,
    /// Says which releases exist.
    Targets,
    /// Says what is newest; the scheduled refresh needs it.
    Online,
    /// Signs each artifact: the second lock.
    Minisign,
}

/// `picket release keygen`.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeygenArgs {
    /// What the key is for.
    #[arg(value_enum)]
    pub(crate) kind: KeyKind,
    /// The new secret key file; the public half gets `.pub` added.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) passphrase: PassphraseArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket release init`.
#[derive(Debug, Clone, Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
    /// A root public key; give one for each holder.
    #[arg(long, value_name = "FILE.pub", required = true)]
    pub(crate) root_key: Vec<PathBuf>,
    /// How many root signatures a root needs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) root_threshold: usize,
    /// A targets public key; can be given more than once.
    #[arg(long, value_name = "FILE.pub", required = true)]
    pub(crate) targets_key: Vec<PathBuf>,
    /// How many targets signatures a release needs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) targets_threshold: usize,
    /// An online public key; one of them signs snapshot and timestamp.
    #[arg(long, value_name = "FILE.pub", required = true)]
    pub(crate) online_key: Vec<PathBuf>,
    /// A minisign public key; can be given more than once.
    #[arg(long, value_name = "FILE.pub", required = true)]
    pub(crate) minisign_key: Vec<PathBuf>,
    /// Days that a root is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    pub(crate) root_days: u32,
    /// Days that a release is valid without being published again.
    #[arg(long, value_name = "DAYS", default_value_t = 180)]
    pub(crate) targets_days: u32,
    /// Days that a snapshot is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    pub(crate) snapshot_days: u32,
    /// Days that a timestamp is valid: how long a refresh may be late.
    #[arg(long, value_name = "DAYS", default_value_t = 14)]
    pub(crate) timestamp_days: u32,
    /// The repository exists: draft its next root, with these keys and a new lifetime.
    #[arg(long)]
    pub(crate) next_root: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket release add`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
    /// The version.
    #[arg(value_parser = parse_version)]
    pub(crate) version: Version,
    /// The build: a .tar.xz, .tar.zst or .zip that holds `picket`, or the bare executable.
    #[arg(required = true)]
    pub(crate) file: PathBuf,
    /// What it was built for, where the file name does not say.
    #[arg(long, value_name = "TRIPLE")]
    pub(crate) target: Option<TargetTriple>,
    /// The minisign secret key.
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) minisign_key: PathBuf,
    /// The channel.
    #[arg(long, value_name = "NAME", default_value = "stable")]
    pub(crate) channel: String,
    /// What changed, for the people who decide.
    #[arg(long, value_name = "TEXT", conflicts_with = "notes_file")]
    pub(crate) notes: Option<String>,
    /// The same from a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) notes_file: Option<PathBuf>,
    /// Every machine should take it at its next check.
    #[arg(long)]
    pub(crate) critical: bool,
    /// The state format that this release writes; this executable's own if not given.
    #[arg(long, value_name = "N")]
    pub(crate) state_format: Option<u32>,
    /// How hard to compress a bare executable, 0 to 9.
    #[arg(long, value_name = "LEVEL", default_value_t = 6, value_parser = clap::value_parser!(u32).range(0..=9))]
    pub(crate) xz_level: u32,
    #[command(flatten)]
    pub(crate) passphrase: PassphraseArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket release sign`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SignArgs {
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
    /// The secret key to sign with.
    #[arg(long, value_name = "FILE", required_unless_present = "attach")]
    pub(crate) key: Option<PathBuf>,
    /// Sign this document, on a machine that has no repository; the signature goes to --out.
    #[arg(long, value_name = "FILE", requires = "key", requires = "out")]
    pub(crate) document: Option<PathBuf>,
    /// Where the signature of --document goes.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Bring a signature back that was made elsewhere with --document; can be given more than once.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "document"])]
    pub(crate) attach: Vec<PathBuf>,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) passphrase: PassphraseArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket release publish` and `picket release refresh`.
#[derive(Debug, Clone, Args)]
pub(crate) struct PublishArgs {
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
    /// A secret key to sign with; give the targets and the online key to publish, the online key to refresh.
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) key: Vec<PathBuf>,
    /// Write the tree of static files here, for any web server.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Write the same as assets of GitHub releases here.
    #[arg(long, value_name = "DIR")]
    pub(crate) github: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) passphrase: PassphraseArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket release yank`.
#[derive(Debug, Clone, Args)]
pub(crate) struct YankArgs {
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
    /// The version.
    #[arg(value_parser = parse_version)]
    pub(crate) version: Version,
    /// Why, for the people who run it.
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) reason: String,
    /// The version that machines should run instead; the newest other one if not given.
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    pub(crate) head: Option<Version>,
    /// Machines on this newer version go back to the head, too, though it is not yanked; can be given more than once.
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    pub(crate) allow_downgrade_from: Vec<Version>,
    /// The channel.
    #[arg(long, value_name = "NAME", default_value = "stable")]
    pub(crate) channel: String,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket release verify`.
#[derive(Debug, Clone, Args)]
pub(crate) struct VerifyArgs {
    /// A release tree: a folder, a bundle or an address.
    pub(crate) tree: String,
    /// The root to trust; the folder's own first root if not given, which proves nothing about who made it.
    #[arg(long, value_name = "FILE")]
    pub(crate) root: Option<PathBuf>,
    /// The channel.
    #[arg(long, value_name = "NAME", default_value = "stable")]
    pub(crate) channel: String,
    /// Say what a machine that runs this version would do.
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    pub(crate) from: Option<Version>,
    /// Say it for a machine of this kind; this executable's own if not given.
    #[arg(long, value_name = "TRIPLE")]
    pub(crate) target: Option<TargetTriple>,
    /// Check every artifact of the channel, not only the head's.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket release bundle`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BundleArgs {
    /// A release tree: a folder or an address.
    pub(crate) tree: String,
    /// The new file.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The root to trust; the folder's own first root if not given, which proves nothing about who made it.
    #[arg(long, value_name = "FILE")]
    pub(crate) root: Option<PathBuf>,
    /// The channel; can be given more than once.
    #[arg(long, value_name = "NAME", default_value = "stable")]
    pub(crate) channel: Vec<String>,
    /// A release of the channel; its head if not given. Can be given more than once.
    #[arg(long = "release", value_name = "VERSION", value_parser = parse_version)]
    pub(crate) releases: Vec<Version>,
    /// Builds for machines of this kind; for every kind if not given. Can be given more than once.
    #[arg(long = "target", value_name = "TRIPLE")]
    pub(crate) targets: Vec<TargetTriple>,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

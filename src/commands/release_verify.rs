//! `picket release verify`: does what a machine does with a release tree, and says what it would do.

use super::Context;
use crate::build;
use crate::cli::VerifyArgs;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use picket_protocol::{Channel, TargetTriple};
use picket_transport::{Client, Timeouts, TransportError};
use picket_update::Clock;
use picket_update::config::AutoUpdate;
use picket_update::decide::{Asked, Decision, Facts, decide};
use picket_update::engine::fetch_channel;
use picket_update::fetch::{Location, Server};
use picket_update::trust::minisign::{MAX_SIGNATURE_BYTES, trusted_comment};
use picket_update::trust::{
    MetadataSource, MinisignKeys, TrustClient, TrustError, TrustStore, Trusted, VerifiedTarget,
};
use semver::Version;
use serde_json::json;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// The largest root metadata, in bytes.
const MAX_ROOT: u64 = 512_000;

/// A release tree: a folder, or a server.
enum Tree {
    Folder(PathBuf),
    Server(Server),
}

impl MetadataSource for Tree {
    fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        match self {
            Self::Server(server) => server.fetch(name, max_bytes),
            // A file that cannot be read is a file that a machine would not get.
            Self::Folder(dir) => {
                Ok(picket_durable::read_if_present(&dir.join("metadata").join(name), max_bytes).ok().flatten())
            }
        }
    }

    fn fetch_target(&self, target: &VerifiedTarget, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        match self {
            Self::Server(server) => server.fetch_target(target, max_bytes),
            Self::Folder(_) => Ok(self.target(target, "", max_bytes).ok()),
        }
    }
}

impl Tree {
    fn parse(text: &str) -> Result<Self, CommandError> {
        let dir = Path::new(text);
        if dir.is_dir() {
            return Ok(Self::Folder(dir.to_owned()));
        }
        let location = Location::parse(text).map_err(|error| {
            CommandError::Usage(format!("{text:?} is neither a folder nor an address that machines follow: {error}"))
        })?;
        Ok(Self::Server(Server { client: Client::new(&build::user_agent(), Timeouts::default()), location }))
    }

    /// The bytes of a target, with `suffix` added to its name.
    fn target(&self, target: &VerifiedTarget, suffix: &str, max_bytes: u64) -> Result<Vec<u8>, TrustError> {
        let missing = || TrustError::Missing(format!("{}{suffix}", target.path));
        match self {
            Self::Folder(dir) => {
                let (folder, file) = target.path.rsplit_once('/').unwrap_or(("", &target.path));
                let path = dir.join("targets").join(folder).join(format!("{}.{file}{suffix}", target.hashes));
                picket_durable::read_if_present(&path, max_bytes)?.ok_or_else(missing)
            }
            Self::Server(server) => {
                let location = &server.location;
                let url = if suffix.is_empty() { location.target(target) } else { location.signature(target) };
                server.optional(&url.map_err(TransportError::from)?, max_bytes)?.ok_or_else(missing)
            }
        }
    }
}

/// Runs `picket release verify`.
pub(super) fn run(context: &Context<'_>, args: &VerifyArgs) -> Result<ExitCode, CommandError> {
    let tree = Tree::parse(&args.tree)?;
    let root = root(context, args, &tree)?;
    let scratch = std::env::temp_dir().join(format!("picket-verify-{}", picket_update::random_id()));
    let result = verify(context, args, &tree, &root, &scratch);
    picket_durable::remove_tree(&scratch)?;
    result
}

fn root(context: &Context<'_>, args: &VerifyArgs, tree: &Tree) -> Result<Vec<u8>, CommandError> {
    if let Some(path) = &args.root {
        return Ok(picket_durable::read_bounded(path, MAX_ROOT)?);
    }
    context.output.warn("no --root given: trusting the tree's own first root, which proves nothing about who made it");
    let root = tree.fetch("1.root.json", MAX_ROOT).map_err(TrustError::from)?;
    Ok(root.ok_or_else(|| TrustError::Missing("1.root.json".to_owned()))?)
}

fn verify(
    context: &Context<'_>,
    args: &VerifyArgs,
    tree: &Tree,
    root: &[u8],
    scratch: &Path,
) -> Result<ExitCode, CommandError> {
    let store = TrustStore::new(scratch);
    let clock = Clock::system();
    let client = TrustClient::new(&store, &clock);
    client.check_root(root)?;
    let mut trusted = client.refresh(Some(root), tree)?;
    let target = args.target.clone().unwrap_or_else(|| build::info().target);
    let channel = fetch_channel(&client, tree, &mut trusted, &args.channel, &target)?;
    let checked = artifacts(args, tree, &client, &mut trusted, &channel)?;
    let would = args.from.as_ref().map(|from| would_do(from, &channel, &target));
    let [root, timestamp, snapshot, targets] = trusted.versions();
    let (role, until) = (trusted.expiry().first().0, trusted.expiry().first().1);
    if args.json.json {
        context.output.json(&json!({
            "root": root, "timestamp": timestamp, "snapshot": snapshot, "targets": targets,
            "valid_until": until, "first_to_expire": role, "channel": channel.channel, "head": channel.head,
            "yanked": channel.yanked, "stopped": channel.stop_of(&channel.head), "artifacts": checked, "machine_would": would,
        }));
        return Ok(ExitCode::Success);
    }
    let output = context.output;
    let versions = format!("root {root}, timestamp {timestamp}, snapshot {snapshot}, targets {targets}");
    output.marked(Tone::Good, format_args!("metadata: {versions}; valid until {until} ({role})"));
    output.marked(Tone::Good, format_args!("channel {}: head {}", channel.channel, channel.head));
    for (version, yank) in &channel.yanked {
        output.marked(Tone::Warn, format_args!("{version} is taken back: {}", yank.reason));
    }
    if let Some(stop) = channel.stop_of(&channel.head) {
        output.marked(Tone::Warn, format_args!("{} is stopped since {}: {}", channel.head, stop.at, stop.reason));
    }
    for path in &checked {
        output.marked(Tone::Good, format_args!("{path}: length, SHA-256 and minisign signature hold"));
    }
    if let (Some(from), Some(would)) = (&args.from, would) {
        output.field(&format!("A machine on {from} ({target}) would"), would);
    }
    Ok(ExitCode::Success)
}

/// Checks artifacts as a machine does; returns their paths.
fn artifacts(
    args: &VerifyArgs,
    tree: &Tree,
    client: &TrustClient<'_>,
    trusted: &mut Trusted,
    channel: &Channel,
) -> Result<Vec<String>, CommandError> {
    let mut checked = Vec::new();
    for (version, release) in &channel.releases {
        if !args.all && *version != channel.head {
            continue;
        }
        for (target, artifact) in &release.artifacts {
            let signed = client.find(trusted, tree, &artifact.path)?;
            artifact_holds(
                tree,
                &signed,
                &trusted.minisign_keys(),
                &trusted_comment(version, target, &signed.sha256()?),
            )?;
            checked.push(artifact.path.clone());
        }
    }
    Ok(checked)
}

fn artifact_holds(
    tree: &Tree,
    signed: &VerifiedTarget,
    keys: &MinisignKeys,
    expected_comment: &str,
) -> Result<(), TrustError> {
    let bytes = tree.target(signed, "", signed.length)?;
    signed.check(&bytes)?;
    let signature = tree.target(signed, ".minisig", MAX_SIGNATURE_BYTES)?;
    keys.verify(&signed.path, Cursor::new(bytes), &String::from_utf8_lossy(&signature), expected_comment)
}

fn would_do(from: &Version, channel: &Channel, target: &TargetTriple) -> String {
    // Of a machine whose turn has come: when that is, `release plan` says.
    let facts = Facts {
        current: from,
        channel,
        target,
        pinned: None,
        auto: AutoUpdate::All,
        held: &|_, _| None,
        machine: "",
        now: jiff::Timestamp::MAX,
    };
    match decide(&facts, &Asked::BySchedule) {
        Decision::Take { version } => format!("try release {version}"),
        Decision::Stay { reason } | Decision::Refuse { reason } => format!("stay: {reason}"),
        Decision::Offer { version, waiting, .. } => format!("offer release {version}: {waiting}"),
    }
}

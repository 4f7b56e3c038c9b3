//! `picket release verify`: does what a machine does with a release tree, and says what it would do.

use super::Context;
use super::release_tree::Tree;
use crate::build;
use crate::cli::VerifyArgs;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use picket_protocol::{Channel, TargetTriple};
use picket_update::Clock;
use picket_update::config::AutoUpdate;
use picket_update::decide::{Asked, Decision, Facts, decide};
use picket_update::engine::fetch_channel;
use picket_update::trust::minisign::trusted_comment;
use picket_update::trust::{TrustClient, TrustStore, Trusted};
use semver::Version;
use serde_json::json;
use std::path::Path;

/// Runs `picket release verify`.
pub(super) fn run(context: &Context<'_>, args: &VerifyArgs) -> Result<ExitCode, CommandError> {
    let tree = Tree::parse(context, &args.tree)?;
    let root = tree.root(context, args.root.as_deref())?;
    let scratch = std::env::temp_dir().join(format!("picket-verify-{}", picket_update::random_id()));
    let result = verify(context, args, &tree, &root, &scratch);
    picket_durable::remove_tree(&scratch)?;
    result
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
            let comment = trusted_comment(version, target, &signed.sha256()?);
            tree.artifact(&signed, &trusted.minisign_keys(), &comment)?;
            checked.push(artifact.path.clone());
        }
    }
    Ok(checked)
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

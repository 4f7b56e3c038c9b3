//! `picket release bundle`: a part of a release tree in one file, verified as a machine verifies it.

use super::Context;
use super::release_tree::{MAX_ROOT, Tree};
use crate::build;
use crate::cli::BundleArgs;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use picket_protocol::{Artifact, Channel, TargetTriple};
use picket_release::BundleWriter;
use picket_transport::TransportError;
use picket_update::Clock;
use picket_update::engine::fetch_channel;
use picket_update::fetch::target_place;
use picket_update::trust::minisign::trusted_comment;
use picket_update::trust::{MetadataSource, TrustClient, TrustError, TrustStore, Trusted, VerifiedTarget};
use semver::Version;
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

/// Runs `picket release bundle`.
pub(super) fn run(context: &Context<'_>, args: &BundleArgs) -> Result<ExitCode, CommandError> {
    let tree = Tree::parse(context, &args.tree)?;
    let root = tree.root(context, args.root.as_deref())?;
    let scratch = std::env::temp_dir().join(format!("picket-bundle-{}", picket_update::random_id()));
    let result = write(context, args, &tree, &root, &scratch);
    picket_durable::remove_tree(&scratch)?;
    result
}

/// One build that goes into the bundle.
struct Build<'a> {
    version: &'a Version,
    target: &'a TargetTriple,
    artifact: &'a Artifact,
}

/// Remembers the metadata that a machine would ask for.
struct Witness<'a> {
    tree: &'a Tree,
    seen: RefCell<BTreeMap<String, Vec<u8>>>,
}

impl MetadataSource for Witness<'_> {
    fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        let answer = self.tree.fetch(name, max_bytes)?;
        if let Some(bytes) = &answer {
            self.seen.borrow_mut().insert(name.to_owned(), bytes.clone());
        }
        Ok(answer)
    }

    fn fetch_target(&self, target: &VerifiedTarget, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        self.tree.fetch_target(target, max_bytes)
    }
}

fn write(
    context: &Context<'_>,
    args: &BundleArgs,
    tree: &Tree,
    root: &[u8],
    scratch: &Path,
) -> Result<ExitCode, CommandError> {
    let (store, clock) = (TrustStore::new(scratch), Clock::system());
    let client = TrustClient::new(&store, &clock);
    client.check_root(root)?;
    let witness = Witness { tree, seen: RefCell::default() };
    let mut trusted = client.refresh(Some(root), &witness)?;
    let mut writer = BundleWriter::create(&args.out)?;
    let mut added = Vec::new();
    for name in &args.channel {
        let channel = channel(context, args, &client, &witness, &mut trusted, name)?;
        for build in chosen(args, &channel)? {
            let Build { version, target, artifact } = build;
            let signed = client.find(&mut trusted, &witness, &artifact.path)?;
            if added.contains(&artifact.path) {
                continue;
            }
            context.output.say(format_args!("adding {} ({} MiB)", artifact.path, signed.length.div_ceil(1 << 20)));
            let comment = trusted_comment(version, target, &signed.sha256()?);
            let (bytes, signature) = tree.artifact(&signed, &trusted.minisign_keys(), &comment)?;
            let place = target_place(&signed);
            writer.add(&place, &bytes)?;
            writer.add(&format!("{place}.minisig"), &signature)?;
            added.push(artifact.path.clone());
        }
        let document = client.find(&mut trusted, &witness, &Channel::target_path(name))?;
        let bytes = tree.fetch_target(&document, document.length).map_err(TrustError::from)?;
        let bytes = bytes.ok_or_else(|| TrustError::Missing(document.path.clone()))?;
        writer.add(&target_place(&document), &bytes)?;
    }
    let mut metadata = witness.seen.into_inner();
    // Machines may still trust an older root than the one that was begun with here.
    for number in 1..=trusted.versions()[0] {
        let name = format!("{number}.root.json");
        if !metadata.contains_key(&name) {
            let bytes = tree.fetch(&name, MAX_ROOT).map_err(TrustError::from)?;
            metadata.insert(name.clone(), bytes.ok_or(TrustError::Missing(name))?);
        }
    }
    for (name, bytes) in &metadata {
        writer.add(&format!("metadata/{name}"), bytes)?;
    }
    let length = writer.finish()?;
    let (role, until) = trusted.expiry().first();
    if args.json.json {
        context.output.json(&json!({
            "bundle": args.out, "bytes": length, "artifacts": added, "channels": args.channel,
            "valid_until": until, "first_to_expire": role,
        }));
        return Ok(ExitCode::Success);
    }
    let output = context.output;
    output.marked(Tone::Good, format_args!("{} ({} MiB)", args.out.display(), length.div_ceil(1 << 20)));
    output.marked(Tone::Plain, format_args!("machines take it until {until} ({role})"));
    output.hint(format_args!("on the machine: picket update apply --bundle {}", args.out.display()));
    Ok(ExitCode::Success)
}

fn channel(
    context: &Context<'_>,
    args: &BundleArgs,
    client: &TrustClient<'_>,
    witness: &Witness<'_>,
    trusted: &mut Trusted,
    name: &str,
) -> Result<Channel, CommandError> {
    let channel = fetch_channel(client, witness, trusted, name, &build::info().target)?;
    if !args.releases.is_empty() && !args.releases.contains(&channel.head) {
        let head = &channel.head;
        context
            .output
            .warn(format_args!("the head of {name}, {head}, is not in it: machines must be told which release"));
    }
    Ok(channel)
}

/// The builds that were asked for.
fn chosen<'a>(args: &BundleArgs, channel: &'a Channel) -> Result<Vec<Build<'a>>, CommandError> {
    let head = [channel.head.clone()];
    let wanted: &[Version] = if args.releases.is_empty() { &head } else { &args.releases };
    let mut builds = Vec::new();
    for version in wanted {
        let Some((version, release)) = channel.releases.get_key_value(version) else {
            let has: Vec<String> = channel.releases.keys().map(ToString::to_string).collect();
            let name = &channel.channel;
            return Err(CommandError::Usage(format!("{name} has no release {version}; it has {}", has.join(", "))));
        };
        for target in &args.targets {
            if !release.artifacts.contains_key(target) {
                let has: Vec<String> = release.artifacts.keys().map(ToString::to_string).collect();
                return Err(CommandError::Usage(format!(
                    "release {version} has no build for {target}; it has {}",
                    has.join(", ")
                )));
            }
        }
        let wanted = |target: &TargetTriple| args.targets.is_empty() || args.targets.contains(target);
        let of_release = release.artifacts.iter().filter(|(target, _)| wanted(target));
        builds.extend(of_release.map(|(target, artifact)| Build { version, target, artifact }));
    }
    Ok(builds)
}
